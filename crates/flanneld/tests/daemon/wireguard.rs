//! The wireguard backend, in user space.

use std::time::Duration;

use lab::{Flow, Lab, Node, Pinger, StoreKind, bulk, wait_for};
use model::Family::{V4, V6};
use serde_json::{Value, json};

use crate::scene::{self, SOON, run};
use crate::udp::{reaches, streams};

fn started(nodes: usize, backend: Value, dual: bool) -> Lab {
    let builder = scene::lab()
        .nodes(nodes)
        .store(StoreKind::Directory)
        .backend(backend);
    let lab = if dual { builder.dual() } else { builder }.build().unwrap();
    for node in lab.nodes() {
        node.flanneld().start_ready(SOON).unwrap();
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    lab
}

/// A node's lease, but for its end, which every start moves.
fn published(lab: &Lab, node: &Node) -> (String, Value) {
    let (key, mut lease) = scene::lease_of(lab, node);
    lease.as_object_mut().unwrap().remove("Expires");
    (key, lease)
}

/// Counts packets between pods that leave a node unencrypted.
fn watch(node: &Node) {
    let rules = "add table inet seen; \
        add chain inet seen out { type filter hook postrouting priority 300; }; \
        add rule inet seen out oifname eth0 ip daddr 172.30.0.0/16 counter; \
        add rule inet seen out oifname eth0 ip6 daddr fd00:30::/48 counter";
    node.exec(["nft", rules]).unwrap();
}

fn must_have_seen_nothing(node: &Node) {
    let said = node.exec(["nft", "list", "table", "inet", "seen"]).unwrap();
    assert_eq!(
        said.matches("counter packets 0 bytes 0").count(),
        2,
        "{said}"
    );
}

#[test]
fn pods_of_both_families_talk_in_every_mode() {
    for (mode, devices) in [("separate", 2), ("auto", 1), ("ipv6", 1)] {
        let backend = json!({
            "Type": "wireguard",
            "Mode": mode,
            "PSK": "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=",
        });
        let lab = started(2, backend, true);
        let (one, two) = (lab.node(1), lab.node(2));
        streams(one, two);
        let (from, to) = (&one.pods()[0], &two.pods()[0]);
        wait_for("the pods reach each other by IPv6", SOON, || {
            bulk(from, to, to.ip(V6).unwrap(), 1 << 20)
        })
        .unwrap();
        let said = one.exec(["ip", "-o", "link"]).unwrap();
        assert_eq!(
            said.matches(": flannel-wg").count(),
            devices,
            "{mode}: {said}"
        );
        assert_eq!(one.subnet_env().unwrap().mtu, 1420);
        let (_, lease) = scene::lease_of(&lab, one);
        assert_eq!(lease["BackendData"]["Port"], 51820, "{lease}");
        assert!(
            !one.flanneld().log().contains("CQkJ"),
            "the log shows the PSK"
        );
    }
}

#[test]
fn the_key_and_connections_outlive_a_restart() {
    let lab = started(2, json!({ "Type": "wireguard" }), false);
    let (one, two) = (lab.node(1), lab.node(2));
    let key = one.read("/run/flannel/wgkey").unwrap();
    let mode = one
        .exec(["stat", "-c", "%a", "/run/flannel/wgkey"])
        .unwrap();
    assert_eq!(mode.trim(), "400");
    let lease = published(&lab, one);
    let to = &two.pods()[0];
    let flow = Flow::start(
        &one.pods()[0],
        to,
        to.ip(V4).unwrap(),
        Duration::from_millis(20),
    )
    .unwrap();
    one.flanneld().restart(SOON).unwrap();
    two.flanneld().kill9().unwrap();
    two.flanneld().start_ready(SOON).unwrap();
    wait_for("the pods reach each other", SOON, || reaches(one, two)).unwrap();
    assert_eq!(flow.stop().broken, None);
    assert_eq!(one.read("/run/flannel/wgkey").unwrap(), key);
    assert_eq!(published(&lab, one), lease);
    assert!(
        !one.flanneld().log().contains(key.trim()),
        "the log shows the key"
    );

    // A new key is followed.
    one.flanneld().stop().unwrap();
    // One place that has it is enough.
    run(one, "rm /run/flannel/wgkey").unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    assert_eq!(one.read("/run/flannel/wgkey").unwrap(), key);
    one.flanneld().stop().unwrap();
    run(one, "rm /run/flannel/wgkey /var/lib/flannel/wgkey").unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    assert_ne!(one.read("/run/flannel/wgkey").unwrap(), key);
    wait_for("the new key is known", SOON, || reaches(one, two)).unwrap();
    wait_for("the new key is known", SOON, || reaches(two, one)).unwrap();
}

#[test]
fn nothing_leaves_unencrypted() {
    let lab = started(2, json!({ "Type": "wireguard" }), true);
    let (one, two) = (lab.node(1), lab.node(2));
    watch(one);
    watch(two);
    for node in [one, two] {
        for pod in node.pods() {
            // Traffic all the time.
            let peer = if node.index() == 1 { two } else { one };
            for ip in peer.pods()[0].ips() {
                let script = format!("ping -n -i 0.02 {ip} >/dev/null 2>&1 &");
                pod.exec(["sh", "-c", &script]).unwrap();
            }
        }
    }
    let whole = || reaches(one, two);
    for damage in [
        "ip link delete flannel-wg",
        "ip link set flannel-wg down",
        "ip link delete flannel-wg-v6",
    ] {
        // The device may still be about to be recreated: packets of the other family came through already.
        wait_for(damage, SOON, || run(one, damage)).unwrap();
        wait_for(&format!("{damage} is repaired"), SOON, whole).unwrap();
    }
    // Without a daemon nothing is repaired, and nothing leaves.
    one.flanneld().kill9().unwrap();
    run(one, "ip link delete flannel-wg").unwrap();
    assert!(reaches(one, two).is_err());
    one.flanneld().start_ready(SOON).unwrap();
    wait_for("the pods reach each other", SOON, whole).unwrap();
    // A peer that nobody knows.
    two.flanneld().stop().unwrap();
    lab.delete_lease(&scene::lease_of(&lab, two).0).unwrap();
    wait_for("it is unreachable", SOON, || match reaches(one, two) {
        Ok(()) => Err("reached".to_owned()),
        Err(_) => Ok(()),
    })
    .unwrap();
    must_have_seen_nothing(one);
    must_have_seen_nothing(two);
}

#[test]
fn a_bad_key_file_is_named_and_waited_for() {
    let lab = scene::lab()
        .nodes(1)
        .store(StoreKind::Directory)
        .backend(json!({ "Type": "wireguard" }))
        .build()
        .unwrap();
    let one = lab.node(1);
    one.write("/run/flannel/wgkey", "nonsense").unwrap();
    one.flanneld().start().unwrap();
    wait_for("the log names the file", SOON, || {
        let log = one.flanneld().log();
        let named = log.contains("/run/flannel/wgkey") && log.contains("wg genkey");
        if named && !log.contains("nonsense") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .unwrap();
    run(one, "rm /run/flannel/wgkey").unwrap();
    one.flanneld().wait_ready(SOON).unwrap();
}

/// Gives a node a new key, as `flannelctl key rotate` does, while two pods talk; returns the longest silence.
pub fn rotate(one: &Node, two: &Node) -> Duration {
    let key = || one.read("/run/flannel/wgkey").unwrap();
    let before = key();
    let public = |node: &Node| {
        node.exec(["sh", "-c", "wg pubkey </run/flannel/wgkey"])
            .unwrap()
    };
    let old = public(one);
    let (from, to) = (&one.pods()[0], &two.pods()[0]);
    let every = Duration::from_millis(10);
    let pingers = [(from, to), (to, from)]
        .map(|(from, to)| Pinger::start(from, to.ip(V4).unwrap(), every).unwrap());
    let script = "umask 277; wg genkey >/run/flannel/new && cp /run/flannel/new /var/lib/flannel/new && \
        mv /var/lib/flannel/new /var/lib/flannel/wgkey && mv /run/flannel/new /run/flannel/wgkey";
    one.exec(["sh", "-c", script]).unwrap();
    assert_ne!(key(), before);
    assert_ne!(public(one), old);
    // It is in use, and both talk again.
    wait_for("the new key is followed", SOON, || {
        let log = one.flanneld().log();
        if log.contains("keys in this node's files changed") {
            reaches(one, two)
        } else {
            Err(log)
        }
    })
    .unwrap();
    wait_for("the new key is followed", SOON, || reaches(two, one)).unwrap();
    let reports = pingers.map(Pinger::stop);
    let gap = reports
        .iter()
        .map(|report| report.longest_gap)
        .max()
        .unwrap();
    eprintln!("a key changed under traffic: {gap:?} of silence; {reports:?}");
    gap
}

#[test]
fn a_key_changes_under_traffic() {
    let lab = started(2, json!({ "Type": "wireguard" }), false);
    let (one, two) = (lab.node(1), lab.node(2));
    watch(one);
    watch(two);
    let before = published(&lab, one);
    // A handshake that is lost is repeated after five seconds: none may be.
    assert!(rotate(one, two) < Duration::from_millis(4500));
    let now = published(&lab, one);
    assert_eq!(now.0, before.0);
    assert_ne!(now.1["BackendData"], before.1["BackendData"]);
    // What is deleted is written again; what is broken is named, and the key in use stays.
    let key = one.read("/run/flannel/wgkey").unwrap();
    run(one, "rm /run/flannel/wgkey /var/lib/flannel/wgkey").unwrap();
    wait_for("the key is written again", SOON, || {
        match one.read("/var/lib/flannel/wgkey") {
            Ok(there) if there.trim() == key.trim() => Ok(()),
            other => Err(format!("{:?}", other.map(drop))),
        }
    })
    .unwrap();
    one.exec([
        "sh",
        "-c",
        "rm /var/lib/flannel/wgkey; echo x >/var/lib/flannel/wgkey",
    ])
    .unwrap();
    wait_for("the broken file is named", SOON, || {
        let log = one.flanneld().log();
        let named = log.contains("/var/lib/flannel/wgkey") && log.contains("stay in use");
        if named { Ok(()) } else { Err(log) }
    })
    .unwrap();
    reaches(one, two).unwrap();
    must_have_seen_nothing(one);
    must_have_seen_nothing(two);
}

/// Counts, from now on, packets between pods that leave a node as they are or in a tunnel of vxlan's.
fn watch_vxlan(node: &Node) {
    let rules = "add table inet plain; \
        add chain inet plain out { type filter hook postrouting priority 300; }; \
        add rule inet plain out oifname eth0 udp dport 8472 counter";
    node.exec(["nft", rules]).unwrap();
}

fn must_not_have_used_vxlan(node: &Node) {
    let said = node
        .exec(["nft", "list", "table", "inet", "plain"])
        .unwrap();
    assert!(said.contains("counter packets 0 bytes 0"), "{said}");
}

#[test]
fn nothing_leaves_unencrypted_while_the_network_changes_to_wireguard_and_keys_change() {
    let lab = scene::lab()
        .nodes(2)
        .dual()
        .store(StoreKind::Etcd { tls: false })
        .backend(json!({ "Type": "vxlan" }))
        .build()
        .unwrap();
    let (one, two) = (lab.node(1), lab.node(2));
    for node in [one, two] {
        node.flanneld().start_ready(SOON).unwrap();
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    watch(one);
    watch(two);
    for (node, peer) in [(one, two), (two, one)] {
        for ip in peer.pods()[0].ips() {
            let script = format!("ping -n -i 0.02 {ip} >/dev/null 2>&1 &");
            node.pods()[0].exec(["sh", "-c", &script]).unwrap();
        }
    }
    // While the nodes change, those that have changed still serve those that have not.
    one.flanneld().stop().unwrap();
    two.flanneld().stop().unwrap();
    let config = json!({
        "Network": "172.30.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:30::/48",
        "Backend": { "Type": "wireguard" },
    });
    lab.put_config(&config.to_string()).unwrap();
    for node in [one, two] {
        node.flanneld().start_ready(SOON).unwrap();
    }
    for node in [one, two] {
        wait_for("the change is finished", SOON, || {
            let found = node.output(["ip", "link", "show", "flannel.1"]);
            match found.map(|found| found.status.success()) {
                Ok(false) => Ok(()),
                _ => Err(node.flanneld().log_tail(5)),
            }
        })
        .unwrap();
        watch_vxlan(node);
    }
    wait_for("the pods reach each other", SOON, || reaches(one, two)).unwrap();

    // The store is unreachable: what is known goes on, and what is lost leads nowhere.
    let etcd = lab.etcd().unwrap();
    etcd.stop().unwrap();
    run(one, "ip link delete flannel-wg").unwrap();
    wait_for("the device is there again", SOON, || reaches(one, two)).unwrap();
    two.flanneld().kill9().unwrap();
    run(two, "ip link delete flannel-wg").unwrap();
    two.flanneld().start().unwrap();
    assert!(reaches(one, two).is_err());
    etcd.start().unwrap();
    two.flanneld().wait_ready(SOON).unwrap();
    wait_for("the pods reach each other", SOON, || reaches(one, two)).unwrap();
    for node in [one, two] {
        must_not_have_used_vxlan(node);
        must_have_seen_nothing(node);
    }
}

#[test]
fn a_psk_in_a_file_is_used_and_followed() {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Directory)
        .backend(json!({ "Type": "wireguard" }))
        .build()
        .unwrap();
    let (one, two) = (lab.node(1), lab.node(2));
    let psk = |node: &Node, byte: &str| {
        let text = byte.repeat(42) + "E=";
        node.write("/run/psk", &text).unwrap();
    };
    for node in [one, two] {
        psk(node, "A");
        node.flanneld().set_args([
            "-wireguard-psk-file=/run/psk",
            "-wireguard-implementation=userspace",
        ]);
        node.flanneld().start_ready(SOON).unwrap();
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    psk(one, "B");
    wait_for("the nodes differ", SOON, || match reaches(one, two) {
        Ok(()) => Err("reached".to_owned()),
        Err(_) => Ok(()),
    })
    .unwrap();
    psk(two, "B");
    wait_for("the nodes agree", SOON, || reaches(one, two)).unwrap();
    for node in [one, two] {
        let log = node.flanneld().log();
        assert!(!log.contains("AAAA") && !log.contains("BBBB"), "{log}");
    }
}
