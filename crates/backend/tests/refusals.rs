//! What backends refuse: options, machines, and leases of hostile or mistaken peers.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod nodes;

use backend::{Identity, Need};
use model::object::RouteTo;
use model::{Dual, Family, Host, Lease, LeaseAttrs, Mac, Object, SubnetKey};
use nodes::{config, host, identity, key, lease};
use proptest::prelude::*;

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const DUAL: &[Family] = &[Family::V4, Family::V6];
const VXLAN: &str = r#""Type":"vxlan""#;
const IPIP: &str = r#""Type":"ipip""#;
const HOST_GW: &str = r#""Type":"host-gw""#;

fn refusal(options: &str, families: &[Family], change: impl FnOnce(&mut Host)) -> String {
    let mut host = host(1, families);
    change(&mut host);
    match backend::new(&config(options, families), &host, &identity(1), None) {
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
    let [ipip] = &told(IPIP)[..] else {
        panic!("{:?}", told(IPIP))
    };
    assert!(ipip.starts_with("IPv6 is not served: ipip carries IPv4 only"));
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
            r#""Type":"ipsec","PSK":"short""#,
            "Backend.PSK is a text of 5 characters (not shown): expected at least 96 characters, as `dd if=/dev/urandom count=48 bs=1 status=none | xxd -p -c 48` makes them, here or in the file that -ipsec-psk-file names",
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
        let message = refusal(options, V6, |host| host.addr.v6 = None);
        assert!(
            message.starts_with("interface eth0 has no IPv6 address"),
            "{message}"
        );
    }
    let message = refusal(IPIP, V6, |_| ());
    assert_eq!(
        message,
        "ipip carries IPv4 only: use vxlan for IPv6, or set EnableIPv6 to false"
    );
    let message = refusal(IPIP, V4, |host| host.mtu = 87);
    assert_eq!(
        message,
        "eth0 carries packets of 87 bytes at most: an IPv4 tunnel needs 88"
    );
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
}

type Change = fn(&mut Host);

#[test]
fn a_fault_in_one_family_of_this_node_leaves_the_other_served() {
    const NAMES: &str = r#""Type":"vxlan","VNI":10000"#;
    const SMALL: &str = r#""Type":"vxlan","MTU":1300"#;
    const ALLOC: &str = r#""Type":"alloc""#;
    let far: Change = |host| host.public_ip.v6 = Some("2001:db8::7".parse().unwrap());
    let none: Change = |host| (host.addr.v6, host.public_ip.v6) = (None, None);
    let nothing: Change = |_| ();
    let cases: [(&str, Change, Family, &str); 9] = [
        (
            VXLAN,
            none,
            Family::V6,
            "interface eth0 has no IPv6 address",
        ),
        (
            HOST_GW,
            none,
            Family::V6,
            "interface eth0 has no IPv6 address",
        ),
        (
            ALLOC,
            none,
            Family::V6,
            "interface eth0 has no IPv6 address",
        ),
        (
            VXLAN,
            |host| (host.addr.v4, host.public_ip.v4) = (None, None),
            Family::V4,
            "interface eth0 has no IPv4 address",
        ),
        (
            VXLAN,
            |host| host.mtu = 1280,
            Family::V6,
            "eth0 carries packets of 1280 bytes at most: an IPv6 tunnel needs 1350",
        ),
        (
            SMALL,
            nothing,
            Family::V6,
            "Backend.MTU is 1300: expected a whole number from 1350 to 65535",
        ),
        (
            NAMES,
            nothing,
            Family::V6,
            "Backend.VNI is 10000: the IPv6 device",
        ),
        (
            HOST_GW,
            far,
            Family::V6,
            "the public IP 2001:db8::7 is not the address",
        ),
        (
            HOST_GW,
            |host| host.public_ip.v4 = Some("203.0.113.7".parse().unwrap()),
            Family::V4,
            "the public IP 203.0.113.7 is not the address",
        ),
    ];
    for (options, change, lost, why) in cases {
        let mut host = host(1, DUAL);
        change(&mut host);
        let config = config(options, DUAL);
        let backend = backend::new(&config, &host, &identity(1), None).unwrap();
        let [(family, error)] = backend.missing() else {
            panic!("{options}: {:?}", backend.missing());
        };
        assert_eq!(*family, lost, "{options}");
        assert!(error.to_string().starts_with(why), "{error}");
        let attrs = backend.publish();
        assert!(attrs.data.get(lost).is_none(), "{options}: {attrs:?}");
        assert_eq!(attrs.public_ip.get(lost), host.public_ip.get(lost));
        // What is planned is what a node of the other family alone plans, but for the mark.
        let kept: &[Family] = if lost == Family::V4 { V6 } else { V4 };
        let only = backend::new(&nodes::config(options, kept), &host, &identity(1), None);
        let only = only.unwrap();
        // A family that may yet be served is provided for.
        let small = why.contains("1280") || options == SMALL;
        let mtu = if options.contains("vxlan") && !small {
            1430
        } else {
            only.mtu()
        };
        assert_eq!(backend.mtu(), mtu, "{options}");
        assert_eq!(backend.devices(), only.devices(), "{options}");
        let peer = lease(2, options, DUAL);
        let (plan, expected) = (backend.peer(&peer, &host), only.peer(&peer, &host));
        assert_eq!(plan.objects, expected.objects, "{options}");
        assert!(plan.served, "{options}");
    }
}

#[test]
fn what_is_published_and_believed_is_kept() {
    let mac = |n| Mac([2, 0, 0, 0, 9, n]);
    let options = (config(VXLAN, DUAL), host(1, DUAL));
    let published = |identity: &Identity, own: Option<&LeaseAttrs>| {
        let backend = backend::new(&options.0, &options.1, identity, own).unwrap();
        let claims = backend.claims(&backend.publish());
        [claims.v4.unwrap() & 0xffff, claims.v6.unwrap() & 0xffff]
    };
    let devices = Identity::Macs(Dual {
        v4: Some(mac(1)),
        v6: None,
    });
    let made = published(&Identity::Nothing, None);
    assert_eq!(published(&devices, None), [0x901, made[1]]);
    let own = |v4: &str, v6: &str| {
        let mut attrs = lease(1, VXLAN, DUAL).attrs;
        (attrs.data.v4, attrs.data.v6) = (data(v4), data(v6));
        attrs
    };
    let good = |n| format!(r#"{{"VtepMAC":"{}"}}"#, mac(n));
    // The lease's goes before the device's; one family's bad data costs the other nothing.
    assert_eq!(
        published(&devices, Some(&own(&good(7), &good(8)))),
        [0x907, 0x908]
    );
    assert_eq!(
        published(&devices, Some(&own(&good(7), "[]"))),
        [0x907, made[1]]
    );
    assert_eq!(
        published(&devices, Some(&own("7", &good(8)))),
        [0x901, 0x908]
    );
    // Never one MAC on two devices.
    assert_eq!(
        published(&devices, Some(&own(&good(7), &good(7)))),
        [0x907, made[1]]
    );
    assert_eq!(devices.published_names(), [mac(1).to_string()]);
}

#[test]
fn a_backend_says_before_the_lease_what_it_must_know() {
    let need = |options: &str, families| backend::need(&config(options, families));
    let name = |text: &str| Some(text.parse().unwrap());
    let both = Dual {
        v4: name("flannel.1"),
        v6: name("flannel-v6.1"),
    };
    assert_eq!(need(VXLAN, DUAL), Need::Macs(both));
    assert_eq!(need(VXLAN, V6), Need::Macs(Dual { v4: None, ..both }));
    assert_eq!(need(r#""Type":"vxlan","VNI":0"#, DUAL), Need::Nothing);
    assert_eq!(need(HOST_GW, DUAL), Need::Nothing);
}

#[test]
fn an_mtu_beyond_the_interface_is_cut_down_with_a_warning() {
    let backend = backend::new(
        &config(r#""Type":"vxlan","MTU":9000"#, V4),
        &host(1, V4),
        &identity(1),
        None,
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
    let backend = backend::new(&config(VXLAN, V4), &host, &identity(1), None).unwrap();
    assert_eq!(backend.publish().public_ip, host.public_ip);
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
    let backend = backend::new(&config(options, families), &host, &identity(1), None).unwrap();
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
            "its BackendData cannot be used: missing field `VtepMAC`",
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
    for (family, public_ip) in [(Family::V4, "10.0.3.2"), (Family::V6, "fd78:0:0:3::2")] {
        let text = fault(HOST_GW, DUAL, |a| {
            a.public_ip.set(family, Some(public_ip.parse().unwrap()));
        });
        assert!(text.contains("is not on the link of eth0"), "{text}");
    }
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
    let backend = backend::new(&config(options, V4), &host, &identity(1), None).unwrap();
    assert!(backend.publish().to_json().contains(r#""VNI":34464"#));
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
            let backend = backend::new(&config(options, ours), &host, &identity(1), None).unwrap();
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
        let backend = backend::new(&config(&options, DUAL), &host, &identity(1), None).unwrap();
        let v4 = ipnet::Ipv4Net::new(nets.0.into(), nets.1).unwrap();
        let v6 = ipnet::Ipv6Net::new(nets.2.into(), nets.3).unwrap();
        let key = SubnetKey::new(Dual { v4: Some(v4.into()), v6: Some(v6.into()) }).unwrap();
        let raw = serde_json::value::RawValue::from_string(json).ok();
        let attrs = LeaseAttrs {
            public_ip: Dual { v4: Some(std::net::Ipv4Addr::from(public).into()), v6: Some("fd78:0:0:9::9".parse().unwrap()) },
            backend_type: Some(model::BackendType::Vxlan),
            data: Dual { v4: raw.clone(), v6: raw },
            also: Box::default(),
        };
        let peer = Lease { key, attrs, seniority: 1 };
        let devices: Vec<_> = backend.devices().iter().map(|own| own.name).collect();
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
    let backend = backend::new(&config(VXLAN, DUAL), &host, &identity(1), None).unwrap();
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
        let claims = backend.claims(&peer.attrs);
        assert!(claims.v4.is_some() && claims.v6.is_some());
    }
}
