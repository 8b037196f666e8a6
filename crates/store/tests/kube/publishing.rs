//! Our own Node, kept as it should be.

use store::{Assigned, Store};

use crate::api::{Api, Fault};
use crate::scene::{Daemon, attrs, node};

const OWN: &str = "10.244.1.0/24";

fn publishes(api: &Api, ip: &str) -> bool {
    api.annotation("n1", "public-ip").as_deref() == Some(ip)
}

#[tokio::test]
async fn a_lost_answer_is_no_harm() {
    let api = Api::start().await;
    api.put("n1", "u1", node(&[OWN], None));
    api.fail("PATCH", Fault::LoseAnswer);
    let mut daemon = Daemon::start(&api).await;
    assert!(publishes(&api, "192.0.2.1"));
    daemon.knows(&[]).await;
    let before = api.asked("PATCH");
    api.fail("PATCH", Fault::LoseAnswer);
    daemon.store.publish(attrs("192.0.2.7")).await;
    daemon
        .until("published", |_| publishes(&api, "192.0.2.7"))
        .await;
    // What was written is seen by the watch; it is not written again and again.
    daemon.store.publish(attrs("192.0.2.8")).await;
    daemon
        .until("published", |_| publishes(&api, "192.0.2.8"))
        .await;
    assert!(
        api.asked("PATCH") - before <= 3,
        "{:?}",
        api.state().requests
    );
}

#[tokio::test]
async fn a_node_that_is_created_again_gets_its_annotations_back() {
    let api = Api::start().await;
    api.put("n1", "u1", node(&[OWN], None));
    let mut daemon = Daemon::start(&api).await;
    daemon.store.network(true).await;
    daemon.knows(&[]).await;
    for round in 0..20 {
        // Deleted and created in one moment: the daemon may see both at once.
        api.delete("n1");
        api.put("n1", &format!("again{round}"), node(&[OWN], None));
        daemon
            .until("published", |_| publishes(&api, "192.0.2.1"))
            .await;
    }
    // First without a subnet: nothing is lost yet.
    api.delete("n1");
    api.put("n1", "last", node(&[], None));
    daemon
        .until("published", |_| publishes(&api, "192.0.2.1"))
        .await;
    assert_eq!(daemon.revoked, None);
    api.delete("n1");
    api.put("n1", "other", node(&["10.244.9.0/24"], None));
    daemon
        .until("revoked", |daemon| daemon.revoked.is_some())
        .await;
    let assigned = *daemon.store_waits().assigned().borrow();
    assert_eq!(assigned, Assigned::Subnet("10.244.9.0-24".parse().unwrap()));
}

#[tokio::test]
async fn what_others_write_over_ours_is_written_again() {
    let api = Api::start().await;
    api.put("n1", "u1", node(&[OWN], None));
    let mut daemon = Daemon::start(&api).await;
    daemon.knows(&[]).await;
    api.put("n1", "u1", node(&[OWN], Some("198.51.100.1")));
    daemon
        .until("answered", |_| publishes(&api, "192.0.2.1"))
        .await;
}

#[tokio::test]
async fn a_missing_node_is_known_to_have_no_subnet_and_a_dead_server_says_nothing() {
    let api = Api::start().await;
    let mut daemon = Daemon::new(&api.url, None, r#"{"Network":"10.244.0.0/16"}"#);
    let waits = daemon.store_waits();
    let mut assigned = waits.assigned();
    // Something else answers there.
    for _ in 0..2 {
        api.fail(
            "GET /api/v1/nodes/n1",
            Fault::Refuse(404, "", "page not found"),
        );
    }
    let acquired = tokio::spawn(async move { daemon.acquire().await });
    assigned
        .wait_for(|now| *now == Assigned::Nothing)
        .await
        .unwrap();
    assert!(
        api.state().faults.is_empty(),
        "not before an API server has said so"
    );
    assert!(waits.get().unwrap().contains("there is no Node n1"));
    api.put("n1", "u1", node(&[OWN], None));
    assert_eq!(acquired.await.unwrap(), "10.244.1.0-24");
    let key = "10.244.1.0-24".parse().unwrap();
    assert_eq!(*assigned.borrow(), Assigned::Subnet(key));
}

#[tokio::test]
async fn an_event_that_is_not_accepted_ends_no_others() {
    let api = Api::start().await;
    api.put("n1", "u1", node(&[OWN], None));
    let mut daemon = Daemon::start(&api).await;
    daemon.knows(&[]).await;
    api.fail("POST", Fault::Refuse(422, "Invalid", "name is too long"));
    for message in ["one", "two"] {
        let trouble = store::Trouble {
            reason: "Test",
            message: message.into(),
            node: None,
        };
        daemon.store.report(trouble).await;
    }
    daemon
        .until("the other event", |_| api.state().events.len() == 1)
        .await;
    assert_eq!(api.state().events[0]["message"], "two");
}
