//! A real etcd that is restored from a backup, plainly or as its documentation advises, whatever revision it has then
//! and whoever writes to it first.

use std::path::PathBuf;

use store::{AnyStore, Store, Timing};
use tokio::time::Instant;

use crate::etcd::{fill, through};
use crate::etcd_server::Etcd;
use crate::gate::{Gate, State};
use crate::node::{CONFIG, LIMIT, Node, key, local, value, within};
use crate::programs::{programs, system};
use crate::world::World;

/// What makes watchers and listings of before fail for certain.
const BUMP: [&str; 3] = ["--bump-revision", "1000000000", "--mark-compacted"];

async fn ready(etcd: &Etcd, n: u32) -> Node<AnyStore> {
    let mut node = Node::start(etcd.store(), n).await;
    node.until("own", |node| node.complete && node.own_key().is_some())
        .await;
    node
}

/// How far others get with their writes before the nodes are back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Writes {
    Nothing,
    /// To the revision that the nodes knew.
    Equal,
    More,
}

use Writes::*;

/// One node was there before the backup; one came later, and one took a later reservation.
async fn everybody_keeps_its_lease(programs: PathBuf, flags: &[&str], writes: Writes) {
    let mut etcd = Etcd::start_from(programs, &[]);
    World::put(&etcd, "config", CONFIG);
    let one = ready(&etcd, 1).await;
    etcd.back_up();
    let two = ready(&etcd, 2).await;
    World::put(&etcd, "subnets/10.20.239.0-24", &value(3));
    let three = ready(&etcd, 3).await;
    World::put(&etcd, "subnets/10.20.240.0-24", &value(240));
    let mut nodes = [one, two, three];
    for node in &mut nodes {
        node.until("all", |node| node.known.len() == 4).await;
    }
    let owned: Vec<_> = nodes.iter().map(|node| node.own_key().unwrap()).collect();
    let known = etcd.revision();
    etcd.restore(flags, |etcd| {
        assert_eq!(etcd.subnets(), [owned[0].to_string()]);
        let missing = match writes {
            Nothing => 0,
            Equal => known - etcd.revision(),
            More => 40,
        };
        for n in 0..missing.max(0) {
            let value = value(300 + u32::try_from(n).unwrap());
            World::put(etcd, "subnets/10.20.241.0-24", &value);
        }
        if flags.is_empty() {
            assert_eq!(etcd.revision() == known, writes == Equal);
        }
    });
    let deadline = Instant::now() + LIMIT;
    while !owned
        .iter()
        .all(|own| etcd.subnets().contains(&own.to_string()))
    {
        let revoked: Vec<_> = nodes.iter().map(|node| &node.revoked).collect();
        assert!(Instant::now() < deadline, "{revoked:?}");
        for node in &mut nodes {
            node.follow(std::time::Duration::from_millis(20)).await;
        }
    }
    let new = key("10.20.241.0-24");
    for node in &mut nodes {
        node.until("what was written meanwhile", |node| {
            node.complete && (writes == Nothing || node.known.contains_key(&new))
        })
        .await;
        assert_eq!(node.revoked, None);
        for own in &owned {
            assert!(node.known.contains_key(own), "{own} was given up");
        }
        // Its owner may be about to come back.
        assert!(node.known.contains_key(&key("10.20.240.0-24")));
    }
    let reserved = owned
        .iter()
        .map(|own| etcd.is_reservation(&own.to_string()));
    assert_eq!(reserved.collect::<Vec<_>>(), [false, false, true]);
    // What changes from now on is seen.
    World::put(&etcd, "subnets/10.20.242.0-24", &value(242));
    for node in &mut nodes {
        let newest = key("10.20.242.0-24");
        node.until("the newest", |node| node.known.contains_key(&newest))
            .await;
        assert_eq!(node.revoked, None);
    }
}

#[test]
fn of_the_systems_version() {
    for writes in [Nothing, Equal, More] {
        local(everybody_keeps_its_lease(system(), &[], writes));
    }
}

#[test]
fn of_3_5() {
    if let Some(programs) = programs("3.5") {
        local(everybody_keeps_its_lease(programs, &[], Equal));
    }
}

#[test]
fn of_3_6() {
    if let Some(programs) = programs("3.6") {
        local(everybody_keeps_its_lease(programs, &[], More));
    }
}

#[test]
fn of_3_5_with_a_bumped_revision() {
    if let Some(programs) = programs("3.5") {
        local(everybody_keeps_its_lease(programs, &BUMP, Nothing));
    }
}

#[test]
fn of_3_6_with_a_bumped_revision() {
    if let Some(programs) = programs("3.6") {
        local(everybody_keeps_its_lease(programs, &BUMP, More));
    }
}

/// A listing that was cut off goes on in no other history, even if that one has come as far.
#[test]
fn a_listing_never_mixes_two_histories() {
    local(async {
        let mut etcd = Etcd::start_with(&["--max-request-bytes", "10000000"], None);
        fill(&etcd, 12_000);
        let gate = Gate::to(etcd.port()).await;
        let mut store = through(&[&gate], Timing::default());
        let config = within(store.config()).await;
        let mut node = Node::new(store, 1);
        node.config = config.clone();
        let who = node.who();
        // Within the first of two pages.
        gate.shut_after(500_000);
        {
            let listing = node.store.own(&config, &who);
            tokio::pin!(listing);
            let cut = async {
                while gate.state() != State::Shut {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                found = &mut listing => panic!("{found:?}"),
                () = cut => {}
            }
            etcd.lose_data();
            etcd.run();
            World::put(
                &etcd,
                "config",
                r#"{"Network":"10.0.0.0/8","SubnetLen":24}"#,
            );
            for n in 0..20 {
                World::put(&etcd, &format!("subnets/10.250.{n}.0-24"), &value(n + 100));
            }
            gate.set(State::Open);
            assert_eq!(within(listing).await, None);
        }
        node.acquire().await.unwrap();
        node.until("the new history alone", |node| {
            node.complete && node.known.len() == 21
        })
        .await;
    });
}
