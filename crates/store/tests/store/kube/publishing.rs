//! Our own Node, kept as it should be.

use serde_json::json;
use store::{Assigned, Store};

use super::api::{Api, Fault};
use super::scene::{Daemon, PREFIX, attrs, node};

const OWN: &str = "10.244.1.0/24";

fn publishes(api: &Api, ip: &str) -> bool {
    api.annotation("n1", "public-ip").as_deref() == Some(ip)
}

#[tokio::test]
async fn a_lost_answer_is_no_harm() {
    let api = Api::start();
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
    let api = Api::start();
    api.put("n1", "u1", node(&[OWN], None));
    let mut daemon = Daemon::start(&api).await;
    daemon.store.set_network(true);
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
async fn what_others_write_over_ours_is_written_again_every_time() {
    let api = Api::start();
    api.put("n1", "u1", node(&[OWN], None));
    let mut daemon = Daemon::start(&api).await;
    daemon.store.set_network(true);
    daemon.knows(&[]).await;
    for round in 0..3 {
        let foreign = format!("198.51.100.{round}");
        let mut theirs = node(&[OWN], Some(&foreign));
        theirs["status"]["conditions"] =
            json!([{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}]);
        api.put("n1", "u1", theirs);
        daemon
            .until("corrected", |_| {
                publishes(&api, "192.0.2.1") && unavailable(&api) == "False"
            })
            .await;
    }
    assert_eq!(daemon.revoked, None);
}

/// The status of the condition.
fn unavailable(api: &Api) -> String {
    let state = api.state();
    let condition = &state.nodes["n1"]["status"]["conditions"][0];
    condition["status"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_node_that_others_write_to_is_published_on_all_the_same() {
    let api = Api::start();
    api.put("n1", "u1", node(&[OWN], None));
    let conflict = || Fault::Refuse(409, "Conflict", "the object has been modified");
    api.fail("PATCH", conflict());
    let mut daemon = Daemon::start(&api).await;
    assert!(publishes(&api, "192.0.2.1"));
    daemon.knows(&[]).await;
    // The kubelet writes to it all the time: in the end only the Node has to be the same.
    for _ in 0..3 {
        api.fail("PATCH", conflict());
    }
    daemon.store.publish(attrs("192.0.2.7")).await;
    daemon
        .until("published", |_| publishes(&api, "192.0.2.7"))
        .await;
    assert!(api.state().faults.is_empty());
}

#[tokio::test]
async fn what_a_webhook_removes_is_not_written_again_and_again() {
    let api = Api::start();
    api.put("n1", "u1", node(&[OWN], None));
    api.state().removed = Some(format!("{PREFIX}backend-data"));
    let mut daemon = Daemon::start(&api).await;
    daemon.knows(&[]).await;
    // Heartbeats, one after the other.
    for ip in ["192.0.2.2", "192.0.2.3", "192.0.2.4"] {
        api.put("n1", "u1", api_node(&api));
        api.put("p1", "v1", node(&["10.244.2.0/24"], Some(ip)));
        daemon.knows(&[("10.244.2.0-24", ip)]).await;
    }
    assert_eq!(api.asked("PATCH"), 1);
    daemon.store.publish(attrs("192.0.2.7")).await;
    daemon
        .until("published", |_| publishes(&api, "192.0.2.7"))
        .await;
}

#[tokio::test]
async fn the_assigned_address_is_read_each_time() {
    let api = Api::start();
    let mut daemon = Daemon::of("n1", &api);
    for ip in ["203.0.113.1", "203.0.113.2"] {
        let mut assigned = node(&[OWN], None);
        assigned["metadata"]["annotations"][format!("{PREFIX}node-public-ip")] = ip.into();
        api.put("n1", "u1", assigned);
        daemon.store.config().await;
        let found = daemon.store.assigned_ip().await.v4;
        assert_eq!(found.map(|ip| ip.to_string()).as_deref(), Some(ip));
    }
}

#[tokio::test]
async fn an_overwrite_counts_while_the_daemon_runs() {
    let api = Api::start();
    api.put("n1", "u1", node(&[OWN], None));
    let mut daemon = Daemon::start(&api).await;
    daemon.knows(&[]).await;
    let mut overwritten = api_node(&api);
    let name = format!("{PREFIX}public-ip-overwrite");
    overwritten["metadata"]["annotations"][&name] = "203.0.113.1".into();
    api.put("n1", "u1", overwritten);
    daemon
        .until("overwritten", |_| publishes(&api, "203.0.113.1"))
        .await;
    let mut without = api_node(&api);
    let annotations = without["metadata"]["annotations"].as_object_mut().unwrap();
    annotations.remove(&name);
    api.put("n1", "u1", without);
    daemon
        .until("as before", |_| publishes(&api, "192.0.2.1"))
        .await;
}

#[tokio::test]
async fn an_older_state_from_a_server_that_lags_behind_is_no_foreign_write() {
    let api = Api::start();
    api.put("n1", "u1", node(&[OWN], None));
    let before = api.state().nodes["n1"].clone();
    let mut daemon = Daemon::start(&api).await;
    daemon.knows(&[]).await;
    let patches = api.asked("PATCH");
    api.send_stale(before);
    api.put("p1", "v1", node(&["10.244.2.0/24"], Some("192.0.2.2")));
    daemon.knows(&[("10.244.2.0-24", "192.0.2.2")]).await;
    api.put("n1", "u1", api_node(&api));
    api.put("p1", "v1", node(&["10.244.2.0/24"], Some("192.0.2.3")));
    daemon.knows(&[("10.244.2.0-24", "192.0.2.3")]).await;
    assert_eq!(api.asked("PATCH"), patches, "nothing was wrong");
}

/// The own Node as it is, for a heartbeat.
fn api_node(api: &Api) -> serde_json::Value {
    api.state().nodes["n1"].clone()
}

#[tokio::test]
async fn an_older_state_counts_for_nothing_although_the_node_is_gone() {
    let api = Api::start();
    api.put("n1", "u0", node(&["10.244.9.0/24"], None));
    let before = api.state().nodes["n1"].clone();
    api.put("n1", "u1", node(&[OWN], None));
    let mut daemon = Daemon::start(&api).await;
    daemon.knows(&[]).await;
    api.delete("n1");
    api.send_stale(before);
    api.put("p1", "v1", node(&["10.244.2.0/24"], Some("192.0.2.2")));
    daemon.knows(&[("10.244.2.0-24", "192.0.2.2")]).await;
    api.put("n1", "u2", node(&[OWN], None));
    daemon
        .until("published", |_| publishes(&api, "192.0.2.1"))
        .await;
    assert_eq!(daemon.revoked, None);
}

#[tokio::test]
async fn two_fresh_nodes_find_each_other() {
    let api = Api::start();
    api.put("n1", "u1", node(&[], None));
    api.put("n2", "u2", node(&[], None));
    let mut daemons = [Daemon::of("n1", &api), Daemon::of("n2", &api)];
    let [one, two] = &mut daemons;
    let assign = async {
        // Both wait by then; the controller manager assigns late, and one after the other.
        for (name, asked) in [("n1", "metadata.name%3Dn1"), ("n2", "metadata.name%3Dn2")] {
            while !api.state().requests.iter().any(|r| r.contains(asked)) {
                tokio::task::yield_now().await;
            }
            let cidr = format!("10.244.{}.0/24", &name[1..]);
            api.put(name, &name.replace('n', "u"), node(&[&cidr], None));
        }
    };
    let (first, second, ()) = tokio::join!(one.acquire(), two.acquire(), assign);
    assert_eq!(
        [first.as_str(), &second],
        ["10.244.1.0-24", "10.244.2.0-24"]
    );
    let peer = ("10.244.2.0-24", "192.0.2.1");
    one.knows(&[peer]).await;
    two.knows(&[("10.244.1.0-24", "192.0.2.1")]).await;
}

#[tokio::test]
async fn a_missing_node_is_known_to_have_no_subnet_and_a_dead_server_says_nothing() {
    let api = Api::start();
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
    let api = Api::start();
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
        daemon.store.report(trouble);
    }
    daemon
        .until("the other event", |_| api.state().events.len() == 1)
        .await;
    assert_eq!(api.state().events[0]["message"], "two");
}

/// An event that lasts counts up, also over a restart of the daemon, and is written again when it has expired.
#[tokio::test]
async fn what_lasts_counts_up() {
    let api = Api::start();
    api.put("n1", "u1", node(&[OWN], None));
    let trouble = || store::Trouble {
        reason: "Test",
        message: "it lasts".into(),
        node: None,
    };
    let count = || {
        let events = api.state().events.clone();
        assert!(events.len() <= 1, "{events:?}");
        events
            .first()
            .map_or(0, |event| event["count"].as_u64().unwrap())
    };
    for (run, counts) in [[1, 2, 3], [4, 5, 6]].into_iter().enumerate() {
        let mut daemon = Daemon::start(&api).await;
        daemon.knows(&[]).await;
        for wanted in counts {
            daemon.store.report(trouble());
            daemon
                .until(&format!("run {run} counts {wanted}"), |_| count() == wanted)
                .await;
        }
    }
    let mut daemon = Daemon::start(&api).await;
    daemon.knows(&[]).await;
    api.state().events.clear();
    daemon.store.report(trouble());
    daemon.until("it is written again", |_| count() == 1).await;
    api.state().events.clear();
    daemon.store.report(trouble());
    daemon.until("it is written again", |_| count() == 1).await;
}
