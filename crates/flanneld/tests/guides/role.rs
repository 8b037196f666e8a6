//! What an Ansible role for "Kubernetes the not so hard way" sets up on each node, without Ansible: every
//! setting given to flanneld by name, on the interface of a VPN; a CNI conflist with `portmap` after it.

use std::io::Write;
use std::process::{Command, Stdio};

use lab::{Lab, Namespace, Process, StoreKind, wait_for};
use serde_json::{Value, json};

use crate::manager::Manager;
use crate::scene::{self, SOON, sh};

/// The files of etcd where the role puts them; its client is etcd itself.
const CERTIFICATES: &str = "
mkdir -p /var/lib/kubernetes
cp /run/lab/tls/ca.pem /var/lib/kubernetes/ca-etcd.pem
cp /run/lab/tls/etcd.pem /var/lib/kubernetes/cert-etcd.pem
cp /run/lab/tls/etcd-key.pem /var/lib/kubernetes/cert-etcd-key.pem";

/// `flannel_cni_conf`.
fn conflist() -> Value {
    json!({
        "name": "cni0",
        "cniVersion": "0.3.1",
        "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}}
        ]
    })
}

/// A node of the cluster: its place on the VPN, its flanneld, and one pod made by the conflist.
struct Worker {
    place: Namespace,
    vpn: String,
    _flanneld: Process,
}

impl Worker {
    fn new(lab: &Lab, index: usize) -> Worker {
        let node = lab.node(index);
        let place = node.with_own(&[], &[]).unwrap();
        let other = lab.node(3 - index).ipv4();
        let vpn = format!("10.8.0.11{index}");
        // The VPN: any point-to-point tunnel will do.
        let own = node.ipv4();
        sh(
            node,
            &format!(
                "ip link add tap0 mtu 1420 type vxlan id 99 dstport 4790 local {own} remote {other}
                 ip addr add {vpn}/24 dev tap0
                 ip link set tap0 up
                 {CERTIFICATES}
                 /bin/mkdir -p /run/flannel"
            ),
        );
        let endpoint = lab.etcd().unwrap().endpoint();
        let settings = [
            ("etcd-endpoints", endpoint.as_str()),
            ("etcd-cafile", "/var/lib/kubernetes/ca-etcd.pem"),
            ("etcd-certfile", "/var/lib/kubernetes/cert-etcd.pem"),
            ("etcd-keyfile", "/var/lib/kubernetes/cert-etcd-key.pem"),
            ("etcd-prefix", "/kubernetes-cluster/network"),
            ("iface", "tap0"),
            ("public-ip", &vpn),
            ("subnet-file", "/run/flannel/subnet.env"),
            ("ip-masq", "true"),
            ("healthz-ip", "0.0.0.0"),
            ("healthz-port", "0"),
        ];
        let manager = Manager::new(lab, node.name());
        let mut command = Command::new(format!("{}/flanneld", lab::BIN_DIR));
        for (name, value) in settings {
            command.arg(format!("--{name}={value}"));
        }
        command.env("NOTIFY_SOCKET", manager.socket());
        let log = lab.shared_dir().join(format!("log/{}-role", node.name()));
        let flanneld = Process::start("flanneld", node, &mut command, &log).unwrap();
        manager.wait_ready(&flanneld);
        // flannel_systemd_execstartpost.
        sh(node, "/sbin/ethtool -K flannel.1 tx off >/dev/null");
        Worker {
            place,
            vpn,
            _flanneld: flanneld,
        }
    }

    /// Makes the pod's network as a container runtime does; returns its address.
    fn add_pod(&self) -> String {
        sh(&self.place, "ip netns add pod && ip -n pod link set lo up");
        let list = conflist();
        let mut result = Value::Null;
        for plugin in list["plugins"].as_array().unwrap() {
            let mut config = plugin.clone();
            config["name"] = list["name"].clone();
            config["cniVersion"] = list["cniVersion"].clone();
            if plugin["capabilities"]["portMappings"] == json!(true) {
                config["runtimeConfig"] = json!({"portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
            }
            if !result.is_null() {
                config["prevResult"] = result;
            }
            result = add(&self.place, plugin["type"].as_str().unwrap(), &config);
        }
        let address = result["ips"][0]["address"].as_str().unwrap();
        address.split('/').next().unwrap().into()
    }

    fn in_pod(&self, command: &str) -> String {
        sh(&self.place, &format!("ip netns exec pod {command}"))
    }
}

/// Runs a plugin's ADD for the pod of `node`.
fn add(node: &Namespace, plugin: &str, config: &Value) -> Value {
    let path = format!("{}:/usr/lib/cni", lab::BIN_DIR);
    let find = format!("PATH={path} command -v {plugin}");
    let mut command = Command::new(sh(node, &find).trim());
    command
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "pod")
        .env("CNI_NETNS", "/run/netns/pod")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = node.spawn(&mut command).unwrap();
    let input = config.to_string();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{plugin}: {said}");
    serde_json::from_str(&said).unwrap()
}

#[test]
fn pods_reach_pods_and_published_ports_over_a_vpn() {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Etcd { tls: true })
        .etcd_prefix("/kubernetes-cluster/network")
        .build()
        .unwrap();
    lab.put_config(r#"{"Network": "10.200.0.0/16", "Backend": {"Type": "vxlan"}}"#)
        .unwrap();
    let workers = [1, 2].map(|index| Worker::new(&lab, index));

    for worker in &workers {
        let env = sh(&worker.place, "cat /run/flannel/subnet.env");
        assert!(env.contains("FLANNEL_NETWORK=10.200.0.0/16\n"), "{env}");
        assert!(env.contains("FLANNEL_MTU=1370\n"), "50 below tap0's: {env}");
        let leases = lab.leases().unwrap();
        let published = format!("\"PublicIP\":\"{}\"", worker.vpn);
        let lease = leases.values().find(|value| value.contains(&published));
        assert!(lease.is_some(), "{published} is not in {leases:?}");
        let device = sh(&worker.place, "ip -d link show flannel.1");
        assert!(
            device.contains(&format!("local {} dev tap0", worker.vpn)),
            "{device}"
        );
    }

    let [one, two] = &workers;
    let addresses = [one.add_pod(), two.add_pod()];
    for (worker, far) in [(one, &addresses[1]), (two, &addresses[0])] {
        wait_for("the route to the other pods", SOON, || {
            let argv = ["ip", "netns", "exec", "pod", "ping", "-c1", "-W1", far];
            worker.place.exec(argv)
        })
        .unwrap();
        assert!(worker.in_pod("ip link show eth0").contains("mtu 1370"));
    }

    // A service of one pod: by its address, and by the port that portmap publishes on the VPN.
    sh(
        &two.place,
        "mkdir /run/www && echo here >/run/www/index.html",
    );
    let server = "exec ip netns exec pod busybox httpd -f -vv -p 80 -h /run/www";
    let log = lab.shared_dir().join("log/httpd");
    let mut command = Command::new("sh");
    command.args(["-c", server]);
    let _server = Process::start("httpd", &two.place, &mut command, &log).unwrap();
    let published = format!("http://{}:8080/", two.vpn);
    for url in [format!("http://{}/", addresses[1]), published] {
        let page = wait_for("the server answers", SOON, || {
            let argv = [
                "ip", "netns", "exec", "pod", "busybox", "wget", "-q", "-O", "-", &url,
            ];
            one.place.exec(argv)
        });
        assert_eq!(page.unwrap(), "here\n", "{url}");
    }
    // It sees the pod itself, and not its node.
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains(&addresses[0]), "{log}");

    // Whoever set the offload by hand, it stays so.
    let offload = sh(
        &one.place,
        "/sbin/ethtool -k flannel.1 | grep '^tx-checksumming'",
    );
    assert_eq!(offload.trim(), "tx-checksumming: off");
}
