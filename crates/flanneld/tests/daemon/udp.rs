//! The udp backend: packets that the daemon carries itself.

use std::time::Duration;

use lab::{Flow, Lab, Node, StoreKind, bulk, wait_for};
use model::Family::V4;
use serde_json::json;

use crate::mixed;
use crate::scene::{self, SOON, run, says};

const SOME: u64 = 4 << 20;

fn lab(nodes: usize, store: StoreKind) -> Lab {
    scene::load_tun();
    scene::lab()
        .nodes(nodes)
        .store(store)
        .backend(json!({ "Type": "udp" }))
        .build()
        .unwrap()
}

/// A lab whose nodes all reach each other.
fn started(nodes: usize) -> Lab {
    let lab = lab(nodes, StoreKind::Directory);
    for node in lab.nodes() {
        node.flanneld().start_ready(SOON).unwrap();
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    lab
}

pub fn reaches(from: &Node, to: &Node) -> Result<(), String> {
    let pod = to.pods()[0].ip(V4).unwrap().to_string();
    let output = from.pods()[0]
        .output(["ping", "-c", "1", "-W", "1", &pod])
        .unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stdout).into())
    }
}

/// A stream from a pod of each node to one of the other.
pub fn streams(one: &Node, two: &Node) {
    for (from, to) in [(one, two), (two, one)] {
        let (from, to) = (&from.pods()[0], &to.pods()[0]);
        wait_for("a stream from pod to pod", SOON, || {
            bulk(from, to, to.ip(V4).unwrap(), SOME)
        })
        .unwrap();
    }
}

#[test]
fn pods_talk_and_hosts_have_an_address_in_the_network() {
    let lab = started(3);
    let (one, two) = (lab.node(1), lab.node(2));
    streams(one, two);
    let env = one.subnet_env().unwrap();
    assert_eq!(env.mtu, 1472);
    // A host's own packets carry the device's address, to which there is a way back.
    let pod = two.pods()[0].ip(V4).unwrap();
    let said = one.exec(["ip", "route", "get", &pod.to_string()]).unwrap();
    let own = env.cidr(V4).unwrap().network().to_string();
    assert!(said.contains(&format!("dev flannel0 src {own}")), "{said}");
    bulk(one, &two.pods()[0], pod, SOME).unwrap();
}

#[test]
fn a_connection_outlives_a_restart_and_the_loss_of_the_device() {
    let lab = started(2);
    let (one, two) = (lab.node(1), lab.node(2));
    let to = &two.pods()[0];
    let flow = Flow::start(
        &one.pods()[0],
        to,
        to.ip(V4).unwrap(),
        Duration::from_millis(20),
    )
    .unwrap();
    let index = || {
        let said = one.exec(["ip", "-o", "link", "show", "flannel0"]).unwrap();
        said.split(':').next().unwrap().to_owned()
    };
    let before = index();
    one.flanneld().restart(SOON).unwrap();
    one.flanneld().kill9().unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    assert_eq!(index(), before, "the device stays");
    wait_for("the pods reach each other", SOON, || reaches(one, two)).unwrap();
    for damage in [
        "ip link delete flannel0",
        "ip link set flannel0 down",
        "ip link set flannel0 mtu 1000",
        "ip address flush dev flannel0",
        "ip route delete 172.30.0.0/16",
    ] {
        run(one, damage).unwrap();
        let whole = || {
            let said = one
                .exec(["ip", "address", "show", "flannel0"])
                .map_err(|e| e.to_string())?;
            if said.contains("mtu 1472") {
                reaches(one, two)
            } else {
                Err(said)
            }
        };
        wait_for(&format!("{damage} is repaired"), SOON, whole).unwrap();
    }
    assert_eq!(flow.stop().broken, None);
}

#[test]
fn a_change_of_the_host_is_followed_although_the_first_look_at_it_failed() {
    let lab = started(2);
    let (one, two) = (lab.node(1), lab.node(2));
    let pid = one.flanneld().pid().unwrap();
    let limit = |most: &str| {
        let status = std::process::Command::new("prlimit")
            .args([&format!("--pid={pid}"), &format!("--nofile={most}")])
            .status();
        assert!(status.unwrap().success());
    };
    let mtu = || match one.subnet_env().unwrap().mtu {
        1372 => reaches(one, two),
        other => Err(format!("MTU {other}")),
    };
    limit("3:4096");
    run(one, "ip link set eth0 mtu 1400").unwrap();
    says(one.flanneld(), &["Too many open files"]);
    limit("1024:4096");
    wait_for("the change is followed", SOON, mtu).unwrap();
}

#[test]
fn a_peer_that_leaves_is_unreachable_at_once() {
    let lab = started(3);
    let (one, three) = (lab.node(1), lab.node(3));
    reaches(one, three).unwrap();
    three.flanneld().stop().unwrap();
    lab.delete_lease(&scene::lease_of(&lab, three).0).unwrap();
    let told = || match reaches(one, three) {
        Err(said) if said.contains("Net Unreachable") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait_for("who has no route is told so", SOON, told).unwrap();
    reaches(one, lab.node(2)).unwrap();
}

#[test]
fn a_port_in_use_keeps_the_node_from_being_announced() {
    let lab = lab(2, StoreKind::Directory);
    let (one, two) = (lab.node(1), lab.node(2));
    let at = std::net::SocketAddr::from((one.ipv4(), 8285));
    let other = one.run(|| std::net::UdpSocket::bind(at)).unwrap().unwrap();
    one.flanneld().start().unwrap();
    let named = || {
        let log = one.flanneld().log();
        if log.contains("8285") && log.contains("another process uses the port") {
            Ok(())
        } else {
            Err(log)
        }
    };
    wait_for("the log names the port", SOON, named).unwrap();
    assert!(one.subnet_env().is_err(), "announced");
    drop(other);
    one.flanneld().wait_ready(SOON).unwrap();
    two.flanneld().start_ready(SOON).unwrap();
    one.add_pods(1).unwrap();
    two.add_pods(1).unwrap();
    lab.wait_mesh(SOON).unwrap();
}

#[test]
fn ours_and_upstream_s_are_one_network() {
    let Some(program) = mixed::program() else {
        return;
    };
    let lab = lab(3, StoreKind::Etcd { tls: true });
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    let _theirs = mixed::start(&lab, one, program, &["-ip-masq"]);
    two.flanneld().start_ready(SOON).unwrap();
    three.flanneld().start_ready(SOON).unwrap();
    for node in lab.nodes() {
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    assert_eq!(one.subnet_env().unwrap().mtu, two.subnet_env().unwrap().mtu);
    streams(one, two);
    streams(three, two);
    two.flanneld().restart(SOON).unwrap();
    streams(two, one);
}

#[test]
fn ours_takes_upstream_s_place_and_gives_it_back() {
    let Some(program) = mixed::program() else {
        return;
    };
    let lab = lab(2, StoreKind::Etcd { tls: true });
    let (one, two) = (lab.node(1), lab.node(2));
    let theirs = mixed::start(&lab, one, program, &["-ip-masq"]);
    let _theirs = mixed::start(&lab, two, program, &["-ip-masq"]);
    one.add_pods(1).unwrap();
    two.add_pods(1).unwrap();
    lab.wait_mesh(SOON).unwrap();
    let env = one.subnet_env().unwrap();
    let to = &two.pods()[0];
    let flow = Flow::start(
        &one.pods()[0],
        to,
        to.ip(V4).unwrap(),
        Duration::from_millis(20),
    )
    .unwrap();
    theirs.kill9().unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    wait_for("the pods reach each other", SOON, || reaches(one, two)).unwrap();
    let now = one.subnet_env().unwrap();
    assert_eq!((now.subnet, now.mtu), (env.subnet, env.mtu));
    streams(one, two);

    // And back, as docs/backends.md says.
    one.flanneld().stop().unwrap();
    one.exec(["ip", "link", "delete", "flannel0"]).unwrap();
    let _theirs = mixed::start(&lab, one, program, &["-ip-masq"]);
    for (from, to) in [(one, two), (two, one)] {
        wait_for("the pods reach each other", SOON, || reaches(from, to)).unwrap();
    }
    assert_eq!(one.subnet_env().unwrap(), env);
    assert_eq!(flow.stop().broken, None);
}
