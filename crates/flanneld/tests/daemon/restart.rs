//! The daemon is stopped and started again: what changed meanwhile, what flows meanwhile, what stays.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Lab, Node, StoreKind, wait_for};
use model::Family;
use serde_json::json;

use crate::flow::{Traffic, forgets};
use crate::scene::{self, ETCD, Peer, SOON, device, lease_of, measuring, mesh, run};

/// How often a daemon is restarted, in each way.
const ROUNDS: usize = 10;

/// Every network that is restarted: a label, the backend, the store, flags.
pub const NETWORKS: [(&str, &str, StoreKind, &[&str]); 4] = [
    ("vxlan, etcd", "vxlan", ETCD, &[]),
    (
        "vxlan, directory, plain",
        "vxlan",
        StoreKind::Directory,
        &["-plain-routes"],
    ),
    ("host-gw, etcd", "host-gw", ETCD, &[]),
    ("host-gw, directory", "host-gw", StoreKind::Directory, &[]),
];

pub fn built(nodes: usize, backend: &str, store: StoreKind, args: &[&str]) -> Lab {
    let lab = scene::lab()
        .nodes(nodes)
        .dual()
        .store(store)
        .backend(json!({ "Type": backend }))
        .flanneld_args(args.iter().copied())
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    lab
}

#[test]
fn what_changed_meanwhile_is_followed() {
    let _turn = measuring();
    for (label, backend, store, args) in NETWORKS {
        let lab = built(4, backend, store, args);
        let (node, leaver, moved, renewed) = (lab.node(1), lab.node(2), lab.node(3), lab.node(4));
        let mut old: Vec<String> = Vec::new();
        let mut new: Vec<String> = Vec::new();
        for family in Family::ALL {
            let left = Peer::of(leaver, family);
            old.push(left.subnet.to_string());
            old.push(left.underlay);
            old.extend((backend == "vxlan").then_some(left.mac));
            // As a destination only: the node that moved is a neighbour of ours as before.
            old.push(moved.ip(family).to_string());
            if backend == "vxlan" {
                old.push(Peer::of(renewed, family).mac);
            }
        }
        node.flanneld().stop().unwrap();
        for other in [leaver, moved, renewed] {
            other.flanneld().kill9().unwrap();
        }
        let (key, _) = lease_of(&lab, leaver);
        lab.delete_lease(&key).unwrap();
        let (key, mut value) = lease_of(&lab, moved);
        value["PublicIP"] = json!("192.168.78.33");
        value["PublicIPv6"] = json!("fd78:78::33");
        new.extend(["192.168.78.33".into(), "fd78:78::33".into()]);
        lab.put_lease(&key, &value.to_string()).unwrap();
        if backend == "vxlan" {
            let (key, mut value) = lease_of(&lab, renewed);
            value["BackendData"]["VtepMAC"] = json!("02:00:00:00:00:41");
            value["BackendV6Data"]["VtepMAC"] = json!("02:00:00:00:00:61");
            new.extend(["02:00:00:00:00:41".into(), "02:00:00:00:00:61".into()]);
            lab.put_lease(&key, &value.to_string()).unwrap();
        }
        let start = Instant::now();
        node.flanneld().start().unwrap();
        forgets(node, &old, &new);
        let took = start.elapsed();
        eprintln!("{label}: a changed world was followed {took:.0?} after exec");
    }
}

#[test]
fn a_restart_loses_no_packet_and_keeps_subnet_and_mac() {
    for (label, backend, store, args) in NETWORKS {
        let lab = built(2, backend, store, args);
        let node = lab.node(1);
        let before = (node.subnet_env().unwrap(), node.picture().unwrap());
        let traffic = Traffic::between(node, lab.node(2));
        for _ in 0..ROUNDS {
            node.flanneld().kill9().unwrap();
            node.flanneld().start_ready(SOON).unwrap();
            node.flanneld().restart(SOON).unwrap();
        }
        traffic.all_arrived(&format!("{label}, {ROUNDS} x kill -9 and SIGTERM"));
        assert_eq!(node.subnet_env().unwrap(), before.0);
        // The MAC, and all else.
        let changed = before.1.difference(&node.picture().unwrap());
        assert!(changed.is_empty(), "{label}: {changed:#?}");
    }
}

/// The node's rules with their handles, without counters.
fn rules(node: &Node) -> String {
    let listed = node.exec(["nft", "-a", "list", "ruleset"]).unwrap();
    let mut words: Vec<&str> = listed.split_whitespace().collect();
    for at in 1..words.len() {
        if matches!(words[at - 1], "packets" | "bytes") {
            words[at] = "N";
        }
    }
    words.join(" ")
}

#[test]
fn a_restart_writes_nothing_into_the_kernel() {
    for (label, backend, store, args) in NETWORKS {
        let args: Vec<&str> = args.iter().copied().chain(["-ip-masq"]).collect();
        let lab = built(2, backend, store, &args);
        let node = lab.node(1);
        let before = rules(node);
        assert!(before.contains("FLANNEL-POSTRTG") && before.contains("flannel-guard-"));
        let mut monitor = Command::new("ip");
        let monitor = monitor.args(["monitor", "link", "address", "route", "neigh", "nexthop"]);
        let mut monitor = node.spawn(monitor.stdout(Stdio::piped())).unwrap();
        // It listens: this is the first thing that it shows, and the one after the restarts the last.
        let mark = |n: u32| {
            run(node, &format!("ip address add 192.0.2.{n}/32 dev lo")).unwrap();
        };
        let lines = BufReader::new(monitor.stdout.take().unwrap());
        let (send, shown) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut next = 0;
        let listens = || {
            next += 1;
            mark(next);
            shown.recv_timeout(Duration::from_millis(100))
        };
        wait_for("ip monitor listens", SOON, listens).unwrap();
        for _ in 0..3 {
            node.flanneld().restart(SOON).unwrap();
            node.flanneld().kill9().unwrap();
            node.flanneld().start_ready(SOON).unwrap();
            mesh(&lab);
        }
        mark(250);
        let mut written = Vec::new();
        while let Ok(line) = shown.recv_timeout(SOON) {
            if line.contains("192.0.2.250/32") {
                break;
            }
            written.push(line);
        }
        // Neighbours of the underlay come and go by themselves.
        let ours = |line: &&String| line.contains("flannel") || line.contains("proto 241");
        let ours: Vec<&String> = written.iter().filter(ours).collect();
        assert!(ours.is_empty(), "{label}: {ours:#?}");
        assert_eq!(rules(node), before, "{label}");
        stop(monitor);
    }
}

fn stop(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn a_reboot_keeps_subnet_and_mac() {
    for (label, backend, store, args) in NETWORKS {
        let lab = built(2, backend, store, args);
        let node = lab.node(1);
        let env = node.subnet_env().unwrap();
        let flannel = || node.picture().unwrap().only("flannel");
        let before = flannel();
        node.flanneld().kill9().unwrap();
        for family in Family::ALL.into_iter().filter(|_| backend == "vxlan") {
            node.exec(["ip", "link", "del", device(family)]).unwrap();
        }
        node.exec(["rm", "-r", "/run/flannel"]).unwrap();
        assert_eq!(node.flanneld().start_ready(SOON).unwrap(), env, "{label}");
        mesh(&lab);
        assert_eq!(flannel(), before, "{label}");
    }
}
