//! Many daemons at once on a pool that is hardly larger than they are many.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lab::{Lab, LabBuilder, StoreKind, wait_for};
use model::Family::V4;
use serde_json::json;

use crate::scene::{self, ETCD, alone};

/// Fifty debug builds share two processors.
const ALL_READY: Duration = Duration::from_secs(60);

fn crowd(nodes: usize, pool: u8, store: StoreKind) -> LabBuilder {
    scene::lab()
        .nodes(nodes)
        .pods_per_node(0)
        .store(store)
        .config("SubnetMin", json!("172.30.1.0"))
        .config("SubnetMax", json!(format!("172.30.{pool}.0")))
}

fn all_ready(label: &str, store: StoreKind, daemons: usize, pool: u8, limit: Duration) {
    let _turn = alone();
    let lab = crowd(daemons, pool, store).build().unwrap();
    let start = Instant::now();
    for node in lab.nodes() {
        node.flanneld().start().unwrap();
    }
    let mut subnets = BTreeSet::new();
    for node in lab.nodes() {
        let left = limit.saturating_sub(start.elapsed());
        let env = node.flanneld().wait_ready(left).unwrap();
        let subnet = env.cidr(V4).unwrap();
        assert!(subnets.insert(subnet), "{label}: {subnet} twice");
    }
    eprintln!(
        "{label}: {daemons} daemons ready {:.1?} after the first exec",
        start.elapsed()
    );
    let leases: BTreeSet<String> = lab.leases().unwrap().into_keys().collect();
    let named: BTreeSet<String> = subnets
        .iter()
        .map(|net| net.to_string().replace('/', "-"))
        .collect();
    assert_eq!(leases, named, "{label}");
    for node in lab.nodes() {
        let look = || {
            let picture = node.picture().unwrap();
            let routes = picture
                .lines()
                .filter(|l| l.starts_with("route ") && l.ends_with("proto 241"))
                .count();
            match routes == daemons - 1 {
                true => Ok(()),
                false => Err(format!("{routes} routes; {}", node.flanneld().log_tail(5))),
            }
        };
        wait_for(
            &format!("{label}: {} knows everybody", node.name()),
            limit,
            look,
        )
        .unwrap();
        assert_eq!(node.flanneld().ended().unwrap(), None);
    }
    eprintln!(
        "{label}: everybody knows everybody {:.1?} after the first exec",
        start.elapsed()
    );
}

#[test]
fn fifty_at_once_on_etcd() {
    all_ready("crowd, etcd", ETCD, 50, 60, ALL_READY);
}

#[test]
fn fifty_at_once_on_a_directory() {
    all_ready("crowd, directory", StoreKind::Directory, 50, 60, ALL_READY);
}

#[test]
#[ignore = "takes minutes and some GiB"]
fn two_hundred_at_once_on_etcd() {
    let limit = Duration::from_secs(600);
    all_ready("crowd, etcd", ETCD, 200, 220, limit);
}

/// One more than there are subnets: that one says so and ends, the others do not mind.
#[test]
fn a_full_pool_is_named() {
    for store in [ETCD, StoreKind::Directory] {
        let lab = crowd(5, 4, store).build().unwrap();
        for node in lab.nodes() {
            node.flanneld().start().unwrap();
        }
        let ended = |lab: &Lab| -> Vec<usize> {
            let ended = |n: &usize| lab.node(*n).flanneld().ended().unwrap().is_some();
            (1..=5).filter(ended).collect()
        };
        let look = || match ended(&lab).as_slice() {
            [one] => Ok(*one),
            seen => Err(format!("ended: {seen:?}")),
        };
        let one = wait_for("one of five ends", scene::SOON, look).unwrap();
        let daemon = lab.node(one).flanneld();
        assert_eq!(daemon.ended().unwrap().unwrap().code(), Some(1));
        let log = daemon.log();
        let error = log.lines().find(|l| l.contains("ERROR")).unwrap();
        assert!(
            error.contains("172.30.1.0") && error.contains("172.30.4.0"),
            "{error}"
        );
        for node in lab
            .nodes()
            .iter()
            .filter(|node| usize::from(node.index()) != one)
        {
            node.flanneld().wait_ready(scene::SOON).unwrap();
        }
        assert_eq!(ended(&lab), [one]);
        assert!(
            lab.node(one).subnet_env().is_err(),
            "no subnet.env without a subnet"
        );
    }
}
