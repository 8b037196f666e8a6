//! Everybody's Nodes: listed, watched, listed again.

use super::api::{Api, Fault};
use super::scene::{Daemon, node};

const OWN: &str = "10.244.1.0/24";

async fn cluster() -> (Api, Daemon) {
    let api = Api::start();
    api.put("n1", "u1", node(&[OWN], None));
    api.put("p1", "v1", node(&["10.244.2.0/24"], Some("192.0.2.2")));
    let mut daemon = Daemon::start(&api).await;
    daemon.knows(&[("10.244.2.0-24", "192.0.2.2")]).await;
    (api, daemon)
}

#[tokio::test]
async fn nodes_are_followed_over_watches_that_end_and_expire() {
    let (api, mut daemon) = cluster().await;
    api.put("p2", "v2", node(&["10.244.3.0/24"], Some("192.0.2.3")));
    let both = [
        ("10.244.2.0-24", "192.0.2.2"),
        ("10.244.3.0-24", "192.0.2.3"),
    ];
    daemon.knows(&both).await;
    let lists = || api.asked("GET /api/v1/nodes?resourceVersion");
    let before = lists();
    api.end_watches();
    api.delete("p1");
    daemon.knows(&both[1..]).await;
    assert_eq!(lists(), before, "a watch that ended is joined up with");
    // Compacted while the watch was away: listed again, and nothing is forgotten.
    api.fail("GET /api/v1/nodes?watch", Fault::Refuse(503, "", "not now"));
    api.end_watches();
    daemon
        .until("the fault is used up", |_| api.state().faults.is_empty())
        .await;
    api.put("p1", "v3", node(&["10.244.2.0/24"], Some("192.0.2.9")));
    api.compact();
    api.end_watches();
    daemon
        .knows(&[("10.244.2.0-24", "192.0.2.9"), both[1]])
        .await;
}

#[tokio::test]
async fn a_server_that_lags_behind_has_lost_nothing() {
    let (api, mut daemon) = cluster().await;
    // Listed again at one of several API servers, which does not know that version yet.
    api.fail(
        "GET /api/v1/nodes?watch",
        Fault::Refuse(410, "Expired", "too old"),
    );
    let large = "Too large resource version: 103, current: 102";
    api.fail(
        "GET /api/v1/nodes?resourceVersionMatch",
        Fault::Refuse(504, "Timeout", large),
    );
    api.put("p2", "v2", node(&["10.244.3.0/24"], Some("192.0.2.3")));
    api.end_watches();
    daemon
        .until("both faults are used up", |_| api.state().faults.is_empty())
        .await;
    api.delete("p1");
    // Were it taken for a loss, the Node that is gone would be kept for five minutes.
    daemon.knows(&[("10.244.3.0-24", "192.0.2.3")]).await;
    let whole = api
        .state()
        .requests
        .iter()
        .filter(|r| *r == "GET /api/v1/nodes?")
        .count();
    assert_eq!(
        whole, 0,
        "a list without a version is for data that was lost"
    );
}

#[tokio::test]
async fn a_server_that_went_back_in_time_keeps_its_nodes_for_a_while() {
    let (api, mut daemon) = cluster().await;
    api.state().nodes.remove("p1");
    api.restore(50);
    api.end_watches();
    api.put("p2", "v2", node(&["10.244.3.0/24"], Some("192.0.2.3")));
    let kept = [
        ("10.244.2.0-24", "192.0.2.2"),
        ("10.244.3.0-24", "192.0.2.3"),
    ];
    daemon.knows(&kept).await;
    // Its versions are younger than what was written before: it is kept as it should be all the same.
    api.put("n1", "u1", node(&[OWN], None));
    daemon
        .until("published again", |_| {
            api.annotation("n1", "public-ip").as_deref() == Some("192.0.2.1")
        })
        .await;
}

#[tokio::test]
async fn a_fault_in_one_family_costs_that_family() {
    let api = Api::start();
    api.put("n1", "u1", node(&[OWN], None));
    let mut broken = node(&["10.244.2.0/24", "fd00::nonsense/64"], Some("192.0.2.2"));
    broken["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ipv6"] = "fd00:f::2".into();
    api.put("p1", "v1", broken);
    let mut nowhere = node(&["10.244.3.0/24", "fd00:0:0:3::/64"], Some("nowhere"));
    nowhere["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ipv6"] = "fd00:f::3".into();
    api.put("p2", "v2", nowhere);
    let conf =
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","SubnetLen":99}"#;
    let mut daemon = Daemon::new(&api.url, None, conf);
    assert_eq!(
        daemon.acquire().await,
        "10.244.1.0-24",
        "its own subnet of one family"
    );
    let degraded = daemon.store_waits().degraded().unwrap();
    assert!(
        degraded.contains("n1") && degraded.contains("IPv6"),
        "{degraded}"
    );
    daemon
        .knows(&[
            ("10.244.2.0-24", "192.0.2.2"),
            ("0.0.0.0-0&fd00:0:0:3::-64", ""),
        ])
        .await;
    daemon
        .until("events", |_| {
            let state = api.state();
            let of = |reason: &str| state.events.iter().any(|event| event["reason"] == reason);
            of("NoPodCIDR") && of("FlannelPeerSkipped")
        })
        .await;
    // The other subnet comes: another lease.
    api.put("n1", "u1", node(&[OWN, "fd00:0:0:1::/64"], None));
    daemon
        .until("revoked", |daemon| daemon.revoked.is_some())
        .await;
}
