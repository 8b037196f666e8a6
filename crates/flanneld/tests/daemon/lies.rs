//! Leases that must not be believed.

use std::collections::BTreeMap;

use lab::{Lab, Node};
use model::Family::V4;
use serde_json::{Value, json};

use crate::scene::Peer;

/// A key below `subnets/`, and a value.
pub type Leases = BTreeMap<String, String>;

/// What the hostile leases are about.
pub struct Victim {
    /// The third number of its IPv4 subnet.
    third: u8,
    peer_third: u8,
}

impl Victim {
    pub fn of(node: &Node, peer: &Node) -> Victim {
        let (own, peer) = (Peer::of(node, V4), Peer::of(peer, V4));
        let third = |p: &Peer| p.gateway.split('.').nth(2).unwrap().parse().unwrap();
        Victim {
            third: third(&own),
            peer_third: third(&peer),
        }
    }
}

/// A lease as a good vxlan node writes it.
pub fn good(ip: &str, mac: &str) -> Value {
    json!({
        "PublicIP": ip,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": mac},
    })
}

/// Free third numbers of `172.30.x.0`, far from each other, not those of the lab's nodes.
pub fn thirds(lab: &Lab) -> impl Iterator<Item = u8> + use<> {
    let used: Vec<u8> = lab
        .nodes()
        .iter()
        .map(|node| node.subnet_env().unwrap().cidr(V4).unwrap())
        .map(|net| match net.addr() {
            std::net::IpAddr::V4(ip) => ip.octets()[2],
            std::net::IpAddr::V6(_) => unreachable!("an IPv4 subnet"),
        })
        .collect();
    (1..=255).rev().filter(move |n| !used.contains(n))
}

/// Every kind of lease that must not be believed. No key is a part of another. (The MAC of a node is
/// not among them: it moves to whoever publishes it last, as in upstream; see docs/security.md.)
pub fn hostile(victim: &Victim, mut thirds: impl Iterator<Item = u8>) -> Leases {
    let mut leases = Leases::new();
    let mut key = |form: &str| {
        let third = thirds.next().unwrap().to_string();
        form.replace('N', &third)
    };
    let ok = || good("192.168.78.200", "02:00:00:00:02:00").to_string();

    for form in [
        "garbage-N",
        "172.30.N.0",
        "172.30.N.0-33",
        "172.30.N.0-24-24",
        "172.30.N.0-x",
        "172.30.N.300-24",
        "172.30.N.0_24",
        "-172.30.N.0-24",
        "172.30.N.0-24&",
        "172.30.N.0-24&fd00:30::",
        "fd00:30:N::-64&172.30.N.0-24",
        "172.30.N.0-24 ",
        "ü172.30.N.0-24",
        "%s%n-N",
    ] {
        leases.insert(key(form), ok());
    }
    for value in [
        "",
        "{",
        "null",
        "[]",
        "7",
        "\"lease\"",
        "{}",
        "\u{1}\u{7f}",
        "{\"PublicIP\":\"192.168.78.200\"",
    ] {
        leases.insert(key("172.30.N.0-24"), value.into());
    }
    let deep = "[".repeat(100_000);
    leases.insert(key("172.30.N.0-24"), deep);

    let mut number = 0;
    let mut change = |pointer: &str, value: Value| {
        // What is not at stake is its own: leases that share it would be told of for that.
        number += 1;
        let (ip, mac) = (
            format!("192.168.79.{number}"),
            format!("02:00:00:00:03:{number:02x}"),
        );
        let mut lease = good(&ip, &mac);
        *lease.pointer_mut(pointer).unwrap() = value;
        leases.insert(key("172.30.N.0-24"), lease.to_string());
    };
    for ip in [
        json!(5),
        json!(["192.168.78.200"]),
        json!("node7"),
        json!("fd78:78::200"),
        json!("0.0.0.0"),
        json!("127.0.0.1"),
        json!("224.0.0.1"),
        json!("255.255.255.255"),
        json!("192.168.78.1"),
        json!(""),
        Value::Null,
    ] {
        change("/PublicIP", ip);
    }
    for kind in [
        json!(7),
        json!("host-gw"),
        json!("wireguard"),
        json!("vxlam"),
        json!(""),
        Value::Null,
    ] {
        change("/BackendType", kind);
    }
    for data in [json!("data"), json!([]), json!(7), json!({}), Value::Null] {
        change("/BackendData", data);
    }
    for mac in [
        json!(7),
        json!("mac"),
        json!(""),
        json!("02:00:00:00:02"),
        json!("01:00:5e:00:00:01"),
        json!("ff:ff:ff:ff:ff:ff"),
        json!("00:00:00:00:00:00"),
    ] {
        change("/BackendData/VtepMAC", mac);
    }
    for vni in [
        json!(2),
        json!(-1),
        json!(1.5),
        json!("1"),
        json!(1u64 << 40),
    ] {
        change("/BackendData/VNI", vni);
    }

    for subnet in [
        "10.5.0.0-24",
        "172.31.5.0-24",
        "0.0.0.0-0",
        "172.0.0.0-8",
        "172.30.0.0-16",
        "127.0.0.0-8",
        "224.0.0.0-24",
    ] {
        leases.insert(subnet.into(), ok());
    }
    let (third, even) = (victim.third, victim.third & !1);
    for subnet in [
        format!("172.30.{third}.0-25"),
        format!("172.30.{third}.128-25"),
        format!("172.30.{even}.0-23"),
    ] {
        leases.insert(subnet, ok());
    }
    // The good peer is older and stays.
    leases.insert(format!("172.30.{}.64-26", victim.peer_third), ok());
    leases
}
