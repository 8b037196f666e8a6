//! Other programs' rules stay as they are, before and after ours, and say which iptables to use.

use crate::world::{By, FLAGS, Kept, Programs, RESYNC, in_namespace, rules, sh};

/// What docker, kube-proxy, firewalld and an administrator leave behind, as `iptables-restore` takes it.
const OTHERS: &str = r#"*nat
:DOCKER - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -m comment --comment "kubernetes \"service\" traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
*filter
:DOCKER-USER - [0:0]
:KUBE-FORWARD - [0:0]
:FWD_direct - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -j DOCKER-USER
-A FORWARD -j FWD_direct
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER -j RETURN
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
"#;

fn load(by: By, text: &str) {
    sh(&format!(
        "iptables{}-restore --noflush <<'E'\n{text}E",
        by.suffix()
    ));
}

fn without_ours(standing: &str) -> String {
    let foreign = |line: &&str| !line.contains("FLANNEL-");
    standing
        .lines()
        .filter(foreign)
        .map(|l| format!("{l}\n"))
        .collect()
}

#[test]
fn foreign_rules_are_never_touched() {
    for by in [By::IptablesNft, By::IptablesLegacy] {
        in_namespace(move || async move {
            load(by, OTHERS);
            sh(&format!("ip6tables{}-save -t nat", by.suffix()));
            let others = by.standing();
            let mut kept = Kept::new(by, rules(FLAGS));
            kept.ensure().await;
            // More of them after ours.
            let late = format!(
                "iptables{} -t nat -A POSTROUTING -s 10.88.0.0/16 -j MASQUERADE",
                by.suffix()
            );
            sh(&late);
            sh(&late.replace("-A", "-I"));
            let with_late = without_ours(&by.standing());

            sh(&format!(
                "iptables{} -t nat -F FLANNEL-POSTRTG",
                by.suffix()
            ));
            assert_eq!(kept.ensure().await.written.len(), 1, "{by:?}: IPv4 alone");
            assert_eq!(without_ours(&by.standing()), with_late, "{by:?}");

            sh(&late.replace("-A", "-D"));
            sh(&late.replace("-A", "-D"));
            kept.keeper.remove_all().await.unwrap();
            let gone = without_ours(&by.standing());
            let as_before = others.lines().all(|line| gone.contains(line));
            assert!(
                as_before && !by.standing().contains("FLANNEL"),
                "{by:?}: {}",
                by.standing()
            );
        });
    }
}

#[test]
fn the_iptables_that_the_host_uses_is_used_and_named() {
    let hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    for (default, others_by, others, expected, because) in [
        (
            By::IptablesNft,
            None,
            "",
            By::IptablesNft,
            "the host's default",
        ),
        (
            By::IptablesLegacy,
            None,
            "",
            By::IptablesLegacy,
            "the host's default",
        ),
        (
            By::IptablesNft,
            Some(By::IptablesLegacy),
            OTHERS,
            By::IptablesLegacy,
            "and others stand there",
        ),
        (
            By::IptablesLegacy,
            Some(By::IptablesNft),
            OTHERS,
            By::IptablesNft,
            "and others stand there",
        ),
        (
            By::IptablesNft,
            Some(By::IptablesLegacy),
            hint,
            By::IptablesLegacy,
            "KUBE-IPTABLES-HINT",
        ),
        (
            By::IptablesLegacy,
            Some(By::IptablesNft),
            hint,
            By::IptablesNft,
            "KUBE-IPTABLES-HINT",
        ),
        (
            By::IptablesNft,
            Some(By::IptablesNft),
            OTHERS,
            By::IptablesNft,
            "the host's default",
        ),
    ] {
        in_namespace(move || async move {
            others_by.into_iter().for_each(|by| load(by, others));
            let mut kept = Kept::new(default, rules(FLAGS));
            let change = kept.ensure().await;
            assert!(change.notes[0].contains(because), "{:?}", change.notes);
            assert!(
                expected.standing().contains("FLANNEL-POSTRTG"),
                "{change:?}"
            );
            // Our own rules are no reason to stay.
            let mut again = Kept::new(default, rules(FLAGS));
            let change = again.ensure().await;
            assert!(change.written.is_empty(), "{change:?}");
        });
    }
}

#[test]
fn rules_follow_kubernetes_to_the_other_variant() {
    let hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    let services = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";
    for (from, to, chains) in [
        (By::IptablesNft, By::IptablesLegacy, hint),
        (By::IptablesLegacy, By::IptablesNft, hint),
        (By::IptablesLegacy, By::IptablesNft, services),
    ] {
        in_namespace(move || async move {
            let mut kept = Kept::new(from, rules(FLAGS));
            kept.ensure().await;
            assert!(from.standing().contains("FLANNEL-POSTRTG"));
            load(to, chains);
            kept.repair("chains of Kubernetes in the other variant", || {
                to.standing().contains("FLANNEL-POSTRTG")
            })
            .await;
            assert!(!from.standing().contains("FLANNEL"), "{from:?}: left over");
            // From now on they are kept there.
            sh(&format!(
                "iptables{} -t nat -F FLANNEL-POSTRTG",
                to.suffix()
            ));
            kept.repair("a flushed chain", || to.standing().contains("MASQUERADE"))
                .await;
        });
    }
}

#[test]
fn the_variant_in_use_that_is_not_installed_is_told() {
    in_namespace(|| async {
        load(By::IptablesLegacy, OTHERS);
        let programs = Programs::of(By::IptablesNft).without("iptables-legacy-restore");
        let mut kept = Kept::with(programs, By::IptablesNft.mode(), rules(FLAGS));
        let change = kept.ensure().await;
        assert!(
            change.notes[0].contains("iptables-legacy is not installed"),
            "{:?}",
            change.notes
        );
        assert!(By::IptablesNft.standing().contains("FLANNEL-POSTRTG"));
        // That is known, and no reason to look again and again.
        let idle = tokio::time::timeout(RESYNC * 3, kept.keeper.changed()).await;
        assert!(idle.is_err(), "woken by what is known");
    });
}

#[test]
fn a_table_that_iptables_cannot_read_is_named() {
    in_namespace(|| async {
        sh("nft add table ip nat && nft 'add chain ip nat POSTROUTING { type nat hook postrouting priority 100; }'
            nft 'add set ip nat s { type ipv4_addr; flags interval; }'
            nft add rule ip nat POSTROUTING ip saddr @s masquerade random,persistent");
        let mut kept = Kept::new(By::IptablesNft, rules(FLAGS));
        match kept.keeper.ensure().await {
            Err(error) => assert!(error.to_string().contains("nat"), "{error}"),
            // A version that reads it must then leave it alone.
            Ok(_) => assert!(sh("nft list chain ip nat POSTROUTING").contains("@s")),
        }
    });
}
