//! Changes between tunnels while packets run, what leaves a node in the clear meanwhile, and beside upstream's nodes.

use lab::{Lab, Node, Pinger, wait_for};
use model::Family::V4;
use serde_json::{Value, json};

use crate::flow::Traffic;
use crate::live_change::{all_changed, config, connected, started};
use crate::mixed;
use crate::scene::{self, ETCD, SOON, lease_of, run};
use crate::udp::reaches;
use crate::wireguard;

/// Counts, from now on, packets to pods of `peers` that leave `node` unencrypted: as they are, in vxlan's tunnel, and
/// in udp's.
fn watch_clear(node: &Node, peers: &[&Node]) {
    let mut rules = String::from(
        "add table inet clear; flush table inet clear; \
         add chain inet clear out { type filter hook postrouting priority 300; };",
    );
    for peer in peers {
        let subnet = peer.subnet_env().unwrap().cidr(V4).unwrap().trunc();
        let tunnel = format!("ip daddr {} udp dport", peer.ip(V4));
        for matches in [
            format!("ip daddr {subnet}"),
            format!("{tunnel} 8472"),
            format!("{tunnel} 8285"),
        ] {
            rules += &format!("add rule inet clear out oifname eth0 {matches} counter;");
        }
    }
    node.exec(["nft", &rules]).unwrap();
}

/// Asserts that none was counted since [`watch_clear`].
fn none_was_clear(node: &Node, peers: usize) {
    let table = ["nft", "list", "table", "inet", "clear"];
    let said = node.exec(table).unwrap();
    let nothing = said.matches("counter packets 0 bytes 0").count();
    assert_eq!(nothing, 3 * peers, "{}: {said}", node.name());
}

/// Waits until `node` has the device `there`, if any, and not `gone`.
fn devices(node: &Node, there: &str, gone: &str) {
    let look = || {
        let links = node.exec(["ip", "-o", "link"]).map_err(|e| e.to_string())?;
        if links.contains(there) && !links.contains(gone) {
            Ok(())
        } else {
            Err(format!("{links}{}", node.flanneld().log_tail(8)))
        }
    };
    wait_for(&format!("{there}, and not {gone}"), SOON, look).unwrap();
}

/// Waits until two nodes reach each other's pods by WireGuard.
fn encrypted(one: &Node, two: &Node) {
    for (from, to) in [(one, two), (two, one)] {
        let pod = to.pods()[0].ip(V4).unwrap().to_string();
        let look = || {
            let way = from.exec(["ip", "route", "get", &pod]);
            let way = way.map_err(|e| e.to_string())?;
            if way.contains("dev flannel-wg") {
                Ok(())
            } else {
                Err(format!("{way}{}", from.flanneld().log_tail(8)))
            }
        };
        wait_for("a way through flannel-wg", SOON, look).unwrap();
    }
    // What was on its way by the former tunnel has arrived, too.
    for (from, to) in [(one, two), (two, one)] {
        wait_for("the pods reach each other", SOON, || reaches(from, to)).unwrap();
    }
}

/// From `other` to encryption, where a key then changes, and back.
fn encrypted_and_back(other: &str, device: &str) {
    scene::load_tun();
    let lab = started(2, ETCD, &json!({ "Type": other }));
    let (one, two) = (lab.node(1), lab.node(2));
    let flow = connected(one, two);
    let traffic = Traffic::between(one, two);
    config(&lab, &json!({ "Type": "wireguard" }));
    encrypted(one, two);
    watch_clear(one, &[two]);
    watch_clear(two, &[one]);
    all_changed(&lab, "wireguard");
    for node in [one, two] {
        devices(node, "flannel-wg", device);
    }
    traffic.all_arrived(&format!("{other} to wireguard"));
    let gap = wireguard::rotate(one, two);
    assert!(gap < std::time::Duration::from_millis(4500), "{gap:?}");
    none_was_clear(one, 1);
    none_was_clear(two, 1);
    let traffic = Traffic::between(one, two);
    config(&lab, &json!({ "Type": other }));
    all_changed(&lab, other);
    for node in [one, two] {
        devices(node, device, "flannel-wg");
    }
    traffic.all_arrived(&format!("wireguard to {other}"));
    assert_eq!(flow.stop().broken, None);
}

#[test]
fn vxlan_changes_to_wireguard_where_a_key_changes_and_back() {
    encrypted_and_back("vxlan", "flannel.1");
}

#[test]
fn udp_changes_to_wireguard_where_a_key_changes_and_back() {
    encrypted_and_back("udp", "flannel0");
}

/// Where the kernel has ipip: in emulated machines (`make test-vm`), which may be so slow that a node has not followed
/// when the former backend's time is over. So packets may be lost here; the connection lives.
#[test]
fn vxlan_changes_to_ipip_and_back() {
    let lab = started(2, ETCD, &json!({ "Type": "vxlan" }));
    let (one, two) = (lab.node(1), lab.node(2));
    let trial = "ip link add trial type ipip local 192.0.2.1 remote 192.0.2.2";
    if let Err(error) = run(one, trial) {
        lab::not_run("a change to ipip and back", &error);
        return;
    }
    run(one, "ip link del trial").unwrap();
    let flow = connected(one, two);
    for (backend, there, gone) in [
        ("ipip", "flannel.ipip", "flannel.1"),
        ("vxlan", "flannel.1", "flannel.ipip"),
    ] {
        config(&lab, &json!({ "Type": backend }));
        all_changed(&lab, backend);
        devices(one, there, gone);
        devices(two, there, gone);
    }
    assert_eq!(flow.stop().broken, None);
}

/// Waits until `subnet.env` says `mtu`.
fn mtu(node: &Node, mtu: u32) {
    let look = || {
        let env = node.subnet_env().map_err(|e| e.to_string())?;
        if env.mtu == mtu {
            Ok(())
        } else {
            Err(format!("{env:?}\n{}", node.flanneld().log_tail(8)))
        }
    };
    wait_for(&format!("MTU {mtu}"), SOON, look).unwrap();
}

#[test]
fn direct_routes_and_mtu_come_and_go_without_a_lost_packet() {
    let lab = started(2, ETCD, &json!({ "Type": "vxlan" }));
    let (one, two) = (lab.node(1), lab.node(2));
    let traffic = Traffic::between(one, two);
    let subnet = two.subnet_env().unwrap().cidr(V4).unwrap().trunc();
    let subnet = subnet.to_string();
    for (direct, underlay) in [(true, 1400), (false, 1500), (true, 1500), (false, 1400)] {
        let options = json!({ "Type": "vxlan", "DirectRouting": direct, "MTU": underlay });
        config(&lab, &options);
        let device = if direct { "dev eth0" } else { "dev flannel.1" };
        let look = || {
            let route = one.exec(["ip", "route", "show", &subnet]);
            let route = route.map_err(|e| e.to_string())?;
            if route.contains(device) {
                Ok(())
            } else {
                Err(format!("{route}\n{}", one.flanneld().log_tail(8)))
            }
        };
        wait_for(device, SOON, look).unwrap();
        mtu(one, underlay - 50);
        mtu(two, underlay - 50);
    }
    traffic.all_arrived("DirectRouting and MTU");
}

/// Waits until both nodes have `options`, which `shows` finds in a command's output, and reach each other.
fn applied(nodes: [&Node; 2], command: &[&str], shows: &str) {
    for node in nodes {
        let look = || {
            let said = node.exec(command).map_err(|e| e.to_string())?;
            if said.contains(shows) {
                Ok(())
            } else {
                Err(format!("{said}\n{}", node.flanneld().log_tail(8)))
            }
        };
        wait_for(shows, SOON, look).unwrap();
    }
    for (from, to) in [(nodes[0], nodes[1]), (nodes[1], nodes[0])] {
        wait_for("the pods reach each other", SOON, || reaches(from, to)).unwrap();
    }
}

/// Both nodes take another port within moments, and no connection breaks.
#[test]
fn ports_change_while_connections_live() {
    scene::load_tun();
    let lab = started(2, ETCD, &json!({ "Type": "vxlan" }));
    let nodes = [lab.node(1), lab.node(2)];
    let [one, two] = nodes;
    let flow = connected(one, two);
    config(&lab, &json!({ "Type": "vxlan", "Port": 8479 }));
    let device = ["ip", "-d", "link", "show", "flannel.1"];
    applied(nodes, &device, "dstport 8479");

    config(&lab, &json!({ "Type": "udp", "Port": 8290 }));
    all_changed(&lab, "udp");
    let sockets = ["ss", "-Hlun"];
    applied(nodes, &sockets, ":8290");
    config(&lab, &json!({ "Type": "udp", "Port": 8291 }));
    applied(nodes, &sockets, ":8291");

    config(&lab, &json!({ "Type": "wireguard" }));
    all_changed(&lab, "wireguard");
    for node in nodes {
        devices(node, "flannel-wg", "flannel0");
    }
    watch_clear(one, &[two]);
    watch_clear(two, &[one]);
    config(&lab, &json!({ "Type": "wireguard", "ListenPort": 51830 }));
    applied(nodes, &sockets, ":51830");
    config(
        &lab,
        &json!({ "Type": "wireguard", "ListenPort": 51830, "MTU": 1400 }),
    );
    mtu(one, 1320);
    mtu(two, 1320);
    applied(nodes, &sockets, ":51830");
    none_was_clear(one, 1);
    none_was_clear(two, 1);
    assert_eq!(flow.stop().broken, None);
}

/// Ten nodes, a ping every ten milliseconds both ways between five pairs of them, and a TCP connection.
#[test]
fn ten_nodes_change_to_host_gw_and_back_without_a_lost_packet() {
    let lab = started(10, ETCD, &json!({ "Type": "vxlan" }));
    let traffic: Vec<Traffic> = (1..=5)
        .map(|n| Traffic::between(lab.node(n), lab.node(n + 5)))
        .collect();
    let flow = connected(lab.node(1), lab.node(10));
    for backend in ["host-gw", "vxlan"] {
        config(&lab, &json!({ "Type": backend }));
        all_changed(&lab, backend);
    }
    for (pair, traffic) in traffic.into_iter().enumerate() {
        traffic.all_arrived(&format!("ten nodes, pair {pair}"));
    }
    let report = flow.stop();
    assert_eq!(report.broken, None);
    eprintln!("ten nodes: {report:?}");
}

fn lease_type(lab: &Lab, node: &Node) -> Value {
    lease_of(lab, node).1["BackendType"].clone()
}

/// Two of ours encrypt to each other while upstream's node is reached as it can be, until it is gone.
#[test]
fn ours_change_to_wireguard_while_upstream_s_node_keeps_vxlan() {
    let Some(program) = mixed::program() else {
        return;
    };
    let lab = scene::lab()
        .nodes(3)
        .store(ETCD)
        .backend(json!({ "Type": "vxlan" }))
        .build()
        .unwrap();
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    let theirs = mixed::start(&lab, three, program, &[]);
    for node in [one, two] {
        node.flanneld().start_ready(SOON).unwrap();
    }
    for node in lab.nodes() {
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    let traffic = [Traffic::between(one, two), Traffic::between(one, three)];
    config(&lab, &json!({ "Type": "wireguard" }));
    encrypted(one, two);
    watch_clear(one, &[two]);
    watch_clear(two, &[one]);
    // Whoever is reached in the clear is named.
    let subnet = three.subnet_env().unwrap().cidr(V4).unwrap().trunc();
    let key = subnet.to_string().replace('/', "-");
    let named = || {
        let (_, body) = one.flanneld().http_get("/readyz").unwrap();
        let named = body.contains(&format!("reached without encryption: {key}"));
        if named { Ok(()) } else { Err(body) }
    };
    wait_for("upstream's node is named", SOON, named).unwrap();
    let [ours, others] = traffic;
    ours.all_arrived("ours, from vxlan to wireguard");
    others.all_arrived("upstream's, which stays with vxlan");
    lab.wait_mesh(SOON).unwrap();
    assert_eq!(lease_type(&lab, three), "vxlan");
    assert_eq!(lease_type(&lab, one), "wireguard");

    // It is gone: nothing of the former backend is left, and nothing was in the clear between ours.
    let pinger = Pinger::start(
        &one.pods()[0],
        two.pods()[0].ip(V4).unwrap(),
        std::time::Duration::from_millis(10),
    )
    .unwrap();
    drop(theirs);
    lab.delete_lease(&lease_of(&lab, three).0).unwrap();
    for node in [one, two] {
        devices(node, "flannel-wg", "flannel.1");
        let routes = node.exec(["ip", "route"]).unwrap();
        assert!(!routes.contains(&format!("{subnet} ")), "{routes}");
    }
    let report = pinger.stop();
    assert_eq!(report.lost, 0, "{report:?}");
    none_was_clear(one, 1);
    none_was_clear(two, 1);
}
