//! The jump to the forward rules stands before a rule that refuses every packet, as many distributions
//! have it at the end of `FORWARD`.

use crate::world::{By, FLAGS, Kept, in_namespace, rules, sh};

const BOTH: [By; 2] = [By::IptablesNft, By::IptablesLegacy];

fn iptables(by: By, args: &str) {
    sh(&format!("iptables{} {args}", by.suffix()));
}

/// The rules of `FORWARD`, in order, by what is told of each.
fn forward(by: By) -> Vec<String> {
    let rules = sh(&format!("iptables{} -S FORWARD", by.suffix()));
    let target = |line: &str| {
        let after = line.split(" -j ").nth(1)?;
        after.split(' ').next().map(str::to_owned)
    };
    rules.lines().filter_map(target).collect()
}

#[test]
fn the_jump_stands_before_a_rule_that_refuses_everything() {
    for by in BOTH {
        in_namespace(move || async move {
            iptables(by, "-A FORWARD -s 10.77.0.1 -j ACCEPT");
            iptables(
                by,
                "-A FORWARD -m comment --comment last -j REJECT --reject-with icmp-host-prohibited",
            );
            let mut kept = Kept::new(by, rules(FLAGS));
            kept.ensure().await;
            let right = ["ACCEPT", "FLANNEL-FWD", "REJECT"];
            assert_eq!(forward(by), right, "{by:?}");
            assert!(kept.ensure().await.written.is_empty(), "{by:?}");

            // Somebody puts his own rule first.
            iptables(by, "-I FORWARD -j DROP");
            let took = kept
                .repair("a DROP before ours", || forward(by)[0] == "FLANNEL-FWD")
                .await;
            println!("{by:?}: in order again after {took:?}");
            let moved = ["FLANNEL-FWD", "DROP", "ACCEPT", "REJECT"];
            assert_eq!(forward(by), moved, "{by:?}");
            assert!(kept.ensure().await.written.is_empty(), "{by:?}");

            // Somebody has ours last, twice.
            iptables(by, "-D FORWARD 1");
            iptables(by, "-D FORWARD 1");
            kept.ensure().await;
            iptables(
                by,
                "-A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
            );
            kept.ensure().await;
            assert_eq!(forward(by), right, "{by:?}");
            iptables(by, "-D FORWARD 2");
            iptables(
                by,
                "-A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
            );
            kept.ensure().await;
            assert_eq!(forward(by), right, "{by:?}");

            kept.keeper.remove_all().await.unwrap();
            assert_eq!(forward(by), ["ACCEPT", "REJECT"], "{by:?}");
        });
    }
}

#[test]
fn a_chain_that_refuses_everything_counts_and_docker_user_does_not() {
    for by in BOTH {
        in_namespace(move || async move {
            let load = |text: &str| {
                sh(&format!(
                    "iptables{}-restore <<'E'\n*filter\n{text}COMMIT\nE",
                    by.suffix()
                ));
            };
            for (chains, expected) in [
                // As ufw has it.
                (
                    ":track - [0:0]\n:reject - [0:0]\n-A FORWARD -j track\n-A FORWARD -j reject\n-A reject -j LOG --log-prefix x\n-A reject -j REJECT\n",
                    vec!["track", "FLANNEL-FWD", "reject"],
                ),
                // Through a second chain.
                (
                    ":one - [0:0]\n:two - [0:0]\n-A FORWARD -j one\n-A one -s 10.7.0.0/16 -j DROP\n-A one -j two\n-A two -j DROP\n",
                    vec!["FLANNEL-FWD", "one"],
                ),
                // Some packets get through, under a condition, or all of them.
                (
                    ":one - [0:0]\n-A FORWARD -j one\n-A one -s 10.1.0.0/16 -j RETURN\n-A one -j DROP\n",
                    vec!["one", "FLANNEL-FWD"],
                ),
                (
                    ":one - [0:0]\n-A FORWARD -i eth9 -j one\n-A one -j DROP\n-A FORWARD -i eth9 -j DROP\n",
                    vec!["one", "DROP", "FLANNEL-FWD"],
                ),
                // An administrator refuses on purpose there.
                (
                    ":DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j DROP\n",
                    vec!["DOCKER-USER", "FLANNEL-FWD"],
                ),
            ] {
                load(chains);
                let mut kept = Kept::new(by, rules(FLAGS));
                kept.ensure().await;
                assert_eq!(forward(by), expected, "{by:?}: {chains}");
                assert!(kept.ensure().await.written.is_empty(), "{by:?}: {chains}");
            }
        });
    }
}
