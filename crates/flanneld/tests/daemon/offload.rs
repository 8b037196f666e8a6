//! Checksum offload of the tunnel devices, with `ethtool` for a witness.

use std::time::Instant;

use lab::{Lab, Node, StoreKind, wait_for};
use model::Family;
use serde_json::{Value, json};

use crate::repair::caused_by_notices;
use crate::scene::{self, SOON, device, ip_json, measuring, mesh};

fn built(backend: Value, store: StoreKind, args: &[&str]) -> Lab {
    let lab = scene::lab()
        .nodes(2)
        .dual()
        .store(store)
        .backend(backend)
        .flanneld_args(args.iter().copied())
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    lab
}

/// Whether `ethtool` shows checksum offload on both tunnel devices, or on neither.
fn offload(node: &Node) -> bool {
    let [v4, v6] = Family::ALL.map(|family| one(node, family));
    assert_eq!(v4, v6, "the two devices differ");
    v4
}

fn one(node: &Node, family: Family) -> bool {
    let shown = node.exec(["ethtool", "-k", device(family)]).unwrap();
    let line = shown.lines().find(|l| l.starts_with("tx-checksumming:"));
    match line.and_then(|l| l.split_whitespace().nth(1)) {
        Some("on") => true,
        Some("off") => false,
        _ => panic!("ethtool -k: {shown}"),
    }
}

fn ethtool(node: &Node, family: Family, tx: &str) {
    node.exec(["ethtool", "-K", device(family), "tx", tx])
        .unwrap();
}

/// Index and MAC of both devices: other ones after they were made anew.
fn identity(node: &Node) -> Vec<(Value, Value)> {
    let shown = Family::ALL.map(|f| ip_json(node, &format!("link show dev {}", device(f))));
    let identity = |link: &Value| (link[0]["ifindex"].clone(), link[0]["address"].clone());
    shown.iter().map(identity).collect()
}

#[test]
fn changed_behind_our_back_it_is_put_right_at_once() {
    let _turn = measuring();
    for (asked, other) in [("off", "on"), ("on", "off")] {
        let backend = json!({ "Type": "vxlan", "TxChecksumOffload": asked });
        let lab = built(backend, scene::ETCD, &[]);
        let node = lab.node(1);
        assert_eq!(offload(node), asked == "on");
        for family in Family::ALL {
            let took = caused_by_notices(node, || {
                ethtool(node, family, other);
                let broken = Instant::now();
                let look = || match one(node, family) == (asked == "on") {
                    true => Ok(()),
                    false => Err(format!("tx is {other}")),
                };
                wait_for("the setting is back", SOON, look).unwrap();
                broken.elapsed()
            });
            eprintln!(
                "repair, {} tx {other} -> {asked}: {took:.0?}",
                device(family)
            );
        }
        lab.must_ping().unwrap();
        let log = node.flanneld().log_tail(400);
        assert!(log.contains("repaired the kernel's state"), "{log}");
    }
}

#[test]
fn auto_leaves_it_as_it_is() {
    let lab = built(json!({ "Type": "vxlan" }), StoreKind::Directory, &[]);
    let node = lab.node(1);
    assert!(offload(node), "the kernel's own default");
    for family in Family::ALL {
        ethtool(node, family, "off");
    }
    // A fault that is repaired shows that the notices before it have been heard.
    node.exec(["ip", "link", "set", "flannel.1", "down"])
        .unwrap();
    wait_for("flannel.1 is up again", SOON, || {
        let link = ip_json(node, "link show dev flannel.1");
        let flags = link[0]["flags"].as_array().cloned().unwrap_or_default();
        flags.contains(&"UP".into()).then_some(()).ok_or(link)
    })
    .unwrap();
    assert!(!offload(node), "somebody's own setting was taken back");
    node.flanneld().restart(SOON).unwrap();
    mesh(&lab);
    assert!(!offload(node), "a restart took somebody's own setting back");
}

#[test]
fn a_new_configuration_changes_the_devices_in_place() {
    let lab = built(json!({ "Type": "vxlan" }), scene::ETCD, &[]);
    let node = lab.node(1);
    let before = identity(node);
    for (asked, on) in [("off", false), ("on", true), ("off", false)] {
        let config = json!({
            "Network": "172.30.0.0/16",
            "EnableIPv6": true,
            "IPv6Network": "fd00:30::/48",
            "Backend": { "Type": "vxlan", "TxChecksumOffload": asked },
        });
        lab.put_config(&config.to_string()).unwrap();
        node.flanneld().restart(SOON).unwrap();
        mesh(&lab);
        assert_eq!(offload(node), on, "{asked}");
        assert_eq!(identity(node), before, "a device was made anew");
    }
    lab.must_ping().unwrap();
}

#[test]
fn the_flag_wins() {
    let backend = json!({ "Type": "vxlan", "TxChecksumOffload": "on" });
    let args = ["-tx-checksum-offload=off"];
    let lab = built(backend, StoreKind::Directory, &args);
    assert!(!offload(lab.node(1)) && !offload(lab.node(2)));
    lab.must_ping().unwrap();
}
