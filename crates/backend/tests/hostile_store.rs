//! The roster and the backends together, against whatever may stand in the store.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod nodes;

use std::collections::BTreeMap;

use ipnet::IpNet;
use model::object::Remote;
use model::roster::{Roster, RosterChange};
use model::{Dual, Family, Lease, LeaseAttrs, Object, SubnetKey};
use nodes::{config, host, identity, key};
use proptest::prelude::*;

const DUAL: &[Family] = &[Family::V4, Family::V6];

/// A lease as hostile as the store lets it be: few addresses, so that they meet.
fn some_lease() -> impl Strategy<Value = Lease> {
    let v4 = (0..6u32, prop_oneof![Just(24u8), 8..=32u8]).prop_map(|(n, len)| {
        IpNet::new(
            std::net::Ipv4Addr::from_bits(0xac1e_0000 + (n << 8)).into(),
            len,
        )
        .unwrap()
    });
    let v6 = (0..6u128, prop_oneof![Just(64u8), 16..=128u8]).prop_map(|(n, len)| {
        let ip = std::net::Ipv6Addr::from_bits((0xfd00_0030 << 96) + (n << 64));
        IpNet::new(ip.into(), len).unwrap()
    });
    let nets = (proptest::option::of(v4), proptest::option::of(v6));
    let key = nets.prop_filter_map("no subnet", |(v4, v6)| SubnetKey::new(Dual { v4, v6 }));
    let value = prop_oneof![
        8 => Just("vxlan"), 1 => Just("host-gw"), 1 => Just(""),
    ];
    (key, 1..8u8, 1..8u8, value, 0..4u64).prop_map(|(key, ip, mac, kind, seniority)| {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:04:{mac:02x}"}}"#);
        let json = format!(
            r#"{{"PublicIP":"10.0.1.{ip}","PublicIPv6":"fd78:0:0:1::{ip}","BackendType":"{kind}","BackendData":{data},"BackendV6Data":{data}}}"#
        );
        Lease { key, attrs: LeaseAttrs::from_json(json.as_bytes()).unwrap(), seniority }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No route leaves the network or reaches into our own subnet, none leads to ourselves, and no
    /// two peers claim one object.
    #[test]
    fn no_lease_does_harm(leases in proptest::collection::vec(some_lease(), 0..20), direct in any::<bool>()) {
        let options = format!(r#""Type":"vxlan","DirectRouting":{direct}"#);
        let (config, host) = (config(&options, DUAL), host(1, DUAL));
        let backend = backend::new(&config, &host, &identity(1), None).unwrap();
        let own = key(1, DUAL);
        let (kind, claims) = (backend.kind(), backend::new(&config, &host, &identity(1), None).unwrap());
        let mut roster = Roster::new(&config, kind, move |attrs| claims.claims(attrs));
        roster.set_own(own, host.public_ip);
        for lease in leases {
            for change in roster.put(lease) {
                prop_assert!(!matches!(change, RosterChange::Accept(lease) if lease.key == own));
            }
        }
        let mut kernel = BTreeMap::new();
        for peer in roster.all_accepted() {
            for object in backend.peer(peer, &host).objects {
                let name = match &object {
                    Object::Neigh(key, _) => format!("{key:?}"),
                    Object::Fdb(key, to) => {
                        let mut ours = host.public_ip.iter();
                        prop_assert!(ours.all(|(_, ours)| Remote::At(*ours) != *to));
                        format!("{key:?}")
                    }
                    Object::Route(key, _) => {
                        let family = Family::of_net(&key.dst);
                        prop_assert!(config.pools.get(family).unwrap().network.contains(&key.dst), "{}", key.dst);
                        let ours = own.nets().get(family).unwrap();
                        prop_assert!(!ours.contains(&key.dst) && !key.dst.contains(ours), "{}", key.dst);
                        format!("{key:?}")
                    }
                    other => panic!("{other:?} for a peer"),
                };
                let other = kernel.insert(name.clone(), peer.key);
                prop_assert!(other.is_none(), "{} is of {} and of {:?}", name, peer.key, other);
            }
        }
    }
}
