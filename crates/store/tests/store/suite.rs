//! What every store must do, each against the real thing, or an API server in this process.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{BackendType, Lease, LeaseAttrs, NetConfig};
use store::{AcquireError, AnyStore, Claim, Store, Timing};
use tokio::time::Instant;

use crate::node::{CONFIG, LIMIT, Node, attrs, claim, key, public_ip, value, waits_for, within};
use crate::world::World;

/// Short enough to see renewals in a test.
fn seconds(ttl: u64, margin: u64) -> Timing {
    let (ttl, margin) = (Duration::from_secs(ttl), Duration::from_secs(margin));
    Timing {
        ttl,
        margin,
        poll: Duration::from_millis(300),
        ..Timing::default()
    }
}

pub async fn takes_a_subnet_and_sees_the_others<W: World>() {
    let world = W::new();
    world.put("subnets/10.20.77.0-24", &value(77));
    let mut node = Node::start(world.store_of(1), 1).await;
    node.until("the first listing", |node| {
        node.complete && node.known.len() == 2
    })
    .await;
    assert_eq!(node.known[&key("10.20.77.0-24")].attrs, attrs(77));
    let own = node.own_key().unwrap();
    assert_eq!(world.get(&format!("subnets/{own}")).unwrap(), value(1));
    assert_eq!(world.is_reservation(&own.to_string()), W::ASSIGNED);
    world.put("subnets/10.20.78.0-24", &value(78));
    node.until("a new lease", |node| {
        node.known.contains_key(&key("10.20.78.0-24"))
    })
    .await;
    world.put("subnets/10.20.78.0-24", &value(79));
    node.until("a changed lease", |node| {
        node.known[&key("10.20.78.0-24")].attrs == attrs(79)
    })
    .await;
    world.delete("subnets/10.20.77.0-24");
    node.until("a lease gone", |node| {
        !node.known.contains_key(&key("10.20.77.0-24"))
    })
    .await;
    assert_eq!(node.revoked, None);
}

pub async fn a_restart_keeps_the_subnet<W: World>() {
    let world = W::new();
    let mut before = Node::start(world.store_of(1), 1).await;
    before
        .until("own lease", |node| {
            node.own_key().is_some() && node.complete
        })
        .await;
    let own = before.own_key().unwrap();
    drop(before);
    let mut node = Node::new(world.store_of(1), 1);
    let found = {
        let who = node.who();
        within(node.store.own(&node.config, &who)).await.unwrap()
    };
    assert_eq!((found.key, found.attrs), (own, attrs(1)));
    let mut changed = attrs(1);
    changed.data = attrs(2).data;
    let again = Claim {
        attrs: changed.clone(),
        previous: None,
    };
    let lease = within(node.store.acquire(&node.config, &again))
        .await
        .unwrap();
    assert_eq!((lease.key, lease.seniority), (own, found.seniority));
    node.until("the changed value", |node| {
        node.known.get(&own).is_some_and(|l| l.attrs == changed)
    })
    .await;
    assert_eq!(world.subnets().len(), 1);
}

pub async fn the_previous_subnet_is_taken_if_free<W: World>() {
    let world = W::new();
    let previous = Some(key("10.20.200.0-24"));
    let mut node = Node::new(world.store_of(1), 1);
    let again = Claim {
        previous,
        ..claim(1)
    };
    let lease = within(node.store.acquire(&node.config, &again))
        .await
        .unwrap();
    assert_eq!(Some(lease.key), previous);
    let mut other = Node::new(world.store_of(2), 2);
    let wants_it_too = Claim {
        previous,
        ..claim(2)
    };
    let lease = within(other.store.acquire(&other.config, &wants_it_too))
        .await
        .unwrap();
    assert_ne!(Some(lease.key), previous);
}

pub async fn a_reservation_stays_one<W: World>() {
    let world = W::new();
    world.put("subnets/10.20.9.0-24", &value(1));
    let mut node = Node::start(world.store_of_with(1, seconds(3, 2)), 1).await;
    node.until("own lease", |node| {
        node.own_key() == Some(key("10.20.9.0-24"))
    })
    .await;
    assert!(world.is_reservation("10.20.9.0-24"));
    let mut changed = attrs(1);
    changed.data = attrs(2).data;
    node.store.publish(changed.clone()).await;
    node.until("the change", |node| {
        node.known[&key("10.20.9.0-24")].attrs == changed
    })
    .await;
    assert!(world.is_reservation("10.20.9.0-24"));
    node.follow(Duration::from_secs(4)).await;
    assert_eq!(node.revoked, None);
    assert!(world.is_reservation("10.20.9.0-24"));
}

pub async fn a_lease_that_does_not_fit_is_deleted<W: World>() {
    let world = W::new();
    world.put("subnets/10.99.9.0-24", &value(1));
    world.put("subnets/10.20.16.0-20", &value(1));
    let mut node = Node::start(world.store_of(1), 1).await;
    node.until("own lease", |node| node.complete && node.known.len() == 1)
        .await;
    assert_eq!(world.subnets(), [node.own_key().unwrap().to_string()]);
    assert!(node.config.fits(&node.own_key().unwrap()));
}

pub async fn fifty_daemons_share_sixty_subnets<W: World>() {
    let world = W::new();
    let config = r#"{"Network":"10.20.0.0/16","SubnetMin":"10.20.1.0","SubnetMax":"10.20.60.0"}"#;
    world.put("config", config);
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let store = world.store_of(n);
            tokio::task::spawn_local(async move {
                let mut node = Node::start(store, n).await;
                node.until("own lease", |node| node.own_key().is_some())
                    .await;
                (node.own_key().unwrap(), node)
            })
        })
        .collect();
    let mut keys = BTreeSet::new();
    let mut nodes = Vec::new();
    for task in tasks {
        let (key, node) = task.await.unwrap();
        assert!(keys.insert(key), "{key} was given twice");
        nodes.push(node);
    }
    // Also those that lost races for a subnet must learn who won it.
    for node in &mut nodes {
        node.until("all fifty", |node| node.complete && node.known.len() == 50)
            .await;
    }
    assert!(nodes.iter().all(|node| node.revoked.is_none()));
    assert_eq!(world.subnets().len(), 50);
}

pub async fn two_families_never_overlap<W: World>() {
    let world = W::new();
    let config = r#"{"EnableIPv6":true,"Network":"10.20.0.0/16","SubnetMax":"10.20.14.0",
        "IPv6Network":"fd00::/56","IPv6SubnetMax":"fd00:0:0:e::"}"#;
    world.put("config", config);
    let tasks: Vec<_> = (0..10)
        .map(|n| {
            let store = world.store_of(n);
            tokio::task::spawn_local(async move { Node::start(store, n).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let subnets = world.subnets();
    assert_eq!(subnets.len(), 10);
    let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
    for name in &subnets {
        let nets = *key(name).nets();
        assert!(
            v4.insert(nets.v4.unwrap()) && v6.insert(nets.v6.unwrap()),
            "{subnets:?}"
        );
    }
}

pub async fn a_full_pool_is_an_error_that_says_so<W: World>() {
    let world = W::new();
    world.put(
        "config",
        r#"{"Network":"10.20.0.0/16","SubnetMin":"10.20.1.0","SubnetMax":"10.20.2.0"}"#,
    );
    world.put("subnets/10.20.1.0-24", &value(7));
    world.put("subnets/10.20.2.0-24", "garbage is taken, too");
    let mut node = Node::new(world.store_of(1), 1);
    node.config = within(node.store.config()).await;
    match node.acquire().await {
        Err(AcquireError::Full(text)) => assert!(text.contains("10.20.0.0/16"), "{text}"),
        other => panic!("{other:?}"),
    }
    world.delete("subnets/10.20.1.0-24");
    assert_eq!(node.acquire().await.unwrap().key, key("10.20.1.0-24"));
}

pub async fn a_deleted_lease_is_revoked<W: World>() {
    let world = W::new();
    let mut node = Node::start(world.store_of(1), 1).await;
    node.until("own lease", |node| {
        node.own_key().is_some() && node.complete
    })
    .await;
    let own = node.own_key().unwrap();
    world.delete(&format!("subnets/{own}"));
    node.until("revoked", |node| node.revoked.is_some()).await;
    assert!(
        node.revoked.as_ref().unwrap().contains(&own.to_string()),
        "{:?}",
        node.revoked
    );
    node.follow(Duration::from_millis(700)).await;
    assert_eq!(world.subnets().len(), 0, "it stops claiming the subnet");
}

pub async fn a_subnet_that_another_node_took_is_revoked<W: World>() {
    let world = W::new();
    let mut node = Node::start(world.store_of(1), 1).await;
    node.until("own lease", |node| {
        node.own_key().is_some() && node.complete
    })
    .await;
    let own = node.own_key().unwrap();
    world.put(&format!("subnets/{own}"), &value(2));
    node.until("revoked", |node| node.revoked.is_some()).await;
    assert!(
        node.revoked
            .as_ref()
            .unwrap()
            .contains(&public_ip(2).to_string()),
        "{:?}",
        node.revoked
    );
    node.follow(Duration::from_millis(500)).await;
    assert_eq!(
        world.get(&format!("subnets/{own}")).unwrap(),
        value(2),
        "not fought over"
    );
}

pub async fn of_two_nodes_with_one_address_the_newcomer_yields<W: World>() {
    let world = W::new();
    let mut first = Node::start(world.store_of(1), 1).await;
    first
        .until("own lease", |node| {
            node.own_key().is_some() && node.complete
        })
        .await;
    let own = first.own_key();
    // The one that was there first is there all the time: its task answers.
    let mut second = Node::new(world.store_of(1), 1);
    let reason = match second.acquire().await {
        Err(AcquireError::Held(reason)) => reason,
        // It claimed success, and took it back.
        Ok(_) => {
            second.until("yields", |node| node.revoked.is_some()).await;
            second.revoked.clone().unwrap()
        }
        Err(error) => panic!("{error}"),
    };
    assert!(reason.contains(&public_ip(1).to_string()), "{reason}");
    assert_eq!(first.revoked, None);
    assert_eq!(world.subnets(), [own.unwrap().to_string()]);
}

/// Both read the store before either has a lease.
pub async fn of_two_fresh_nodes_with_one_address_one_keeps_its_lease<W: World>() {
    let world = W::new();
    let mut nodes = [1, 1].map(|n| Node::new(world.store(), n));
    for node in &mut nodes {
        let who = node.who();
        assert_eq!(within(node.store.own(&node.config, &who)).await, None);
    }
    for node in &mut nodes {
        node.acquire().await.unwrap();
    }
    let deadline = Instant::now() + LIMIT;
    while nodes.iter().all(|node| node.revoked.is_none()) || world.subnets().len() != 1 {
        assert!(Instant::now() < deadline, "{:?}", world.subnets());
        for node in &mut nodes {
            node.follow(Duration::from_millis(20)).await;
        }
    }
    let [one, two] = nodes.map(|node| node.revoked);
    let (ended, kept) = if one.is_some() {
        (one, two)
    } else {
        (two, one)
    };
    assert_eq!(kept, None);
    let why = ended.unwrap();
    assert!(why.contains(&public_ip(1).to_string()), "{why}");
    assert!(why.contains(&world.subnets()[0]), "{why}");
}

pub async fn garbage_does_not_hide_the_good_ones<W: World>() {
    let world = W::new();
    world.put("subnets/10.20.5.0-24", &value(5));
    for (name, text) in [
        ("README", "read me"),
        ("10.20.6.0-24", "{"),
        ("10.20.7.0-24", "[]"),
        ("10.20.8.0-24", r#"{"PublicIP":7}"#),
        ("10.20.9.0-33", &value(9)),
        ("10.20.10.1-24", &value(10)),
        ("10.20.11.0-24.swp", &value(11)),
    ] {
        world.put(&format!("subnets/{name}"), text);
    }
    let mut node = Node::start(world.store_of(1), 1).await;
    node.until("the good ones", |node| {
        node.complete && node.known.len() == 2
    })
    .await;
    assert!(node.known.contains_key(&key("10.20.5.0-24")));
    assert!(
        !["10.20.6.0-24", "10.20.7.0-24", "10.20.8.0-24"]
            .contains(&&*node.own_key().unwrap().to_string())
    );
    world.put("subnets/10.20.6.0-24", &value(6));
    node.until("it heals", |node| {
        node.known.contains_key(&key("10.20.6.0-24"))
    })
    .await;
    world.put("subnets/10.20.6.0-24", "\u{1}");
    node.until("it breaks", |node| {
        !node.known.contains_key(&key("10.20.6.0-24"))
    })
    .await;
    assert_eq!(node.known.len(), 2);
}

pub async fn a_change_is_published_to_the_others<W: World>() {
    let world = W::new();
    let mut one = Node::start(world.store_of(1), 1).await;
    let mut two = Node::start(world.store_of(2), 2).await;
    one.until("both", |node| node.complete && node.known.len() == 2)
        .await;
    two.until("both", |node| node.complete && node.known.len() == 2)
        .await;
    let mut moved = attrs(1);
    moved.public_ip.v4 = Some(public_ip(3).into());
    one.store.publish(moved.clone()).await;
    let has = |lease: &Lease| lease.attrs == moved;
    let change = |node: &Node<AnyStore>| node.complete && node.known.values().any(has);
    tokio::join!(
        one.until("its own change", change),
        two.until("the change", change)
    );
    assert_eq!(one.revoked, None);
    assert_eq!(world.subnets().len(), 2);
}

pub async fn a_config_heals_without_a_restart<W: World>() {
    let world = W::new();
    world.delete("config");
    let mut store: AnyStore = world.store_of(1);
    let status = store.status();
    let waiting = async { store.config().await };
    // Where subnets are assigned, a small network can be used.
    let length = if W::ASSIGNED { 33 } else { 30 };
    let small = format!(r#"{{"Network":"10.20.0.0/{length}"}}"#);
    let writing = async {
        waits_for(&status, "config").await;
        for bad in ["{ not json", &small] {
            let before = status.get();
            world.put("config", bad);
            let deadline = Instant::now() + LIMIT;
            while status.get() == before {
                assert!(Instant::now() < deadline, "{bad}: {before:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        world.put("config", CONFIG);
    };
    let (config, ()) = within(async { tokio::join!(waiting, writing) }).await;
    let wanted = NetConfig::from_json(CONFIG).unwrap();
    let networks = |config: &NetConfig| config.pools.map(|_, pool| pool.network);
    assert_eq!(networks(&config), networks(&wanted));
    assert_eq!(config.backend, wanted.backend);
}

pub async fn a_lease_is_renewed_until_its_daemon_ends<W: World>() {
    let world = W::new();
    let timing = seconds(4, 2);
    let mut node = Node::start(world.store_of_with(1, timing), 1).await;
    let mut peer = Node::start(world.store_of_with(2, timing), 2).await;
    peer.until("both", |node| node.complete && node.known.len() == 2)
        .await;
    let renewing = node.follow(Duration::from_secs(9));
    tokio::join!(renewing, peer.follow(Duration::from_secs(9)));
    assert_eq!((&node.revoked, &peer.revoked), (&None, &None));
    assert_eq!(peer.known.len(), 2, "renewed twice by now");
    drop(node);
    peer.until("its end", |node| node.known.len() == 1).await;
}

pub async fn news_survives_being_cancelled<W: World>() {
    let world = W::new();
    for n in 0..40 {
        world.put(&format!("subnets/10.20.{}.0-24", n + 100), &value(n + 100));
    }
    let mut node = Node::start(world.store_of(1), 1).await;
    let mut rounds = 0;
    while !(node.complete && node.known.len() == 41) {
        node.follow(Duration::from_micros(300)).await;
        rounds += 1;
        assert!(
            rounds < 50_000,
            "news got lost: {} leases",
            node.known.len()
        );
    }
}

/// Seen from outside, a lease is what upstream would write.
pub async fn a_value_is_upstreams<W: World>() {
    let world = W::new();
    let mut node = Node::new(world.store_of(1), 1);
    let text = r#"{"PublicIP":"172.27.137.240","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:03"}}"#;
    let attrs = LeaseAttrs::from_json(text.as_bytes()).unwrap();
    let lease = within(node.store.acquire(
        &node.config,
        &Claim {
            attrs,
            previous: None,
        },
    ))
    .await
    .unwrap();
    assert_eq!(world.get(&format!("subnets/{}", lease.key)).unwrap(), text);
}

pub async fn the_configuration_is_followed<W: World>() {
    let world = W::new();
    let mut node = Node::start(world.store_of_with(1, seconds(3600, 60)), 1).await;
    node.until("the first listing", |node| node.complete).await;
    let changed = r#"{"Network":"10.20.0.0/16","Backend":{"Type":"host-gw"}}"#;
    world.put("config", changed);
    node.until("the change", |node| {
        matches!(&node.reported, Some(Ok(config)) if config.backend.kind == BackendType::HostGw)
    })
    .await;
    world.put("config", "{");
    node.until(
        "what is wrong",
        |node| matches!(&node.reported, Some(Err(reason)) if reason.contains("config")),
    )
    .await;
    world.delete("config");
    node.until(
        "that it is gone",
        |node| matches!(&node.reported, Some(Err(reason)) if reason.contains("no ")),
    )
    .await;
    world.put("config", CONFIG);
    node.until(
        "that it is back",
        |node| matches!(&node.reported, Some(Ok(config)) if *config == node.config),
    )
    .await;
}

/// Makes one test of each case for one kind of store.
#[macro_export]
macro_rules! suite {
    ($world:ty: $($case:ident),* $(,)?) => {
        $(
            #[test]
            fn $case() {
                $crate::node::local(async { $crate::suite::$case::<$world>().await });
            }
        )*
    };
    ($world:ty) => {
        $crate::suite!($world:
            takes_a_subnet_and_sees_the_others, a_restart_keeps_the_subnet, the_previous_subnet_is_taken_if_free,
            a_reservation_stays_one, a_lease_that_does_not_fit_is_deleted, fifty_daemons_share_sixty_subnets,
            two_families_never_overlap, a_full_pool_is_an_error_that_says_so, a_deleted_lease_is_revoked,
            a_subnet_that_another_node_took_is_revoked, of_two_nodes_with_one_address_the_newcomer_yields,
            of_two_fresh_nodes_with_one_address_one_keeps_its_lease,
            garbage_does_not_hide_the_good_ones, a_change_is_published_to_the_others,
            a_config_heals_without_a_restart, a_lease_is_renewed_until_its_daemon_ends,
            news_survives_being_cancelled, a_value_is_upstreams, the_configuration_is_followed,
        );
    };
}
