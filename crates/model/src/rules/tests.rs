//! Tests of `rules`.

use super::*;

fn net(s: &str) -> IpNet {
    s.parse().unwrap()
}

fn dual(v4: &str, v6: &str) -> Dual<IpNet> {
    Dual {
        v4: (!v4.is_empty()).then(|| net(v4)),
        v6: (!v6.is_empty()).then(|| net(v6)),
    }
}

const ALL: RuleFlags = RuleFlags {
    masquerade: true,
    masquerade_ipv6: true,
    fully_random: true,
    forward: true,
};

/// What the rules make of a packet: the first verdict that is final.
fn fate(rules: &[Rule], mark: u32, from: &str, to: &str) -> Option<Verdict> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let holds = |m: &Match| match m {
        Match::Mark { value, mask } => mark & mask == *value,
        Match::Source { net, not } => net.contains(&from) != *not,
        Match::Destination { net, not } => net.contains(&to) != *not,
    };
    let rule = rules.iter().find(|r| r.matches().iter().all(holds))?;
    Some(rule.verdict())
}

#[test]
fn each_kind_of_packet_gets_its_verdict_in_both_families() {
    let rules = TrafficRules::of(
        &dual("10.1.0.0/16", "fd00::/48"),
        &dual("10.1.5.0/24", "fd00:0:0:5::/64"),
        ALL,
    );
    let masq = Some(Verdict::Masquerade { fully_random: true });
    let stay = Some(Verdict::Return);
    for (v4, v6, mark, verdict) in [
        (
            ("10.1.5.2", "10.1.9.2"),
            ("fd00:0:0:5::2", "fd00:0:0:9::2"),
            0,
            stay,
        ),
        (
            ("10.1.9.2", "10.1.5.2"),
            ("fd00:0:0:9::2", "fd00:0:0:5::2"),
            0,
            stay,
        ),
        (
            ("192.0.2.1", "10.1.5.2"),
            ("2001:db8::1", "fd00:0:0:5::2"),
            0,
            stay,
        ),
        (
            ("10.1.5.2", "192.0.2.1"),
            ("fd00:0:0:5::2", "2001:db8::1"),
            0,
            masq,
        ),
        (
            ("192.0.2.1", "10.1.9.2"),
            ("2001:db8::1", "fd00:0:0:9::2"),
            0,
            masq,
        ),
        (
            ("10.1.5.2", "192.0.2.1"),
            ("fd00:0:0:5::2", "2001:db8::1"),
            0x4003,
            stay,
        ),
        (
            ("10.1.5.2", "192.0.2.1"),
            ("fd00:0:0:5::2", "2001:db8::1"),
            0x8003,
            masq,
        ),
        (
            ("10.1.5.2", "224.0.0.251"),
            ("fd00:0:0:5::2", "ff02::fb"),
            0,
            None,
        ),
        (
            ("192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::2"),
            0,
            None,
        ),
    ] {
        for (family, (from, to)) in [(Family::V4, v4), (Family::V6, v6)] {
            let rules = rules.chain(family, Chain::Postrouting);
            assert_eq!(
                fate(rules, mark, from, to),
                verdict,
                "{from} to {to}, mark {mark:#x}"
            );
        }
    }
    for family in Family::ALL {
        assert_eq!(rules.chain(family, Chain::Forward).len(), 2);
    }
}

#[test]
fn flags_and_families_take_rules_away() {
    let (c, p) = (dual("10.1.0.0/16", ""), dual("10.1.5.0/24", "fd00::/64"));
    let only_masq = TrafficRules::of(
        &c,
        &p,
        RuleFlags {
            forward: false,
            ..ALL
        },
    );
    assert_eq!(only_masq.chain(Family::V4, Chain::Postrouting).len(), 6);
    assert!(only_masq.chain(Family::V4, Chain::Forward).is_empty());
    assert!(only_masq.has(Family::V4) && !only_masq.has(Family::V6));

    let none = RuleFlags {
        masquerade: false,
        masquerade_ipv6: false,
        forward: false,
        ..ALL
    };
    assert!(TrafficRules::of(&c, &p, none).is_empty());

    let c = dual("10.1.0.0/16", "fd00::/48");
    let only_v4 = RuleFlags {
        masquerade_ipv6: false,
        ..ALL
    };
    let rules = TrafficRules::of(&c, &p, only_v4);
    assert_eq!(rules.chain(Family::V4, Chain::Postrouting).len(), 6);
    assert!(rules.chain(Family::V6, Chain::Postrouting).is_empty());
    assert_eq!(rules.chain(Family::V6, Chain::Forward).len(), 2);
    assert!(rules.masquerades());
}

#[test]
fn another_flannel_s_rules_stay_and_the_former_network_s_go() {
    let of = |c: &str, p: &str| TrafficRules::of(&dual(c, ""), &dual(p, ""), ALL);
    let (a, b) = (
        of("10.1.0.0/16", "10.1.5.0/24"),
        of("10.60.0.0/16", "10.60.3.0/24"),
    );
    let chain = |rules: &TrafficRules| rules.chain(Family::V4, Chain::Postrouting).to_vec();
    let merge = |rules: &TrafficRules, present: &[Rule]| {
        let present: Vec<_> = present.iter().cloned().map(Some).collect();
        rules.merged(Family::V4, Chain::Postrouting, &present)
    };
    // Each adds its own to what it finds, and then finds nothing to do.
    let both = merge(&b, &merge(&a, &[]));
    assert_eq!(both.len(), 6 + 5);
    assert_eq!(merge(&a, &both), both);
    assert_eq!(merge(&b, &both), both);
    let present: Vec<_> = both.iter().cloned().map(Some).collect();
    assert_eq!(a.anothers(&present), [net("10.60.0.0/16")]);
    assert_eq!(b.anothers(&present), [net("10.1.0.0/16")]);
    assert_eq!(TrafficRules::default().anothers(&present), []);
    // Each takes its own away alone; the last one takes the rule about marks too.
    let only_b = merge(&a.none(), &both);
    assert_eq!(only_b, chain(&b));
    assert_eq!(merge(&a.none(), &only_b), only_b);
    assert_eq!(merge(&b.none(), &only_b), []);
    // A rule of ours that is wrong is replaced, wherever it is.
    let mut wrong = both.clone();
    wrong.remove(8);
    wrong.push(Rule::new([], Verdict::Accept));
    assert_eq!(merge(&a, &wrong).len(), 6 + 5);

    // A node that moved to another network leaves nothing of the first; one that only cleans
    // up takes all.
    let moved = b.clone().and_formerly([net("10.1.0.0/16")]);
    assert_eq!(merge(&moved, &chain(&a)), chain(&b));
    assert_eq!(merge(&TrafficRules::default(), &both), []);
}

#[test]
fn the_order_of_conditions_makes_no_difference() {
    let from = Match::Source {
        net: net("10.1.0.0/16"),
        not: false,
    };
    let to = Match::Destination {
        net: net("10.1.5.0/24"),
        not: false,
    };
    assert_eq!(
        Rule::new([from, to], Verdict::Return),
        Rule::new([to, from], Verdict::Return)
    );
    assert_ne!(
        Rule::new([from], Verdict::Return),
        Rule::new([from, to], Verdict::Return)
    );
}
