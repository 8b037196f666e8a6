//! Every default, refusal and message of the network configuration.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use ipnet::IpNet;
use model::{BackendType, ConfigError, Dual, NetConfig, Pool, SubnetKey};
use proptest::prelude::*;

fn pool(network: &str, subnet_len: u8, min: &str, max: &str) -> Option<Pool> {
    let (min, max) = (min.parse().unwrap(), max.parse().unwrap());
    Some(Pool {
        network: network.parse().unwrap(),
        subnet_len,
        min,
        max,
    })
}

fn pools(json: &str) -> Dual<Pool> {
    NetConfig::from_json(json)
        .unwrap_or_else(|e| panic!("{json}: {e}"))
        .pools
}

#[test]
fn ipv4_defaults() {
    for (json, expected) in [
        (
            r#"{"Network":"10.3.0.0/16"}"#,
            pool("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
        ),
        (
            r#"{"network":"10.3.0.0/16"}"#,
            pool("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
        ),
        (
            r#"{"Network":"10.0.0.0/8"}"#,
            pool("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ),
        (
            r#"{"Network":"255.0.0.0/8"}"#,
            pool("255.0.0.0/8", 24, "255.0.1.0", "255.255.255.0"),
        ),
        // Longer than /22: its length + 2.
        (
            r#"{"Network":"10.3.0.0/22"}"#,
            pool("10.3.0.0/22", 24, "10.3.1.0", "10.3.3.0"),
        ),
        (
            r#"{"Network":"10.3.0.0/23"}"#,
            pool("10.3.0.0/23", 25, "10.3.0.128", "10.3.1.128"),
        ),
        (
            r#"{"Network":"10.3.0.0/28"}"#,
            pool("10.3.0.0/28", 30, "10.3.0.4", "10.3.0.12"),
        ),
        // Host bits are cleared.
        (
            r#"{"Network":"10.3.7.9/16"}"#,
            pool("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
        ),
        // null, 0 and the unspecified address are as good as absent.
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":0,"SubnetMin":"0.0.0.0","SubnetMax":null,"EnableIPv4":null,"Backend":null}"#,
            pool("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
        ),
        // The last of several counts, unless it is null.
        (
            r#"{"Network":"10.3.0.0/16","network":"10.4.0.0/16","SUBNETLEN":26,"SubnetLen":null}"#,
            pool("10.4.0.0/16", 26, "10.4.0.64", "10.4.255.192"),
        ),
        (
            r#"{"network":"10.4.0.0/16","Network":"10.3.0.0/16"}"#,
            pool("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
        ),
        // The first subnet, when asked for.
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":28,"SubnetMin":"10.3.0.0","SubnetMax":"10.3.8.16"}"#,
            pool("10.3.0.0/16", 28, "10.3.0.0", "10.3.8.16"),
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.5.0"}"#,
            pool("10.3.0.0/16", 24, "10.3.5.0", "10.3.5.0"),
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":18}"#,
            pool("10.3.0.0/16", 18, "10.3.64.0", "10.3.192.0"),
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":30}"#,
            pool("10.3.0.0/16", 30, "10.3.0.4", "10.3.255.252"),
        ),
        // A family that is off is not looked at.
        (
            r#"{"Network":"10.3.0.0/16","IPv6Network":"nonsense"}"#,
            pool("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
        ),
    ] {
        assert_eq!(
            pools(json),
            Dual {
                v4: expected,
                v6: None
            },
            "{json}"
        );
    }
}

#[test]
fn ipv6_defaults() {
    for (keys, expected) in [
        (
            r#""IPv6Network":"fc00::/48""#,
            pool("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ),
        (
            r#""IPv6Network":"fc00::/62""#,
            pool("fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        ),
        (
            r#""IPv6Network":"fc00::/63""#,
            pool("fc00::/63", 65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::"),
        ),
        (
            r#""IPv6Network":"fc00::/124""#,
            pool("fc00::/124", 126, "fc00::4", "fc00::c"),
        ),
        (
            r#""ipv6network":"fc00::5/48""#,
            pool("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        ),
        (
            r#""IPv6Network":"ff00::/8""#,
            pool("ff00::/8", 64, "ff00:0:0:1::", "ffff:ffff:ffff:ffff::"),
        ),
        (
            r#""IPv6Network":"fc00::/48","IPv6SubnetLen":126"#,
            pool(
                "fc00::/48",
                126,
                "fc00::4",
                "fc00:0:0:ffff:ffff:ffff:ffff:fffc",
            ),
        ),
        (
            r#""IPv6Network":"fc00::/48","IPv6SubnetLen":124,"IPv6SubnetMin":"fc00:0:0:1::","IPv6SubnetMax":"fc00:0:0:f::""#,
            pool("fc00::/48", 124, "fc00:0:0:1::", "fc00:0:0:f::"),
        ),
    ] {
        let json = format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,{keys}}}"#);
        assert_eq!(
            pools(&json),
            Dual {
                v4: None,
                v6: expected
            },
            "{json}"
        );
    }
    let both = r#"{"EnableIPv6":true,"Network":"10.3.0.0/16","IPv6Network":"fd00::/48"}"#;
    assert_eq!(NetConfig::from_json(both).unwrap().families().count(), 2);
}

#[test]
fn refusals_name_key_value_and_what_is_expected() {
    let v6 = |keys: &str| format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,{keys}}}"#);
    let v4 = |keys: &str| format!(r#"{{"Network":"10.3.0.0/16",{keys}}}"#);
    let net = |n: &str| format!(r#"{{"Network":{n}}}"#);
    let network = "expected an IPv4 network of length 1 to 28, such as 10.244.0.0/16";
    let len =
        "expected a whole number from 18 (at least four subnets in Network 10.3.0.0/16) to 30";
    let inside = "expected an IPv4 address inside 10.3.0.0/16";
    for (json, message) in [
        ("{}".into(), format!("Network is missing: {network}, because EnableIPv4 is true")),
        (net("\"\""), format!("Network is \"\": {network}")),
        (net("7"), format!("Network is 7: {network}")),
        (net("\"10.3.0.0\""), format!("Network is \"10.3.0.0\": {network}")),
        (net("\"10.3.0.0/33\""), format!("Network is \"10.3.0.0/33\": {network}")),
        (net("\"10.3.0.0/29\""), format!("Network is \"10.3.0.0/29\": {network}")),
        (net("\"0.0.0.0/0\""), format!("Network is \"0.0.0.0/0\": {network}")),
        (net("\"fd00::/48\""), format!("Network is \"fd00::/48\": {network}")),
        (v4(r#""SubnetLen":31"#), format!("SubnetLen is 31: {len}")),
        (v4(r#""SubnetLen":17"#), format!("SubnetLen is 17: {len}")),
        (v4(r#""SubnetLen":-1"#), format!("SubnetLen is -1: {len}")),
        (v4(r#""SubnetLen":24.5"#), format!("SubnetLen is 24.5: {len}")),
        (v4(r#""SubnetLen":280"#), format!("SubnetLen is 280: {len}")),
        (v4(r#""SubnetLen":"24""#), format!("SubnetLen is \"24\": {len}")),
        (v4(r#""SubnetMin":"10.4.0.0""#), format!("SubnetMin is \"10.4.0.0\": {inside}")),
        (v4(r#""SubnetMin":"x""#), format!("SubnetMin is \"x\": {inside}")),
        (v4(r#""SubnetMin":"fd00::""#), format!("SubnetMin is \"fd00::\": {inside}")),
        (v4(r#""SubnetMax":"10.2.255.0""#), format!("SubnetMax is \"10.2.255.0\": {inside}")),
        (v4(r#""SubnetMax":[]"#), format!("SubnetMax is []: {inside}")),
        (
            v4(r#""SubnetMin":"10.3.5.1""#),
            "SubnetMin is \"10.3.5.1\": expected the first address of a subnet of length 24, such as 10.3.5.0".into(),
        ),
        (
            v4(r#""SubnetMin":"10.3.5.0","SubnetMax":"10.3.4.0""#),
            "SubnetMax is 10.3.4.0: expected an address from SubnetMin (10.3.5.0) on".into(),
        ),
        (
            v4(r#""SubnetMax":"10.3.0.0""#),
            "SubnetMax is 10.3.0.0: expected an address from SubnetMin (10.3.1.0) on".into(),
        ),
        (v4(r#""EnableIPv6":"yes""#), "EnableIPv6 is \"yes\": expected true or false".into()),
        (v4(r#""EnableNFTables":1"#), "EnableNFTables is 1: expected true or false".into()),
        (
            v4(r#""EnableIPv4":false"#),
            "EnableIPv4 is false and EnableIPv6 is not true: expected at least one of them true".into(),
        ),
        (
            v4(r#""EnableIPv6":true"#),
            "IPv6Network is missing: expected an IPv6 network of length 1 to 124, such as fd00:10:244::/48, because EnableIPv6 is true".into(),
        ),
        (
            v6(r#""IPv6Network":"fd00::/125""#),
            "IPv6Network is \"fd00::/125\": expected an IPv6 network of length 1 to 124, such as fd00:10:244::/48".into(),
        ),
        (
            v6(r#""IPv6Network":"fd00::/48","IPv6SubnetLen":127"#),
            "IPv6SubnetLen is 127: expected a whole number from 50 (at least four subnets in IPv6Network fd00::/48) to 126".into(),
        ),
        (
            v6(r#""IPv6Network":"fd00::/48","IPv6SubnetMax":"fd00::1""#),
            "IPv6SubnetMax is \"fd00::1\": expected the first address of a subnet of length 64, such as fd00::".into(),
        ),
        (
            v4(r#""Backend":"vxlan""#),
            "Backend is a string: expected an object such as {\"Type\": \"vxlan\"}".into(),
        ),
        (
            v4(r#""Backend":{"VNI":1}"#),
            "Backend.Type is missing: expected one of vxlan, host-gw, wireguard, ipip, ipsec, udp, alloc, extension".into(),
        ),
        (
            v4(r#""Backend":{"Type":5}"#),
            "Backend.Type is 5: expected one of vxlan, host-gw, wireguard, ipip, ipsec, udp, alloc, extension".into(),
        ),
    ] {
        let error = NetConfig::from_json(&json).expect_err(&json);
        assert_eq!(error.to_string(), message, "{json}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let json = "{\"Network\": \"10.1.0.0/16\"}";
    let marked = format!("\u{feff}{json}");
    let (marked, plain) = (NetConfig::from_json(&marked), NetConfig::from_json(json));
    assert_eq!(
        marked.unwrap().pools.v4.unwrap().network,
        plain.unwrap().pools.v4.unwrap().network
    );
}

#[test]
fn what_is_no_json_object_is_refused() {
    for json in [
        "",
        "null",
        "[]",
        "7",
        "\"x\"",
        "{",
        "{} {}",
        r#"{"Network":}"#,
        "\u{feff}",
        "{}\u{feff}",
    ] {
        let error = NetConfig::from_json(json).expect_err(json);
        assert!(matches!(error, ConfigError::Json(_)), "{json}: {error}");
        assert!(
            error
                .to_string()
                .starts_with("the network configuration is not a JSON object: ")
        );
    }
}

#[test]
fn unknown_keys_are_collected() {
    let config = NetConfig::from_json(
        r#"{"Network":"10.3.0.0/16","SubnetLenn":24,"b\u001bad":[],"SubnetLenn":1,"backend":{"type":"VXLAN","Foo":{}}}"#,
    );
    let config = config.unwrap();
    assert_eq!(config.unknown, ["SubnetLenn", "b ad"]);
    assert_eq!(config.backend.kind, BackendType::Vxlan);
    assert_eq!(config.backend.unknown(&["VNI"]), ["Backend.foo"]);
    let many: Vec<String> = (0..10_000).map(|i| format!("\"k{i}\":0")).collect();
    let config = NetConfig::from_json(&format!(
        r#"{{"Network":"10.3.0.0/16",{}}}"#,
        many.join(",")
    ));
    assert_eq!(config.unwrap().unknown.len(), 16);
}

#[test]
fn the_backend_is_vxlan_unless_named() {
    let kind = |json: &str| NetConfig::from_json(json).unwrap().backend.kind;
    assert_eq!(kind(r#"{"Network":"10.3.0.0/16"}"#), BackendType::Vxlan);
    assert_eq!(
        kind(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"Host-GW"}}"#),
        BackendType::HostGw
    );
    let other = kind(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"gre"}}"#);
    assert_eq!(other, BackendType::Other("gre".into()));
}

#[test]
fn options_are_typed() {
    let json = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","vni":7,"VNI":9,"Port":65536,
        "GBP":true,"Learning":"yes","PSK":12345,"Mode":"auto","MTU":1400.5,"Null":null}}"#;
    let backend = NetConfig::from_json(json).unwrap().backend;
    assert_eq!(backend.u32("VNI", 1, 1..=100).unwrap(), 9);
    assert_eq!(backend.u32("Absent", 1, 1..=100).unwrap(), 1);
    assert_eq!(backend.u32("Null", 3, 1..=100).unwrap(), 3);
    assert!(backend.bool("gbp", false).unwrap() && !backend.bool("Absent", false).unwrap());
    assert_eq!(backend.string("Mode").unwrap(), Some("auto"));
    assert_eq!(backend.string("Absent").unwrap(), None);
    let messages = [
        (
            backend.u16("Port", 1, 1..=65535).map(drop),
            "Backend.Port is 65536: expected a whole number from 1 to 65535",
        ),
        (
            backend.u32("MTU", 1, 0..=65535).map(drop),
            "Backend.MTU is 1400.5: expected a whole number from 0 to 65535",
        ),
        (
            backend.bool("Learning", true).map(drop),
            "Backend.Learning is \"yes\": expected true or false",
        ),
        (
            backend.string("PSK").map(drop),
            "Backend.PSK is a number: expected a string",
        ),
    ];
    for (result, message) in messages {
        assert_eq!(result.unwrap_err().to_string(), message);
    }
    assert!(
        !format!("{backend:?}").contains("12345"),
        "a secret in a debug text"
    );
}

#[test]
fn fits_is_bounds_and_length_of_exactly_the_enabled_families() {
    let key = |s: &str| s.parse::<SubnetKey>().unwrap();
    let v4 = NetConfig::from_json(r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.9.0"}"#).unwrap();
    for (name, fits) in [
        ("10.3.1.0-24", true),
        ("10.3.9.0-24", true),
        ("10.3.0.0-24", false),
        ("10.3.10.0-24", false),
        ("10.3.1.0-25", false),
        ("10.3.0.0-16", false),
        ("10.4.1.0-24", false),
        ("10.3.1.0-24&fd00:0:0:1::-64", false),
        ("0.0.0.0-0&fd00:0:0:1::-64", false),
    ] {
        assert_eq!(v4.fits(&key(name)), fits, "{name}");
    }
    let both = r#"{"EnableIPv6":true,"Network":"10.3.0.0/16","IPv6Network":"fd00::/48"}"#;
    let both = NetConfig::from_json(both).unwrap();
    for (name, fits) in [
        ("10.3.1.0-24&fd00:0:0:1::-64", true),
        ("10.3.1.0-24", false),
        ("0.0.0.0-0&fd00:0:0:1::-64", false),
        ("10.3.1.0-24&fd00::-64", false),
    ] {
        assert_eq!(both.fits(&key(name)), fits, "{name}");
    }
    let v4_in_v6: IpNet = "10.3.1.0/24".parse().unwrap();
    assert!(!both.pools.v6.unwrap().fits(&v4_in_v6));
}

/// JSON that is often nearly right: known names, and values that some of them may hold.
fn nearly() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("Network"),
        Just("IPv6Network"),
        Just("SubnetLen"),
        Just("SubnetMin"),
        Just("SubnetMax"),
        Just("IPv6SubnetLen"),
        Just("IPv6SubnetMin"),
        Just("IPv6SubnetMax"),
        Just("EnableIPv6"),
        Just("EnableIPv4"),
        Just("Backend"),
        Just("backend"),
        Just("x"),
    ];
    let value = prop_oneof![
        (any::<u32>(), 0..40u8)
            .prop_map(|(ip, len)| format!("\"{}/{len}\"", std::net::Ipv4Addr::from(ip))),
        (any::<u128>(), 0..140u8)
            .prop_map(|(ip, len)| format!("\"{}/{len}\"", std::net::Ipv6Addr::from(ip))),
        any::<u32>().prop_map(|ip| format!("\"{}\"", std::net::Ipv4Addr::from(ip))),
        any::<u128>().prop_map(|ip| format!("\"{}\"", std::net::Ipv6Addr::from(ip))),
        (0..140u16).prop_map(|n| n.to_string()),
        Just("true".into()),
        Just("false".into()),
        Just("null".into()),
        Just("1e999".into()),
        Just("-1".into()),
        Just(r#"{"Type":"vxlan"}"#.into()),
        Just(r#"{"Type":{}}"#.into()),
        Just("[[[[]]]]".into()),
        Just("\"\\u0000\"".into()),
    ];
    proptest::collection::vec((name, value), 0..12).prop_map(|members| {
        let members: Vec<String> = members
            .iter()
            .map(|(n, v)| format!("\"{n}\":{v}"))
            .collect();
        format!("{{{}}}", members.join(","))
    })
}

proptest! {
    #[test]
    fn never_panics_on_text(text in ".*") {
        let _ = NetConfig::from_json(&text);
    }

    #[test]
    fn never_panics_on_json_and_what_is_taken_is_sound(json in nearly()) {
        if let Ok(config) = NetConfig::from_json(&json) {
            prop_assert!(!config.pools.is_empty());
            for (family, pool) in config.pools.iter() {
                prop_assert_eq!(family, pool.family());
                for end in [pool.min, pool.max] {
                    let net = IpNet::new(end, pool.subnet_len).unwrap();
                    prop_assert!(pool.network.contains(&net) && pool.fits(&net) && net.trunc() == net);
                }
            }
        }
    }
}

#[test]
fn a_check_tells_everything_that_is_wrong() {
    let faults = |json: &str| -> Vec<String> {
        let faults = NetConfig::check(json).unwrap_err();
        assert_eq!(
            faults.first.to_string(),
            NetConfig::from_json(json).unwrap_err().to_string()
        );
        faults.into_all().map(|fault| fault.to_string()).collect()
    };
    let all = faults(
        r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0","SubnetMax":"10.3.0.7",
            "EnableIPv6":true,"IPv6Network":"fd00::/130","EnableNFTables":"yes","Backend":{"Type":5}}"#,
    );
    let keys: Vec<&str> = all
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        keys,
        [
            "SubnetMin",
            "SubnetMax",
            "IPv6Network",
            "EnableNFTables",
            "Backend.Type"
        ],
        "{all:#?}"
    );
    assert_eq!(faults("{").len(), 1);
    assert_eq!(faults(r#"{"EnableIPv4":false}"#).len(), 1);
    assert_eq!(
        faults(r#"{"EnableIPv4":3}"#),
        ["EnableIPv4 is 3: expected true or false"]
    );
}

#[test]
fn deep_nesting_is_refused() {
    let deep = format!(
        r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"vxlan","x":{}{}}}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(NetConfig::from_json(&deep).is_err());
    let deep = format!(
        r#"{{"Network":"10.3.0.0/16","x":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let _ = NetConfig::from_json(&deep);
}

#[test]
fn where_subnets_are_assigned_only_the_network_is_checked() {
    let read = |json: &str| NetConfig::with_assigned_subnets(json);
    let (config, ignored) = read(
        r#"{"Network":"10.244.0.0/16","subnetLen":26,"SubnetMin":"10.244.10.7","SubnetMax":"nonsense"}"#,
    )
    .unwrap();
    assert_eq!(
        config.pools.v4.unwrap().network.to_string(),
        "10.244.0.0/16"
    );
    assert_eq!(ignored, ["SubnetLen", "SubnetMin", "SubnetMax"]);
    for json in [
        r#"{"Network":"10.244.0.0/29"}"#,
        r#"{"Network":"10.244.0.0/32"}"#,
        r#"{"Network":"10.244.0.0/16","SubnetLen":16}"#,
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/64","IPv6SubnetLen":200}"#,
    ] {
        assert!(
            NetConfig::from_json(json).is_err() || json.contains("/16\"}"),
            "{json}"
        );
        read(json).unwrap();
    }
    let (_, ignored) = read(r#"{"Network":"10.244.0.0/16","IPv6SubnetLen":80}"#).unwrap();
    assert_eq!(ignored, [""; 0], "a family that is not enabled");
    for json in [
        r#"{}"#,
        r#"{"Network":"x"}"#,
        r#"{"Network":"fd00::/48"}"#,
        "[",
    ] {
        assert!(read(json).is_err(), "{json}");
    }
}
