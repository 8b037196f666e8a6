//! Address families, MTUs, routers in between, and an underlay that changes under the daemon.

use lab::{Lab, StoreKind, wait_for};
use model::Family::{V4, V6};
use serde_json::{Value, json};

use crate::repair::caused_by_notices;
use crate::scene::{self, ETCD, Peer, SOON, lease_of, mesh, meshed, run, says};

#[test]
fn ipv6_alone_on_an_ipv6_underlay() {
    for (backend, mtu) in [("vxlan", 1430), ("host-gw", 1500)] {
        let lab = scene::lab()
            .nodes(3)
            .ipv4(false)
            .ipv6(true)
            .underlay(false, true)
            .backend(json!({ "Type": backend }))
            .build()
            .unwrap();
        lab.start().unwrap();
        mesh(&lab);
        let text = lab.node(1).read("/run/flannel/subnet.env").unwrap();
        let names: Vec<&str> = text.lines().map(|l| l.split('=').next().unwrap()).collect();
        let expected = [
            "FLANNEL_IPV6_NETWORK",
            "FLANNEL_IPV6_SUBNET",
            "FLANNEL_MTU",
            "FLANNEL_IPMASQ",
            "# flannel-rs",
        ];
        assert_eq!(names, expected);
        assert_eq!(lab.node(1).subnet_env().unwrap().mtu, mtu, "{backend}");
        let (key, value) = lease_of(&lab, lab.node(1));
        assert!(key.starts_with("0.0.0.0-0&fd00:30:"), "{key}");
        assert_eq!(value["PublicIPv6"], json!("fd78:78::1"));
        assert!(!lab.node(1).picture().unwrap().has(&["link flannel.1 "]));
    }
}

#[test]
fn both_families_beside_each_other() {
    for (backend, store, mtu) in [
        ("vxlan", ETCD, 1430),
        ("host-gw", StoreKind::Directory, 1500),
    ] {
        let lab = scene::lab()
            .nodes(3)
            .dual()
            .store(store)
            .backend(json!({ "Type": backend }))
            .build()
            .unwrap();
        lab.start().unwrap();
        mesh(&lab);
        let env = lab.node(1).subnet_env().unwrap();
        assert_eq!(env.mtu, mtu, "{backend}");
        assert!(env.subnet.v4.is_some() && env.subnet.v6.is_some());
        // The independent witness, with packets as large as subnet.env promises.
        let (from, to) = (lab.node(1).pods()[0].clone(), lab.node(2).pods()[0].clone());
        for (family, headers) in [(V4, 28), (V6, 48)] {
            let (size, ip) = (
                (mtu - headers).to_string(),
                to.ip(family).unwrap().to_string(),
            );
            from.exec(["ping", "-c1", "-W2", "-Mdo", "-s", &size, &ip])
                .unwrap();
        }
    }
}

#[test]
fn the_mtu_follows_underlay_and_configuration() {
    for (underlay, backend, expected) in [
        (9000, json!({"Type": "vxlan"}), 8950),
        (1500, json!({"Type": "vxlan", "MTU": 1400}), 1350),
        (1400, json!({"Type": "host-gw"}), 1400),
        (1500, json!({"Type": "alloc"}), 1500),
    ] {
        let lab = scene::lab()
            .nodes(1)
            .mtu(underlay)
            .backend(backend.clone())
            .build()
            .unwrap();
        lab.start().unwrap();
        assert_eq!(lab.node(1).subnet_env().unwrap().mtu, expected, "{backend}");
        if backend["Type"] == "vxlan" {
            let line = format!("link flannel.1 up mtu {expected}");
            assert!(lab.node(1).picture().unwrap().has(&[&line]));
        }
    }
}

#[test]
fn alloc_leases_and_does_nothing_else() {
    let lab = scene::lab()
        .nodes(2)
        .store(ETCD)
        .backend(json!({"Type": "alloc"}))
        .build()
        .unwrap();
    let before = lab.node(1).picture().unwrap();
    for node in lab.nodes() {
        node.flanneld().start_ready(SOON).unwrap();
    }
    let (_, value) = lease_of(&lab, lab.node(1));
    assert_eq!(value["BackendType"], Value::Null);
    let daemon = lab.node(1).flanneld();
    wait_for("the other node is known", SOON, || {
        match daemon.http_get("/metrics").unwrap().1 {
            metrics if metrics.contains("flannel_peers 1") => Ok(()),
            metrics => Err(metrics),
        }
    })
    .unwrap();
    assert_eq!(lab.node(1).picture().unwrap(), before);
}

/// Puts node 3 behind the fabric, which routes.
fn behind_a_router(lab: &Lab) {
    run(
        lab.fabric(),
        "ip link add br1 up type bridge forward_delay 0 mcast_snooping 0
         ip addr add 192.168.79.254/24 dev br1
         ip addr add fd79:79::fe/64 dev br1 nodad
         ip link set n3 master br1",
    )
    .unwrap();
    run(
        lab.node(3),
        "ip -4 addr flush dev eth0
         ip -6 addr flush dev eth0 scope global
         ip addr add 192.168.79.3/24 dev eth0
         ip addr add fd79:79::3/64 dev eth0 nodad
         ip route add 0.0.0.0/0 via 192.168.79.254 dev eth0
         ip route replace ::/0 via fd79:79::fe dev eth0",
    )
    .unwrap();
    for (from, to) in [
        (1, "192.168.79.3"),
        (3, "192.168.78.254"),
        (3, "192.168.78.1"),
    ] {
        let look = || lab.node(from).exec(["ping", "-c1", "-W1", to]).map(drop);
        wait_for("the router routes", SOON, look).unwrap();
    }
}

#[test]
fn direct_routing_across_a_router() {
    for store in [ETCD, StoreKind::Directory] {
        let lab = scene::lab()
            .nodes(3)
            .dual()
            .store(store)
            .backend(json!({"Type": "vxlan", "DirectRouting": true}))
            .build()
            .unwrap();
        behind_a_router(&lab);
        lab.start().unwrap();
        mesh(&lab);
        let picture = lab.node(1).picture().unwrap();
        for (family, near, far) in [
            (V4, "192.168.78.2", "flannel.1"),
            (V6, "fd78:78::2", "flannel-v6.1"),
        ] {
            let (two, three) = (Peer::of(lab.node(2), family), Peer::of(lab.node(3), family));
            let direct = format!("route {} via {near} dev eth0", two.subnet);
            let tunnel = format!(
                "route {} via {} dev {far} onlink",
                three.subnet, three.gateway
            );
            assert!(picture.has(&[&direct]), "{direct}\n{picture}");
            assert!(picture.has(&[&tunnel]), "{tunnel}\n{picture}");
            assert!(
                !picture.has(&[&two.mac]),
                "nothing else for the direct one:\n{picture}"
            );
        }
        // The direct routes are lost with the link, and come back.
        let node = lab.node(1);
        let flap = "ip link set eth0 down
             ip link set eth0 up
             ip addr add fd78:78::1/64 dev eth0 nodad
             ip route add 0.0.0.0/0 via 192.168.78.254 dev eth0
             ip route add ::/0 via fd78:78::fe dev eth0";
        let repair = caused_by_notices(node, || node.measure_repair(|| run(node, flap), SOON));
        let repair = repair.unwrap();
        eprintln!(
            "DirectRouting, {store:?}: whole {:.1?} after a flap of the underlay",
            repair.took
        );
        mesh(&lab);
    }
}

#[test]
fn host_gw_does_not_reach_across_a_router() {
    let lab = scene::lab()
        .nodes(3)
        .store(ETCD)
        .backend(json!({"Type": "host-gw"}))
        .build()
        .unwrap();
    behind_a_router(&lab);
    for node in lab.nodes() {
        node.flanneld().start_ready(SOON).unwrap();
    }
    meshed(&[lab.node(1), lab.node(2)]);
    let daemon = lab.node(1).flanneld();
    says(daemon, &["WARN", "192.168.79.3", "host-gw"]);
    let subnet = lab.node(3).subnet_env().unwrap().cidr(V4).unwrap();
    assert!(
        !lab.node(1)
            .picture()
            .unwrap()
            .has(&[&format!("route {subnet} ")])
    );
    assert_eq!(
        daemon.log().matches("192.168.79.3").count(),
        1,
        "{}",
        daemon.log()
    );
}

#[test]
fn host_gw_does_not_serve_a_family_whose_address_is_translated() {
    for (family, flag, dual) in [
        (V4, "-public-ip=203.0.113.7", false),
        (V4, "-public-ip=203.0.113.7", true),
        (V6, "-public-ipv6=2001:db8::7", true),
    ] {
        let lab = scene::lab().nodes(1).backend(json!({"Type": "host-gw"}));
        let lab = if dual { lab.dual() } else { lab };
        let lab = lab.build().unwrap();
        let daemon = lab.node(1).flanneld();
        daemon.set_args([flag]);
        let level = if dual { "WARN" } else { "ERROR" };
        if dual {
            daemon.start_ready(SOON).unwrap();
        } else {
            daemon.start().unwrap();
            assert_eq!(daemon.wait_ended(SOON).unwrap().code(), Some(1));
            assert!(lab.leases().unwrap().is_empty());
            assert!(lab.node(1).subnet_env().is_err());
        }
        let ip = flag.split('=').nth(1).unwrap();
        let line = says(daemon, &[level, ip, "host-gw"]);
        assert!(line.contains(&lab.node(1).ip(family).to_string()), "{line}");
    }
}

#[test]
fn a_family_that_cannot_be_served_costs_the_other_nothing() {
    let lab = scene::lab()
        .nodes(2)
        .dual()
        .backend(json!({"Type": "vxlan"}))
        .build()
        .unwrap();
    let (one, two) = (lab.node(1), lab.node(2));
    two.flanneld().start_ready(SOON).unwrap();
    let v6 = format!("{}/64", one.ip(V6));
    run(one, &format!("ip addr del {v6} dev eth0")).unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    says(
        one.flanneld(),
        &["WARN", "IPv6 is not served", "eth0 has no IPv6 address"],
    );
    let ready = one.flanneld().http_get("/readyz").unwrap();
    assert!(
        ready.0 == 200 && ready.1.contains("IPv6 is not served"),
        "{ready:?}"
    );
    let route = |family| {
        format!(
            "route {} via",
            two.subnet_env().unwrap().cidr(family).unwrap()
        )
    };
    let has = |family, wanted: bool| {
        let (picture, route) = (one.picture().unwrap(), route(family));
        if picture.has(&[&route]) == wanted {
            Ok(())
        } else {
            Err(format!("{route}: {picture}"))
        }
    };
    wait_for("IPv4 is served", SOON, || has(V4, true)).unwrap();
    has(V6, false).unwrap();
    let v4_alone = |node: &lab::Node| {
        let picture = node.picture().unwrap();
        picture.has(&["link flannel.1 "]) && !picture.has(&["link flannel-v6.1 "])
    };
    assert!(v4_alone(one) && !v4_alone(two));
    // Its address comes: so does IPv6, and nothing else changes.
    run(one, &format!("ip addr add {v6} dev eth0 nodad")).unwrap();
    mesh(&lab);
    has(V6, true).unwrap();
    // It is lost again: what is there is kept, and the node stays ready.
    run(one, &format!("ip addr del {v6} dev eth0")).unwrap();
    says(
        one.flanneld(),
        &["WARN", "IPv6 is not served", "keeping what is there"],
    );
    has(V6, true).unwrap();
    assert_eq!(one.flanneld().http_get("/readyz").unwrap().0, 200);
}

#[test]
fn an_underlay_too_narrow_for_ipv6_carries_ipv4() {
    let lab = scene::lab()
        .nodes(2)
        .dual()
        .mtu(1300)
        .backend(json!({"Type": "vxlan"}))
        .build()
        .unwrap();
    for node in lab.nodes() {
        node.flanneld().start_ready(SOON).unwrap();
        says(
            node.flanneld(),
            &["WARN", "IPv6 is not served", "1300", "1350"],
        );
        assert_eq!(node.subnet_env().unwrap().mtu, 1250);
    }
    let (one, two) = (lab.node(1), lab.node(2));
    let route = format!("route {} via", two.subnet_env().unwrap().cidr(V4).unwrap());
    let look = || {
        let picture = one.picture().unwrap();
        picture.has(&[&route]).then_some(()).ok_or(picture)
    };
    wait_for("IPv4 is served", SOON, look).unwrap();
    let gateway = Peer::of(two, V4).gateway;
    one.exec(["ping", "-c1", "-W5", &gateway]).unwrap();
}

#[test]
fn a_translated_address_is_published_and_the_tunnel_is_local() {
    let lab = scene::lab().nodes(1).build().unwrap();
    let node = lab.node(1);
    node.flanneld().set_args(["-public-ip=203.0.113.7"]);
    node.flanneld().start_ready(SOON).unwrap();
    let (_, text) = lab.leases().unwrap().pop_first().unwrap();
    let lease: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(lease["PublicIP"], json!("203.0.113.7"));
    assert!(
        node.picture()
            .unwrap()
            .has(&["link flannel.1", "local 192.168.78.1 "])
    );
}

/// What the ipip backend does on this kernel: where it has such devices (`make test-vm`), pods reach each
/// other; where it has none, the log says what to do.
#[test]
fn ipip_carries_pods_or_says_what_the_kernel_lacks() {
    for direct in [false, true] {
        let backend = json!({"Type": "ipip", "DirectRouting": direct});
        let lab = scene::lab()
            .nodes(2)
            .store(ETCD)
            .backend(backend)
            .build()
            .unwrap();
        let (one, two) = (lab.node(1), lab.node(2));
        let own = one.ip(V4);
        let trial = format!("ip link add other type ipip local {own} remote any");
        if run(one, &trial).is_err() {
            one.flanneld().start().unwrap();
            says(one.flanneld(), &["WARN", "flannel.ipip", "modprobe ipip"]);
            assert!(one.subnet_env().is_err());
            continue;
        }
        // A device with the same addresses is in the way, and is named.
        one.flanneld().start().unwrap();
        says(
            one.flanneld(),
            &["WARN", "ipip device other", &own.to_string()],
        );
        run(one, "ip link del other").unwrap();
        two.flanneld().start_ready(SOON).unwrap();
        mesh(&lab);
        assert_eq!(one.subnet_env().unwrap().mtu, 1480);
        assert_eq!(lease_of(&lab, one).1["BackendType"], json!("ipip"));
        let peer = Peer::of(two, V4);
        let route = if direct {
            format!("route {} via {} dev eth0", peer.subnet, peer.underlay)
        } else {
            format!(
                "route {} via {} dev flannel.ipip onlink",
                peer.subnet, peer.underlay
            )
        };
        assert!(one.picture().unwrap().has(&[&route]), "{route}");
    }
}
