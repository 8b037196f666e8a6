//! From one program to another, nothing of the first is left.

use model::rules::RuleFlags;
use model::{Dual, TrafficRules};

use crate::world::{ALL, By, FLAGS, Kept, in_namespace, rules, sh};

fn ours_in(by: By) -> bool {
    by.standing().to_lowercase().contains("flannel")
}

#[test]
fn every_switch_leaves_nothing_behind() {
    for from in ALL {
        for to in ALL.into_iter().filter(|to| *to != from) {
            in_namespace(move || async move {
                Kept::new(from, rules(FLAGS)).ensure().await;
                assert!(ours_in(from));
                let mut kept = Kept::new(to, rules(FLAGS));
                let change = kept.ensure().await;
                assert_eq!(change.written.len(), 4, "{from:?} to {to:?}: {change:?}");
                for by in ALL {
                    assert_eq!(
                        ours_in(by),
                        by == to,
                        "{from:?} to {to:?}: {}",
                        by.standing()
                    );
                }
                assert!(kept.ensure().await.written.is_empty());
            });
        }
    }
}

#[test]
fn a_family_that_is_switched_off_leaves_nothing() {
    for by in ALL {
        in_namespace(move || async move {
            Kept::new(by, rules(FLAGS)).ensure().await;
            let dual = |v4: &str| Dual {
                v4: Some(v4.parse().unwrap()),
                v6: None,
            };
            let only_v4 = TrafficRules::of(&dual("10.1.0.0/16"), &dual("10.1.5.0/24"), FLAGS)
                .and_formerly(["fd00::/48".parse().unwrap()]);
            let mut kept = Kept::new(by, only_v4);
            assert_eq!(kept.ensure().await.written.len(), 1);
            let standing = by.standing();
            assert!(
                standing.contains("10.1.5.0/24") && !standing.contains("fd00"),
                "{by:?}: {standing}"
            );
            assert_eq!(standing.matches("flannel-ipv6").count(), 0);
        });
    }
}

#[test]
fn without_any_rule_wanted_whatever_stands_goes() {
    for by in ALL {
        in_namespace(move || async move {
            Kept::new(by, rules(FLAGS)).ensure().await;
            let nothing = rules(RuleFlags {
                masquerade: false,
                masquerade_ipv6: false,
                forward: false,
                ..FLAGS
            });
            // Whichever mode is set now.
            let mut kept = Kept::new(By::Nftables, nothing);
            assert_eq!(kept.ensure().await.written.len(), 2);
            assert!(!ours_in(by), "{by:?}: {}", by.standing());
            assert!(kept.ensure().await.written.is_empty());
            if by == By::Nftables {
                assert_eq!(sh("nft list ruleset"), "");
            }
        });
    }
}

#[test]
fn two_flannels_on_one_host_leave_each_other_alone() {
    for by in ALL {
        in_namespace(move || async move {
            let dual = |v4: &str| Dual {
                v4: Some(v4.parse().unwrap()),
                v6: None,
            };
            let second = TrafficRules::of(&dual("10.60.0.0/16"), &dual("10.60.3.0/24"), FLAGS);
            let mut one = Kept::new(by, rules(FLAGS));
            let mut two = Kept::new(by, second);
            one.ensure().await;
            two.ensure().await;
            for _ in 0..3 {
                assert!(
                    one.ensure().await.written.is_empty(),
                    "{by:?}: {}",
                    by.standing()
                );
                assert!(
                    two.ensure().await.written.is_empty(),
                    "{by:?}: {}",
                    by.standing()
                );
            }
            // The first changes the way it writes; the second's rules stay where they are.
            let other = if by == By::Nftables {
                By::IptablesNft
            } else {
                By::Nftables
            };
            let mut one = Kept::new(other, rules(FLAGS));
            one.ensure().await;
            assert!(
                two.ensure().await.written.is_empty(),
                "{by:?}: {}",
                by.standing()
            );
            assert!(one.ensure().await.written.is_empty());
            let standing = by.standing();
            assert!(
                standing.contains("10.60.0.0/16") && !standing.contains("10.1.0.0/16"),
                "{standing}"
            );
            two.keeper.remove_all().await.unwrap();
            assert!(
                ALL.into_iter().all(|by| !ours_in(by)),
                "cleaning up takes all"
            );
        });
    }
}
