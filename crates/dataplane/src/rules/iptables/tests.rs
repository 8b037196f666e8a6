use model::Dual;
use model::rules::RuleFlags;

use super::*;

fn desired(fully_random: bool) -> TrafficRules {
    let dual = |v4: &str, v6: &str| Dual {
        v4: Some(v4.parse().unwrap()),
        v6: Some(v6.parse().unwrap()),
    };
    TrafficRules::of(
        &dual("10.1.0.0/16", "fd00::/48"),
        &dual("10.1.5.0/24", "fd00:0:0:5::/64"),
        RuleFlags {
            masquerade: true,
            masquerade_ipv6: true,
            fully_random,
            forward: true,
        },
    )
}

const FRESH_V4: &str = r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.1.5.0/24 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.1.0.0/16 -d 10.1.5.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.5.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.1.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;

fn patched(saved: &str, desired: &TrafficRules) -> Option<String> {
    patch(desired, Family::V4, &read(saved))
}

#[test]
fn an_empty_host_gets_the_whole_list() {
    assert_eq!(patched("", &desired(true)).as_deref(), Some(FRESH_V4));
    let v6 = patch(&desired(false), Family::V6, &Standing::default()).unwrap();
    let expected = FRESH_V4
        .replace("10.1.0.0/16", "fd00::/48")
        .replace("10.1.5.0/24", "fd00:0:0:5::/64")
        .replace("224.0.0.0/4", "ff00::/8")
        .replace(" --random-fully", "");
    assert_eq!(v6, expected);
}

#[test]
fn what_was_written_needs_no_rewriting_however_it_is_spelled() {
    assert_eq!(patched(FRESH_V4, &desired(true)), None);
    let otherwise = FRESH_V4
        .replace("! -s 10.1.0.0/16 -d", "-d")
        .replace(
            "-d 10.1.5.0/24 -m comment --comment \"flanneld masq\" -j RETURN\nCOMMIT",
            "",
        )
        .replace("-s 10.1.0.0/16 -m", "-s 10.1.0.0/255.255.0.0 -m")
        .replace("--mark 0x4000/0x4000", "--mark 16384/0x00004000")
        .replace(
            "-m comment --comment \"flanneld forward\" -j FLANNEL-FWD",
            "-j FLANNEL-FWD",
        );
    // The two rules with "! -s" lost it above, and get it back here in another order.
    let otherwise = otherwise
        .replacen(
            "-A FLANNEL-POSTRTG -d 10.1.5.0/24",
            "-A FLANNEL-POSTRTG -d 10.1.5.0/24 ! -s 10.1.0.0/16",
            1,
        )
        .replace(
            "-A FLANNEL-POSTRTG -d 10.1.0.0/16",
            "-A FLANNEL-POSTRTG -d 10.1.0.0/16 ! -s 10.1.0.0/16",
        );
    assert_ne!(otherwise, FRESH_V4);
    assert_eq!(patched(&otherwise, &desired(true)), None, "{otherwise}");
}

#[test]
fn any_fault_in_a_chain_rewrites_that_chain_and_nothing_else() {
    let faults = [
        (" --random-fully", ""),
        ("0x4000/0x4000", "0x4000"),
        ("-s 10.1.5.0/24", "-s 10.1.6.0/24"),
        ("! -d 224.0.0.0/4", "-d 224.0.0.0/4"),
        (
            "! -s 10.1.0.0/16 -d 10.1.5.0/24",
            "-s 10.1.0.0/16 -d 10.1.5.0/24",
        ),
        ("-j RETURN", "-j ACCEPT"),
        (
            "-A FLANNEL-POSTRTG -s 10.1.5.0/24",
            "-A FLANNEL-POSTRTG -i eth0 -s 10.1.5.0/24",
        ),
        (
            "-s 10.1.5.0/24 -d 10.1.0.0/16 -m comment --comment \"flanneld masq\" -j",
            "-s 10.1.5.0/24 -d 10.1.0.0/16 -j",
        ),
    ];
    let (nat, _) = FRESH_V4.split_at(FRESH_V4.find("*filter").unwrap());
    let jump = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n";
    let expected = nat.replace(jump, "");
    for (right, wrong) in faults {
        let saved = FRESH_V4.replacen(right, wrong, 1);
        assert_ne!(saved, FRESH_V4, "{right}");
        assert_eq!(
            patched(&saved, &desired(true)).as_ref(),
            Some(&expected),
            "{wrong}"
        );
    }
    let swapped: Vec<&str> = FRESH_V4.lines().collect();
    let mut order = swapped.clone();
    order.swap(3, 4);
    assert_eq!(patched(&order.join("\n"), &desired(true)), Some(expected));
}

#[test]
fn a_lost_jump_is_added_and_a_second_one_deleted() {
    let jump = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n";
    let without = FRESH_V4.replace(jump, "");
    assert_eq!(
        patched(&without, &desired(true)),
        Some(format!("*nat\n{jump}COMMIT\n"))
    );
    let thrice = FRESH_V4.replace(jump, &jump.repeat(3));
    let delete = jump.replace("-A", "-D").repeat(2);
    assert_eq!(
        patched(&thrice, &desired(true)),
        Some(format!("*nat\n{delete}COMMIT\n"))
    );
    let narrow = FRESH_V4.replace(jump, &jump.replace("POSTROUTING", "POSTROUTING -o eth0"));
    let expected = format!(
        "*nat\n-D POSTROUTING -o eth0 -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n{jump}COMMIT\n"
    );
    assert_eq!(patched(&narrow, &desired(true)), Some(expected));
}

#[test]
fn plain_rules_of_old_versions_go_and_foreign_ones_stay() {
    let saved = format!(
        "*nat\n:KUBE-POSTROUTING - [0:0]\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A POSTROUTING -s 10.1.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE\n\
         -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n{FRESH_V4}"
    );
    let expected = "*nat\n-D POSTROUTING -s 10.1.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE\nCOMMIT\n";
    assert_eq!(patched(&saved, &desired(true)).as_deref(), Some(expected));
}

#[test]
fn what_is_not_wanted_is_removed_whole() {
    let nothing = TrafficRules::default();
    let expected = "*nat\n:FLANNEL-POSTRTG - [0:0]\n\
        -D POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n\
        *filter\n:FLANNEL-FWD - [0:0]\n\
        -D FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n-X FLANNEL-FWD\nCOMMIT\n";
    assert_eq!(patched(FRESH_V4, &nothing).as_deref(), Some(expected));
    assert_eq!(patched("", &nothing), None);
    assert!(read("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n").is_empty());
    // Somebody's chain leads into ours: it cannot be deleted, and must not make the rest fail.
    let used = FRESH_V4.replacen("COMMIT", "-A OTHER -j FLANNEL-POSTRTG\nCOMMIT", 1);
    let text = patched(&used, &nothing).unwrap();
    assert!(
        !text.contains("-X FLANNEL-POSTRTG") && text.contains("-X FLANNEL-FWD"),
        "{text}"
    );
}

#[test]
fn an_administrators_own_jump_into_our_chain_stays() {
    let theirs = "-A POSTROUTING -o eth0 -m mark --mark 0x7 -j FLANNEL-POSTRTG\n";
    let saved = FRESH_V4.replacen("-A POSTROUTING", &format!("{theirs}-A POSTROUTING"), 1);
    assert_eq!(patched(&saved, &desired(true)), None);
    // Only ours goes; the chain that his leads into stays, empty, and is then left alone.
    let nothing = TrafficRules::default();
    let text = patched(&saved, &nothing).unwrap();
    assert!(
        !text.contains("--mark 0x7") && !text.contains("-X FLANNEL-POSTRTG"),
        "{text}"
    );
    let left = format!("*nat\n:FLANNEL-POSTRTG - [0:0]\n{theirs}COMMIT\n");
    assert_eq!(patched(&left, &nothing), None);
}

#[test]
fn garbage_is_no_rule_of_ours_and_no_panic() {
    for text in [
        "",
        "*",
        ":",
        "-A",
        "-A ",
        "*nat\n-A FLANNEL-POSTRTG -s\n",
        "*nat\n-A POSTROUTING \"\\",
        "*nat\n:\n-A FLANNEL-POSTRTG ! ! -m",
    ] {
        assert!(patched(text, &desired(true)).is_some());
    }
}

#[test]
fn fuzzed_rules() {
    let desired = desired(true);
    fuzz::run("iptables-save", &[FRESH_V4.as_bytes()], |input| {
        let saved = String::from_utf8_lossy(input);
        let standing = read(&saved);
        (
            save::unreadable(&saved, &["nat", "filter"]).is_some(),
            standing.anothers(&desired).len(),
        )
    });
}
