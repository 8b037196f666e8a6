//! The choice of a subnet.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use ipnet::IpNet;
use model::pool::{CHOICES, choose, free};
use model::{Dual, Family, NetConfig, SubnetKey};
use proptest::prelude::*;

fn config(json: &str) -> NetConfig {
    NetConfig::from_json(json).unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

fn never(n: usize) -> usize {
    panic!("asked to choose among {n}")
}

#[test]
fn what_the_host_itself_needs_is_not_given_out() {
    let config = config(
        r#"{"Network":"192.168.0.0/16","SubnetMin":"192.168.8.0","SubnetMax":"192.168.11.0"}"#,
    );
    let config = config.avoiding(&nets(&[
        "192.168.9.0/24",
        "192.168.10.1/32",
        "192.168.0.0/16",
    ]));
    let chosen = |previous: &str, pick: usize| {
        let previous = key(previous);
        choose(&config, &[], Some(&previous), |n| {
            assert_eq!(n, 2);
            pick
        })
    };
    assert_eq!(chosen("192.168.9.0-24", 0), Ok(key("192.168.8.0-24")));
    assert_eq!(chosen("192.168.10.0-24", 1), Ok(key("192.168.11.0-24")));
    assert!(!config.fits(&key("192.168.9.0-24")) && config.fits(&key("192.168.8.0-24")));
}

#[test]
fn a_network_of_an_interface_is_given_out_to_its_owner_alone() {
    let config =
        config(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.8.0","SubnetMax":"10.3.10.0"}"#);
    let config = config.clear_of(nets(&["10.3.9.0/24", "10.3.0.0/16", "10.3.10.128/25"]));
    let chosen = choose(&config, &[], None, |n| {
        assert_eq!(n, 1);
        0
    });
    assert_eq!(chosen, Ok(key("10.3.8.0-24")));
    let own = key("10.3.9.0-24");
    assert_eq!(choose(&config, &[], Some(&own), never), Ok(own));
    assert!(config.fits(&own));
}

#[test]
fn free_is_what_nobody_touches() {
    let config =
        config(r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.8.0"}"#);
    let pool = config.pools.v4.unwrap();
    let free = |taken: &[&str]| free(&pool, nets(taken).iter());
    assert_eq!(free(&[]).len(), 8);
    assert_eq!(
        free(&["10.3.4.0/22", "10.3.2.128/26", "10.3.2.7/32"]),
        nets(&["10.3.1.0/24", "10.3.3.0/24", "10.3.8.0/24"])
    );
    assert_eq!(
        free(&["10.3.0.0/22", "10.3.0.0/24", "10.3.2.0/24"]).first(),
        Some(&"10.3.4.0/24".parse().unwrap())
    );
    assert_eq!(
        free(&["10.3.2.0/23", "10.3.4.255/32", "10.3.5.0/32", "10.3.7.0/24"]),
        nets(&["10.3.1.0/24", "10.3.6.0/24", "10.3.8.0/24"])
    );
    assert_eq!(free(&["9.0.0.0/8", "10.4.0.0/16", "fd00::/8"]).len(), 8);
    assert_eq!(free(&["0.0.0.0/0"]), []);
}

#[test]
fn the_end_of_the_address_space_is_reached() {
    let v4 = config(r#"{"Network":"255.255.255.0/24"}"#)
        .pools
        .v4
        .unwrap();
    assert_eq!(
        free(&v4, [].iter()).last(),
        Some(&"255.255.255.192/26".parse().unwrap())
    );
    let v6 = config(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ffff::/16","IPv6SubnetLen":18}"#,
    );
    let v6 = v6.pools.v6.unwrap();
    let taken = nets(&["ffff:8000::/18"]);
    assert_eq!(
        free(&v6, taken.iter()),
        nets(&["ffff:4000::/18", "ffff:c000::/18"])
    );
    assert_eq!(free(&v6, nets(&["ffff:c000::/128"]).iter()).len(), 2);
}

#[test]
fn large_pools_and_many_leases_are_no_matter() {
    let config = config(
        r#"{"EnableIPv6":true,"Network":"10.0.0.0/8","IPv6Network":"fd00::/16","IPv6SubnetLen":112}"#,
    );
    let (v4, v6) = (config.pools.v4.unwrap(), config.pools.v6.unwrap());
    let taken4: Vec<IpNet> = (0..15_000u32)
        .map(|i| {
            IpNet::new(
                std::net::Ipv4Addr::from_bits(0x0a00_0100 + (i << 8)).into(),
                24,
            )
            .unwrap()
        })
        .collect();
    let taken6 = nets(&["fd00::/17"]);
    assert_eq!(
        free(&v4, taken4.iter().rev())[0],
        "10.58.153.0/24".parse().unwrap()
    );
    let free6 = free(&v6, taken6.iter());
    assert_eq!(
        (free6.len(), free6[0]),
        (CHOICES, "fd00:8000::/112".parse().unwrap())
    );
}

#[test]
fn the_previous_subnet_is_taken_again_if_it_is_free_and_fits() {
    let config = config(r#"{"Network":"10.3.0.0/16"}"#);
    let taken = [key("10.3.1.0-24"), key("10.3.9.0-26")];
    let again = key("10.3.77.0-24");
    assert_eq!(choose(&config, &taken, Some(&again), never), Ok(again));
    for previous in [
        "10.3.1.0-24",
        "10.3.9.0-24",
        "10.3.77.0-25",
        "10.4.1.0-24",
        "10.3.7.0-24&fd00::-64",
    ] {
        assert_eq!(
            choose(&config, &taken, Some(&key(previous)), |_| 0),
            Ok(key("10.3.2.0-24")),
            "{previous}"
        );
    }
}

#[test]
fn families_are_chosen_each_for_itself() {
    let config = config(r#"{"EnableIPv6":true,"Network":"10.3.0.0/16","IPv6Network":"fd00::/48"}"#);
    let mut asked = Vec::new();
    let taken = [
        key("0.0.0.0-0&fd00:0:0:1::-64"),
        key("10.3.1.0-24"),
        key("10.3.2.0-24"),
    ];
    let chosen = choose(&config, &taken, None, |n| {
        asked.push(n);
        asked.len() * 2
    });
    assert_eq!(chosen, Ok(key("10.3.5.0-24&fd00:0:0:6::-64")));
    assert_eq!(asked, [CHOICES, CHOICES]);
    // Half of the previous key is taken: neither half is kept.
    let half = key("10.3.9.0-24&fd00:0:0:1::-64");
    assert_eq!(
        choose(&config, &taken, Some(&half), |_| 0),
        Ok(key("10.3.3.0-24&fd00:0:0:2::-64"))
    );
    assert_eq!(
        choose(&config, &taken, None, |_| 1_000_000),
        Ok(key("10.3.102.0-24&fd00:0:0:65::-64"))
    );
}

#[test]
fn a_full_pool_says_what_to_do() {
    let config = config(r#"{"Network":"10.3.0.0/28"}"#);
    let taken = ["10.3.0.4-30", "10.3.0.8-30", "10.3.0.12-30", "10.9.0.0-24"].map(key);
    let full = choose(&config, &taken, None, never).unwrap_err();
    assert_eq!(
        full.to_string(),
        "no free subnet in Network 10.3.0.0/28: 3 leases take all from SubnetMin 10.3.0.4 to SubnetMax 10.3.0.12 \
         (SubnetLen 30). Delete the leases of nodes that are gone, or configure a wider range or a larger Network"
    );
}

proptest! {
    /// Nodes come one after the other: none gets what another has, all get what the configuration
    /// allows, and nobody is sent away before everything is taken.
    #[test]
    fn all_are_given_out_and_none_twice(
        foreign in proptest::collection::vec((any::<u8>(), 20..=32u8), 0..6),
        picks in proptest::collection::vec(any::<usize>(), 300),
        dual in any::<bool>(),
    ) {
        let config = config(&format!(
            r#"{{"EnableIPv6":{dual},"Network":"10.3.0.0/22","SubnetLen":27,"IPv6Network":"fd00::/56"}}"#
        ));
        let foreign = foreign.iter().map(|(n, len)| {
            let ip = std::net::Ipv4Addr::from_bits(0x0a03_0000 + (u32::from(*n) << 2));
            IpNet::new(ip.into(), *len).unwrap()
        });
        let foreign: Vec<SubnetKey> =
            foreign.filter_map(|net| SubnetKey::new(Dual { v4: Some(net), v6: None })).collect();
        let pool = config.pools.v4.unwrap();
        let all = (1..32u32).map(|i| IpNet::new(std::net::Ipv4Addr::from_bits(0x0a03_0000 + i * 32).into(), 27).unwrap());
        let free = all.filter(|net| {
            let key = SubnetKey::new(Dual { v4: Some(*net), v6: None }).unwrap();
            !foreign.iter().any(|f| f.overlaps(&key))
        });
        let expected = free.count();

        let mut taken = foreign.clone();
        let mut picks = picks.into_iter();
        let full = loop {
            match choose(&config, &taken, None, |n| picks.next().unwrap_or(0) % n) {
                Ok(key) => {
                    prop_assert!(config.fits(&key));
                    prop_assert!(!taken.iter().any(|t| t.overlaps(&key)), "{} twice", key);
                    taken.push(key);
                }
                Err(full) => break full,
            }
        };
        prop_assert_eq!(taken.len() - foreign.len(), expected);
        prop_assert_eq!(full.pool, Some(pool));
        prop_assert_eq!(Family::of_net(&pool.network), Family::V4);
    }
}
