//! Our own lease when things go wrong, against a real etcd. The same and more, without one, is tested
//! beside the state machine.

use std::time::Duration;

use store::{AcquireError, AnyStore, EtcdSettings, EtcdStore, Secret, Store, Who};
use tokio::time::Instant;

use crate::etcd::short;
use crate::etcd_server::Etcd;
use crate::node::{LIMIT, Node, attrs, claim, key, local, public_ip, value, waits_for, within};
use crate::world::{PREFIX, World, settings};

/// Follows the news of `node` until `so` holds of the store.
pub async fn until_stored(node: &mut Node<AnyStore>, what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !so() {
        assert!(
            Instant::now() < deadline,
            "never: {what}; {:?}",
            node.revoked
        );
        node.follow(Duration::from_millis(50)).await;
    }
}

async fn ready(store: AnyStore, n: u32) -> Node<AnyStore> {
    let mut node = Node::start(store, n).await;
    node.until("own", |node| node.complete && node.own_key().is_some())
        .await;
    node
}

#[test]
fn a_user_who_may_not_write_yet_keeps_the_subnet() {
    local(async {
        let etcd = Etcd::new();
        let granted = etcd.ctl(&["lease", "grant", "86400"]);
        let lease = granted.split_whitespace().nth(1).unwrap().to_string();
        let name = format!("{PREFIX}/subnets/10.20.99.0-24");
        etcd.ctl(&["put", "--lease", &lease, &name, &value(1)]);
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
        let mut store: AnyStore = store.unwrap().into();
        let config = within(store.config()).await;
        let waits = store.status();
        let acquiring =
            tokio::task::spawn_local(
                async move { within(store.acquire(&config, &claim(1))).await },
            );
        waits_for(&waits, "permission denied").await;
        let grant = "--user root:secret role grant-permission reader readwrite --prefix=true /";
        etcd.ctl(&grant.split(' ').collect::<Vec<_>>());
        let lease = acquiring.await.unwrap().unwrap();
        assert_eq!(lease.key, key("10.20.99.0-24"));
        assert_eq!(waits.get(), None);
    });
}

#[test]
fn each_of_several_foreign_writes_is_corrected() {
    local(async {
        let etcd = Etcd::new();
        let mut node = ready(etcd.store(), 1).await;
        let name = format!("subnets/{}", node.own_key().unwrap());
        let lease = etcd.leases().remove(0);
        for n in 0..3 {
            let mut foreign = attrs(1);
            foreign.data = attrs(100 + n).data;
            let path = format!("{PREFIX}/{name}");
            etcd.ctl(&["put", "--lease", &lease, &path, &foreign.to_json()]);
            until_stored(&mut node, "corrected", || {
                etcd.get(&name).is_some_and(|json| read(&json) == attrs(1))
            })
            .await;
        }
        assert_eq!(node.revoked, None);
    });
}

fn read(json: &str) -> model::LeaseAttrs {
    model::LeaseAttrs::from_json(json.as_bytes()).unwrap()
}

#[test]
fn a_newcomer_that_is_started_again_and_again_stays_away() {
    local(async {
        let etcd = Etcd::new();
        let mut first = ready(etcd.store(), 1).await;
        let own = first.own_key().unwrap();
        for previous in [None, None, Some(own), Some(own), None] {
            let mut second = Node::new(etcd.store(), 1);
            let again = store::Claim {
                attrs: attrs(1),
                previous,
            };
            match within(second.store.acquire(&second.config, &again)).await {
                Err(AcquireError::Held(why)) => {
                    assert!(why.contains(&public_ip(1).to_string()), "{why}");
                }
                // It proved that it was here before.
                Ok(_) if previous.is_some() => {
                    second.until("yields", |node| node.revoked.is_some()).await;
                }
                other => panic!("{other:?}"),
            }
        }
        first.follow(Duration::from_millis(100)).await;
        assert_eq!(first.revoked, None);
        assert_eq!(etcd.subnets(), [own.to_string()]);
    });
}

#[test]
fn a_device_of_ours_in_a_lease_keeps_the_subnet_after_a_change_of_address() {
    local(async {
        let etcd = Etcd::new();
        let own = ready(etcd.store(), 1).await.own_key().unwrap();
        let mut node = Node::new(etcd.store(), 2);
        let who = Who {
            devices: vec!["02:00:00:10:00:02".into()],
            ..node.who()
        };
        assert!(value(1).contains(&who.devices[0]), "{}", value(1));
        let found = within(node.store.own(&node.config, &who)).await;
        assert_eq!(found.map(|lease| lease.key), Some(own));
        assert_eq!(node.acquire().await.unwrap().key, own);
        assert_eq!(
            read(&etcd.get(&format!("subnets/{own}")).unwrap()),
            attrs(2)
        );
        assert_eq!(etcd.subnets().len(), 1);
    });
}

#[test]
fn a_renewal_keeps_the_one_etcd_lease() {
    local(async {
        let etcd = Etcd::new();
        let mut node = ready(etcd.store_with(short(4, 2)), 1).await;
        let before = etcd.leases();
        let renewed = |etcd: &Etcd| {
            etcd.calls()
                .iter()
                .find(|(method, _)| method == "LeaseKeepAlive")
                .map_or(0, |(_, n)| *n)
        };
        until_stored(&mut node, "two renewals", || renewed(&etcd) >= 2).await;
        assert_eq!(etcd.leases(), before);
        assert_eq!(node.revoked, None);
    });
}
