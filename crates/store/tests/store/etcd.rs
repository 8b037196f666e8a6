//! The etcd store, against a real etcd.

use store::{EtcdSettings, EtcdStore, Timing};

use crate::etcd_server::Etcd;
use crate::node::{CONFIG, Node, attrs, key, value};

const PREFIX: &str = "/coreos.com/network";

pub fn settings(etcd: &Etcd) -> EtcdSettings {
    EtcdSettings {
        endpoints: etcd.url(),
        prefix: PREFIX.into(),
        ..EtcdSettings::default()
    }
}

fn store(etcd: &Etcd) -> EtcdStore {
    EtcdStore::new(settings(etcd)).unwrap()
}

fn subnet(key: &str) -> String {
    format!("{PREFIX}/subnets/{key}")
}

fn network() -> Etcd {
    let etcd = Etcd::start();
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    etcd
}

#[tokio::test]
async fn a_node_takes_a_subnet_and_sees_the_others() {
    let etcd = network();
    etcd.put(&subnet("10.20.77.0-24"), &value(77));
    let mut node = Node::start(store(&etcd), 1).await;
    node.until("the first listing", |node| {
        node.complete && node.known.len() == 2
    })
    .await;
    assert_eq!(node.known[&key("10.20.77.0-24")].attrs, attrs(77));
    let own = node.own_key().unwrap();
    assert_eq!(
        etcd.ctl(&["get", "--print-value-only", &subnet(&own.to_string())])
            .trim(),
        value(1)
    );
    etcd.put(&subnet("10.20.78.0-24"), &value(78));
    node.until("a new lease", |node| {
        node.known.contains_key(&key("10.20.78.0-24"))
    })
    .await;
    etcd.ctl(&["del", &subnet("10.20.77.0-24")]);
    node.until("a lease gone", |node| {
        !node.known.contains_key(&key("10.20.77.0-24"))
    })
    .await;
    assert_eq!(etcd.leases().len(), 1);
    assert_eq!(node.revoked, None);
}
