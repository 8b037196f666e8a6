//! Each call to etcd that a node makes is lost once, or its answer is: the node still ends up with one key, on
//! one etcd lease.

use std::rc::Rc;
use std::time::Duration;

use model::{LeaseAttrs, SubnetKey};
use store::{AnyStore, Claim, EtcdSettings, EtcdStore, Store, Timing};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

use crate::etcd::short;
use crate::etcd_server::Etcd;
use crate::lossy::{Loss, LossyGate, losses};
use crate::node::{CONFIG, LIMIT, Node, attrs, claim, key, local, value, within};

/// More calls than a node makes until it follows.
const CALLS: usize = 9;

/// A network of its own on the etcd that all share, seen through a gate of its own.
struct Place {
    etcd: Rc<Etcd>,
    prefix: String,
    gate: LossyGate,
    /// Whether the calls can also go around the gate.
    detour: bool,
}

impl Place {
    fn store(&self, timing: Timing) -> AnyStore {
        let detour = self.detour.then(|| self.etcd.url());
        let endpoints: Vec<String> = [self.gate.url()].into_iter().chain(detour).collect();
        EtcdStore::new(EtcdSettings {
            endpoints: endpoints.join(","),
            prefix: self.prefix.clone(),
            timing,
            ..EtcdSettings::default()
        })
        .unwrap()
        .into()
    }

    fn put(&self, name: &str, value: &str) {
        self.etcd.put(&format!("{}/{name}", self.prefix), value);
    }

    fn value(&self, own: SubnetKey) -> LeaseAttrs {
        let name = format!("{}/subnets/{own}", self.prefix);
        let json = self.etcd.ctl(&["get", "--print-value-only", &name]);
        LeaseAttrs::from_json(json.trim().as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The only key of the network, on the only etcd lease that has it.
    fn only_key(&self) -> SubnetKey {
        let dir = format!("{}/subnets/", self.prefix);
        let keys = self.etcd.ctl(&["get", "--prefix", "--keys-only", &dir]);
        let keys: Vec<&str> = keys.split_whitespace().collect();
        assert_eq!(keys.len(), 1, "{keys:?}");
        key(keys[0].strip_prefix(&dir).unwrap())
    }

    async fn ready(&self, timing: Timing) -> Node<AnyStore> {
        let mut node = Node::start(self.store(timing), 1).await;
        node.until("own", |node| node.complete && node.own_key().is_some())
            .await;
        node
    }
}

/// Runs `scene` for each loss, all at once. In the end there is one etcd lease for each scene.
/// Returns how many scenes had a call that was to be lost.
async fn with_each_loss<F>(
    config: &str,
    calls: usize,
    scene: impl Fn(Place, usize, Loss) -> F,
) -> usize
where
    F: Future<Output = bool> + 'static,
{
    let etcd = Rc::new(Etcd::start());
    let mut scenes = JoinSet::new();
    let all = LocalSet::new();
    for (n, loss) in losses(calls) {
        for detour in [false, true] {
            let place = Place {
                prefix: format!("/{n}-{loss:?}-{detour}"),
                gate: LossyGate::to(etcd.port()).await,
                etcd: etcd.clone(),
                detour,
            };
            place.put("config", config);
            scenes.spawn_local_on(scene(place, n, loss), &all);
        }
    }
    let lost = all.run_until(scenes.join_all()).await;
    assert_eq!(etcd.leases().len(), lost.len(), "etcd leases are left over");
    lost.into_iter().filter(|lost| *lost).count()
}

#[test]
fn at_a_first_start() {
    local(async {
        let lost = with_each_loss(CONFIG, CALLS, |place: Place, n, loss| async move {
            place.gate.lose(n, loss);
            let node = place.ready(Timing::default()).await;
            assert_eq!(node.own_key(), Some(place.only_key()));
            assert_eq!(node.revoked, None);
            place.gate.has_lost()
        });
        // Configuration, listing, etcd lease, key and watch at least.
        assert!(lost.await >= 5 * 4);
    });
}

#[test]
fn at_a_first_start_with_two_families() {
    local(async {
        let config = r#"{"EnableIPv6":true,"Network":"10.20.0.0/16","IPv6Network":"fd00::/48"}"#;
        let lost = with_each_loss(config, CALLS, |place: Place, n, loss| async move {
            place.gate.lose(n, loss);
            let node = place.ready(Timing::default()).await;
            assert_eq!(node.own_key(), Some(place.only_key()));
            assert_eq!(node.revoked, None);
            place.gate.has_lost()
        });
        assert!(lost.await >= 5 * 4);
    });
}

#[test]
fn at_a_restart() {
    local(async {
        let lost = with_each_loss(CONFIG, CALLS, |place: Place, n, loss| async move {
            let previous = place.ready(Timing::default()).await.own_key();
            place.gate.lose(n, loss);
            let mut node = Node::new(place.store(Timing::default()), 1);
            let again = Claim {
                previous,
                ..claim(1)
            };
            let lease = within(node.store.acquire(&node.config, &again)).await;
            assert_eq!(Some(lease.unwrap().key), previous);
            node.until("own", |node| node.complete && node.own_key() == previous)
                .await;
            assert_eq!(Some(place.only_key()), previous);
            assert_eq!(node.revoked, None);
            place.gate.has_lost()
        });
        // Listing, renewal, write, watch.
        assert!(lost.await >= 4 * 4);
    });
}

#[test]
fn at_a_restart_that_has_to_ask() {
    local(async {
        let lost = with_each_loss(CONFIG, CALLS, |place: Place, n, loss| async move {
            let own = place.ready(Timing::default()).await.own_key();
            place.gate.lose(n, loss);
            let node = place.ready(Timing::default()).await;
            assert_eq!((node.own_key(), Some(place.only_key())), (own, own));
            assert_eq!(place.value(own.unwrap()), attrs(1));
            assert_eq!(node.revoked, None);
            place.gate.has_lost()
        });
        // Configuration, listing, question, renewal, write, watch.
        assert!(lost.await >= 6 * 4);
    });
}

#[test]
fn when_an_unfit_lease_is_replaced() {
    local(async {
        let lost = with_each_loss(CONFIG, CALLS, |place: Place, n, loss| async move {
            place.put("subnets/10.99.9.0-24", &value(1));
            place.gate.lose(n, loss);
            let node = place.ready(Timing::default()).await;
            let own = place.only_key();
            assert_eq!(node.own_key(), Some(own));
            assert!(node.config.fits(&own), "{own}");
            assert_eq!(node.revoked, None);
            place.gate.has_lost()
        });
        // Configuration, listing, deletion, etcd lease, key, watch.
        assert!(lost.await >= 6 * 4);
    });
}

async fn published(place: Place, n: usize, loss: Loss, wanted: LeaseAttrs) -> bool {
    let mut node = place.ready(Timing::default()).await;
    let own = node.own_key().unwrap();
    place.gate.lose(n, loss);
    node.store.publish(wanted.clone()).await;
    let deadline = Instant::now() + LIMIT;
    while place.value(own) != wanted {
        assert!(Instant::now() < deadline, "{:?}", place.value(own));
        node.follow(Duration::from_millis(50)).await;
    }
    node.until("the change", |node| {
        let known = node.known.get(&own);
        node.complete && known.is_some_and(|lease| lease.attrs == wanted)
    })
    .await;
    assert_eq!(place.only_key(), own);
    assert_eq!(node.revoked, None);
    place.gate.has_lost()
}

#[test]
fn when_other_data_are_published() {
    local(async {
        let lost = with_each_loss(CONFIG, 2, |place: Place, n, loss| async move {
            let data = attrs(9).data;
            published(place, n, loss, LeaseAttrs { data, ..attrs(1) }).await
        });
        assert!(lost.await >= 4);
    });
}

#[test]
fn when_another_address_is_published() {
    local(async {
        let lost = with_each_loss(CONFIG, 4, |place: Place, n, loss| async move {
            let public_ip = attrs(9).public_ip;
            published(
                place,
                n,
                loss,
                LeaseAttrs {
                    public_ip,
                    ..attrs(1)
                },
            )
            .await
        });
        // The write, and the watch over a new connection, which may take the detour.
        assert!(lost.await >= 4 + 2);
    });
}

#[test]
fn at_a_renewal() {
    local(async {
        let lost = with_each_loss(CONFIG, 2, |place: Place, n, loss| async move {
            let mut node = place.ready(short(8, 6)).await;
            place.gate.lose(n, loss);
            let deadline = Instant::now() + LIMIT;
            while !place.gate.has_lost() {
                assert!(Instant::now() < deadline, "not renewed");
                node.follow(Duration::from_millis(50)).await;
            }
            // Longer than the lease would live without another renewal.
            node.follow(Duration::from_secs(9)).await;
            assert_eq!(node.own_key(), Some(place.only_key()));
            assert_eq!(node.revoked, None);
            true
        });
        assert_eq!(lost.await, 2 * 4);
    });
}
