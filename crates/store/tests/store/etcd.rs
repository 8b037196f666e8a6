//! What only the etcd store does, against a real etcd.

use std::collections::BTreeMap;
use std::time::Duration;

use store::{AnyStore, EtcdSettings, EtcdStore, Secret, Store, Timing};
use tokio::time::Instant;

use crate::etcd_server::Etcd;
use crate::gate::{Gate, State};
use crate::node::{CONFIG, Node, key, local, value, within};
use crate::world::{PREFIX, World, settings};

crate::suite!(Etcd);

/// Leases of nodes 0 to `n` on 10.0.0.0/8.
fn fill(etcd: &Etcd, n: u32) {
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

fn calls_since(etcd: &Etcd, before: &[(String, u64)]) -> BTreeMap<String, u64> {
    let before: BTreeMap<_, _> = before.iter().cloned().collect();
    let calls = etcd.calls().into_iter();
    let new = calls.map(|(name, n)| (name.clone(), n - before.get(&name).unwrap_or(&0)));
    new.filter(|(_, n)| *n > 0).collect()
}

fn through(gates: &[&Gate], timing: Timing) -> AnyStore {
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

fn short(ttl: u64, margin: u64) -> Timing {
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
            let mut node = Node::start(etcd.store_with(short(60, 58)), 1).await;
            node.until("own", |node| node.complete && node.own_key().is_some())
                .await;
            // Renewed after two seconds.
            node.follow(Duration::from_secs(3)).await;
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
fn after_an_outage_what_changed_is_seen_within_two_seconds() {
    local(async {
        let mut etcd = Etcd::new();
        etcd.put(&format!("{PREFIX}/subnets/10.20.5.0-24"), &value(5));
        let mut node = Node::start(etcd.store(), 1).await;
        node.until("all", |node| node.complete && node.known.len() == 2)
            .await;
        etcd.kill();
        node.until("away", |node| !node.complete).await;
        node.follow(Duration::from_secs(4)).await;
        assert_eq!(node.known.len(), 2, "an outage is no end of a lease");
        etcd.run();
        etcd.put(&format!("{PREFIX}/subnets/10.20.6.0-24"), &value(6));
        let back = Instant::now();
        node.until("the new one", |node| node.complete && node.known.len() == 3)
            .await;
        assert!(
            back.elapsed() < Duration::from_secs(2),
            "{:?}",
            back.elapsed()
        );
        assert_eq!(node.revoked, None);
    });
}

#[test]
fn a_compaction_during_an_outage_is_survived() {
    local(async {
        let etcd = Etcd::new();
        for n in 5..10 {
            etcd.put(&format!("{PREFIX}/subnets/10.20.{n}.0-24"), &value(n));
        }
        let gate = Gate::to(etcd.port()).await;
        let mut node = Node::start(through(&[&gate], Timing::default()), 1).await;
        node.until("all", |node| node.complete && node.known.len() == 6)
            .await;
        gate.set(State::Shut);
        node.until("away", |node| !node.complete).await;
        etcd.ctl(&["del", &format!("{PREFIX}/subnets/10.20.5.0-24")]);
        etcd.put(&format!("{PREFIX}/subnets/10.20.6.0-24"), &value(66));
        etcd.put(&format!("{PREFIX}/subnets/10.20.10.0-24"), &value(10));
        let status = etcd.ctl(&["endpoint", "status", "-w", "json"]);
        let revision = status
            .split("\"revision\":")
            .nth(1)
            .unwrap()
            .split(',')
            .next()
            .unwrap()
            .to_string();
        etcd.ctl(&["compact", &revision]);
        let before = etcd.calls();
        gate.set(State::Open);
        node.until("back", |node| {
            node.complete && node.known.contains_key(&key("10.20.10.0-24"))
        })
        .await;
        node.until("the change", |node| {
            node.known[&key("10.20.6.0-24")].attrs == crate::node::attrs(66)
        })
        .await;
        node.until("the end", |node| {
            !node.known.contains_key(&key("10.20.5.0-24"))
        })
        .await;
        assert_eq!((node.known.len(), &node.revoked), (6, &None));
        node.follow(Duration::from_secs(1)).await;
        let calls: u64 = calls_since(&etcd, &before).values().sum();
        assert!(calls <= 10, "{calls} requests: a loop");
    });
}

#[test]
fn a_lease_that_ran_out_during_an_outage_is_taken_again() {
    local(async {
        let etcd = Etcd::new();
        let gate = Gate::to(etcd.port()).await;
        let mut node = Node::start(through(&[&gate], short(3, 1)), 1).await;
        node.until("own", |node| node.complete && node.own_key().is_some())
            .await;
        let own = node.own_key().unwrap();
        gate.set(State::Shut);
        let deadline = Instant::now() + Duration::from_secs(15);
        while !etcd.subnets().is_empty() {
            assert!(Instant::now() < deadline, "etcd does not end the lease");
            node.follow(Duration::from_millis(200)).await;
        }
        // By our clock, too, which began earlier.
        gate.set(State::Open);
        node.until("back", |node| node.complete).await;
        node.follow(Duration::from_secs(1)).await;
        assert_eq!(node.revoked, None);
        assert_eq!(etcd.subnets(), [own.to_string()]);
    });
}

#[test]
fn a_lease_deleted_during_an_outage_is_revoked() {
    for compact in [false, true] {
        local(async {
            let etcd = Etcd::new();
            let gate = Gate::to(etcd.port()).await;
            let mut node = Node::start(through(&[&gate], Timing::default()), 1).await;
            node.until("own", |node| node.complete && node.own_key().is_some())
                .await;
            gate.set(State::Shut);
            node.until("away", |node| !node.complete).await;
            etcd.delete(&format!("subnets/{}", node.own_key().unwrap()));
            if compact {
                etcd.put("other", "x");
                let status = etcd.ctl(&["endpoint", "status", "-w", "json"]);
                let revision = status
                    .split("\"revision\":")
                    .nth(1)
                    .unwrap()
                    .split(',')
                    .next()
                    .unwrap()
                    .to_string();
                etcd.ctl(&["compact", &revision]);
            }
            gate.set(State::Open);
            node.until("revoked", |node| node.revoked.is_some()).await;
        });
    }
}

#[test]
fn an_etcd_that_lost_everything_gets_it_back() {
    local(async {
        let mut etcd = Etcd::new();
        let mut one = Node::start(etcd.store(), 1).await;
        let mut two = Node::start(etcd.store(), 2).await;
        one.until("both", |node| node.complete && node.known.len() == 2)
            .await;
        two.until("both", |node| node.complete && node.known.len() == 2)
            .await;
        let mut before = etcd.subnets();
        etcd.lose_data();
        one.until("away", |node| !node.complete).await;
        etcd.run();
        etcd.put(&format!("{PREFIX}/config"), CONFIG);
        let known = |node: &Node<AnyStore>| node.complete && node.known.len() == 2;
        tokio::join!(one.until("back", known), two.until("back", known));
        let deadline = Instant::now() + Duration::from_secs(10);
        while etcd.subnets().len() < 2 {
            assert!(Instant::now() < deadline, "not published again");
            tokio::join!(
                one.follow(Duration::from_millis(100)),
                two.follow(Duration::from_millis(100))
            );
            assert_eq!(
                (one.known.len(), two.known.len()),
                (2, 2),
                "a peer was given up"
            );
        }
        let mut after = etcd.subnets();
        before.sort();
        after.sort();
        assert_eq!(before, after);
        assert_eq!((&one.revoked, &two.revoked), (&None, &None));
        assert!(!etcd.is_reservation(&after[0]));
    });
}

#[test]
fn the_next_endpoint_takes_over() {
    local(async {
        let etcd = Etcd::new();
        let (dead, one, two) = (
            Gate::to(1).await,
            Gate::to(etcd.port()).await,
            Gate::to(etcd.port()).await,
        );
        let mut node = Node::start(through(&[&dead, &one, &two], Timing::default()), 1).await;
        node.until("own", |node| node.complete && node.own_key().is_some())
            .await;
        let see = async |node: &mut Node<AnyStore>, n: u32, limit: u64| {
            etcd.put(&format!("{PREFIX}/subnets/10.20.{n}.0-24"), &value(n));
            let began = Instant::now();
            let new = key(&format!("10.20.{n}.0-24"));
            node.until("a new lease", |node| {
                node.complete && node.known.contains_key(&new)
            })
            .await;
            assert!(
                began.elapsed() < Duration::from_secs(limit),
                "took {:?}",
                began.elapsed()
            );
        };
        see(&mut node, 201, 1).await;
        one.set(State::Shut);
        see(&mut node, 202, 2).await;
        one.set(State::Open);
        // Nothing says that this one is dead, but that it does not answer.
        two.set(State::Frozen);
        see(&mut node, 203, 14).await;
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
            timing: short(4, 2),
            ..settings(&etcd)
        });
        let mut store = store.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(1500), store.config()).await;
        assert!(waited.is_err(), "a wrong password was taken");
        std::fs::write(file.path(), "secret\n").unwrap();
        within(store.config()).await;
        let mut node = Node::start(store, 1).await;
        node.until("own", |node| node.complete && node.own_key().is_some())
            .await;
        // Two renewals, long after the token ended.
        node.follow(Duration::from_secs(6)).await;
        assert_eq!((node.complete, &node.revoked), (true, &None));
        let as_root = [
            "--user",
            "root:secret",
            "get",
            "--prefix",
            "--keys-only",
            PREFIX,
        ];
        assert!(etcd.ctl(&as_root).contains("subnets/"));
    });
}

#[test]
fn etcd_may_come_later_than_the_daemon() {
    local(async {
        let mut etcd = Etcd::new();
        etcd.kill();
        let mut store = etcd.store();
        let starting = tokio::task::spawn_local(async move { store.config().await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!starting.is_finished());
        etcd.run();
        let began = Instant::now();
        within(starting).await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
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
