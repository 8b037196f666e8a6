//! etcd away, back, and not what it was: against a real etcd, some of it behind a gate.

use std::time::Duration;

use store::{AnyStore, Store, Timing};
use tokio::time::Instant;

use crate::etcd::{calls_since, short, through};
use crate::etcd_server::Etcd;
use crate::gate::{Gate, State};
use crate::node::{CONFIG, LIMIT, Node, key, local, value, waits_for, within};
use crate::own_lease::until_stored;
use crate::world::{PREFIX, World};

#[test]
fn after_an_outage_what_changed_is_seen_within_two_seconds() {
    local(async {
        let mut etcd = Etcd::new();
        etcd.put(&format!("{PREFIX}/subnets/10.20.205.0-24"), &value(5));
        let mut node = Node::start(etcd.store(), 1).await;
        node.until("all", |node| node.complete && node.known.len() == 2)
            .await;
        etcd.kill();
        node.until("away", |node| !node.complete).await;
        node.follow(Duration::from_secs(4)).await;
        assert_eq!(node.known.len(), 2, "an outage is no end of a lease");
        etcd.run();
        etcd.put(&format!("{PREFIX}/subnets/10.20.206.0-24"), &value(6));
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
        for n in 205..210 {
            etcd.put(&format!("{PREFIX}/subnets/10.20.{n}.0-24"), &value(n));
        }
        let gate = Gate::to(etcd.port()).await;
        let mut node = Node::start(through(&[&gate], Timing::default()), 1).await;
        node.until("all", |node| node.complete && node.known.len() == 6)
            .await;
        gate.set(State::Shut);
        node.until("away", |node| !node.complete).await;
        etcd.ctl(&["del", &format!("{PREFIX}/subnets/10.20.205.0-24")]);
        etcd.put(&format!("{PREFIX}/subnets/10.20.206.0-24"), &value(66));
        etcd.put(&format!("{PREFIX}/subnets/10.20.10.0-24"), &value(10));
        etcd.ctl(&["compact", &etcd.revision().to_string()]);
        let before = etcd.calls();
        gate.set(State::Open);
        node.until("back", |node| {
            node.complete && node.known.contains_key(&key("10.20.10.0-24"))
        })
        .await;
        node.until("the change", |node| {
            node.known[&key("10.20.206.0-24")].attrs == crate::node::attrs(66)
        })
        .await;
        node.until("the end", |node| {
            !node.known.contains_key(&key("10.20.205.0-24"))
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
        let deadline = Instant::now() + LIMIT;
        while !etcd.subnets().is_empty() {
            assert!(Instant::now() < deadline, "etcd does not end the lease");
            node.follow(Duration::from_millis(200)).await;
        }
        // By our clock, too, which began earlier.
        gate.set(State::Open);
        node.until("back", |node| node.complete).await;
        until_stored(&mut node, "taken again", || {
            etcd.subnets() == [own.to_string()]
        })
        .await;
        assert_eq!(node.revoked, None);
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
                etcd.ctl(&["compact", &etcd.revision().to_string()]);
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
        let deadline = Instant::now() + LIMIT;
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
fn etcd_may_come_later_than_the_daemon() {
    local(async {
        let mut etcd = Etcd::new();
        etcd.kill();
        let mut store = etcd.store();
        let status = store.status();
        let starting = tokio::task::spawn_local(async move { store.config().await });
        waits_for(&status, &etcd.url()).await;
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
