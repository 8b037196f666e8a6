//! The table that drops forged packets: in every mode, following the host, and gone after a teardown.

use lab::{Lab, Node, wait_for};
use model::Family::V4;
use serde_json::json;

use crate::scene::{self, SOON, mesh};

const TABLE: &str = "flannel-guard-172.30.0.0-16";

/// The table as nft shows it, without counters; empty where there is none.
fn shown(node: &Node) -> String {
    let script = format!(
        "nft list table inet {TABLE} 2>/dev/null | sed 's/counter packets [0-9]* bytes [0-9]*/counter/' || true"
    );
    node.exec(["sh", "-c", &script]).unwrap()
}

#[track_caller]
fn becomes(node: &Node, what: &str, is_right: impl Fn(&str) -> bool) {
    let look = || {
        let table = shown(node);
        if is_right(&table) { Ok(()) } else { Err(table) }
    };
    wait_for(what, SOON, look).unwrap_or_else(|e| panic!("{e}\n{}", node.flanneld().log_tail(10)));
}

/// Drops what it should, tunnel packets of pods included.
fn is_whole(table: &str) -> bool {
    [
        "nd-router-advert",
        "172.30.0.0/16 udp dport 8472",
        "hook forward",
    ]
    .iter()
    .all(|part| table.contains(part))
}

fn lab(nftables: bool, args: &[&str]) -> Lab {
    scene::lab()
        .nodes(1)
        .config("EnableNFTables", json!(nftables))
        .flanneld_args(args.iter().copied())
        .build()
        .unwrap()
}

#[test]
fn it_exists_in_every_mode_and_goes_with_the_network() {
    for (nftables, args) in [
        (false, ["-ip-masq", "-teardown-on-stop"].as_slice()),
        (true, &["-ip-masq", "-teardown-on-stop"]),
        // Neither rules nor masquerading, IPv4 alone.
        (
            false,
            &["-iptables-forward-rules=false", "-teardown-on-stop"],
        ),
        (
            true,
            &["-iptables-forward-rules=false", "-teardown-on-stop"],
        ),
    ] {
        let lab = lab(nftables, args);
        let node = lab.node(1);
        node.flanneld().start_ready(SOON).unwrap();
        let table = shown(node);
        assert!(is_whole(&table), "{nftables} {args:?}: {table}");
        // Whatever somebody does to it.
        for harm in [
            format!("nft delete table inet {TABLE}"),
            format!("nft flush table inet {TABLE}"),
            "nft flush ruleset".into(),
        ] {
            node.exec(["sh", "-c", &harm]).unwrap();
            becomes(node, &harm, is_whole);
        }
        node.flanneld().stop().unwrap();
        assert_eq!(shown(node), "", "{nftables} {args:?}");
    }
}

#[test]
fn it_stays_over_a_restart_and_follows_the_port() {
    let lab = lab(false, &[]);
    let node = lab.node(1);
    node.flanneld().start_ready(SOON).unwrap();
    node.flanneld().stop().unwrap();
    assert!(is_whole(&shown(node)));
    lab.put_config(
        &json!({
            "Network": "172.30.0.0/16",
            "Backend": {"Type": "vxlan", "Port": 4789},
        })
        .to_string(),
    )
    .unwrap();
    node.flanneld().start_ready(SOON).unwrap();
    let table = shown(node);
    assert!(
        table.contains("dport 4789") && !table.contains("8472"),
        "{table}"
    );
}

/// Where the node's own address lies in the network, its packets look like a pod's.
#[test]
fn it_follows_the_node_s_addresses() {
    let lab = lab(false, &["-iface=eth0"]);
    let node = lab.node(1);
    node.flanneld().start_ready(SOON).unwrap();
    let own = node.ip(V4);
    let sh = |script: String| node.exec(["sh", "-c", &script]).unwrap();
    sh(format!(
        "ip address add 172.30.255.77/32 dev eth0; ip address del {own}/24 dev eth0"
    ));
    becomes(node, "the tunnel is not guarded", |table| {
        table.contains("nd-router-advert") && !table.contains("8472")
    });
    sh(format!(
        "ip address add {own}/24 dev eth0; ip address del 172.30.255.77/32 dev eth0"
    ));
    becomes(node, "the tunnel is guarded again", is_whole);
    let log = node.flanneld().log();
    assert!(!log.contains("repaired the rules against forged"), "{log}");
}

#[test]
fn the_sources_of_tunnel_packets_follow_the_leases_if_asked_for() {
    let lab = scene::lab()
        .nodes(3)
        .flanneld_args(["-check-tunnel-sources"])
        .build()
        .unwrap();
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    let shown = || {
        let script = format!("nft list table inet {TABLE}-sources 2>/dev/null || true");
        one.exec(["sh", "-c", &script]).unwrap()
    };
    let becomes = |what: &str, is_right: &dyn Fn(&str) -> bool| {
        let look = || {
            let table = shown();
            if is_right(&table) { Ok(()) } else { Err(table) }
        };
        wait_for(what, SOON, look).unwrap();
    };
    one.flanneld().start_ready(SOON).unwrap();
    two.flanneld().start_ready(SOON).unwrap();
    let ip = |node: &Node| node.ip(V4).to_string();
    becomes("the second node may send", &|table| {
        table.contains("udp dport 8472") && table.contains(&ip(two))
    });
    assert!(!shown().contains(&ip(three)));
    three.flanneld().start_ready(SOON).unwrap();
    becomes("the third node may send", &|table| {
        table.contains(&ip(three))
    });
    mesh(&lab);
    // Without the flag nothing is left of it.
    one.flanneld().stop().unwrap();
    assert!(shown().contains(&ip(two)));
    one.flanneld().set_args(["-check-tunnel-sources=false"]);
    one.flanneld().start_ready(SOON).unwrap();
    becomes("no check", &str::is_empty);
}
