//! etcd behind its own proxies.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use store::{AnyStore, EtcdSettings, EtcdStore, Timing};
use tokio::task::spawn_local;
use tokio::time::Instant;

use crate::etcd::{calls_since, short};
use crate::etcd_server::Etcd;
use crate::node::{CONFIG, Node, key, local, value};
use crate::programs::{Process, programs, system};
use crate::world::{PREFIX, World};

/// How many watches etcd serves.
fn watchers(etcd: &Etcd) -> u64 {
    let metrics = etcd.metrics();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("etcd_debugging_mvcc_watcher_total "));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

/// A real proxy in front of a real etcd.
struct Proxied {
    etcd: Etcd,
    port: u16,
    _proxy: Process,
}

impl Proxied {
    fn start(kind: &str, programs: &Path) -> Proxied {
        let etcd = <Etcd as World>::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut command = Command::new(programs.join("etcd"));
        command.args([
            kind,
            "start",
            &format!("--endpoints=127.0.0.1:{}", etcd.port()),
            &format!("--listen-addr=127.0.0.1:{port}"),
        ]);
        if kind == "grpc-proxy" {
            // It connects to itself there.
            command.arg(format!("--advertise-client-url=127.0.0.1:{port}"));
        }
        let _proxy = Process::start(&mut command);
        Proxied { etcd, port, _proxy }
    }

    fn store(&self) -> AnyStore {
        self.store_with(Timing::default())
    }

    fn store_with(&self, timing: Timing) -> AnyStore {
        EtcdStore::new(EtcdSettings {
            endpoints: format!("http://127.0.0.1:{}", self.port),
            prefix: PREFIX.into(),
            timing,
            ..EtcdSettings::default()
        })
        .unwrap()
        .into()
    }

    /// Lets `nodes` follow for `time`; returns the calls that etcd saw meanwhile.
    async fn idle(&self, nodes: &mut [Node<AnyStore>], time: Duration) -> BTreeMap<String, u64> {
        let before = self.etcd.calls();
        let end = Instant::now() + time;
        for node in nodes {
            node.follow(end.saturating_duration_since(Instant::now()))
                .await;
        }
        calls_since(&self.etcd, &before)
    }

    /// What is written reaches all of them.
    async fn all_see(&self, nodes: &mut [Node<AnyStore>]) {
        self.etcd
            .put(&format!("{PREFIX}/subnets/10.20.250.0-24"), &value(1000));
        let new = key("10.20.250.0-24");
        for node in nodes {
            node.until("the new one", |node| node.known.contains_key(&new))
                .await;
            assert_eq!(node.revoked, None);
        }
    }
}

/// Starts nodes 2 to `count` beside a first one, one after the other or at once, and lets all of them follow
/// for `time` once they know each other.
async fn behind_a_grpc_proxy(programs: PathBuf, count: u32, at_once: bool, time: Duration) {
    let place = Proxied::start("grpc-proxy", &programs);
    let mut nodes = vec![Node::start(place.store(), 1).await];
    nodes[0]
        .until("own", |node| node.complete && node.known.len() == 1)
        .await;
    // Its watch of the configuration begins a moment later.
    nodes[0].follow(Duration::from_secs(2)).await;
    // The proxy has some of its own.
    let first = watchers(&place.etcd);
    if at_once {
        let starts = (2..=count).map(|n| spawn_local(Node::start(place.store(), n)));
        for node in starts.collect::<Vec<_>>() {
            nodes.push(node.await.unwrap());
        }
    } else {
        for n in 2..=count {
            nodes.push(Node::start(place.store(), n).await);
        }
    }
    let all = count as usize;
    for node in &mut nodes {
        node.until("all", |node| node.complete && node.known.len() == all)
            .await;
    }
    let calls = place.idle(&mut nodes, time).await;
    let last = watchers(&place.etcd);
    eprintln!(
        "behind grpc-proxy: {first} watches at etcd for 1 node, {last} for {count}; idle for {time:?}: {calls:?}"
    );
    place.all_see(&mut nodes).await;
    if at_once {
        // Those that began at the same revision share one.
        assert!(last <= first + 20, "{last}");
        // Until 3.5 the proxy ends each connection once, as it is pinged too often.
        assert!(calls.values().all(|n| *n <= u64::from(count)), "{calls:?}");
    } else {
        assert_eq!(last, first);
        assert!(calls.is_empty(), "{calls:?}");
    }
}

const A_WHILE: Duration = Duration::from_secs(10);

#[test]
fn nodes_behind_a_grpc_proxy_share_one_watch() {
    local(behind_a_grpc_proxy(system(), 5, false, A_WHILE));
}

#[test]
fn nodes_behind_a_grpc_proxy_of_3_5_share_one_watch() {
    if let Some(programs) = programs("3.5") {
        local(behind_a_grpc_proxy(programs, 5, false, A_WHILE));
    }
}

#[test]
fn nodes_behind_a_grpc_proxy_of_3_6_share_one_watch() {
    if let Some(programs) = programs("3.6") {
        local(behind_a_grpc_proxy(programs, 5, false, A_WHILE));
    }
}

#[test]
#[ignore = "takes more than a minute"]
fn two_hundred_nodes_start_at_once_behind_a_grpc_proxy() {
    let minute = Duration::from_secs(60);
    for version in [None, Some("3.5"), Some("3.6")] {
        if let Some(programs) = version.map_or_else(|| Some(system()), programs) {
            local(behind_a_grpc_proxy(programs, 200, true, minute));
        }
    }
}

#[test]
fn nodes_behind_a_gateway_are_served() {
    local(async {
        let place = Proxied::start("gateway", &system());
        let mut nodes = Vec::new();
        for n in 1..=5 {
            nodes.push(Node::start(place.store(), n).await);
        }
        for node in &mut nodes {
            node.until("all", |node| node.complete && node.known.len() == 5)
                .await;
        }
        let calls = place.idle(&mut nodes, Duration::from_secs(10)).await;
        assert!(calls.is_empty(), "{calls:?}");
        place.all_see(&mut nodes).await;
    });
}

/// The versions of etcd that there are.
fn all_programs() -> impl Iterator<Item = PathBuf> {
    let newer = ["3.5", "3.6"].into_iter().filter_map(programs);
    std::iter::once(system()).chain(newer)
}

#[test]
fn a_lease_is_renewed_through_a_grpc_proxy() {
    for programs in all_programs() {
        local(async {
            let place = Proxied::start("grpc-proxy", &programs);
            let mut node = Node::start(place.store_with(short(10, 7)), 1).await;
            node.until("own", |node| node.complete && node.own_key().is_some())
                .await;
            let before = (node.own_key(), place.etcd.leases());
            node.follow(Duration::from_secs(15)).await;
            assert_eq!(node.revoked, None);
            assert_eq!((node.own_key(), place.etcd.leases()), before);
        });
    }
}

/// No connection ends, and the proxy's watch waits for a revision of the history that is gone.
#[test]
#[ignore = "takes minutes: a watch that shows nothing is doubted after five"]
fn an_etcd_behind_a_grpc_proxy_that_lost_everything_gets_it_back() {
    // The watch has not shown the own key yet, or it has.
    for (programs, shown) in all_programs().flat_map(|p| [(p.clone(), 0), (p, 2)]) {
        local(async {
            let mut place = Proxied::start("grpc-proxy", &programs);
            let mut node = Node::start(place.store(), 1).await;
            node.until("own", |node| node.complete && node.own_key().is_some())
                .await;
            node.follow(Duration::from_secs(shown)).await;
            let before = place.etcd.subnets();
            place.etcd.lose_data();
            place.etcd.run();
            place.etcd.put(&format!("{PREFIX}/config"), CONFIG);
            let deadline = Instant::now() + Duration::from_secs(400);
            while place.etcd.subnets() != before {
                assert!(Instant::now() < deadline, "not published again");
                node.follow(Duration::from_millis(500)).await;
            }
            assert_eq!(node.revoked, None);
        });
    }
}
