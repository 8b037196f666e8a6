//! Two flannel networks on one set of hosts: what happens to one is nothing to the other.

use lab::{Daemon, Instance, Lab, Node, Picture, StoreKind, wait_for};
use model::Family::V4;
use serde_json::{Value, json};

use crate::flow::Traffic;
use crate::scene::{self, ETCD, SOON, mesh, run};

/// The second network: its own prefix or directory, VNI, subnet file and health port.
struct Second<'a> {
    lab: &'a Lab,
    daemons: Vec<Daemon>,
}

const PREFIX: &str = "/second/network";
const DIRECTORY: &str = "store-2";

impl Second<'_> {
    fn start<'a>(lab: &'a Lab, backend: Value) -> Second<'a> {
        let config = json!({"Network": "10.60.0.0/16", "Backend": backend}).to_string();
        let place = match lab.etcd() {
            Some(etcd) => {
                etcd.ctl(&["put", &format!("{PREFIX}/config"), &config])
                    .unwrap();
                format!("-etcd-prefix={PREFIX}")
            }
            None => {
                let dir = lab.shared_dir().join(DIRECTORY);
                std::fs::create_dir_all(&dir).unwrap();
                std::fs::write(dir.join("config"), &config).unwrap();
                format!("-store-dir=/run/lab/{DIRECTORY}")
            }
        };
        let daemon = |node: &Node| {
            let daemon = node.another(Instance {
                name: "second".into(),
                args: vec![place.clone()],
                subnet_file: "/run/flannel-2/subnet.env".into(),
                healthz_port: 10472,
                ..Instance::default()
            });
            daemon.start_ready(SOON).unwrap();
            daemon
        };
        Second {
            lab,
            daemons: lab.nodes().iter().map(daemon).collect(),
        }
    }

    fn subnet(&self, index: usize) -> String {
        let env = self.daemons[index].subnet_env().unwrap();
        env.cidr(V4).unwrap().to_string()
    }

    fn delete_lease(&self, subnet: &str) {
        let key = subnet.replace('/', "-");
        match self.lab.etcd() {
            Some(etcd) => drop(
                etcd.ctl(&["del", &format!("{PREFIX}/subnets/{key}")])
                    .unwrap(),
            ),
            None => {
                let dir = self.lab.shared_dir().join(DIRECTORY);
                std::fs::remove_file(dir.join("subnets").join(key)).unwrap();
            }
        }
    }

    /// Waits until node 1 has routes to exactly these others.
    fn meshed(&self, others: &[usize]) {
        let wanted: Vec<String> = others.iter().map(|i| self.subnet(*i)).collect();
        let look = || {
            let picture = self.lab.node(1).picture().unwrap();
            let routes = picture.lines().filter(|l| l.starts_with("route 10.60."));
            let mut there: Vec<&str> = routes.map(|l| l.split(' ').nth(1).unwrap()).collect();
            there.sort_unstable();
            let mut wanted = wanted.clone();
            wanted.sort_unstable();
            match there == wanted {
                true => Ok(()),
                false => Err(format!("{there:?}, expected {wanted:?}")),
            }
        };
        wait_for("the second network is meshed", SOON, look).unwrap();
    }
}

/// What the kernel holds that is not the second network's.
fn first_only(node: &Node) -> Vec<String> {
    let picture = node.picture().unwrap();
    let second = |line: &&str| line.contains("flannel.2") || line.contains(" 10.60.");
    picture
        .lines()
        .filter(|line| !second(line))
        .map(String::from)
        .collect()
}

fn second_only(node: &Node) -> [Picture; 2] {
    let picture = node.picture().unwrap();
    [picture.only("flannel.2"), picture.only(" 10.60.")]
}

fn beside_each_other(label: &str, store: StoreKind, first: Value, second: Value) {
    let vxlan = |backend: &Value| backend["Type"] == "vxlan";
    let lab = scene::lab()
        .nodes(3)
        .store(store)
        .backend(first.clone())
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let before = first_only(node);
    let traffic = Traffic::between(node, lab.node(2));
    let at = |step: &str| assert_eq!(first_only(node), before, "{label}, {step}");

    let other = Second::start(&lab, second.clone());
    other.meshed(&[1, 2]);
    at("the second network starts");
    let of_second = second_only(node);

    // Churn in the second.
    let left = other.subnet(2);
    other.daemons[2].stop().unwrap();
    other.delete_lease(&left);
    other.meshed(&[1]);
    at("a node leaves the second network");
    other.daemons[2].start_ready(SOON).unwrap();
    other.meshed(&[1, 2]);
    at("and comes back");

    // Repair in the second.
    let subnet = other.subnet(1);
    let fault = match vxlan(&second) {
        true => "ip link del flannel.2".to_string(),
        false => format!("ip route del {subnet}"),
    };
    node.measure_repair(|| run(node, &fault), SOON).unwrap();
    at("the second network is broken and repaired");

    // Restart of the second, also after a crash.
    other.daemons[0].restart(SOON).unwrap();
    other.daemons[0].kill9().unwrap();
    other.daemons[0].start_ready(SOON).unwrap();
    other.meshed(&[1, 2]);
    at("the second network restarts");
    traffic.all_arrived(&format!("two networks, {label}"));

    // The same the other way round.
    let second_before = second_only(node);
    if left == other.subnet(2) {
        assert_eq!(second_before, of_second, "{label}");
    }
    let subnet = lab.node(2).subnet_env().unwrap().cidr(V4).unwrap();
    let fault = match vxlan(&first) {
        true => "ip link del flannel.1".to_string(),
        false => format!("ip route del {subnet}"),
    };
    node.measure_repair(|| run(node, &fault), SOON).unwrap();
    node.flanneld().restart(SOON).unwrap();
    node.flanneld().kill9().unwrap();
    node.flanneld().start_ready(SOON).unwrap();
    mesh(&lab);
    assert_eq!(second_only(node), second_before, "{label}");
    let (one, two) = (
        node.subnet_env().unwrap(),
        other.daemons[0].subnet_env().unwrap(),
    );
    assert_eq!(one.network.v4, Some("172.30.0.0/16".parse().unwrap()));
    assert_eq!(two.network.v4, Some("10.60.0.0/16".parse().unwrap()));
}

#[test]
fn two_vnis() {
    let backend = |vni: u32| json!({"Type": "vxlan", "VNI": vni});
    beside_each_other("two VNIs, etcd", ETCD, backend(1), backend(2));
    beside_each_other(
        "two VNIs, directory",
        StoreKind::Directory,
        backend(1),
        backend(2),
    );
}

#[test]
fn two_host_gw() {
    let backend = || json!({"Type": "host-gw"});
    beside_each_other("two host-gw, etcd", ETCD, backend(), backend());
    beside_each_other(
        "two host-gw, directory",
        StoreKind::Directory,
        backend(),
        backend(),
    );
}

#[test]
fn vxlan_beside_host_gw() {
    let (vxlan, host_gw) = (json!({"Type": "vxlan"}), json!({"Type": "host-gw"}));
    beside_each_other("vxlan beside host-gw", ETCD, vxlan, host_gw);
    let (direct, host_gw) = (
        json!({"Type": "vxlan", "VNI": 2, "DirectRouting": true}),
        json!({"Type": "host-gw"}),
    );
    beside_each_other("host-gw beside DirectRouting", ETCD, host_gw, direct);
}
