//! docs/docker.md: docker on a flannel network over an etcd that asks for certificates.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::Duration;

use lab::{Container, Docker, Flow, FlowReport, Lab, Node, StoreKind, wait_for};
use model::Family;
use serde_json::json;

use crate::scene::{self, MK_DOCKER_OPTS, SOON, sh, systemd_words};

/// The fabric, which is no part of the containers' network.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 78, 254);

/// A web server that tells who asks.
const SERVER: &str = "mkdir /www && dd if=/dev/zero of=/www/big bs=1M count=16 && \
    echo here >/www/index.html && exec httpd -f -vv -p 80 -h /www 2>&1";

/// A lab as the guide has it: etcd with certificates for both sides, subnets of 2,046 containers.
fn lab() -> Lab {
    let lab = scene::lab()
        .nodes(2)
        .pods_per_node(0)
        .store(StoreKind::Etcd { tls: true })
        .etcd_prefix("/kubernetes/network")
        .config("SubnetLen", json!(21))
        .flanneld_args(["-iface=eth0", "-ip-masq"])
        .build()
        .unwrap();
    lab.start().unwrap();
    lab
}

/// A node with docker on it and a web server in that.
struct Host<'a> {
    lab: &'a Lab,
    node: &'a Node,
    web: Container,
    docker: Docker,
}

impl<'a> Host<'a> {
    fn new(lab: &'a Lab, node: usize, docker_args: &[&str]) -> Host<'a> {
        let node = lab.node(node);
        // As on a fresh machine. It is docker that switches it on, and closes FORWARD when it does.
        sh(node, "echo 0 >/proc/sys/net/ipv4/ip_forward");
        let docker = node.docker().unwrap();
        let mut options = options(node);
        options.extend(docker_args.iter().map(|a| a.to_string()));
        docker.start(&options).unwrap();
        docker.import_busybox("busybox").unwrap();
        let publish = ["--publish", "8080:80"];
        let web = docker.run("web", &publish, "busybox", &["sh", "-c", SERVER]);
        let web = web.unwrap();
        // Answered once the server listens.
        let url = format!("http://{}/", web.ip());
        wait_for("the server answers", SOON, || {
            let page = node.exec(["busybox", "wget", "-q", "-O", "-", &url]);
            page.map_err(|e| format!("{e}; {:?}", docker.ctl(["logs", "web"])))
        })
        .unwrap();
        Host {
            lab,
            node,
            web,
            docker,
        }
    }

    fn inside(&self, command: &str) -> String {
        let ran = self.docker.exec(&self.web, &["sh", "-c", command]);
        ran.unwrap_or_else(|e| panic!("{e}\n{}", self.docker.log_tail(5)))
    }

    /// Who the container is for somebody outside of the network.
    fn address_seen_outside(&self) -> IpAddr {
        let fabric = self.lab.fabric();
        let listen = || TcpListener::bind((OUTSIDE, 0)).unwrap();
        let listener = fabric.run(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let accept = std::thread::spawn(move || listener.accept().unwrap().1.ip());
        self.inside(&format!("nc -w 5 {OUTSIDE} {port} </dev/null"));
        accept.join().unwrap()
    }

    /// All that must work from this container, to the other host's and to the outside.
    fn reaches(&self, far: &Host) {
        let (own, to) = (self.web.ip(), far.web.ip());
        self.inside(&format!("ping -c 1 -W 5 {to}"));
        let got = self.inside(&format!("wget -q -O - http://{to}/big | wc -c"));
        assert_eq!(got.trim(), (16 << 20).to_string());
        // The other one sees who asks: the container, not its node.
        let log = far.docker.ctl(["logs", "web"]).unwrap();
        let from = |ip: IpAddr| log.contains(&format!("{ip}]:")) || log.contains(&format!("{ip}:"));
        assert!(from(own), "{own} is not in\n{log}");
        assert!(!from(self.node.ip(Family::V4)), "{log}");
        let gateway = self.node.subnet_env().unwrap().cidr(Family::V4).unwrap();
        assert!(!from(gateway.addr()), "{log}");

        assert_eq!(self.address_seen_outside(), self.node.ip(Family::V4));
        // By docker's own rules: a published port.
        let url = format!("http://{}:8080/", self.node.ipv4());
        let page = self
            .lab
            .fabric()
            .exec(["busybox", "wget", "-q", "-O", "-", &url]);
        assert_eq!(page.unwrap(), "here\n");
    }

    /// All rules of the node, without counters and dates.
    fn rules(&self) -> String {
        let cut = "iptables-save | grep -v '^#' | sed 's/ \\[[0-9:]*\\]$//'";
        sh(self.node, cut)
    }

    /// An open connection to the other container, and one to the outside.
    fn streams(&self, far: &Host) -> [Flow; 2] {
        let every = Duration::from_millis(20);
        let inner = Flow::start(&self.web, &far.web, far.web.ip(), every);
        let outer = Flow::start(&self.web, self.lab.fabric(), OUTSIDE.into(), every);
        [inner.unwrap(), outer.unwrap()]
    }
}

/// The options that `mk-docker-opts.sh` makes for this node's docker, as its unit passes them.
fn options(node: &Node) -> Vec<String> {
    let file = "/run/flannel/docker";
    let argv = [MK_DOCKER_OPTS, "-k", "DOCKER_NETWORK_OPTIONS", "-d", file];
    node.exec(argv).unwrap();
    systemd_words(&node.read(file).unwrap(), "DOCKER_NETWORK_OPTIONS")
}

fn sorted(rules: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = rules.lines().collect();
    lines.sort_unstable();
    lines
}

fn unbroken(what: &str, streams: [Flow; 2]) {
    for (way, stream) in ["between the containers", "to the outside"]
        .iter()
        .zip(streams)
    {
        let report: FlowReport = stream.stop();
        assert_eq!(report.broken, None, "{what}, {way}: {report:?}");
        assert!(report.echoed > 0);
        eprintln!(
            "{what}: stream {way}, longest stall {:?}",
            report.longest_stall
        );
    }
}

#[test]
fn containers_of_two_hosts_and_restarts() {
    if !lab::real_root_for("containers of docker on two nodes") {
        return;
    }
    let lab = lab();
    let hosts = [1, 2].map(|n| Host::new(&lab, n, &["--live-restore"]));
    let [one, two] = &hosts;
    for host in &hosts {
        let subnet = host.node.subnet_env().unwrap().cidr(Family::V4).unwrap();
        assert_eq!(subnet.prefix_len(), 21);
        assert!(subnet.contains(&host.web.ip()));
        let words = options(host.node);
        let bip = format!(
            "--bip={}",
            host.node
                .subnet_env()
                .unwrap()
                .subnet
                .get(Family::V4)
                .unwrap()
        );
        assert_eq!(words, [bip.as_str(), "--ip-masq=false", "--mtu=1450"]);
        assert!(host.inside("ip link show eth0").contains("mtu 1450"));
        let rules = host.rules();
        for rule in [
            ":FORWARD DROP",
            "-A FORWARD -j DOCKER-USER",
            "-j FLANNEL-FWD",
            "-j FLANNEL-POSTRTG",
        ] {
            assert!(rules.contains(rule), "no {rule} in\n{rules}");
        }
        // Only ours masquerade, but for a container that asks its own published port.
        for line in rules.lines().filter(|l| l.contains("-j MASQUERADE")) {
            let itself = format!("-s {0}/32 -d {0}/32 ", host.web.ip());
            assert!(
                line.contains("flanneld masq") || line.contains(&itself),
                "{line}"
            );
        }
    }
    one.reaches(two);
    two.reaches(one);

    let before = hosts.each_ref().map(Host::rules);
    let streams = one.streams(two);
    for host in &hosts {
        host.node.flanneld().restart(SOON).unwrap();
        host.node.flanneld().kill9().unwrap();
        host.node.flanneld().start_ready(SOON).unwrap();
    }
    unbroken("flanneld restarted and killed", streams);
    assert_eq!(hosts.each_ref().map(Host::rules), before);
    one.reaches(two);

    let streams = one.streams(two);
    for host in &hosts {
        let mut again = options(host.node);
        again.push("--live-restore".into());
        host.docker.stop().unwrap();
        host.docker.start(&again).unwrap();
        host.docker.kill9().unwrap();
        host.docker.start(&again).unwrap();
    }
    unbroken("dockerd restarted and killed", streams);
    for (host, before) in hosts.iter().zip(&before) {
        assert_eq!(sorted(&host.rules()), sorted(before));
    }
    one.reaches(two);
    two.reaches(one);
}
