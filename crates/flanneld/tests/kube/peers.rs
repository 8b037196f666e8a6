//! The other nodes: what each field of theirs does to the kernel, and what does nothing.

use lab::wait_for;
use serde_json::json;

use crate::scene::{self, Peer, SOON, annotate, asked, data, event, loses, says, shows, since};

const MAC: &str = "4e:00:00:00:00:09";

#[test]
fn each_field_of_a_peer_is_followed() {
    let Some(lab) = scene::lab("fields of peers", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    // There before we are: one that is fine, one without a single annotation, several that are not.
    Peer::new("p1", "172.30.101.0/24", "192.168.78.101", MAC).create(kube);
    kube.create_node("bare").unwrap();
    let mut broken = Peer::new(
        "broken",
        "172.30.102.0/24",
        "192.168.78.102",
        "4e:00:00:00:00:02",
    );
    broken.annotations[2].1 = "{not JSON".into();
    broken.create(kube);
    let mut lost = Peer::new("lost", "172.30.103.0/24", "nowhere", "4e:00:00:00:00:03");
    lost.create(kube);
    lost = Peer::new(
        "other",
        "172.30.104.0/24",
        "192.168.78.104",
        "4e:00:00:00:00:04",
    );
    lost.annotations[1].1 = "wireguard".into();
    lost.create(kube);
    let one = lab.node(1);
    one.flanneld().start_ready(SOON).unwrap();
    shows(
        one,
        &["route 172.30.101.0/24 via 172.30.101.0", "flannel.1"],
    );
    shows(one, &[MAC, "dst 192.168.78.101"]);
    shows(one, &["neigh 172.30.101.0", MAC]);
    says(one.flanneld(), &["Node broken is not used", "backend-data"]);
    let told = event(kube, "broken", "FlannelPeerSkipped");
    assert!(told.contains("backend-data"), "{told}");
    says(
        one.flanneld(),
        &["Node lost is not used", "public-ip", "nowhere"],
    );
    says(
        one.flanneld(),
        &["172.30.104.0-24 is not used", "wireguard"],
    );
    assert!(!one.picture().unwrap().has(&["172.30.102.0"]));

    // The address, the data, the type, one after the other; then together.
    annotate(kube, "p1", &[("public-ip", Some("192.168.78.111"))]);
    shows(one, &[MAC, "dst 192.168.78.111"]);
    loses(one, &["dst 192.168.78.101"]);
    let other = "4e:00:00:00:00:19";
    annotate(kube, "p1", &[("backend-data", Some(&data(other)))]);
    shows(one, &[other, "dst 192.168.78.111"]);
    loses(one, &[MAC]);
    annotate(kube, "p1", &[("backend-type", Some("host-gw"))]);
    loses(one, &["172.30.101.0"]);
    annotate(
        kube,
        "p1",
        &[
            ("backend-type", Some("vxlan")),
            ("backend-data", Some(&data(MAC))),
            ("public-ip", Some("192.168.78.101")),
        ],
    );
    shows(one, &[MAC, "dst 192.168.78.101"]);
    loses(one, &[other]);
    // It says that flannel no longer runs there; then again.
    annotate(kube, "p1", &[("kube-subnet-manager", None)]);
    loses(one, &["172.30.101.0"]);
    annotate(kube, "p1", &[("kube-subnet-manager", Some("true"))]);
    shows(one, &["route 172.30.101.0/24", "flannel.1"]);
    // What was broken is mended.
    annotate(
        kube,
        "broken",
        &[("backend-data", Some(&data("4e:00:00:00:00:02")))],
    );
    shows(one, &["route 172.30.102.0/24", "flannel.1"]);

    // Heartbeats, and annotations of others: nothing is done, and nothing said.
    let (log, picture) = (one.flanneld().log(), one.picture().unwrap());
    for beat in 0..20 {
        kube.heartbeat("p1", &format!("2026-01-01T00:00:{beat:02}Z"))
            .unwrap();
    }
    kube.annotate("p1", [("example.com/x", Some("y"))]).unwrap();
    // They have been heard of when something behind them was.
    Peer::new(
        "p2",
        "172.30.105.0/24",
        "192.168.78.105",
        "4e:00:00:00:00:05",
    )
    .create(kube);
    shows(one, &["route 172.30.105.0/24", "flannel.1"]);
    let said = since(one.flanneld(), &log);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("subnet added: 172.30.105.0/24 via 192.168.78.105"),
        "{said}"
    );
    let new = picture.difference(&one.picture().unwrap());
    assert!(
        new.iter().all(|line| line.contains("172.30.105.0")
            || line.contains(":05")
            || line.contains("192.168.78.105")),
        "{new:?}"
    );

    // Another podCIDR: the Node is another one by then.
    kube.delete_node("p2").unwrap();
    loses(one, &["172.30.105.0"]);
    Peer::new(
        "p2",
        "172.30.106.0/24",
        "192.168.78.105",
        "4e:00:00:00:00:05",
    )
    .create(kube);
    shows(one, &["route 172.30.106.0/24", "flannel.1"]);
    asked(kube);
}

/// The first one keeps working, the other is named; when the first one goes, the other takes its place.
#[test]
fn nodes_that_claim_the_same_are_reported() {
    let Some(lab) = scene::lab("rivals", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    let (a, b) = ("4e:00:00:00:00:0a", "4e:00:00:00:00:0b");
    Peer::new("first", "172.30.101.0/24", "192.168.78.101", a).create(kube);
    // Nodes know the second in which they were made.
    let made = kube.node("first").unwrap()["metadata"]["creationTimestamp"].clone();
    wait_for("another second", SOON, || {
        kube.delete_node("clock").unwrap();
        let clock = kube.create_node("clock").unwrap();
        match clock["metadata"]["creationTimestamp"] != made {
            true => Ok(()),
            false => Err("not yet"),
        }
    })
    .unwrap();
    Peer::new("a-second", "172.30.101.0/24", "192.168.78.102", b).create(kube);
    Peer::new(
        "wide",
        "172.30.101.128/25",
        "192.168.78.103",
        "4e:00:00:00:00:0c",
    )
    .create(kube);
    Peer::new(
        "twin",
        "172.30.104.0/24",
        "192.168.78.101",
        "4e:00:00:00:00:0d",
    )
    .create(kube);
    let own = kube.wait_pod_cidrs("n1", SOON).unwrap().remove(0);
    let own: &'static str = Box::leak(own.into_boxed_str());
    Peer::new("thief", own, "192.168.78.105", "4e:00:00:00:00:0e").create(kube);
    one.flanneld().start_ready(SOON).unwrap();
    let daemon = one.flanneld();
    shows(one, &[a, "dst 192.168.78.101"]);
    says(
        daemon,
        &["Node a-second is not used", "172.30.101.0-24", "Node first"],
    );
    says(daemon, &["172.30.101.128-25 is not used", "172.30.101.0"]);
    says(daemon, &["192.168.78.101", "172.30.104.0-24"]);
    says(daemon, &["Node thief is not used", "is ours"]);
    assert!(!one.picture().unwrap().has(&[b]));

    kube.delete_node("first").unwrap();
    shows(one, &[b, "dst 192.168.78.102"]);
    loses(one, &[a]);
    asked(kube);
}

#[test]
fn nodes_leave_and_join() {
    let Some(lab) = scene::lab("nodes leave and join", |lab| lab.nodes(3)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
    let (one, three) = (lab.node(1), lab.node(3));
    let subnet = kube.wait_pod_cidrs("n3", SOON).unwrap().remove(0);
    three.flanneld().stop().unwrap();
    kube.delete_node("n3").unwrap();
    loses(one, &[&format!("route {subnet}")]);
    loses(lab.node(2), &[&format!("route {subnet}")]);
    // It is back with another subnet, and says nothing until its daemon does.
    kube.create_node_with(
        "n3",
        &json!({"spec": {"podCIDR": "172.30.77.0/24", "podCIDRs": ["172.30.77.0/24"]}}),
    )
    .unwrap();
    three.flanneld().start_ready(SOON).unwrap();
    shows(one, &["route 172.30.77.0/24", "flannel.1"]);
    shows(lab.node(2), &["route 172.30.77.0/24", "flannel.1"]);
    assert_eq!(
        three
            .subnet_env()
            .unwrap()
            .cidr(model::Family::V4)
            .unwrap()
            .to_string(),
        "172.30.77.0/24"
    );
    asked(kube);
}
