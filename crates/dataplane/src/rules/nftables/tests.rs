use model::Dual;
use model::rules::RuleFlags;
use serde_json::json;

use super::*;

fn desired(masquerade: bool, forward: bool) -> TrafficRules {
    let dual = |v4: &str, v6: &str| Dual {
        v4: Some(v4.parse().unwrap()),
        v6: Some(v6.parse().unwrap()),
    };
    TrafficRules::of(
        &dual("10.1.0.0/16", "fd00::/48"),
        &dual("10.1.5.0/24", "fd00:0:0:5::/64"),
        RuleFlags {
            masquerade,
            masquerade_ipv6: masquerade,
            fully_random: true,
            forward,
        },
    )
}

const SCRIPT_V4: &str = r#"add table ip flannel-ipv4
delete table ip flannel-ipv4
table ip flannel-ipv4 {
	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x4000 == 0x4000 return comment "flanneld masq"
		ip saddr 10.1.5.0/24 ip daddr 10.1.0.0/16 return comment "flanneld masq"
		ip saddr 10.1.0.0/16 ip daddr 10.1.5.0/24 return comment "flanneld masq"
		ip saddr != 10.1.0.0/16 ip daddr 10.1.5.0/24 return comment "flanneld masq"
		ip saddr 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "flanneld masq"
		ip saddr != 10.1.0.0/16 ip daddr 10.1.0.0/16 masquerade fully-random comment "flanneld masq"
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.1.0.0/16 accept comment "flanneld forward"
		ip daddr 10.1.0.0/16 accept comment "flanneld forward"
	}
}
"#;

#[test]
fn the_table_is_replaced_in_one_script() {
    let both = desired(true, true);
    assert_eq!(script(&both, Family::V4, None).as_deref(), Some(SCRIPT_V4));
    let v6 = SCRIPT_V4
        .replace("10.1.0.0/16", "fd00::/48")
        .replace("10.1.5.0/24", "fd00:0:0:5::/64")
        .replace("224.0.0.0/4", "ff00::/8")
        .replace("ip saddr", "ip6 saddr")
        .replace("ip daddr", "ip6 daddr")
        .replace("ip flannel-ipv4", "ip6 flannel-ipv6");
    assert_eq!(script(&both, Family::V6, None), Some(v6));
    let masq = script(&desired(true, false), Family::V4, None).unwrap();
    assert!(masq.contains("chain postrtg") && !masq.contains("chain forward"));
    // What is not wanted is deleted, if it is there.
    let nothing = TrafficRules::default();
    assert_eq!(script(&nothing, Family::V4, None), None);
    assert_eq!(
        script(&nothing, Family::V4, Some(&Standing::default())).as_deref(),
        Some("add table ip flannel-ipv4\ndelete table ip flannel-ipv4\n")
    );
}

/// The forward chain as nft 1.0.6 prints it.
fn listed() -> Value {
    let rule = |field: &str| {
        json!({"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "forward", "handle": 8,
            "comment": "flanneld forward", "expr": [
                {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": field}},
                    "right": {"prefix": {"addr": "10.1.0.0", "len": 16}}}},
                {"accept": null}]}})
    };
    json!({"nftables": [
        {"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
        {"table": {"family": "ip", "name": "flannel-ipv4", "handle": 2}},
        {"chain": {"family": "ip", "table": "flannel-ipv4", "name": "forward", "handle": 2,
            "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}},
        rule("saddr"), rule("daddr")]})
}

fn right(listed: &Value) -> bool {
    let standing = read(Family::V4, &listed.to_string()).unwrap();
    script(&desired(false, true), Family::V4, Some(&standing)).is_none()
}

#[test]
fn any_fault_in_the_table_is_seen() {
    assert!(right(&listed()));
    let faults: [(&str, Value); 9] = [
        ("/nftables/1/table/flags", json!(["dormant"])),
        ("/nftables/2/chain/prio", json!(1)),
        ("/nftables/2/chain/policy", json!("drop")),
        ("/nftables/2/chain/hook", json!("input")),
        ("/nftables/3/rule/expr/0/match/op", json!("!=")),
        ("/nftables/3/rule/expr/0/match/right/prefix/len", json!(17)),
        (
            "/nftables/3/rule/expr/0/match/left/payload/field",
            json!("daddr"),
        ),
        ("/nftables/3/rule/expr/1", json!({"drop": null})),
        ("/nftables/4", json!({"set": {"family": "ip", "name": "x"}})),
    ];
    for (pointer, value) in faults {
        let mut wrong = listed();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match wrong.pointer_mut(parent).unwrap() {
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            object => object[key] = value,
        }
        assert!(!right(&wrong), "{pointer}");
    }
    let objects = |f: &dyn Fn(&mut Vec<Value>)| {
        let mut wrong = listed();
        f(wrong["nftables"].as_array_mut().unwrap());
        wrong
    };
    assert!(!right(&objects(&|l| l.swap(3, 4))), "order");
    assert!(!right(&objects(&|l| l.truncate(4))), "a rule is missing");
    assert!(!right(&objects(&|l| l.truncate(2))), "a chain is missing");
    assert!(!right(&json!({})));
    assert!(read(Family::V4, "no JSON").is_err());
}

#[test]
fn masquerade_is_read_in_all_its_spellings() {
    let with = |flags: Value| {
        let text = json!({"expr": [{"masquerade": flags}]});
        rule(Family::V4, &text).map(|r| r.verdict())
    };
    let masquerade = |fully_random| Some(Verdict::Masquerade { fully_random });
    assert_eq!(with(Value::Null), masquerade(false));
    assert_eq!(with(json!({"flags": "fully-random"})), masquerade(true));
    assert_eq!(with(json!({"flags": ["fully-random"]})), masquerade(true));
    assert_eq!(with(json!({"flags": ["fully-random", "persistent"]})), None);
    assert_eq!(with(json!({"port": 1})), None);
}

#[test]
fn fuzzed_tables() {
    let desired = desired(true, true);
    let table = json!({"nftables": [
        {"metainfo": {"version": "1.0.9"}},
        {"table": {"family": "ip", "name": "flannel-ipv4", "handle": 1}},
        {"chain": {"family": "ip", "table": "flannel-ipv4", "name": "postrtg", "handle": 1, "type": "nat",
            "hook": "postrouting", "prio": 100, "policy": "accept"}},
        {"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "postrtg", "handle": 2, "comment": "flanneld masq",
            "expr": [{"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                "right": {"prefix": {"addr": "10.1.0.0", "len": 16}}}}, {"masquerade": {"flags": "fully-random"}}]}},
        {"rule": {"family": "ip", "table": "flannel-ipv4", "chain": "forward", "handle": 3,
            "expr": [{"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 16384]}, "right": 16384}},
                {"return": null}]}},
    ]});
    fuzz::run("nft list", &[table.to_string().as_bytes()], |input| {
        let standing = read(Family::V4, &String::from_utf8_lossy(input));
        standing
            .map(|standing| standing.anothers(&desired).len())
            .ok()
    });
}
