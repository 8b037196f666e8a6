use super::*;

/// From a pod of another node to one of this node.
fn packet() -> Forwarded {
    Forwarded {
        source: "10.1.7.2".parse().unwrap(),
        destination: "10.1.5.2".parse().unwrap(),
        arrives: Some("flannel.1".into()),
        leaves: Some("cni0".into()),
    }
}

fn saved(filter: &str) -> Verdict {
    let text = format!("*filter\n:INPUT DROP [0:0]\n{filter}\nCOMMIT\n");
    let refusals = xtables::read(&text).refusals(&packet());
    assert!(refusals.len() < 2, "{refusals:?}");
    refusals.into_iter().next().map_or(Verdict::Passes, |r| r.1)
}

fn refused(rule: &str) -> Verdict {
    Verdict::Refused(rule.into())
}

const POLICY: &str = "policy DROP of chain FORWARD";

#[test]
fn policies_and_rules_of_iptables() {
    let ours = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
                -A FLANNEL-FWD -s 10.1.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT";
    let chains = ":FORWARD DROP [1:2]\n:FLANNEL-FWD - [0:0]\n:DOCKER-USER - [0:0]\n";
    for (rules, expected) in [
        (":FORWARD ACCEPT [0:0]".to_owned(), Verdict::Passes),
        (":FORWARD DROP [0:0]".into(), refused(POLICY)),
        (format!("{chains}{ours}"), Verdict::Passes),
        // What stands before our jump.
        (
            format!("{chains}-A FORWARD -s 10.1.0.0/16 -j DROP\n{ours}"),
            refused("-A FORWARD -s 10.1.0.0/16 -j DROP"),
        ),
        (
            format!("{chains}-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n{ours}"),
            refused("-A FORWARD -j REJECT --reject-with icmp-host-prohibited"),
        ),
        (
            format!(
                "{chains}-A FORWARD -j DOCKER-USER\n-A DOCKER-USER ! -i docker0 -j DROP\n{ours}"
            ),
            refused("-A DOCKER-USER ! -i docker0 -j DROP"),
        ),
        // And what does not concern the packet.
        (
            format!(
                "{chains}-A FORWARD -m conntrack --ctstate INVALID -j DROP\n-A FORWARD -i docker0 -j DROP\n\
                 -A FORWARD ! -s 10.0.0.0/8 -j DROP\n-A FORWARD -p udp -m udp --dport 53 -j DROP\n\
                 -A FORWARD -m mark --mark 0x4000/0x4000 -j DROP\n-A FORWARD -j DOCKER-USER\n\
                 -A DOCKER-USER -j RETURN\n-A DOCKER-USER -j DROP\n{ours}"
            ),
            Verdict::Passes,
        ),
        // A port or a set is not known: that alone is no refusal, and no acceptance.
        (
            format!("{chains}-A FORWARD -p tcp -m tcp --dport 25 -j DROP\n{ours}"),
            Verdict::Passes,
        ),
        (
            format!("{chains}-A FORWARD -m set --match-set allowed src -j ACCEPT"),
            Verdict::Unknown(POLICY.into()),
        ),
        (
            format!(
                "{chains}-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -m set --match-set a src -j RETURN\n-A DOCKER-USER -j DROP\n{ours}"
            ),
            Verdict::Passes,
        ),
        // Jumps in a circle, which the kernel would refuse.
        (
            format!("{chains}-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j DOCKER-USER"),
            Verdict::Unknown(POLICY.into()),
        ),
        (
            format!("{chains}-A FORWARD -i flannel+ -o cni+ -g DOCKER-USER\n-A FORWARD -j ACCEPT"),
            refused(POLICY),
        ),
    ] {
        assert_eq!(saved(&rules), expected, "{rules}");
    }
    let raw =
        "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 10.1.5.2/32 ! -i cni0 -j DROP\nCOMMIT\n";
    let refusals = xtables::read(raw).refusals(&packet());
    assert_eq!(refusals[0].0, "table raw, chain PREROUTING");
}

fn listed(chains: &str) -> Vec<(String, Verdict)> {
    native::read(&format!("{{\"nftables\": [{chains}]}}"))
        .unwrap()
        .without_iptables(true, true)
        .refusals(&packet())
}

fn base(policy: &str) -> String {
    format!(
        r#"{{"table": {{"family": "inet", "name": "wall"}}}},
           {{"chain": {{"family": "inet", "table": "wall", "name": "fwd", "type": "filter", "hook": "forward",
                        "prio": 0, "policy": "{policy}"}}}}"#
    )
}

fn rule(chain: &str, expressions: &str) -> String {
    format!(
        r#", {{"rule": {{"family": "inet", "table": "wall", "chain": "{chain}", "expr": [{expressions}]}}}}"#
    )
}

#[test]
fn base_chains_of_nftables() {
    let network = r#"{"prefix": {"addr": "10.1.0.0", "len": 16}}"#;
    let from = format!(
        r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "ip", "field": "saddr"}}}}, "right": {network}}}}}"#
    );
    let states = |pairs: &str| {
        format!(
            r#"{{"vmap": {{"key": {{"ct": {{"key": "state"}}}}, "data": {{"set": [{pairs}]}}}}}}"#
        )
    };
    let known = r#"["established", {"accept": null}], ["invalid", {"drop": null}]"#;
    let iif = |name: &str| {
        format!(
            r#"{{"match": {{"op": "==", "left": {{"meta": {{"key": "iifname"}}}}, "right": {name}}}}}"#
        )
    };
    for (chains, refusing) in [
        (base("accept"), None),
        (base("drop"), Some("policy drop of chain fwd")),
        (
            base("drop")
                + &rule(
                    "fwd",
                    &format!("{from}, {{\"counter\": null}}, {{\"accept\": null}}"),
                ),
            None,
        ),
        (
            base("accept")
                + &rule(
                    "fwd",
                    &format!("{from}, {{\"reject\": {{\"type\": \"icmpx\"}}}}"),
                ),
            Some("reject"),
        ),
        (
            base("drop") + &rule("fwd", &states(known)),
            Some("policy drop"),
        ),
        (base("accept") + &rule("fwd", &states(known)), None),
        (
            base("drop") + &rule("fwd", &states(r#"["new", {"accept": null}]"#)),
            None,
        ),
        (
            base("accept") + &rule("fwd", &format!(r#"{}, {{"drop": null}}"#, iif("\"eth0\""))),
            None,
        ),
        (
            base("accept")
                + &rule(
                    "fwd",
                    &format!(r#"{}, {{"drop": null}}"#, iif("\"flannel*\"")),
                ),
            Some("flannel*"),
        ),
        (
            base("accept")
                + &rule(
                    "fwd",
                    &format!(
                        r#"{}, {{"drop": null}}"#,
                        iif(r#"{"set": ["eth0", "flannel.1"]}"#)
                    ),
                ),
            Some("drop"),
        ),
        (
            base("accept")
                + &rule("fwd", r#"{"jump": {"target": "more"}}"#)
                + &rule("more", r#"{"drop": null}"#),
            Some("more"),
        ),
        (
            base("accept")
                + &rule(
                    "fwd",
                    &format!(r#"{}, {{"drop": null}}"#, iif("\"@walls\"")),
                ),
            None,
        ),
    ] {
        let refusals = listed(&chains);
        match (refusals.as_slice(), refusing) {
            ([], None) => {}
            ([(place, Verdict::Refused(why))], Some(part)) => {
                assert_eq!(place, "nft, table inet wall, chain fwd");
                assert!(why.contains(part), "{why}");
            }
            other => panic!("{chains}: {other:?}"),
        }
    }
    // A set that may let it pass, before a policy that drops.
    let unsure = base("drop")
        + &rule(
            "fwd",
            &format!(r#"{}, {{"accept": null}}"#, iif("\"@doors\"")),
        );
    assert!(matches!(
        listed(&unsure).as_slice(),
        [(_, Verdict::Unknown(_))]
    ));
    // iptables-save shows these better.
    let iptables = base("drop")
        .replace("inet", "ip")
        .replace("wall", "filter")
        .replace("fwd", "FORWARD");
    assert!(listed(&iptables).is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn programs_that_are_missing_are_named() {
    let judgement = judge_with(&Tools::within(Vec::new()), &[packet()]).await;
    assert!(judgement.read.is_empty() && judgement.refusals.is_empty());
    let unread = judgement.unread.join("; ");
    assert!(unread.contains("nft is not installed"), "{unread}");
}
