//! What only the etcd store does, against a real etcd.

use std::collections::BTreeMap;
use std::time::Duration;

use model::LeaseAttrs;
use store::{AnyStore, EtcdSettings, EtcdStore, Secret, Store, Timing};
use tokio::time::Instant;

use crate::etcd_server::Etcd;
use crate::gate::Gate;
use crate::node::{CONFIG, LIMIT, Node, attrs, key, local, value, waits_for, within};
use crate::own_lease::until_stored;
use crate::world::{PREFIX, World, settings};

crate::suite!(Etcd);

/// Leases of nodes 0 to `n` on 10.0.0.0/8.
pub fn fill(etcd: &Etcd, n: u32) {
    etcd.put(
        &format!("{PREFIX}/config"),
        r#"{"Network":"10.0.0.0/8","SubnetLen":24}"#,
    );
    let numbers: Vec<u32> = (1..=n).collect();
    for some in numbers.chunks(4000) {
        let puts = some.iter().map(|n| {
            format!(
                "put {PREFIX}/subnets/10.{}.{}.0-24 {:?}\n",
                n >> 8,
                n & 255,
                value(100_000 + n)
            )
        });
        etcd.ctl_stdin(&["txn"], &format!("\n{}\n\n", puts.collect::<String>()));
    }
}

pub fn calls_since(etcd: &Etcd, before: &[(String, u64)]) -> BTreeMap<String, u64> {
    let before: BTreeMap<_, _> = before.iter().cloned().collect();
    let calls = etcd.calls().into_iter();
    let new = calls.map(|(name, n)| (name.clone(), n - before.get(&name).unwrap_or(&0)));
    new.filter(|(_, n)| *n > 0).collect()
}

pub fn through(gates: &[&Gate], timing: Timing) -> AnyStore {
    let urls: Vec<String> = gates.iter().map(|gate| gate.url()).collect();
    let endpoints = urls.join(",");
    EtcdStore::new(EtcdSettings {
        endpoints,
        prefix: PREFIX.into(),
        timing,
        ..EtcdSettings::default()
    })
    .unwrap()
    .into()
}

pub fn short(ttl: u64, margin: u64) -> Timing {
    Timing {
        ttl: Duration::from_secs(ttl),
        margin: Duration::from_secs(margin),
        ..Timing::default()
    }
}

#[test]
fn fifteen_thousand_leases_take_eight_requests() {
    local(async {
        let etcd = Etcd::start_with(&["--max-request-bytes", "10000000"], None);
        fill(&etcd, 15_000);
        let before = etcd.calls();
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let began = Instant::now();
        let mut node = Node::start(etcd.store(), 1).await;
        let taken = began.elapsed();
        node.until("all", |node| node.complete && node.known.len() == 15_001)
            .await;
        eprintln!(
            "15,000 leases: own after {taken:?}, all after {:?}; {}",
            began.elapsed(),
            crate::node::peak()
        );
        let calls = calls_since(&etcd, &before);
        assert!(calls.values().sum::<u64>() <= 8, "{calls:?}");
        // And an event costs none.
        let before = etcd.calls();
        etcd.put(&format!("{PREFIX}/subnets/10.200.0.0-24"), &value(7));
        node.until("one more", |node| node.known.len() == 15_002)
            .await;
        let calls = calls_since(&etcd, &before);
        assert_eq!(
            calls.into_iter().collect::<Vec<_>>(),
            [("Put".to_string(), 1)]
        );
    });
}

#[test]
fn a_restart_leaves_one_etcd_lease() {
    local(async {
        let etcd = Etcd::new();
        let mut leases = Vec::new();
        for _ in 0..3 {
            let before = etcd.calls();
            let mut node = Node::start(etcd.store_with(short(60, 58)), 1).await;
            node.until("own", |node| node.complete && node.own_key().is_some())
                .await;
            // Taken over at the start, and renewed two seconds after it.
            let renewals = || calls_since(&etcd, &before).get("LeaseKeepAlive").copied();
            until_stored(&mut node, "two renewals", || renewals() >= Some(2)).await;
            leases.push(etcd.leases());
        }
        assert_eq!(leases[0].len(), 1);
        assert!(leases.iter().all(|l| *l == leases[0]), "{leases:?}");
    });
}

#[test]
fn an_etcd_lease_of_another_time_is_replaced() {
    local(async {
        let etcd = Etcd::new();
        let granted = etcd.ctl(&["lease", "grant", "600"]);
        let old = granted.split_whitespace().nth(1).unwrap().to_string();
        etcd.ctl(&[
            "put",
            "--lease",
            &old,
            &format!("{PREFIX}/subnets/10.20.4.0-24"),
            &value(1),
        ]);
        let mut node = Node::start(etcd.store(), 1).await;
        node.until("own", |node| node.own_key() == Some(key("10.20.4.0-24")))
            .await;
        let new = etcd
            .leases()
            .into_iter()
            .find(|lease| *lease != old)
            .unwrap();
        let of_new = etcd.ctl(&["lease", "timetolive", "--keys", &new]);
        assert!(
            of_new.contains("10.20.4.0-24") && of_new.contains("granted with TTL(86400s)"),
            "{of_new}"
        );
    });
}

#[test]
fn a_user_logs_in_again_when_the_token_ends() {
    local(async {
        let etcd = Etcd::start_with(&["--auth-token-ttl", "1"], None);
        World::put(&etcd, "config", CONFIG);
        etcd.ctl(&["user", "add", "root:secret"]);
        etcd.ctl(&["user", "grant-role", "root", "root"]);
        etcd.ctl(&["auth", "enable"]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "wrong\n").unwrap();
        let store = EtcdStore::new(EtcdSettings {
            username: Some("root".into()),
            password_file: Some(file.path().into()),
            ..settings(&etcd)
        });
        let mut store: AnyStore = store.unwrap().into();
        let status = store.status();
        let corrected = async {
            waits_for(&status, "invalid user ID or password").await;
            std::fs::write(file.path(), "secret\n").unwrap();
        };
        within(async { tokio::join!(store.config(), corrected) }).await;
        let mut node = Node::start(store, 1).await;
        node.until("own", |node| node.complete && node.own_key().is_some())
            .await;
        let own = node.own_key().unwrap();
        let before = etcd.calls();
        let log_ins = || calls_since(&etcd, &before).get("Authenticate").copied();
        // Each publication needs a token; one that is used lives on, so the pauses are longer than its life.
        let deadline = Instant::now() + LIMIT;
        for n in 2.. {
            let wanted = LeaseAttrs {
                data: attrs(n).data,
                ..attrs(1)
            };
            node.store.publish(wanted.clone()).await;
            node.until("the publication", |node| {
                let known = node.known.get(&own);
                known.is_some_and(|lease| lease.attrs == wanted)
            })
            .await;
            if log_ins() >= Some(2) {
                break;
            }
            assert!(Instant::now() < deadline, "it never logged in again");
            node.follow(Duration::from_millis(1500)).await;
        }
        assert_eq!((node.complete, &node.revoked), (true, &None));
        let value = etcd.ctl(&["--user", "root:secret", "get", "--prefix", PREFIX]);
        assert!(value.contains(&own.to_string()), "{value}");
    });
}

#[test]
fn a_password_without_auth_does_no_harm() {
    local(async {
        let etcd = Etcd::new();
        let store = EtcdStore::new(EtcdSettings {
            username: Some("root".into()),
            password: Some(Secret::new("secret")),
            ..settings(&etcd)
        });
        within(store.unwrap().config()).await;
    });
}

#[test]
fn a_storm_of_changes_is_followed() {
    local(async {
        let etcd = Etcd::start_with(&["--max-request-bytes", "10000000"], None);
        let config = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.200.0.0"}"#;
        World::put(&etcd, "config", config);
        let mut node = Node::start(etcd.store(), 1).await;
        node.until("own", |node| node.complete && node.known.len() == 1)
            .await;
        fill(&etcd, 6000);
        node.until("all", |node| node.known.len() == 6001).await;
        etcd.ctl(&["del", "--prefix", &format!("{PREFIX}/subnets/10.1")]);
        let left = etcd.subnets().len();
        node.until("fewer", |node| node.known.len() == left).await;
        assert!(left < 6001 && node.complete);
    });
}

#[test]
fn a_lease_may_be_made_a_reservation_under_a_running_daemon() {
    local(async {
        let etcd = Etcd::new();
        etcd.put(&format!("{PREFIX}/subnets/10.20.9.0-24"), &value(2));
        let mut node = Node::start(etcd.store_with(short(3, 2)), 1).await;
        node.until("own", |node| node.complete && node.own_key().is_some())
            .await;
        let own = node.own_key().unwrap().to_string();
        assert!(!etcd.is_reservation(&own));
        etcd.put(&format!("{PREFIX}/subnets/{own}"), &value(1));
        // Longer than the lease that it had would have lived.
        node.follow(Duration::from_secs(4)).await;
        assert!(etcd.is_reservation(&own));
        assert_eq!(node.revoked, None);
    });
}

#[test]
fn a_user_who_may_not_write_is_told_so() {
    local(async {
        let etcd = Etcd::new();
        for args in [
            "user add root:secret",
            "user grant-role root root",
            "role add reader",
            "role grant-permission reader read --prefix=true /",
            "user add node:word",
            "user grant-role node reader",
            "auth enable",
        ] {
            etcd.ctl(&args.split(' ').collect::<Vec<_>>());
        }
        let store = EtcdStore::new(EtcdSettings {
            username: Some("node".into()),
            password: Some(Secret::new("word")),
            ..settings(&etcd)
        });
        let mut node = Node::new(store.unwrap(), 1);
        node.config = within(node.store.config()).await;
        let status = node.store.status();
        let granted = async {
            waits_for(&status, "permission denied").await;
            // Healed without a restart.
            let grant = "--user root:secret role grant-permission reader readwrite --prefix=true /";
            etcd.ctl(&grant.split(' ').collect::<Vec<_>>());
        };
        let (lease, ()) = tokio::join!(node.acquire(), granted);
        lease.unwrap();
    });
}
