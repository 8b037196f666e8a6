//! docs/install-etcd.md, step for step: certificates by cfssl, the configuration in etcd, the unit
//! with one-dash flags, and everything that a person then looks at. Each node has its own `/etc`,
//! `/opt` and `/run`; the commands are run by bash.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;

use ipnet::Ipv4Net;
use lab::{Lab, Namespace, Node, Process, StoreKind, wait_for};
use serde_json::{Value, json};

use crate::manager::{Manager, command_line};
use crate::scene::{self, MK_DOCKER_OPTS, SOON, bash, systemd_words};

/// What the commands take for granted.
const ENVIRONMENT: &str = r#"
export ETCD_ENDPOINTS="https://192.168.78.254:2379"
export IFACE="eth0"
export CLUSTER_CIDR="172.30.0.0/16"
export FLANNEL_ETCD_PREFIX="/kubernetes/network"
export ETCDCTL_API=3
export PATH=/opt/k8s/bin:$PATH
mkdir -p /run/lab/work
cd /run/lab/work
"#;

/// The authority of the whole cluster is there before flannel.
const AUTHORITY: &str = r#"
cp /run/lab/tls/ca.pem /run/lab/tls/ca-key.pem .
cat > ca-config.json <<EOF
{"signing": {"default": {"expiry": "87600h"}, "profiles": {"kubernetes": {
  "usages": ["signing", "key encipherment", "server auth", "client auth"], "expiry": "876000h"}}}}
EOF
"#;

/// Certificate and key of flanneld: a client's alone, so it has no hosts.
const CERTIFICATE: &str = r#"
cat > flanneld-csr.json <<EOF
{
  "CN": "flanneld",
  "hosts": [],
  "key": { "algo": "rsa", "size": 2048 },
  "names": [ { "C": "CN", "ST": "BeiJing", "L": "BeiJing", "O": "k8s", "OU": "4Paradigm" } ]
}
EOF
cfssl gencert -ca=ca.pem -ca-key=ca-key.pem -config=ca-config.json \
  -profile=kubernetes flanneld-csr.json | cfssljson -bare flanneld
ls flanneld*pem
"#;

const WRITE_CONFIG: &str = r#"
etcdctl --endpoints=${ETCD_ENDPOINTS} --cacert=ca.pem --cert=flanneld.pem --key=flanneld-key.pem \
  put ${FLANNEL_ETCD_PREFIX}/config \
  '{"Network":"'${CLUSTER_CIDR}'", "SubnetLen": 21, "Backend": {"Type": "vxlan"}}'
"#;

const UNIT: &str = r#"
cat > flanneld.service <<EOF
[Unit]
Description=Flanneld overlay address etcd agent
After=network.target
After=network-online.target
Wants=network-online.target
After=etcd.service
Before=docker.service

[Service]
Type=notify
ExecStart=/opt/k8s/bin/flanneld \\
  -etcd-cafile=/etc/kubernetes/cert/ca.pem \\
  -etcd-certfile=/etc/flanneld/cert/flanneld.pem \\
  -etcd-keyfile=/etc/flanneld/cert/flanneld-key.pem \\
  -etcd-endpoints=${ETCD_ENDPOINTS} \\
  -etcd-prefix=${FLANNEL_ETCD_PREFIX} \\
  -iface=${IFACE} \\
  -ip-masq
ExecStartPost=/opt/k8s/bin/mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker
Restart=always
RestartSec=5
StartLimitInterval=0

[Install]
WantedBy=multi-user.target
RequiredBy=docker.service
EOF
"#;

/// What goes to every node.
const DISTRIBUTE: &str = r#"
mkdir -p /opt/k8s/bin /etc/kubernetes/cert /etc/flanneld/cert /etc/systemd/system
cp /run/lab/bin/flanneld "$MK_DOCKER_OPTS" /opt/k8s/bin/
chmod +x /opt/k8s/bin/*
cp ca.pem /etc/kubernetes/cert
cp flanneld*.pem /etc/flanneld/cert
cp flanneld.service /etc/systemd/system/
"#;

/// etcd, asked with the certificates of a node.
const LOOK: &str = r#"
look() {
  etcdctl --endpoints=${ETCD_ENDPOINTS} --cacert=/etc/kubernetes/cert/ca.pem \
    --cert=/etc/flanneld/cert/flanneld.pem --key=/etc/flanneld/cert/flanneld-key.pem "$@"
}
"#;

/// A node with files of its own wherever the guide writes.
struct Host<'a> {
    node: &'a Node,
    place: Namespace,
}

impl<'a> Host<'a> {
    fn new(node: &'a Node) -> Host<'a> {
        let place = node.with_own(&["/etc"], &["/opt"]).unwrap();
        Host { node, place }
    }

    /// Runs a step of the guide in the working directory, which all nodes share.
    fn step(&self, script: &str) -> String {
        let script = format!("MK_DOCKER_OPTS={MK_DOCKER_OPTS}\n{ENVIRONMENT}\n{LOOK}\n{script}");
        bash(&self.place, &script)
    }

    /// What systemd does: starts `ExecStart`, waits for `READY=1`, runs `ExecStartPost`.
    fn start(&self, lab: &Lab) -> Process {
        let unit = self.step("cat /etc/systemd/system/flanneld.service");
        let manager = Manager::new(lab, self.node.name());
        let words = command_line(&unit, "ExecStart");
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.env("NOTIFY_SOCKET", manager.socket());
        let log = format!("log/{}-unit", self.node.name());
        let log = lab.shared_dir().join(log);
        let daemon = Process::start("flanneld.service", &self.place, &mut command, &log).unwrap();
        manager.wait_ready(&daemon);
        let post = command_line(&unit, "ExecStartPost");
        self.place.exec(post).unwrap();
        daemon
    }
}

/// Who has which subnet, and behind which MAC, as the keys and values in etcd say it.
fn owners(host: &Host) -> BTreeMap<Ipv4Addr, (Ipv4Net, String)> {
    let keys = "look get --prefix --keys-only ${FLANNEL_ETCD_PREFIX}/subnets | sed '/^$/d'";
    let mut owners = BTreeMap::new();
    for key in host.step(keys).lines() {
        let subnet = key.strip_prefix("/kubernetes/network/subnets/").unwrap();
        let value = host.step(&format!("look get --print-value-only {key}"));
        let value: Value = serde_json::from_str(&value).unwrap();
        assert_eq!(value["BackendType"], json!("vxlan"));
        let text = |value: &Value| value.as_str().unwrap().to_string();
        let mac = text(&value["BackendData"]["VtepMAC"]);
        owners.insert(
            text(&value["PublicIP"]).parse().unwrap(),
            (subnet.replace('-', "/").parse().unwrap(), mac),
        );
    }
    owners
}

/// What a person sees of flannel on a node.
fn right(host: &Host, owners: &BTreeMap<Ipv4Addr, (Ipv4Net, String)>) {
    let (subnet, mac) = &owners[&host.node.ipv4()];
    let network: Ipv4Net = "172.30.0.0/16".parse().unwrap();
    assert!(network.contains(subnet) && subnet.prefix_len() == 21);

    // flannel.1, with the first address of the subnet as a /32 and the MAC that was published.
    let shown = host.step("ip addr show flannel.1");
    let inet = format!("inet {}/32 scope global flannel.1", subnet.network());
    for text in ["mtu 1450", "UP,LOWER_UP", &inet, mac] {
        assert!(shown.contains(text), "{text} is not in\n{shown}");
    }
    let addresses = host.step("/usr/sbin/ip addr show flannel.1 | grep -w inet");
    assert_eq!(addresses.trim(), inet);

    // What containers and docker are given.
    let first = Ipv4Addr::from(u32::from(subnet.network()) + 1);
    let wanted = format!(
        "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET={first}/21\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n# flannel-rs\n"
    );
    assert_eq!(host.step("cat /run/flannel/subnet.env"), wanted);
    let text = host.step("cat /run/flannel/docker");
    let bip = format!("--bip={first}/21");
    assert_eq!(
        systemd_words(&text, "DOCKER_NETWORK_OPTIONS"),
        [bip.as_str(), "--ip-masq=false", "--mtu=1450"]
    );

    // A route to every other node's subnet.
    let routes = wait_for("a route to every other node", SOON, || {
        let routes = host.step("ip route show | grep flannel.1 || true");
        match routes.lines().count() == owners.len() - 1 {
            true => Ok(routes),
            false => Err(routes),
        }
    })
    .unwrap();
    for (other, _) in owners.values().filter(|(other, _)| other != subnet) {
        let route = routes.lines().find(|l| l.starts_with(&format!("{other} ")));
        let route = route.unwrap_or_else(|| panic!("{other} is not in\n{routes}"));
        let via = format!("via {} dev flannel.1 ", other.network());
        assert!(route.contains(&via) && route.contains("onlink"), "{route}");
    }
}

#[test]
fn every_step() {
    let lab = scene::lab()
        .nodes(3)
        .store(StoreKind::Etcd { tls: true })
        .etcd_prefix("/kubernetes/network")
        .build()
        .unwrap();
    // The guide writes it.
    lab.delete_config().unwrap();
    let hosts: Vec<Host> = lab.nodes().iter().map(Host::new).collect();
    let first = &hosts[0];

    first.step(AUTHORITY);
    assert_eq!(first.step(CERTIFICATE), "flanneld-key.pem\nflanneld.pem\n");
    assert_eq!(first.step(WRITE_CONFIG), "OK\n");
    first.step(UNIT);
    hosts.iter().for_each(|host| drop(host.step(DISTRIBUTE)));
    let _daemons: Vec<Process> = hosts.iter().map(|host| host.start(&lab)).collect();

    // The network as etcd has it, and as flannelctl reads it.
    let config = r#"{"Network":"172.30.0.0/16", "SubnetLen": 21, "Backend": {"Type": "vxlan"}}"#;
    let etcdctl = "look get --print-value-only ${FLANNEL_ETCD_PREFIX}/config";
    let flannelctl = "/run/lab/bin/flannelctl config get --etcd-endpoints=$ETCD_ENDPOINTS \
        --etcd-prefix=$FLANNEL_ETCD_PREFIX --etcd-cafile=/etc/kubernetes/cert/ca.pem \
        --etcd-certfile=/etc/flanneld/cert/flanneld.pem --etcd-keyfile=/etc/flanneld/cert/flanneld-key.pem";
    for command in [etcdctl, flannelctl] {
        assert_eq!(first.step(command).trim(), config);
    }

    let owners = owners(first);
    assert_eq!(owners.len(), 3);
    hosts.iter().for_each(|host| right(host, &owners));
    for host in &hosts {
        for (subnet, _) in owners.values() {
            host.step(&format!("ping -c 1 -W 5 {}", subnet.network()));
        }
    }
}
