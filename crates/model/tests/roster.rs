//! Which leases are used.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::collections::{BTreeMap, BTreeSet};

use model::roster::{Claims, Roster, RosterChange};
use model::{BackendType, Dual, Family, Lease, LeaseAttrs, NetConfig, SubnetKey};
use proptest::prelude::*;
use serde_json::value::RawValue;

fn config(dual: bool) -> NetConfig {
    let json =
        format!(r#"{{"EnableIPv6":{dual},"Network":"10.3.0.0/16","IPv6Network":"fd00::/48"}}"#);
    NetConfig::from_json(&json).unwrap()
}

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

/// The number that is a lease's data stands for its MAC.
fn macs(attrs: &LeaseAttrs) -> Claims {
    attrs.data.map(|_, data| data.get().parse().unwrap())
}

fn lease(name: &str, ip: &str, mac: u64, seniority: u64) -> Lease {
    let data = || Some(RawValue::from_string(mac.to_string()).unwrap());
    Lease {
        key: key(name),
        attrs: LeaseAttrs {
            public_ip: Dual {
                v4: Some(ip.parse().unwrap()),
                v6: None,
            },
            backend_type: Some(BackendType::Vxlan),
            data: Dual {
                v4: data(),
                v6: data(),
            },
            also: Box::default(),
        },
        seniority,
    }
}

fn roster(dual: bool) -> Roster {
    let mut roster = Roster::new(&config(dual), BackendType::Vxlan, macs);
    let own = if dual {
        "10.3.1.0-24&fd00:0:0:1::-64"
    } else {
        "10.3.1.0-24"
    };
    let public_ip = Dual {
        v4: Some("192.168.0.1".parse().unwrap()),
        v6: None,
    };
    assert_eq!(roster.set_own(key(own), public_ip), []);
    roster
}

/// The changes as text.
fn told(changes: Vec<RosterChange>) -> Vec<String> {
    let text = |change| match change {
        RosterChange::Accept(lease) => format!("accept {}", lease.key),
        RosterChange::Drop(key) => format!("drop {key}"),
        RosterChange::Refuse { key, reason } => format!("refuse {key}: {reason}"),
        RosterChange::Note(note) => format!("note {note}"),
    };
    changes.into_iter().map(text).collect()
}

/// The changes as text, without notes.
fn told_of_use(changes: Vec<RosterChange>) -> Vec<String> {
    let mut told = told(changes);
    told.retain(|text| !text.starts_with("note"));
    told
}

#[test]
fn what_cannot_be_right_is_refused_by_name() {
    let other = |kind: Option<BackendType>| {
        let mut lease = lease("10.3.2.0-24", "192.168.0.2", 2, 1);
        lease.attrs.backend_type = kind;
        lease
    };
    for (lease, reason) in [
        (
            lease("10.4.2.0-24", "192.168.0.2", 2, 1),
            "its subnet 10.4.2.0/24 is outside the network 10.3.0.0/16",
        ),
        (
            lease("10.0.0.0-8", "192.168.0.2", 2, 1),
            "its subnet 10.0.0.0/8 is outside the network 10.3.0.0/16",
        ),
        (
            lease("10.3.0.0-16", "192.168.0.2", 2, 1),
            "its subnet 10.3.0.0/16 overlaps this node's own 10.3.1.0/24",
        ),
        (
            lease("10.3.1.7-32", "192.168.0.2", 2, 1),
            "its subnet 10.3.1.7/32 overlaps this node's own 10.3.1.0/24",
        ),
        (
            lease("10.3.2.0-24", "192.168.0.1", 2, 1),
            "its public IP 192.168.0.1 is this node's own: an old lease of this node, or two nodes with one address",
        ),
        (
            lease("0.0.0.0-0&fd00:0:0:2::-64", "192.168.0.2", 2, 1),
            "it has no subnet of an address family that this node runs",
        ),
        (
            other(Some(BackendType::HostGw)),
            "its backend is host-gw, and this node's is vxlan: the two cannot reach each other",
        ),
        (
            other(None),
            "its backend is not named, and this node's is vxlan: the two cannot reach each other",
        ),
    ] {
        let mut roster = roster(false);
        let name = lease.key;
        assert_eq!(
            told(roster.put(lease.clone())),
            [format!("refuse {name}: {reason}")]
        );
        assert_eq!(told(roster.put(lease.clone())), [""; 0], "told once");
        let mut renewed = lease;
        renewed.seniority += 1;
        assert_eq!(told(roster.put(renewed)), [""; 0], "told once");
        assert_eq!((roster.accepted_len(), roster.refused_len()), (0, 1));
        assert_eq!(roster.refused_by_label().values().sum::<usize>(), 1);
        assert_eq!(told(roster.remove(&name)), [""; 0]);
        assert_eq!(roster.refused_len(), 0);
    }
}

#[test]
fn a_dual_stack_lease_serves_an_ipv4_node() {
    let mut roster = roster(false);
    let foreign = lease("10.3.2.0-24&fe00::-64", "192.168.0.2", 2, 1);
    assert_eq!(told(roster.put(foreign)), ["accept 10.3.2.0-24&fe00::-64"]);
}

#[test]
fn our_own_lease_is_no_peer() {
    let mut roster = roster(false);
    assert_eq!(roster.put(lease("10.3.1.0-24", "192.168.0.1", 1, 1)), []);
    assert!(
        roster.lease(&key("10.3.1.0-24")).is_some()
            && roster.accepted(&key("10.3.1.0-24")).is_none()
    );
    assert_eq!((roster.accepted_len(), roster.refused_len()), (0, 0));
    // With another subnet of ours, the old lease is one that names our address.
    let ip = Dual {
        v4: Some("192.168.0.1".parse().unwrap()),
        v6: None,
    };
    let changes = told(roster.set_own(key("10.3.9.0-24"), ip));
    assert_eq!(changes.len(), 1);
    assert!(
        changes[0].starts_with("refuse 10.3.1.0-24: its public IP 192.168.0.1 is"),
        "{changes:?}"
    );
    // With another address of ours, it is anybody's.
    let ip = Dual {
        v4: Some("192.168.0.9".parse().unwrap()),
        v6: None,
    };
    assert_eq!(
        told(roster.set_own(key("10.3.9.0-24"), ip)),
        ["accept 10.3.1.0-24"]
    );
    assert_eq!(
        told(roster.set_own(key("10.3.1.0-24"), ip)),
        ["drop 10.3.1.0-24"]
    );
}

#[test]
fn the_older_stands_and_the_younger_follows_it() {
    let mut roster = roster(false);
    assert_eq!(
        told_of_use(roster.put(lease("10.3.4.0-24", "192.168.0.4", 4, 40))),
        ["accept 10.3.4.0-24"]
    );
    assert_eq!(
        told_of_use(roster.put(lease("10.3.4.0-22", "192.168.0.5", 5, 50))),
        [
            "refuse 10.3.4.0-22: its subnet 10.3.4.0/22 overlaps the older lease 10.3.4.0-24, which is used"
        ]
    );
    // Older than both: the first gives way.
    assert_eq!(
        told_of_use(roster.put(lease("10.3.4.128-25", "192.168.0.6", 6, 30))),
        [
            "drop 10.3.4.0-24",
            "accept 10.3.4.128-25",
            "refuse 10.3.4.0-24: its subnet 10.3.4.0/24 overlaps the older lease 10.3.4.128-25, which is used",
            "refuse 10.3.4.0-22: its subnet 10.3.4.0/22 overlaps the older lease 10.3.4.128-25, which is used",
        ]
    );
    assert_eq!(
        told_of_use(roster.remove(&key("10.3.4.128-25"))),
        [
            "drop 10.3.4.128-25",
            "accept 10.3.4.0-24",
            "refuse 10.3.4.0-22: its subnet 10.3.4.0/22 overlaps the older lease 10.3.4.0-24, which is used",
        ]
    );
    assert_eq!(
        told_of_use(roster.remove(&key("10.3.4.0-24"))),
        ["drop 10.3.4.0-24", "accept 10.3.4.0-22"]
    );
    assert_eq!((roster.accepted_len(), roster.refused_len()), (1, 0));
}

#[test]
fn one_mac_is_one_peers() {
    let mut roster = roster(false);
    roster.put(lease("10.3.4.0-24", "192.168.0.4", 4, 40));
    let refused = |key: &str, newer: &str| {
        format!(
            "refuse {key}: its backend data names the same device (MAC) as the newer lease {newer}, which is used"
        )
    };
    // The node took another subnet: what it left behind gives way.
    let changes = told(roster.put(lease("10.3.5.0-24", "192.168.0.5", 4, 50)));
    assert_eq!(
        changes,
        [
            "drop 10.3.4.0-24",
            "accept 10.3.5.0-24",
            &refused("10.3.4.0-24", "10.3.5.0-24")
        ]
    );
    // One that is older still changes nothing.
    let changes = told(roster.put(lease("10.3.6.0-24", "192.168.0.6", 4, 30)));
    assert_eq!(changes, [refused("10.3.6.0-24", "10.3.4.0-24")]);
    // A newer one that cannot be right takes nothing away.
    let changes = told(roster.put(lease("10.4.7.0-24", "192.168.0.7", 4, 70)));
    assert!(
        changes.len() == 1 && changes[0].contains("outside"),
        "{changes:?}"
    );
    // The newest goes: the next newest takes its place.
    assert_eq!(
        told(roster.remove(&key("10.3.5.0-24"))),
        ["drop 10.3.5.0-24", "accept 10.3.4.0-24"]
    );
    // It takes another MAC: it lets go of the old one before the other takes it.
    let changes = told(roster.put(lease("10.3.4.0-24", "192.168.0.4", 9, 60)));
    assert_eq!(changes, ["accept 10.3.4.0-24", "accept 10.3.6.0-24"]);
}

#[test]
fn a_lease_that_covers_the_underlay_is_refused() {
    let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
    let mut roster = roster(false);
    assert_eq!(
        told(roster.put(lease("10.3.4.0-24", "192.168.0.4", 4, 40))),
        ["accept 10.3.4.0-24"]
    );
    let refusal = |name: &str, net: &str, needed: &str| {
        format!(
            "refuse {name}: its subnet {net} contains {needed}, which this node needs to reach the others: \
             give the nodes and the pods different networks"
        )
    };
    let underlay = nets(&[
        "192.168.0.0/24",
        "10.3.4.254/32",
        "10.3.8.0/24",
        "10.3.0.0/16",
    ]);
    assert_eq!(
        told(roster.set_underlay(underlay)),
        [
            "drop 10.3.4.0-24".to_owned(),
            refusal("10.3.4.0-24", "10.3.4.0/24", "10.3.4.254/32")
        ]
    );
    for (name, net) in [
        ("10.3.8.0-24", "10.3.8.0/24"),
        ("10.3.8.0-23", "10.3.8.0/23"),
    ] {
        assert_eq!(
            told(roster.put(lease(name, "192.168.0.5", 5, 50))),
            [refusal(name, net, "10.3.8.0/24")]
        );
    }
    // What lies within a wide network on the link is no harm: providers have such routes.
    assert_eq!(
        told(roster.put(lease("10.3.7.0-24", "192.168.0.6", 6, 50))),
        ["accept 10.3.7.0-24"]
    );
    roster.set_underlay(nets(&["192.168.0.0/24"]));
    let counts = (roster.accepted_len(), roster.refused_len());
    assert_eq!(counts, (3, 1), "all but the one that overlaps another");
}

#[test]
fn a_lease_of_a_network_that_an_interface_has_is_refused() {
    let mut roster = roster(false);
    for (name, n) in [("10.3.4.0-24", 4), ("10.3.5.0-24", 5)] {
        roster.put(lease(name, &format!("192.168.0.{n}"), n, 40));
    }
    let connected = |nets: &[&str]| {
        let dev = "br9".parse().unwrap();
        nets.iter().map(|net| (net.parse().unwrap(), dev)).collect()
    };
    assert_eq!(
        told(roster.set_connected(connected(&["10.3.4.0/24", "10.3.5.0/25", "10.3.0.0/16"]))),
        [
            "drop 10.3.4.0-24",
            "refuse 10.3.4.0-24: its subnet 10.3.4.0/24 is the network of this node's interface br9, whose \
             route the kernel made: remove that address from br9"
        ]
    );
    assert_eq!(
        told(roster.set_connected(connected(&[]))),
        ["accept 10.3.4.0-24"]
    );
}

#[test]
fn public_addresses_that_can_be_nobody_s_are_refused() {
    let mut roster = roster(false);
    let underlay = ["192.168.0.0/24", "192.168.0.1/32", "192.168.2.0/31"];
    roster.set_underlay(underlay.map(|net| net.parse().unwrap()).into());
    for (ip, what) in [
        ("10.3.5.9", "in its own subnet, behind the tunnel"),
        (
            "169.254.169.254",
            "link-local, and this node has no such address",
        ),
        (
            "192.168.0.255",
            "the broadcast or network address of this node's link",
        ),
        (
            "192.168.0.0",
            "the broadcast or network address of this node's link",
        ),
    ] {
        let changes = told(roster.put(lease("10.3.5.0-24", ip, 5, 50)));
        assert_eq!(
            changes,
            [format!(
                "refuse 10.3.5.0-24: its public IP {ip} can be no node's address: it is {what}"
            )]
        );
    }
    for ip in ["192.168.0.254", "192.168.2.1", "203.0.113.9"] {
        assert_eq!(told(roster.put(lease("10.3.5.0-24", ip, 5, 50))).len(), 1);
        assert_eq!(roster.accepted_len(), 1, "{ip}");
    }
    // Where the underlay is link-local, link-local addresses are as good as others.
    roster.set_underlay(vec!["169.254.7.1/32".parse().unwrap()]);
    roster.put(lease("10.3.5.0-24", "169.254.7.2", 5, 50));
    assert_eq!(roster.accepted_len(), 1);
}

#[test]
fn a_subnet_of_another_length_is_noted_once() {
    let mut roster = roster(false);
    let note = "note lease 10.3.4.0-25 has a subnet of length 25, and this node's has 24: other leases of that length are not reported";
    assert_eq!(
        told(roster.put(lease("10.3.4.0-25", "192.168.0.4", 4, 40))),
        ["accept 10.3.4.0-25", note]
    );
    assert_eq!(
        told(roster.put(lease("10.3.5.0-25", "192.168.0.5", 5, 40))),
        ["accept 10.3.5.0-25"]
    );
}

#[test]
fn a_forged_line_is_no_line() {
    let mut roster = roster(false);
    let mut forged = lease("10.3.4.0-24", "192.168.0.4", 4, 40);
    forged.attrs.backend_type = Some(BackendType::parse(&format!("x\n{}", "y".repeat(1000))));
    let told = told(roster.put(forged));
    assert!(told[0].contains("its backend is x\\u{a}yyy"), "{told:?}");
    assert!(told[0].len() < 300 && !told[0].contains('\n'), "{told:?}");
}

#[test]
fn a_lease_taken_anew_is_younger() {
    let mut roster = roster(false);
    roster.put(lease("10.3.4.0-24", "192.168.0.4", 4, 40));
    roster.put(lease("10.3.4.0-25", "192.168.0.5", 5, 50));
    let changes = told_of_use(roster.put(lease("10.3.4.0-24", "192.168.0.4", 4, 60)));
    assert_eq!(
        changes,
        [
            "drop 10.3.4.0-24",
            "accept 10.3.4.0-25",
            "refuse 10.3.4.0-24: its subnet 10.3.4.0/24 overlaps the older lease 10.3.4.0-25, which is used",
        ]
    );
    // Younger, and still alone: nothing to tell.
    assert_eq!(
        told_of_use(roster.put(lease("10.3.4.0-25", "192.168.0.5", 5, 55))),
        [""; 0]
    );
}

#[test]
fn a_shared_public_ip_is_noted_once() {
    let mut roster = roster(false);
    roster.put(lease("10.3.4.0-24", "192.168.0.4", 4, 40));
    let note = "note leases 10.3.4.0-24 and 10.3.5.0-24 both have the public IP 192.168.0.4: one of them may be of a node that is gone, or two nodes have one address";
    assert_eq!(
        told(roster.put(lease("10.3.5.0-24", "192.168.0.4", 5, 50))),
        ["accept 10.3.5.0-24", note]
    );
    assert_eq!(
        told(roster.put(lease("10.3.5.0-24", "192.168.0.4", 6, 50))),
        ["accept 10.3.5.0-24"]
    );
    assert_eq!(
        told(roster.put(lease("10.3.6.0-24", "192.168.0.4", 7, 60))),
        ["accept 10.3.6.0-24"]
    );
    for gone in ["10.3.6.0-24", "10.3.5.0-24"] {
        assert_eq!(told(roster.remove(&key(gone))), [format!("drop {gone}")]);
    }
    assert_eq!(
        told(roster.put(lease("10.3.5.0-24", "192.168.0.4", 5, 50))),
        ["accept 10.3.5.0-24", note]
    );
}

#[test]
fn leases_that_name_no_backend_suit_the_backends_that_write_none() {
    let mut roster = Roster::new(&config(false), BackendType::Udp, |_| Dual::default());
    let mut nameless = lease("10.3.4.0-24", "192.168.0.4", 4, 40);
    nameless.attrs.backend_type = None;
    assert_eq!(told(roster.put(nameless)), ["accept 10.3.4.0-24"]);
    let vxlan = lease("10.3.5.0-24", "192.168.0.5", 5, 50);
    assert_eq!(told(roster.put(vxlan)).len(), 1);
    assert_eq!(roster.refused().next().unwrap().1.label(), "other_backend");
}

#[derive(Clone, Debug)]
enum Step {
    Put(Lease),
    Remove(SubnetKey),
    Own(SubnetKey, u8),
}

fn some_key() -> impl Strategy<Value = SubnetKey> {
    // Few networks, nested in each other, some of them outside; the same of both families.
    let v4 = (0..12u32, 22..=25u8).prop_map(|(n, len)| {
        let ip = std::net::Ipv4Addr::from_bits(0x0a03_0000 + (n << 8));
        let ip = if n == 11 {
            "10.4.0.0".parse().unwrap()
        } else {
            ip
        };
        ipnet::IpNet::new(ip.into(), len).unwrap()
    });
    let v6 = (0..8u128, 62..=65u8).prop_map(|(n, len)| {
        let ip = std::net::Ipv6Addr::from_bits((0xfd00 << 112) + (n << 64));
        ipnet::IpNet::new(ip.into(), len).unwrap()
    });
    (
        proptest::option::weighted(0.9, v4),
        proptest::option::of(v6),
    )
        .prop_filter_map("no subnet", |(v4, v6)| SubnetKey::new(Dual { v4, v6 }))
}

fn some_lease() -> impl Strategy<Value = Lease> {
    let kind = prop_oneof![
        8 => Just(Some(BackendType::Vxlan)), 1 => Just(Some(BackendType::HostGw)), 1 => Just(None)
    ];
    // Of leases with one MAC and one age either may be the newer.
    (some_key(), 1..9u8, 0..9u64, 0..1_000_000_000u64, kind).prop_map(
        |(key, ip, mac, seniority, kind)| {
            let mut lease = lease("10.3.9.0-24", &format!("192.168.0.{ip}"), mac, seniority);
            lease.key = key;
            lease.attrs.backend_type = kind;
            lease
        },
    )
}

fn some_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => some_lease().prop_map(Step::Put),
        4 => some_key().prop_map(Step::Remove),
        1 => (some_key(), 1..4u8).prop_map(|(key, ip)| Step::Own(key, ip)),
    ]
}

/// What may be used, told plainly: of what may be right the newest of each MAC, and of those the
/// oldest first, each that overlaps no earlier one.
fn from_scratch(
    leases: &BTreeMap<SubnetKey, Lease>,
    own: &Option<(SubnetKey, Dual<std::net::IpAddr>)>,
    dual: bool,
) -> BTreeMap<SubnetKey, Lease> {
    let config = config(dual);
    let ours: Vec<Family> = config.families().collect();
    let nets = |key: &SubnetKey| {
        let nets = Dual::from_fn(|f| key.nets().get(f).copied().filter(|_| ours.contains(&f)));
        SubnetKey::new(nets)
    };
    let mut sorted: Vec<&Lease> = leases.values().collect();
    sorted.sort_by_key(|lease| (lease.seniority, lease.key));
    let right = |lease: &Lease| {
        let Some(key) = nets(&lease.key) else {
            return false;
        };
        let inside = key
            .nets()
            .iter()
            .all(|(f, net)| config.pools.get(f).unwrap().network.contains(net));
        let from_us = own.as_ref().is_some_and(|(own, ip)| {
            *own == lease.key
                || nets(own).is_some_and(|own| own.overlaps(&key))
                || ip.v4 == lease.attrs.public_ip.v4
        });
        inside && !from_us && lease.attrs.backend_type == Some(BackendType::Vxlan)
    };
    let same = |lease: &Lease, other: &Lease| {
        ours.iter().any(|f| {
            let mac = |l: &Lease| l.key.nets().get(*f).and(macs(&l.attrs).get(*f).copied());
            mac(lease).is_some() && mac(lease) == mac(other)
        })
    };
    sorted.retain(|lease| right(lease));
    let mut accepted: BTreeMap<SubnetKey, Lease> = BTreeMap::new();
    for lease in &sorted {
        let newer = sorted
            .iter()
            .any(|other| other.seniority > lease.seniority && same(lease, other));
        let key = nets(&lease.key).unwrap();
        let rival = accepted
            .values()
            .any(|other| nets(&other.key).unwrap().overlaps(&key));
        if !newer && !rival {
            accepted.insert(lease.key, (*lease).clone());
        }
    }
    accepted
}

/// What a lease would put into the kernel, each with a name that others may claim, too.
fn claims(lease: &Lease, dual: bool) -> BTreeSet<String> {
    let families = config(dual).families().collect::<Vec<_>>();
    let nets = lease
        .key
        .nets()
        .iter()
        .filter(|(f, _)| families.contains(f));
    nets.flat_map(|(f, net)| {
        [
            format!("{net}"),
            format!("{f} {}", macs(&lease.attrs).get(f).unwrap()),
        ]
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes in whatever order: what is accepted is what it would be from scratch,
    /// applying the changes one by one gives it, and nothing is taken over before it is let go.
    #[test]
    fn what_is_accepted_does_not_depend_on_the_order(
        steps in proptest::collection::vec(some_step(), 0..40),
        dual in any::<bool>(),
    ) {
        let mut roster = Roster::new(&config(dual), BackendType::Vxlan, macs);
        let (mut leases, mut own) = (BTreeMap::new(), None);
        let mut applied: BTreeMap<SubnetKey, Lease> = BTreeMap::new();
        let mut kernel: BTreeSet<String> = BTreeSet::new();
        for step in steps {
            let changes = match step {
                Step::Put(lease) => {
                    leases.insert(lease.key, lease.clone());
                    roster.put(lease)
                }
                Step::Remove(key) => {
                    leases.remove(&key);
                    roster.remove(&key)
                }
                Step::Own(key, ip) => {
                    let ip = Dual { v4: Some(format!("192.168.0.{ip}").parse().unwrap()), v6: None };
                    own = Some((key, ip));
                    roster.set_own(key, ip)
                }
            };
            for change in changes {
                match change {
                    RosterChange::Accept(lease) => {
                        if let Some(old) = applied.insert(lease.key, lease.clone()) {
                            prop_assert!(old.attrs != lease.attrs, "accepted again unchanged");
                            kernel.retain(|claim| !claims(&old, dual).contains(claim));
                        }
                        for claim in claims(&lease, dual) {
                            prop_assert!(kernel.insert(claim.clone()), "{} is somebody's yet", claim);
                        }
                    }
                    RosterChange::Drop(key) => {
                        let old = applied.remove(&key);
                        prop_assert!(old.is_some(), "{} dropped twice", key);
                        kernel.retain(|claim| !claims(old.as_ref().unwrap(), dual).contains(claim));
                    }
                    RosterChange::Refuse { key, .. } => prop_assert!(!applied.contains_key(&key)),
                    RosterChange::Note(_) => {}
                }
            }
            let expected = from_scratch(&leases, &own, dual);
            let attrs = |set: &BTreeMap<SubnetKey, Lease>| -> BTreeMap<SubnetKey, LeaseAttrs> {
                set.iter().map(|(key, lease)| (*key, lease.attrs.clone())).collect()
            };
            prop_assert_eq!(attrs(&applied), attrs(&expected));
            let held: BTreeMap<_, _> = roster.all_accepted().map(|l| (l.key, l.clone())).collect();
            prop_assert_eq!(&held, &expected);
            prop_assert_eq!(roster.accepted_len(), expected.len());
            let ours = usize::from(own.as_ref().is_some_and(|(key, _)| leases.contains_key(key)));
            prop_assert_eq!(roster.refused_len(), leases.len() - expected.len() - ours);
        }
    }
}
