//! Rules are written once, left alone while they are right, and put back whoever breaks them.

use std::time::Duration;

use dataplane::rules::{Mode, RulesError, RulesKeeper};
use model::TrafficRules;
use model::rules::RuleFlags;

use crate::world::{ALL, By, FLAGS, Kept, NEVER, Programs, RESYNC, in_namespace, rules, sh};

#[test]
fn what_is_right_is_not_written_again_nor_watched_by_processes() {
    for by in ALL {
        in_namespace(move || async move {
            let mut kept = Kept::new(by, rules(FLAGS));
            let first = kept.ensure().await;
            assert_eq!(first.written.len(), 2, "{by:?}: {first:?}");
            let standing = by.standing();
            assert!(
                standing.to_lowercase().contains("postrtg"),
                "{by:?}: {standing}"
            );

            // Another daemon after a restart, and the same one again.
            let mut again = Kept::new(by, rules(FLAGS));
            assert!(again.ensure().await.written.is_empty(), "{by:?}");
            let before = kept.keeper.programs_started();
            assert!(kept.ensure().await.written.is_empty(), "{by:?}");
            assert_eq!(
                kept.keeper.programs_started() - before,
                2,
                "{by:?}: one read per family"
            );
            assert_eq!(by.standing(), standing);

            let before = kept.keeper.programs_started();
            let idle = tokio::time::timeout(RESYNC * 4, kept.keeper.changed()).await;
            assert!(idle.is_err(), "{by:?}: woken by nothing");
            assert_eq!(kept.keeper.programs_started(), before, "{by:?}");
        });
    }
}

/// Commands that break something of ours, for the variant's programs.
fn damages(by: By) -> Vec<String> {
    let commands: &[&str] = match by {
        By::Nftables => &[
            "nft delete table ip flannel-ipv4",
            "nft delete table ip6 flannel-ipv6",
            "nft flush chain ip flannel-ipv4 postrtg",
            "nft delete chain ip6 flannel-ipv6 forward",
            "nft add rule ip flannel-ipv4 postrtg ip saddr 10.1.5.9 accept",
            "nft insert rule ip6 flannel-ipv6 postrtg accept",
            "nft 'add chain ip flannel-ipv4 postrtg { policy drop; }'",
            "nft 'add set ip flannel-ipv4 s { type ipv4_addr; }'",
            "nft flush ruleset",
        ],
        _ => &[
            "iptables -t nat -F FLANNEL-POSTRTG",
            "ip6tables -t nat -F FLANNEL-POSTRTG",
            "iptables -t nat -D FLANNEL-POSTRTG 5",
            "iptables -t nat -R FLANNEL-POSTRTG 2 -s 10.1.6.0/24 -j RETURN",
            "iptables -t nat -I FLANNEL-POSTRTG -j ACCEPT",
            "iptables -t nat -F POSTROUTING",
            "ip6tables -F FORWARD",
            "iptables -F && iptables -X && iptables -t nat -F && iptables -t nat -X",
            "iptables -A FORWARD -j FLANNEL-FWD",
            "iptables -t nat -I POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
            "iptables -t nat -A POSTROUTING -s 10.1.0.0/16 -m comment --comment 'flanneld masq' -j MASQUERADE",
        ],
    };
    let spell = |command: &&str| command.replace("tables ", &format!("tables{} ", by.suffix()));
    match by {
        By::Nftables => commands.iter().map(|c| (*c).to_owned()).collect(),
        _ => commands.iter().map(spell).collect(),
    }
}

#[test]
fn whatever_is_broken_is_put_back() {
    for by in ALL {
        in_namespace(move || async move {
            let mut kept = Kept::new(by, rules(FLAGS));
            kept.ensure().await;
            let right = by.standing();
            let mut took = Vec::new();
            for damage in damages(by) {
                // Someone who breaks things all the time is a different matter: see below.
                let resync = if by == By::IptablesLegacy {
                    RESYNC
                } else {
                    NEVER
                };
                kept = Kept::looking_every(resync, kept.programs, by.mode(), rules(FLAGS));
                assert!(
                    kept.ensure().await.written.is_empty(),
                    "{by:?}, before {damage}"
                );
                sh(&damage);
                assert_ne!(by.standing(), right, "{by:?}: {damage} broke nothing");
                took.push(kept.repair(&damage, || by.standing() == right).await);
                let idle = tokio::time::timeout(RESYNC * 2, kept.keeper.changed()).await;
                if idle.is_ok() {
                    // The look that follows a write to silent tables; it finds nothing.
                    assert!(
                        kept.ensure().await.written.is_empty(),
                        "{by:?} after {damage}"
                    );
                }
            }
            took.sort();
            let median = took[took.len() / 2];
            println!(
                "{by:?}: back after {median:?} (median), {:?} at most",
                took.last()
            );
        });
    }
}

#[test]
fn what_others_change_for_themselves_starts_no_process() {
    for by in [By::IptablesNft, By::Nftables] {
        in_namespace(move || async move {
            let mut kept = Kept::new(by, rules(FLAGS));
            sh("iptables-nft -t nat -N KUBE-X; iptables-nft -t nat -A POSTROUTING -j KUBE-X");
            kept.ensure().await;
            let before = kept.keeper.programs_started();
            sh("iptables-nft -t nat -A KUBE-X -s 10.9.0.0/16 -j RETURN
                iptables-nft -t nat -I POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
                iptables-nft -t nat -D POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
                iptables-nft -D FORWARD -j KUBE-Y 2>/dev/null
                iptables-nft -t mangle -A FORWARD -j ACCEPT
                nft add table inet firewalld
                nft 'add chain inet firewalld nat { type nat hook postrouting priority 110; }'
                nft delete table inet firewalld");
            let idle =
                tokio::time::timeout(Duration::from_millis(300), kept.keeper.changed()).await;
            assert!(idle.is_err(), "{by:?}: woken by others' rules");
            assert_eq!(kept.keeper.programs_started(), before, "{by:?}");
        });
    }
}

#[test]
fn somebody_who_never_gives_up_is_met_with_patience() {
    in_namespace(|| async {
        let by = By::Nftables;
        let mut kept = Kept::new(by, rules(FLAGS));
        kept.ensure().await;
        let began = std::time::Instant::now();
        let (mut repairs, mut at_first) = (0, 0);
        while repairs < 4 || began.elapsed() < Duration::from_secs(3) {
            sh("nft delete table ip flannel-ipv4");
            let changed = tokio::time::timeout(Duration::from_secs(60), kept.keeper.changed());
            assert!(changed.await.is_ok(), "given up after {repairs} repairs");
            kept.ensure().await;
            repairs += 1;
            at_first += u32::from(began.elapsed() < Duration::from_secs(3));
        }
        assert!(at_first <= 12, "{at_first} repairs in three seconds");
    });
}

#[test]
fn other_flags_change_what_stands_and_nothing_else() {
    for by in ALL {
        in_namespace(move || async move {
            let mut kept = Kept::new(by, rules(FLAGS));
            kept.ensure().await;
            for flags in [
                RuleFlags {
                    fully_random: false,
                    ..FLAGS
                },
                RuleFlags {
                    forward: false,
                    ..FLAGS
                },
                RuleFlags {
                    masquerade: false,
                    masquerade_ipv6: false,
                    ..FLAGS
                },
                FLAGS,
            ] {
                kept.keeper.set_desired(rules(flags));
                tokio::time::timeout(Duration::from_secs(5), kept.keeper.changed())
                    .await
                    .unwrap();
                assert_eq!(kept.ensure().await.written.len(), 2, "{by:?} {flags:?}");
                let standing = by.standing().to_lowercase();
                assert_eq!(
                    standing.contains("flannel-postrtg") || standing.contains("postrtg"),
                    flags.masquerade,
                    "{by:?} {standing}"
                );
                assert_eq!(
                    standing.contains("flanneld forward"),
                    flags.forward,
                    "{by:?} {standing}"
                );
                let random = standing.contains("random");
                assert_eq!(
                    random,
                    flags.masquerade && flags.fully_random,
                    "{by:?} {standing}"
                );
                assert!(kept.ensure().await.written.is_empty(), "{by:?} {flags:?}");
            }
        });
    }
}

#[test]
fn a_missing_program_is_named_with_its_cure() {
    in_namespace(|| async {
        let no_nft = Programs::of(By::Nftables).without("nft");
        let mut kept = Kept::with(no_nft, Mode::Nftables, rules(FLAGS));
        let error = kept.keeper.ensure().await.unwrap_err();
        assert!(matches!(&error, RulesError::Missing { program, .. } if program == "nft"));
        assert_eq!(
            error.to_string(),
            "nft is not installed on this host: install the package nftables, or set EnableNFTables to false in the network configuration to use iptables"
        );
        // It is tried again, but not at once.
        let soon = tokio::time::timeout(Duration::from_millis(100), kept.keeper.changed()).await;
        assert!(soon.is_err());

        let nowhere = std::env::temp_dir().join("flannel-rules-no-such-directory");
        let keeper = RulesKeeper::new(Mode::Iptables, rules(FLAGS), RESYNC);
        let mut keeper = keeper.with_programs_in(vec![nowhere]);
        let error = keeper.ensure().await.unwrap_err().to_string();
        assert!(
            error.starts_with(
                "iptables is not installed on this host: install the package iptables"
            ),
            "{error}"
        );
        // Nothing to write needs no program.
        keeper.set_desired(TrafficRules::default());
        assert!(keeper.ensure().await.unwrap().written.is_empty());
    });
}
