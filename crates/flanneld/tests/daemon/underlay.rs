//! The underlay changes under the daemon: another MTU, another address, another interface.

use std::time::Instant;

use lab::{StoreKind, wait_for};
use serde_json::{Value, json};

use crate::scene::{self, ETCD, SOON, ip_json, lease_of, mesh, run, says, shows};

#[test]
fn the_mtu_of_the_underlay_is_followed() {
    for (backend, less) in [("vxlan", 50), ("host-gw", 0)] {
        let lab = scene::lab()
            .nodes(2)
            .backend(json!({ "Type": backend }))
            .build()
            .unwrap();
        lab.start().unwrap();
        mesh(&lab);
        let node = lab.node(1);
        for mtu in [1400, 1500] {
            run(node, &format!("ip link set eth0 mtu {mtu}")).unwrap();
            let look = || match node.subnet_env().unwrap().mtu {
                seen if seen == mtu - less => Ok(()),
                seen => Err(format!("MTU {seen}")),
            };
            wait_for("subnet.env follows", SOON, look).unwrap();
            if backend == "vxlan" {
                shows(node, &[&format!("link flannel.1 up mtu {}", mtu - less)]);
            }
        }
        mesh(&lab);
    }
}

#[test]
fn a_new_address_of_the_underlay_is_followed() {
    for (backend, store) in [
        ("vxlan", ETCD),
        ("vxlan", StoreKind::Directory),
        ("host-gw", ETCD),
    ] {
        let lab = scene::lab()
            .nodes(2)
            .dual()
            .store(store)
            .backend(json!({ "Type": backend }))
            .build()
            .unwrap();
        lab.start().unwrap();
        mesh(&lab);
        let (node, peer) = (lab.node(1), lab.node(2));
        let before = (node.subnet_env().unwrap(), lease_of(&lab, node).0);
        run(
            node,
            "ip addr del 192.168.78.1/24 dev eth0
             ip addr add 192.168.78.111/24 dev eth0
             ip route add 0.0.0.0/0 via 192.168.78.254 dev eth0
             ip addr add fd78:78::111/64 dev eth0 nodad
             ip addr del fd78:78::1/64 dev eth0
             ip route replace ::/0 via fd78:78::fe dev eth0",
        )
        .unwrap();
        let moved = Instant::now();
        match backend {
            "vxlan" => {
                shows(node, &["link flannel.1 ", "local 192.168.78.111 "]);
                shows(node, &["link flannel-v6.1 ", "local fd78:78::111 "]);
                shows(peer, &["fdb ", "dev flannel.1 dst 192.168.78.111"]);
                shows(peer, &["fdb ", "dev flannel-v6.1 dst fd78:78::111"]);
            }
            _ => {
                shows(peer, &["route ", "via 192.168.78.111 dev eth0"]);
                shows(peer, &["route ", "via fd78:78::111 dev eth0"]);
            }
        }
        let took = moved.elapsed();
        eprintln!("{backend}, {store:?}: a new address was followed everywhere after {took:.0?}");
        let leases = lab.leases().unwrap();
        let lease: Value = serde_json::from_str(&leases[&before.1]).unwrap();
        assert_eq!(lease["PublicIP"], json!("192.168.78.111"));
        assert_eq!(lease["PublicIPv6"], json!("fd78:78::111"));
        assert_eq!(node.subnet_env().unwrap(), before.0);
        mesh(&lab);
        node.flanneld().restart(SOON).unwrap();
        assert_eq!(
            node.subnet_env().unwrap(),
            before.0,
            "found again by its new address"
        );
        mesh(&lab);
    }
}

/// What changes while it waits for etcd, before it has a subnet, is followed too.
#[test]
fn an_address_that_changes_during_the_start_is_followed() {
    let lab = scene::lab().nodes(1).store(ETCD).build().unwrap();
    let node = lab.node(1);
    // An etcd that may be read and not written: the daemon knows its interface, and waits.
    let etcd = lab.etcd().unwrap();
    etcd.enable_auth("flannel", "horse").unwrap();
    let below = format!("{}/", etcd.prefix());
    let may = |what: &str| {
        let words = [
            "role",
            "grant-permission",
            "--prefix=true",
            "flannel",
            what,
            &below,
        ];
        etcd.ctl(&words).unwrap();
    };
    may("read");
    let login = ["-etcd-username=flannel", "-etcd-password=horse"];
    node.flanneld().set_args(login);
    node.flanneld().start().unwrap();
    says(node.flanneld(), &["WARN", "permission denied"]);
    run(
        node,
        "ip addr del 192.168.78.1/24 dev eth0
         ip addr add 192.168.78.111/24 dev eth0
         ip route add 0.0.0.0/0 via 192.168.78.254 dev eth0",
    )
    .unwrap();
    may("readwrite");
    node.flanneld().wait_ready(SOON).unwrap();
    shows(node, &["link flannel.1 ", "local 192.168.78.111 "]);
    let published = || {
        let leases = lab.leases().unwrap();
        match leases.values().any(|text| text.contains("192.168.78.111")) {
            true => Ok(()),
            false => Err(format!("{leases:?}")),
        }
    };
    wait_for("the new address is published", SOON, published).unwrap();
}

/// The interface itself goes away, a tunnel on it with it, and another of its name comes.
#[test]
fn an_underlay_that_vanishes_and_comes_back_is_followed() {
    for backend in ["vxlan", "host-gw"] {
        let lab = scene::lab()
            .nodes(2)
            .dual()
            .backend(json!({ "Type": backend }))
            .build()
            .unwrap();
        lab.start().unwrap();
        mesh(&lab);
        let node = lab.node(1);
        let daemon = node.flanneld();
        let before = (node.picture().unwrap(), lease_of(&lab, node).0);
        // With another one, IPv6 peers would go on sending to the old one for half a minute.
        let mac = ip_json(node, "link show dev eth0")[0]["address"].clone();
        let mac = mac.as_str().unwrap();
        run(lab.fabric(), "ip link del n1").unwrap();
        let ready = |wanted: u16| {
            let look = || match daemon.http_get("/readyz") {
                Ok((status, body)) if status == wanted => Ok(body),
                seen => Err(format!("{seen:?}")),
            };
            wait_for(&format!("/readyz answers {wanted}"), SOON, look).unwrap()
        };
        let body = ready(503);
        assert!(body.contains("eth0"), "{body}");
        let network = format!("/proc/{}/ns/net", daemon.pid().unwrap());
        run(
            lab.fabric(),
            &format!(
                "ip link add n1 mtu 1500 type veth peer name eth0 address {mac} mtu 1500 netns {network}
                 ip link set n1 master br0 up"
            ),
        )
        .unwrap();
        run(
            node,
            "ip link set eth0 up
             ip addr add 192.168.78.1/24 dev eth0
             ip addr add fd78:78::1/64 dev eth0 nodad
             ip route add 0.0.0.0/0 via 192.168.78.254 dev eth0
             ip route add ::/0 via fd78:78::fe dev eth0",
        )
        .unwrap();
        ready(200);
        mesh(&lab);
        let whole = || match before.0.difference(&node.picture().unwrap()).as_slice() {
            [] => Ok(()),
            lines => Err(format!("{lines:#?}\n{}", daemon.log_tail(10))),
        };
        wait_for("all is as before", SOON, whole).unwrap();
        assert_eq!(lease_of(&lab, node).0, before.1);
        // It is gone; it has no address yet; its tunnels cannot be made: not each entry on them.
        let warnings = daemon.log().matches("WARN").count();
        assert!(warnings <= 5, "{}", daemon.log());
    }
}

/// The interface gets another name, then becomes the port of a bridge, which takes over its addresses.
#[test]
fn an_underlay_that_is_renamed_or_put_into_a_bridge_is_followed() {
    let lab = scene::lab().nodes(2).dual().build().unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let subnet = node.subnet_env().unwrap();
    let ready = || {
        let look = || match node.flanneld().http_get("/readyz") {
            Ok((200, _)) => Ok(()),
            seen => Err(format!("{seen:?}")),
        };
        wait_for("it is ready", SOON, look).unwrap();
    };
    let routes = |dev: &str| {
        format!(
            "ip route replace 0.0.0.0/0 via 192.168.78.254 dev {dev}
             ip route replace ::/0 via fd78:78::fe dev {dev}"
        )
    };
    let rename = "ip link set eth0 down
         ip link set eth0 name lan0
         ip link set lan0 up
         ip addr add fd78:78::1/64 dev lan0 nodad";
    run(node, &format!("{rename}\n{}", routes("lan0"))).unwrap();
    says(
        node.flanneld(),
        &["the host's interface changed", "iface=lan0"],
    );
    ready();
    mesh(&lab);
    let bridge = "ip link add br9 type bridge forward_delay 0 mcast_snooping 0
         ip link set br9 up
         ip addr flush dev lan0
         ip link set lan0 master br9
         ip addr add 192.168.78.1/24 dev br9
         ip addr add fd78:78::1/64 dev br9 nodad";
    run(node, &format!("{bridge}\n{}", routes("br9"))).unwrap();
    says(
        node.flanneld(),
        &["the host's interface changed", "iface=br9"],
    );
    ready();
    mesh(&lab);
    assert_eq!(node.subnet_env().unwrap(), subnet);
}

/// The host's address is on the loopback, as where hosts speak BGP to their switches.
#[test]
fn an_address_on_the_loopback_carries_the_network() {
    let lab = scene::lab().nodes(2).store(ETCD).build().unwrap();
    let node = lab.node(1);
    run(
        node,
        "ip addr add 203.0.113.1/32 dev lo
         ip route replace 0.0.0.0/0 via 192.168.78.254 dev eth0 src 203.0.113.1",
    )
    .unwrap();
    run(
        lab.node(2),
        "ip route add 203.0.113.1/32 via 192.168.78.1 dev eth0",
    )
    .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    shows(node, &["link flannel.1 ", "local 203.0.113.1 "]);
    shows(lab.node(2), &["fdb ", "dev flannel.1 dst 203.0.113.1"]);
    assert_eq!(node.subnet_env().unwrap().mtu, 1450);
    // Changes of the loopback are no changes of the interface, and are followed all the same.
    run(
        lab.node(2),
        "ip route add 203.0.113.2/32 via 192.168.78.1 dev eth0",
    )
    .unwrap();
    run(
        node,
        "ip addr add 203.0.113.2/32 dev lo
         ip addr del 203.0.113.1/32 dev lo
         ip route replace 0.0.0.0/0 via 192.168.78.254 dev eth0 src 203.0.113.2",
    )
    .unwrap();
    shows(lab.node(2), &["fdb ", "dev flannel.1 dst 203.0.113.2"]);
    mesh(&lab);
}
