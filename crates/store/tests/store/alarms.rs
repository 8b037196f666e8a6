//! etcd's alarms: no space left, and data that differ between members. Nodes that run keep their leases, those that
//! start say what they wait for, and all goes on once the alarm is over.

use std::time::Duration;

use model::LeaseAttrs;
use store::{AnyStore, Store};
use tokio::task::spawn_local;

use crate::etcd::short;
use crate::etcd_server::Etcd;
use crate::node::{Node, attrs, local, waits_for, within};
use crate::world::{PREFIX, World};

async fn ready(store: AnyStore, n: u32) -> Node<AnyStore> {
    let mut node = Node::start(store, n).await;
    node.until("own", |node| node.complete && node.own_key().is_some())
        .await;
    node
}

/// Under an alarm that `begin` raises and `end` ends.
async fn survives(etcd: &Etcd, told: &str, begin: impl Fn(&Etcd), end: impl Fn(&Etcd)) {
    let mut running = ready(etcd.store_with(short(8, 6)), 1).await;
    let own = running.own_key().unwrap();
    begin(etcd);

    let mut late = Node::new(etcd.store(), 2);
    let status = late.store.status();
    let starting = spawn_local(async move {
        late.acquire().await.unwrap();
        late
    });
    let wanted = LeaseAttrs {
        data: attrs(9).data,
        ..attrs(1)
    };
    running.store.publish(wanted.clone()).await;
    waits_for(&status, told).await;
    // Longer than its lease lives without a renewal.
    running.follow(Duration::from_secs(9)).await;
    assert_eq!(running.revoked, None);
    assert!(!starting.is_finished());

    end(etcd);
    running
        .until("what was to be published", |node| {
            let known = node.known.get(&own);
            node.known.len() == 2 && known.is_some_and(|lease| lease.attrs == wanted)
        })
        .await;
    assert_eq!(running.revoked, None);
    within(starting).await.unwrap();
    let value = World::get(etcd, &format!("subnets/{own}")).unwrap();
    assert_eq!(LeaseAttrs::from_json(value.as_bytes()).unwrap(), wanted);
}

#[test]
fn an_etcd_without_space_is_waited_for() {
    local(async {
        let etcd = Etcd::start_with(&["--quota-backend-bytes", "2000000"], None);
        World::put(&etcd, "config", crate::node::CONFIG);
        let fill = |etcd: &Etcd| {
            let filler = "x".repeat(200_000);
            let full = (0..100).map(|n| etcd.try_ctl(&["put", &format!("filler{n}")], &filler));
            let why = full
                .filter_map(Result::err)
                .next()
                .expect("it is never full");
            assert!(why.contains("space exceeded"), "{why}");
        };
        let clean = |etcd: &Etcd| {
            etcd.ctl(&["del", "--prefix", "filler"]);
            etcd.ctl(&["compact", &etcd.revision().to_string()]);
            etcd.ctl(&["defrag"]);
            etcd.ctl(&["alarm", "disarm"]);
        };
        survives(&etcd, "space exceeded", fill, clean).await;
    });
}

#[test]
fn an_etcd_with_damaged_data_is_waited_for() {
    local(async {
        let etcd = <Etcd as World>::new();
        let raise = |etcd: &Etcd| {
            let status = etcd.ctl(&["endpoint", "status", "-w", "json"]);
            let id = status.split("\"member_id\":").nth(1).unwrap();
            let id = id.split([',', '}']).next().unwrap();
            let alarm = format!(r#"{{"action":"ACTIVATE","memberID":"{id}","alarm":"CORRUPT"}}"#);
            let answer = etcd.post("/v3/maintenance/alarm", &alarm);
            assert!(answer.contains("CORRUPT"), "{answer}");
        };
        let end = |etcd: &Etcd| drop(etcd.ctl(&["alarm", "disarm"]));
        survives(&etcd, "corrupt", raise, end).await;
        assert!(!etcd.ctl(&["get", "--prefix", PREFIX]).is_empty());
    });
}
