//! What backends refuse: options, machines, and leases of hostile or mistaken peers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod nodes;

use backend::Identity;
use model::object::RouteTo;
use model::{Dual, Family, Host, Lease, LeaseAttrs, Mac, Object, SubnetKey};
use nodes::{config, host, identity, key, lease};
use proptest::prelude::*;

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const DUAL: &[Family] = &[Family::V4, Family::V6];
const VXLAN: &str = r#""Type":"vxlan""#;
const HOST_GW: &str = r#""Type":"host-gw""#;

fn refusal(options: &str, families: &[Family], change: impl FnOnce(&mut Host)) -> String {
    let mut host = host(1, families);
    change(&mut host);
    match backend::new(&config(options, families), &host, &identity(1)) {
        Ok(_) => panic!("{options} was taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_check_tells_every_option_that_cannot_be_and_needs_no_machine() {
    let told = |options: &str| match backend::check(&config(options, DUAL)) {
        Ok(warnings) => warnings,
        Err(refusals) => refusals.iter().map(|r| format!("refused: {r}")).collect(),
    };
    assert_eq!(told(VXLAN), [""; 0]);
    assert_eq!(told(HOST_GW), [""; 0]);
    assert_eq!(told(r#""Type":"alloc""#), [""; 0]);
    assert_eq!(
        told(r#""Type":"vxlan","Vnni":3"#),
        ["Backend.vnni: vxlan has no such option"]
    );
    let all = told(r#""Type":"vxlan","VNI":0,"Port":65536,"GBP":1,"MTU":9,"DirectRouting":"no""#);
    assert_eq!(all.len(), 5, "{all:?}");
    for option in ["VNI", "Port", "GBP", "MTU", "DirectRouting"] {
        let named = format!("refused: Backend.{option} is ");
        assert!(all.iter().any(|line| line.starts_with(&named)), "{all:?}");
    }
    let all = told(r#""Type":"vxlan","VNI":12345678,"Learning":1"#);
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(
        all.iter()
            .any(|line| line.contains("at most 15 characters"))
    );
    assert!(told(r#""Type":"gre","VNI":0"#)[0].contains("expected one of vxlan"));
}

#[test]
fn options_that_cannot_be() {
    for (options, message) in [
        (
            r#""Type":"gre""#,
            r#"Backend.Type is "gre": expected one of vxlan, host-gw, wireguard, ipip, ipsec, udp, alloc, extension"#,
        ),
        (
            r#""Type":"wireguard""#,
            "backend type wireguard: not in this version, which has vxlan, host-gw, alloc",
        ),
        (
            r#""Type":"vxlan","VNI":0"#,
            "Backend.VNI is 0: expected a whole number from 1 to 16777215",
        ),
        (
            r#""Type":"vxlan","VNI":16777216"#,
            "Backend.VNI is 16777216: expected a whole number from 1 to 16777215",
        ),
        (
            r#""Type":"vxlan","VNI":"1""#,
            "Backend.VNI is \"1\": expected a whole number from 1 to 16777215",
        ),
        (
            r#""Type":"vxlan","Port":65536"#,
            "Backend.Port is 65536: expected a whole number from 0 to 65535",
        ),
        (
            r#""Type":"vxlan","GBP":1"#,
            "Backend.GBP is 1: expected true or false",
        ),
        (
            r#""Type":"vxlan","TxChecksumOffload":"no""#,
            "Backend.TxChecksumOffload is \"no\": expected one of auto, on, off",
        ),
        (
            r#""Type":"vxlan","TxChecksumOffload":false"#,
            "Backend.TxChecksumOffload is false: expected one of auto, on, off",
        ),
        (
            r#""Type":"vxlan","MTU":117"#,
            "Backend.MTU is 117: expected a whole number from 118 to 65535",
        ),
        (
            r#""Type":"vxlan","VNI":10000000"#,
            "Backend.VNI is 10000000: the IPv4 device would be called flannel.10000000, and a device's name has at most 15 characters",
        ),
    ] {
        assert_eq!(refusal(options, V4, |_| ()), message);
    }
    let v6 = refusal(r#""Type":"vxlan","MTU":1349"#, V6, |_| ());
    assert_eq!(
        v6,
        "Backend.MTU is 1349: expected a whole number from 1350 to 65535"
    );
    let v6 = refusal(r#""Type":"vxlan","VNI":10000"#, V6, |_| ());
    assert!(v6.contains("flannel-v6.10000"), "{v6}");
}

#[test]
fn machines_that_do_not_suit() {
    for options in [VXLAN, HOST_GW, r#""Type":"alloc""#] {
        let message = refusal(options, DUAL, |host| host.addr.v6 = None);
        assert!(
            message.starts_with("interface eth0 has no IPv6 address"),
            "{message}"
        );
    }
    let message = refusal(VXLAN, V6, |host| host.mtu = 1349);
    assert_eq!(
        message,
        "eth0 carries packets of 1349 bytes at most: an IPv6 tunnel needs 1350"
    );
    let message = refusal(HOST_GW, V4, |host| {
        host.public_ip.v4 = Some("203.0.113.1".parse().unwrap())
    });
    assert!(
        message.starts_with("the public IP 203.0.113.1 is not the address 10.0.1.1 of eth0"),
        "{message}"
    );
    let no_mac = backend::new(&config(VXLAN, V4), &host(1, V4), &Identity::default());
    assert!(no_mac.is_err());
}

#[test]
fn an_mtu_beyond_the_interface_is_cut_down_with_a_warning() {
    let backend = backend::new(
        &config(r#""Type":"vxlan","MTU":9000"#, V4),
        &host(1, V4),
        &identity(1),
    );
    let backend = backend.unwrap();
    assert_eq!(backend.mtu(), 1450);
    assert_eq!(
        backend.warnings(),
        ["Backend.MTU is 9000: eth0 carries only 1500, which is used"]
    );
}

#[test]
fn a_translated_public_ip_suits_vxlan() {
    let mut host = host(1, V4);
    host.public_ip.v4 = Some("203.0.113.1".parse().unwrap());
    let backend = backend::new(&config(VXLAN, V4), &host, &identity(1)).unwrap();
    assert_eq!(backend.lease_attrs().public_ip, host.public_ip);
    let own = lease(1, VXLAN, V4);
    let Object::Link(_, link) = &backend.node(&own, &host)[0] else {
        panic!("no device")
    };
    let model::object::LinkKind::Vxlan(tunnel) = &link.kind else {
        panic!("no vxlan")
    };
    assert_eq!(
        Some(tunnel.local),
        host.addr.v4,
        "packets leave with the interface's own address"
    );
}

/// What node 1 reports of node 2's lease, changed so. The other family, if there is one, is served.
fn fault(options: &str, families: &[Family], change: impl FnOnce(&mut LeaseAttrs)) -> String {
    let host = host(1, families);
    let backend = backend::new(&config(options, families), &host, &identity(1)).unwrap();
    let mut peer = lease(2, options, families);
    change(&mut peer.attrs);
    let plan = backend.peer(&peer, &host);
    assert_eq!(plan.served, families.len() > 1);
    assert_eq!(plan.objects.is_empty(), !plan.served);
    assert_eq!(plan.faults.len(), 1, "{:?}", plan.faults);
    format!("lease {}: {}", peer.key, plan.faults[0])
}

fn data(json: &str) -> Option<Box<serde_json::value::RawValue>> {
    Some(serde_json::value::RawValue::from_string(json.into()).unwrap())
}

#[test]
fn peers_that_cannot_be_used() {
    type Change = fn(&mut LeaseAttrs);
    let cases: [(Change, &str); 9] = [
        (|a| a.data.v4 = None, "it has no BackendData"),
        (
            |a| a.data.v4 = data("{}"),
            "its BackendData cannot be used: missing field `VtepMAC` at line 1 column 2",
        ),
        (
            |a| a.data.v4 = data(r#"{"VtepMAC":"01:00:5e:00:00:01"}"#),
            "its BackendData cannot be used: VtepMAC 01:00:5e:00:00:01 is multicast or zero, and no device's",
        ),
        (
            |a| a.data.v4 = data(r#"{"VtepMAC":"x"}"#),
            "its BackendData cannot be used: VtepMAC \"x\" is no MAC address of the form 12:34:56:78:9a:bc",
        ),
        (
            |a| a.data.v4 = data(r#"{"VtepMAC":"02:00:00:00:06:01"}"#),
            "its BackendData has VtepMAC 02:00:00:00:06:01, which is this node's own",
        ),
        (
            |a| a.data.v4 = data(r#"{"VNI":2,"VtepMAC":"02:00:00:00:04:02"}"#),
            "its BackendData has VNI 2, and this node's is 1",
        ),
        (
            |a| a.public_ip.v4 = None,
            "it has an IPv4 subnet, and no PublicIP to reach it by",
        ),
        (
            |a| a.public_ip.v4 = Some("10.0.1.1".parse().unwrap()),
            "its PublicIP 10.0.1.1 is this node's own",
        ),
        (|a| a.data.v6 = None, "it has no BackendV6Data"),
    ];
    for (change, message) in cases {
        let name = "lease 172.30.2.0-24&fd00:30:0:2::-64";
        assert_eq!(fault(VXLAN, DUAL, change), format!("{name}: {message}"));
    }
    let far = fault(HOST_GW, V4, |a| {
        a.public_ip.v4 = Some("10.0.3.2".parse().unwrap())
    });
    assert!(
        far.starts_with("lease 172.30.2.0-24: its PublicIP 10.0.3.2 is not on the link of eth0"),
        "{far}"
    );
    let ours = fault(HOST_GW, V6, |a| {
        a.public_ip.v6 = Some("fd78:0:0:1::1".parse().unwrap())
    });
    assert!(
        ours.ends_with("its PublicIPv6 fd78:0:0:1::1 is this node's own"),
        "{ours}"
    );
}

#[test]
fn old_leases_and_wide_vnis_are_understood() {
    // Upstream keeps 16 bits of the VNI in its leases.
    let options = r#""Type":"vxlan","VNI":100000"#;
    let host = host(1, V4);
    let backend = backend::new(&config(options, V4), &host, &identity(1)).unwrap();
    assert!(backend.lease_attrs().to_json().contains(r#""VNI":34464"#));
    for json in [
        r#"{"VtepMAC":"02:00:00:00:04:02"}"#,
        r#"{"VNI":34464,"VtepMAC":"02:00:00:00:04:02"}"#,
        r#"{"VNI":100000,"VtepMAC":"02:00:00:00:04:02"}"#,
    ] {
        let mut peer = lease(2, options, V4);
        peer.attrs.data.v4 = data(json);
        assert_eq!(backend.peer(&peer, &host).objects.len(), 3, "{json}");
    }
}

#[test]
fn families_that_one_side_lacks_are_left_out() {
    for options in [VXLAN, HOST_GW] {
        for (ours, theirs, routes) in [(V4, DUAL, 1), (DUAL, V4, 1), (V4, V6, 0), (DUAL, DUAL, 2)] {
            let host = host(1, ours);
            let backend = backend::new(&config(options, ours), &host, &identity(1)).unwrap();
            let objects = backend.peer(&lease(2, options, theirs), &host).objects;
            let found = objects
                .iter()
                .filter(|o| matches!(o, Object::Route(..)))
                .count();
            assert_eq!(found, routes, "{options} {ours:?} {theirs:?}");
        }
    }
}

proptest! {
    /// Whatever a lease holds: no panic, and every object is of the lease's own subnets, on our
    /// device, or through our interface to its own public IP.
    #[test]
    fn a_peer_gets_only_what_is_its_own(
        json in prop_oneof![
            ".*",
            any::<[u8; 6]>().prop_map(|m| format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, Mac(m))),
        ],
        public in any::<u32>(),
        nets in (any::<u32>(), 1..=32u8, any::<u128>(), 1..=128u8),
        direct in any::<bool>(),
    ) {
        let options = format!(r#""Type":"vxlan","DirectRouting":{direct}"#);
        let host = host(1, DUAL);
        let backend = backend::new(&config(&options, DUAL), &host, &identity(1)).unwrap();
        let v4 = ipnet::Ipv4Net::new(nets.0.into(), nets.1).unwrap();
        let v6 = ipnet::Ipv6Net::new(nets.2.into(), nets.3).unwrap();
        let key = SubnetKey::new(Dual { v4: Some(v4.into()), v6: Some(v6.into()) }).unwrap();
        let raw = serde_json::value::RawValue::from_string(json).ok();
        let attrs = LeaseAttrs {
            public_ip: Dual { v4: Some(std::net::Ipv4Addr::from(public).into()), v6: Some("fd78:0:0:9::9".parse().unwrap()) },
            backend_type: Some(model::BackendType::Vxlan),
            data: Dual { v4: raw.clone(), v6: raw },
        };
        let peer = Lease { key, attrs, seniority: 1 };
        let devices = backend.devices();
        for object in backend.peer(&peer, &host).objects {
            match object {
                Object::Neigh(n, mac) => {
                    prop_assert!(devices.contains(&n.dev) && mac.is_unicast());
                    prop_assert!(key.nets().iter().any(|(_, net)| net.network() == n.ip));
                }
                Object::Fdb(f, ip) => {
                    prop_assert!(devices.contains(&f.dev) && f.mac.is_unicast());
                    prop_assert!(peer.attrs.public_ip.iter().any(|(_, own)| model::object::Remote::At(*own) == ip));
                }
                Object::Route(route, to) => {
                    prop_assert!(key.nets().iter().any(|(_, net)| *net == route.dst));
                    let RouteTo::Gateway(hop) = to.to else { panic!("{to:?}") };
                    let direct = hop.dev == host.iface && host.is_on_link(&hop.via) && !hop.onlink;
                    prop_assert!(direct || (devices.contains(&hop.dev) && hop.onlink));
                }
                other => prop_assert!(false, "{other:?} for a peer"),
            }
        }
    }
}

#[test]
fn peers_do_not_share_keys() {
    let host = host(1, DUAL);
    let backend = backend::new(&config(VXLAN, DUAL), &host, &identity(1)).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for n in 2..200 {
        let peer = lease(n, VXLAN, DUAL);
        assert_eq!(peer.key, key(n, DUAL));
        for object in backend.peer(&peer, &host).objects {
            let key = match object {
                Object::Neigh(key, _) => format!("{key:?}"),
                Object::Fdb(key, _) => format!("{key:?}"),
                Object::Route(key, _) => format!("{key:?}"),
                other => panic!("{other:?}"),
            };
            assert!(seen.insert(key));
        }
        let identities = (backend.identities())(&peer);
        assert!(identities.v4.is_some() && identities.v6.is_some());
    }
}
