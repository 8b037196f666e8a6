//! The wireguard backend in the kernel, beside user space and beside upstream. Kernels without WireGuard run none of
//! it: `make test-vm` does.

use std::time::Duration;

use lab::{Error, Flow, Lab, Node, StoreKind, wait_for};
use model::Family::V4;
use serde_json::{Value, json};

use crate::flow::Traffic;
use crate::mixed;
use crate::scene::{self, SOON, lease_of, run};
use crate::udp::{reaches, streams};
use crate::wireguard;

/// Returns whether this kernel has WireGuard; names what is not run otherwise.
fn may_run(what: &str) -> bool {
    scene::load_tun();
    let has = dataplane::has_wireguard();
    if !has {
        let reason = "this kernel has no WireGuard";
        lab::not_run(what, &Error::Needs(reason.into()));
    }
    has
}

fn lab(nodes: usize, store: StoreKind, backend: Value) -> Lab {
    let builder = scene::lab().nodes(nodes).store(store).backend(backend);
    builder.dual().build().unwrap()
}

fn wg(node: &Node, what: &str) -> String {
    let said = node.exec(["wg", "show", "flannel-wg", what]).unwrap();
    said.trim().to_owned()
}

fn kind(node: &Node) -> String {
    let shown = scene::ip_json(node, "link show flannel-wg");
    shown[0]["linkinfo"]["info_kind"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn both_ways(one: &Node, two: &Node) {
    for (from, to) in [(one, two), (two, one)] {
        wait_for("the pods reach each other", SOON, || reaches(from, to)).unwrap();
    }
}

#[test]
fn kernel_user_space_and_upstream_are_one_network() {
    if !may_run("WireGuard of kernel, user space and upstream in one network") {
        return;
    }
    let Some(program) = mixed::program() else {
        return;
    };
    let backend = json!({ "Type": "wireguard", "PersistentKeepaliveInterval": 5 });
    let lab = lab(3, StoreKind::Etcd { tls: false }, backend);
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    let _theirs = mixed::start(&lab, one, program, &["-ip-masq"]);
    two.flanneld().start_ready(SOON).unwrap();
    three
        .flanneld()
        .set_args(["-wireguard-implementation=userspace"]);
    three.flanneld().start_ready(SOON).unwrap();
    assert_eq!(
        (kind(two).as_str(), kind(three).as_str()),
        ("wireguard", "tun")
    );
    for node in lab.nodes() {
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    for (from, to) in [(one, two), (two, three), (three, one)] {
        streams(from, to);
    }
    // In a kernel, a restart and a crash are noticed by nobody.
    let traffic = Traffic::between(one, two);
    two.flanneld().restart(SOON).unwrap();
    two.flanneld().kill9().unwrap();
    two.flanneld().start_ready(SOON).unwrap();
    traffic.nearly_all_arrived("wireguard in the kernel, restarted");
}

#[test]
fn what_somebody_changes_is_repaired() {
    if !may_run("repair of the kernel's WireGuard") {
        return;
    }
    let psk = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=";
    let lab = lab(
        2,
        StoreKind::Directory,
        json!({ "Type": "wireguard", "PSK": psk, "Mode": "auto" }),
    );
    let (one, two) = (lab.node(1), lab.node(2));
    for node in [one, two] {
        node.flanneld().start_ready(SOON).unwrap();
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    assert_eq!(kind(one), "wireguard");
    let whole =
        ["public-key", "listen-port", "preshared-keys", "allowed-ips"].map(|what| wg(one, what));
    assert!(whole[2].contains(psk), "{whole:?}");
    let peer = lease_of(&lab, two).1["BackendData"]["PublicKey"]
        .as_str()
        .unwrap()
        .to_owned();
    let other = "oKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKA=";
    for damage in [
        format!("wg set flannel-wg peer {peer} remove"),
        format!("wg set flannel-wg peer {peer} allowed-ips 10.9.9.0/24"),
        format!("wg set flannel-wg peer {other} allowed-ips 172.30.0.0/16"),
        "wg set flannel-wg listen-port 4000".into(),
        "wg set flannel-wg private-key /dev/null".into(),
        "ip link set flannel-wg down".into(),
        "ip link delete flannel-wg".into(),
    ] {
        wait_for(&damage, SOON, || run(one, &damage)).unwrap();
        let is_whole = || {
            let now = ["public-key", "listen-port", "preshared-keys", "allowed-ips"].map(|what| {
                let said = one.output(["wg", "show", "flannel-wg", what]).unwrap();
                String::from_utf8_lossy(&said.stdout).trim().to_owned()
            });
            if now == whole {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        };
        wait_for(&format!("{damage}: repaired"), SOON, is_whole).unwrap();
        both_ways(one, two);
    }
    let gap = wireguard::rotate(one, two);
    assert!(gap < Duration::from_millis(4500), "{gap:?}");
    let log = one.flanneld().log();
    assert!(!log.contains("CQkJ"), "the log shows the PSK");
}

#[test]
fn ours_takes_upstream_s_place_under_traffic() {
    if !may_run("ours in the place of upstream's WireGuard") {
        return;
    }
    let Some(program) = mixed::program() else {
        return;
    };
    let lab = lab(
        2,
        StoreKind::Etcd { tls: false },
        json!({ "Type": "wireguard" }),
    );
    let (one, two) = (lab.node(1), lab.node(2));
    let theirs = mixed::start(&lab, one, program, &["-ip-masq"]);
    let _theirs = mixed::start(&lab, two, program, &["-ip-masq"]);
    one.add_pods(1).unwrap();
    two.add_pods(1).unwrap();
    lab.wait_mesh(SOON).unwrap();
    let index = || scene::ip_json(one, "link show flannel-wg")[0]["ifindex"].clone();
    let (device, key, lease) = (index(), wg(one, "public-key"), lease_of(&lab, one));
    let traffic = Traffic::between(one, two);
    theirs.kill9().unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    both_ways(one, two);
    traffic.nearly_all_arrived("ours in upstream's place, wireguard");
    assert_eq!((index(), wg(one, "public-key")), (device, key));
    let now = lease_of(&lab, one);
    assert_eq!(
        (&now.0, &now.1["BackendData"]),
        (&lease.0, &lease.1["BackendData"])
    );
}

#[test]
fn user_space_takes_the_kernel_s_place_and_gives_it_back() {
    if !may_run("user space in the place of the kernel's WireGuard") {
        return;
    }
    let lab = lab(2, StoreKind::Directory, json!({ "Type": "wireguard" }));
    let (one, two) = (lab.node(1), lab.node(2));
    for node in [one, two] {
        node.flanneld().start_ready(SOON).unwrap();
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    let key = lease_of(&lab, one).1["BackendData"].clone();
    let to = &two.pods()[0];
    let (pod, address) = (&one.pods()[0], to.ip(V4).unwrap());
    let flow = Flow::start(pod, to, address, Duration::from_millis(50)).unwrap();
    for (implementation, expected) in [("userspace", "tun"), ("kernel", "wireguard")] {
        let flag = format!("-wireguard-implementation={implementation}");
        one.flanneld().set_args([flag.as_str()]);
        one.flanneld().restart(SOON).unwrap();
        assert_eq!(kind(one), expected);
        both_ways(one, two);
        assert_eq!(lease_of(&lab, one).1["BackendData"], key);
    }
    assert_eq!(flow.stop().broken, None);
}
