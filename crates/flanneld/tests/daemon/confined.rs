//! Under the shipped seccomp profile: any system call that it does not allow would end the daemon.
//!
//! `make test-confined` runs every other test of this directory under it, too.

use std::path::Path;

use lab::{Lab, Node, Seccomp, StoreKind, wait_for};
use serde_json::{Value, json};

use crate::scene::{self, ETCD, SOON, lease_of};

fn profile() -> Seccomp {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Seccomp::read(&root.join("deploy/seccomp/flanneld.json")).unwrap()
}

/// Whether the daemon is confined by filters, and can gain nothing by what it starts: what the kernel says.
fn is_confined(node: &Node) {
    let pid = node.flanneld().pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line:?} expected in {status}");
    }
}

fn change_to(lab: &Lab, backend: &Value) {
    let config = json!({ "Network": "172.30.0.0/16", "Backend": backend });
    lab.put_config(&config.to_string()).unwrap();
    let name = &backend["Type"];
    // As upstream, the backend `udp` names itself in no lease.
    let named = if name == "udp" { &Value::Null } else { name };
    let look = || {
        for node in lab.nodes() {
            let (_, lease) = lease_of(lab, node);
            if lease["BackendType"] != *named || lease.get("Also").is_some() {
                return Err(format!("{lease}\n{}", node.flanneld().log_tail(8)));
            }
        }
        Ok(())
    };
    wait_for(&format!("all have changed to {name}"), SOON, look).unwrap();
    lab.wait_mesh(SOON).unwrap();
}

fn through_a_life(store: StoreKind, backends: &[Value]) {
    scene::load_tun();
    let lab = scene::lab().nodes(2).store(store).build().unwrap();
    for node in lab.nodes() {
        node.flanneld().set_seccomp(profile());
        node.flanneld().set_args(["-ip-masq"]);
        node.flanneld().start_ready(SOON).unwrap();
        is_confined(node);
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    // Somebody takes away what it made.
    let node = lab.node(1);
    node.exec(["ip", "link", "del", "flannel.1"]).unwrap();
    node.exec(["rm", "/run/flannel/subnet.env"]).unwrap();
    lab.wait_mesh(SOON).unwrap();
    for backend in backends {
        change_to(&lab, backend);
    }
    // Another life, and an orderly end.
    node.flanneld().stop().unwrap();
    node.flanneld().start_ready(SOON).unwrap();
    is_confined(node);
    lab.wait_mesh(SOON).unwrap();
    for node in lab.nodes() {
        let status = node.flanneld().stop().unwrap();
        assert!(
            status.success(),
            "{status}\n{}",
            node.flanneld().log_tail(8)
        );
    }
}

#[test]
fn a_life_under_the_seccomp_profile_on_etcd() {
    let udp = json!({ "Type": "udp" });
    let wireguard = json!({ "Type": "wireguard" });
    through_a_life(ETCD, &[json!({ "Type": "host-gw" }), udp, wireguard]);
}

#[test]
fn a_life_under_the_seccomp_profile_on_a_directory() {
    through_a_life(StoreKind::Directory, &[json!({ "Type": "host-gw" })]);
}
