//! Traffic rules of a whole daemon: `-ip-masq`, `-ip-blackhole-route`, `EnableNFTables`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lab::{Lab, Namespace, Node, wait_for};
use model::Family;
use serde_json::json;

use crate::scene::{self, ETCD, SOON, mesh};

/// What stands in one place, both families.
fn standing(node: &Node, nftables: bool) -> String {
    let script = match nftables {
        true => "nft list ruleset | sed -n '/^table ip6* flannel/,/^}/p'",
        false => "iptables-save | grep FLANNEL; ip6tables-save | grep FLANNEL; true",
    };
    node.exec(["sh", "-c", script]).unwrap()
}

/// The source address that a packet from `from` to `to` arrives with.
fn seen_from(from: &Namespace, to: &Namespace, ip: IpAddr) -> IpAddr {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => [0, 0, 0, 0].into(),
        IpAddr::V6(_) => [0u16; 8].into(),
    };
    let bind = |port| move || UdpSocket::bind(SocketAddr::from((any, port))).unwrap();
    let far = to.run(bind(7)).unwrap();
    far.set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let near = from.run(bind(0)).unwrap();
    for _ in 0..25 {
        near.send_to(b"?", (ip, 7)).unwrap();
        if let Ok((_, source)) = far.recv_from(&mut [0; 8]) {
            return source.ip();
        }
    }
    panic!("nothing arrives at {ip}");
}

fn lab(nftables: bool) -> Lab {
    let lab = scene::lab()
        .nodes(2)
        .dual()
        .store(ETCD)
        .config("EnableNFTables", json!(nftables))
        .flanneld_args(["-ip-masq", "-ip-blackhole-route", "-iptables-resync=1"])
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    lab
}

#[test]
fn pods_keep_their_address_inside_and_get_the_node_s_outside() {
    for nftables in [false, true] {
        let lab = lab(nftables);
        let (one, two) = (lab.node(1), lab.node(2));
        assert!(
            one.read("/run/flannel/subnet.env")
                .unwrap()
                .contains("FLANNEL_IPMASQ=true")
        );
        let (near, far) = (one.pods()[0].clone(), two.pods()[0].clone());
        let gateways: [IpAddr; 2] = [[192, 168, 78, 254].into(), "fd78:78::fe".parse().unwrap()];
        for (family, gateway) in Family::ALL.into_iter().zip(gateways) {
            let own = near.ip(family).unwrap();
            assert_eq!(seen_from(&near, &far, far.ip(family).unwrap()), own);
            assert_eq!(
                seen_from(&near, lab.fabric(), gateway),
                one.ip(family),
                "{nftables}"
            );
            // To an address that no pod has, there is a route of last resort.
            let of = if family == Family::V4 { "-4" } else { "-6" };
            let routes = one
                .exec(["ip", of, "route", "show", "type", "blackhole"])
                .unwrap();
            let cidr = one.subnet_env().unwrap().cidr(family).unwrap();
            let net = cidr.trunc().to_string();
            assert!(
                routes.contains(&net) && routes.contains("metric 65535"),
                "{routes}"
            );
        }
        let (code, said) = one.flanneld().http_get("/readyz").unwrap();
        assert_eq!(code, 200, "{said}");

        // A restart writes nothing.
        let right = standing(one, nftables);
        assert!(right.contains("10.") || right.contains("172."), "{right}");
        one.flanneld().restart(SOON).unwrap();
        assert_eq!(standing(one, nftables), right);
        let log = one.flanneld().log();
        assert_eq!(log.matches("traffic rules: ").count(), 1, "{log}");

        // Whoever breaks them.
        let broken = match nftables {
            true => "nft delete table ip flannel-ipv4; nft delete table ip6 flannel-ipv6",
            false => "iptables -t nat -F; iptables -t nat -X; ip6tables -F FORWARD",
        };
        one.exec(["sh", "-c", broken]).unwrap();
        let began = Instant::now();
        wait_for("the rules are back", SOON, || {
            match standing(one, nftables) {
                now if now == right => Ok(()),
                now => Err(now),
            }
        })
        .unwrap();
        eprintln!(
            "nftables {nftables}: back after {:?}, looks included",
            began.elapsed()
        );
    }
}

#[test]
fn a_switch_of_the_mode_leaves_nothing_of_the_other() {
    let lab = lab(false);
    let one = lab.node(1);
    let (key, config) = ("EnableNFTables", lab.etcd().unwrap());
    for nftables in [true, false] {
        let prefix = "/coreos.com/network/config";
        let text = config.ctl(&["get", "--print-value-only", prefix]).unwrap();
        let mut text: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        text[key] = json!(nftables);
        lab.put_config(&text.to_string()).unwrap();
        one.flanneld().restart(SOON).unwrap();
        wait_for("the old rules are gone", SOON, || {
            let (old, new) = (standing(one, !nftables), standing(one, nftables));
            match (old.is_empty(), new.is_empty()) {
                (true, false) => Ok(()),
                _ => Err(format!("old: {old}\nnew: {new}")),
            }
        })
        .unwrap();
    }
}

/// Nothing tells whether the flannel of another network is gone or only stopped: its rules stay, and the
/// log says so once.
#[test]
fn rules_of_another_network_stay_and_are_told_of() {
    for nftables in [false, true] {
        let lab = scene::lab()
            .nodes(1)
            .config("EnableNFTables", json!(nftables))
            .flanneld_args(["-ip-masq"])
            .build()
            .unwrap();
        let one = lab.node(1);
        let lay = match nftables {
            true => {
                "nft add table ip flannel-ipv4
                 nft add chain ip flannel-ipv4 postrtg '{ type nat hook postrouting priority srcnat; policy accept; }'
                 nft add rule ip flannel-ipv4 postrtg ip saddr 10.9.0.0/16 ip daddr != 224.0.0.0/4 masquerade"
            }
            false => {
                "iptables -t nat -N FLANNEL-POSTRTG
                 iptables -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG
                 iptables -t nat -A FLANNEL-POSTRTG -s 10.9.0.0/16 ! -d 224.0.0.0/4 -m comment --comment 'flanneld masq' -j MASQUERADE"
            }
        };
        one.exec(["sh", "-ec", lay]).unwrap();
        one.flanneld().start_ready(SOON).unwrap();
        let line = scene::says(one.flanneld(), &["traffic rules of 10.9.0.0/16 stand"]);
        assert!(line.contains("flannelctl cleanup"), "{line}");
        let rules = match nftables {
            true => one.exec(["nft", "list", "table", "ip", "flannel-ipv4"]),
            false => one.exec(["iptables", "-t", "nat", "-S"]),
        };
        let rules = rules.unwrap();
        assert!(
            rules.contains("10.9.0.0/16") && rules.contains("172.30.0.0/16"),
            "{rules}"
        );
        let told = one.flanneld().log().matches("10.9.0.0/16 stand").count();
        assert_eq!(told, 1, "{}", one.flanneld().log());
    }
}
