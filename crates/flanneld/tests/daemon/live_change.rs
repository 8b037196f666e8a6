//! The network configuration changes while daemons and packets run.

use std::time::Duration;

use lab::{Flow, Lab, Node, StoreKind, wait_for};
use model::Family::V4;
use serde_json::{Value, json};

use crate::flow::Traffic;
use crate::mixed;
use crate::scene::{self, ETCD, SOON, lease_of, says};

/// How often a message is sent over a TCP connection.
const MESSAGE: Duration = Duration::from_millis(10);

pub fn config(lab: &Lab, backend: &Value) {
    let config = json!({ "Network": "172.30.0.0/16", "Backend": backend });
    lab.put_config(&config.to_string()).unwrap();
}

pub fn started(nodes: usize, store: StoreKind, backend: &Value) -> Lab {
    let lab = scene::lab()
        .nodes(nodes)
        .store(store)
        .backend(backend.clone())
        .build()
        .unwrap();
    for node in lab.nodes() {
        node.flanneld().start_ready(SOON).unwrap();
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    lab
}

/// Waits until every node's lease names `backend` and nothing beside it.
pub fn all_changed(lab: &Lab, backend: &str) {
    let look = || {
        for node in lab.nodes() {
            let (_, lease) = lease_of(lab, node);
            // As upstream's, a lease of udp names no type.
            let named = lease["BackendType"].as_str().unwrap_or("udp");
            if named != backend || lease.get("Also").is_some() {
                return Err(format!("{lease}\n{}", node.flanneld().log_tail(8)));
            }
        }
        Ok(())
    };
    wait_for(&format!("all have changed to {backend}"), SOON, look).unwrap();
}

/// A TCP connection between the pods of two nodes.
pub fn connected(a: &Node, b: &Node) -> Flow {
    let (from, to) = (&a.pods()[0], &b.pods()[0]);
    Flow::start(from, to, to.ip(V4).unwrap(), MESSAGE).unwrap()
}

fn there_and_back(store: StoreKind) {
    let lab = started(3, store, &json!({ "Type": "vxlan" }));
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    let traffic = [Traffic::between(one, two), Traffic::between(two, three)];
    let flow = connected(one, three);
    for backend in ["host-gw", "vxlan"] {
        config(&lab, &json!({ "Type": backend }));
        all_changed(&lab, backend);
        let mtu = if backend == "vxlan" { 1450 } else { 1500 };
        for node in lab.nodes() {
            let over = || {
                let links = node.exec(["ip", "-o", "link"]).map_err(|e| e.to_string())?;
                let env = node.subnet_env().map_err(|e| e.to_string())?;
                if env.mtu == mtu && links.contains("flannel.1") == (backend == "vxlan") {
                    Ok(())
                } else {
                    Err(format!("{env:?}\n{links}"))
                }
            };
            wait_for("the former is gone", SOON, over).unwrap();
        }
    }
    let [a, b] = traffic;
    a.all_arrived("vxlan, host-gw, vxlan");
    b.all_arrived("vxlan, host-gw, vxlan");
    assert_eq!(flow.stop().broken, None);
}

#[test]
fn vxlan_changes_to_host_gw_and_back_without_a_lost_packet_on_etcd() {
    there_and_back(ETCD);
}

#[test]
fn vxlan_changes_to_host_gw_and_back_without_a_lost_packet_on_a_directory() {
    there_and_back(StoreKind::Directory);
}

/// Counts packets between pods that leave a node unencrypted, from now on.
fn watch(node: &Node) {
    let rules = "add table inet clear; flush table inet clear; \
        add chain inet clear out { type filter hook postrouting priority 300; }; \
        add rule inet clear out oifname eth0 ip daddr 172.30.0.0/16 counter; \
        add rule inet clear out oifname eth0 udp dport 8472 counter";
    node.exec(["nft", rules]).unwrap();
}

fn nothing_was_clear(node: &Node) {
    let said = node
        .exec(["nft", "list", "table", "inet", "clear"])
        .unwrap();
    let nothing = said.matches("counter packets 0 bytes 0").count();
    assert_eq!(nothing, 2, "{}: {said}", node.name());
}

/// Waits until no node reaches another one without encryption.
fn all_encrypted(lab: &Lab) {
    for node in lab.nodes() {
        let look = || {
            let routes = node.exec(["ip", "route"]).map_err(|e| e.to_string())?;
            let clear = routes.lines().any(|line| line.contains("flannel.1"));
            if clear || !routes.contains("flannel-wg") {
                Err(format!("{routes}\n{}", node.flanneld().log_tail(8)))
            } else {
                Ok(())
            }
        };
        wait_for("all is encrypted", SOON, look).unwrap();
    }
}

#[test]
fn vxlan_changes_to_wireguard_and_nothing_is_lost_or_leaks_afterwards() {
    let lab = started(3, ETCD, &json!({ "Type": "vxlan" }));
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    let traffic = [Traffic::between(one, two), Traffic::between(two, three)];
    let flow = connected(one, three);
    config(&lab, &json!({ "Type": "wireguard" }));
    all_encrypted(&lab);
    lab.nodes().iter().for_each(watch);
    // A daemon that is restarted before the change has ended goes on from where it was.
    two.flanneld().kill9().unwrap();
    two.flanneld().start_ready(SOON).unwrap();
    all_changed(&lab, "wireguard");
    lab.nodes().iter().for_each(nothing_was_clear);
    // The process that carries the packets was killed: some are lost there.
    let [ab, bc] = traffic;
    drop((ab, bc));
    assert_eq!(flow.stop().broken, None);
}

#[test]
fn wireguard_is_entered_and_left_without_a_lost_packet() {
    let lab = started(2, StoreKind::Directory, &json!({ "Type": "host-gw" }));
    let (one, two) = (lab.node(1), lab.node(2));
    let traffic = Traffic::between(one, two);
    for backend in ["wireguard", "vxlan"] {
        config(&lab, &json!({ "Type": backend }));
        all_changed(&lab, backend);
    }
    traffic.all_arrived("host-gw, wireguard, vxlan");
}

#[test]
fn other_tunnels_and_numbers_change_without_a_lost_packet() {
    let lab = started(2, ETCD, &json!({ "Type": "vxlan" }));
    let (one, two) = (lab.node(1), lab.node(2));
    let traffic = Traffic::between(one, two);
    config(&lab, &json!({ "Type": "vxlan", "VNI": 7 }));
    let seven = || {
        let links = one.exec(["ip", "-o", "link"]).map_err(|e| e.to_string())?;
        if links.contains("flannel.7") && !links.contains("flannel.1:") {
            Ok(())
        } else {
            Err(links)
        }
    };
    wait_for("another VNI", SOON, seven).unwrap();
    config(&lab, &json!({ "Type": "udp" }));
    let only_udp = || {
        let links = two.exec(["ip", "-o", "link"]).map_err(|e| e.to_string())?;
        if links.contains("flannel0") && !links.contains("flannel.7") {
            Ok(())
        } else {
            Err(links)
        }
    };
    wait_for("udp", SOON, only_udp).unwrap();
    config(&lab, &json!({ "Type": "host-gw" }));
    all_changed(&lab, "host-gw");
    traffic.all_arrived("VNI 1, VNI 7, udp, host-gw");
}

#[test]
fn a_change_outlives_daemons_that_are_killed_in_it() {
    let lab = started(2, ETCD, &json!({ "Type": "vxlan" }));
    let (one, two) = (lab.node(1), lab.node(2));
    let traffic = Traffic::between(one, two);
    for (number, backend) in ["host-gw", "vxlan", "host-gw"].into_iter().enumerate() {
        if number == 1 {
            // It learns of the change when it starts.
            two.flanneld().kill9().unwrap();
        }
        config(&lab, &json!({ "Type": backend }));
        for wait in [0, 2, 20, 150, 400] {
            let begun = two.flanneld().ended().unwrap().is_none();
            if begun {
                let pause = std::time::Instant::now() + Duration::from_millis(wait);
                wait_for("a moment", SOON, || {
                    if std::time::Instant::now() >= pause {
                        Ok(())
                    } else {
                        Err("early")
                    }
                })
                .unwrap();
                two.flanneld().kill9().unwrap();
            }
            two.flanneld().start().unwrap();
        }
        two.flanneld().wait_ready(SOON).unwrap();
        all_changed(&lab, backend);
    }
    traffic.all_arrived("a daemon killed in the middle");
}

#[test]
fn a_configuration_that_changes_every_second_loses_nothing() {
    let lab = started(2, ETCD, &json!({ "Type": "vxlan" }));
    let (one, two) = (lab.node(1), lab.node(2));
    let traffic = Traffic::between(one, two);
    let mut sent = 0;
    for backend in ["host-gw", "vxlan"].repeat(4) {
        config(&lab, &json!({ "Type": backend }));
        sent += 100;
        wait_for("a second", SOON, || {
            if traffic.sent() >= sent {
                Ok(())
            } else {
                Err(traffic.sent())
            }
        })
        .unwrap();
    }
    config(&lab, &json!({ "Type": "host-gw" }));
    all_changed(&lab, "host-gw");
    traffic.all_arrived("flapping");
}

#[test]
fn what_needs_no_new_device_is_applied_in_place() {
    let lab = started(2, StoreKind::Directory, &json!({ "Type": "vxlan" }));
    let (one, two) = (lab.node(1), lab.node(2));
    let traffic = Traffic::between(one, two);
    config(
        &lab,
        &json!({ "Type": "vxlan", "MTU": 1400, "DirectRouting": true }),
    );
    let changed = || {
        let env = one.subnet_env().map_err(|e| e.to_string())?;
        let routes = one.exec(["ip", "route"]).map_err(|e| e.to_string())?;
        if env.mtu == 1350 && !routes.contains("flannel.1 onlink") {
            Ok(())
        } else {
            Err(format!("{env:?}\n{routes}\n{}", one.flanneld().log_tail(8)))
        }
    };
    wait_for("MTU and direct routes", SOON, changed).unwrap();
    // A larger network.
    lab.put_config(
        r#"{"Network":"172.28.0.0/14","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#,
    )
    .unwrap();
    for node in [one, two] {
        let larger = || {
            let env = node
                .read("/run/flannel/subnet.env")
                .map_err(|e| e.to_string())?;
            if env.contains("FLANNEL_NETWORK=172.28.0.0/14") {
                Ok(())
            } else {
                Err(env)
            }
        };
        wait_for("a larger network", SOON, larger).unwrap();
    }
    traffic.all_arrived("in place");
    // What cannot be used leaves all as it is, and is said once.
    for (bad, said) in [
        ("{", "stays in force"),
        (
            r#"{"Network":"10.9.0.0/16"}"#,
            "does not contain this node's subnet",
        ),
        (
            r#"{"Network":"172.28.0.0/14","Backend":{"Type":"vxlan","VNI":"x"}}"#,
            "Backend.VNI",
        ),
    ] {
        lab.put_config(bad).unwrap();
        says(one.flanneld(), &[said]);
    }
    lab.wait_mesh(SOON).unwrap();
    let log = one.flanneld().log();
    assert_eq!(
        log.matches("does not contain this node's subnet").count(),
        1
    );
}

/// Two nodes of three try another backend.
#[test]
fn a_backend_can_be_tried_on_some_nodes_without_a_lost_packet() {
    let lab = started(3, ETCD, &json!({ "Type": "vxlan" }));
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    let traffic = [Traffic::between(one, two), Traffic::between(one, three)];
    for node in [one, two] {
        node.flanneld().set_args(["-backend=host-gw"]);
        node.flanneld().restart(SOON).unwrap();
    }
    let goes = |from: &Node, to: &Node, by: &str| {
        let subnet = to.subnet_env().unwrap().cidr(V4).unwrap().trunc();
        let look = || {
            let route = from.exec(["ip", "route", "show", &subnet.to_string()]);
            let route = route.map_err(|e| e.to_string())?;
            if route.contains(by) {
                Ok(())
            } else {
                Err(format!("{route}\n{}", from.flanneld().log_tail(8)))
            }
        };
        wait_for(&format!("{} to {}", from.name(), to.name()), SOON, look).unwrap();
    };
    for (from, to, by) in [
        (one, two, "dev eth0"),
        (two, one, "dev eth0"),
        (one, three, "dev flannel.1"),
        (three, one, "dev flannel.1"),
    ] {
        goes(from, to, by);
    }
    let (_, lease) = lease_of(&lab, one);
    assert_eq!(lease["BackendType"], "vxlan", "{lease}");
    let (status, body) = one.flanneld().http_get("/readyz").unwrap();
    assert!(
        status == 200 && body.contains("this node tries host-gw"),
        "{body}"
    );
    // One of them goes back.
    two.flanneld().set_args::<String>([]);
    two.flanneld().restart(SOON).unwrap();
    goes(one, two, "dev flannel.1");
    goes(two, one, "dev flannel.1");
    let [a, b] = traffic;
    a.all_arrived("tried on both");
    b.all_arrived("tried on one");
    // What does not encrypt is not tried where the network does.
    config(&lab, &json!({ "Type": "wireguard" }));
    all_changed(&lab, "wireguard");
    says(one.flanneld(), &["-backend host-gw", "does not encrypt"]);
    lab.wait_mesh(SOON).unwrap();
}

#[test]
fn upstream_s_nodes_keep_what_they_speak() {
    let Some(program) = mixed::program() else {
        return;
    };
    let lab = scene::lab()
        .nodes(3)
        .store(StoreKind::Etcd { tls: true })
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
    config(&lab, &json!({ "Type": "host-gw" }));
    let direct = || {
        let routes = one.exec(["ip", "route"]).map_err(|e| e.to_string())?;
        let route = |node: &Node| {
            let subnet = node.subnet_env().unwrap().cidr(V4).unwrap().to_string();
            let found = routes.lines().find(|line| line.starts_with(&subnet));
            found.unwrap_or_default().to_owned()
        };
        let (to_ours, to_theirs) = (route(two), route(three));
        if to_ours.contains("dev eth0") && to_theirs.contains("flannel.1") {
            Ok(())
        } else {
            Err(routes.clone())
        }
    };
    wait_for("ours by host-gw, theirs by vxlan", SOON, direct).unwrap();
    let [ours, others] = traffic;
    ours.all_arrived("ours beside upstream");
    others.all_arrived("upstream's");
    let (status, body) = one.flanneld().http_get("/readyz").unwrap();
    assert_eq!(status, 200, "{body}");
    // It is restarted, and speaks host-gw: nobody needs vxlan any more.
    drop(theirs);
    let _theirs = mixed::start(&lab, three, program, &[]);
    all_changed(&lab, "host-gw");
    lab.wait_mesh(SOON).unwrap();
}
