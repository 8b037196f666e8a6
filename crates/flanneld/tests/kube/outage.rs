//! The API server away, back, elsewhere in time; and nobody forgotten meanwhile.

use std::time::Duration;

use lab::{Pinger, wait_for};

use crate::scene::{
    self, Peer, SOON, annotate, asked_over_a_restart, data, loses, says, shows, since,
};

#[test]
fn the_api_server_is_killed_and_comes_back() {
    let Some(lab) = scene::lab("API server killed", |lab| lab) else {
        return;
    };
    let kube = lab.kube().unwrap();
    Peer::new(
        "p1",
        "172.30.101.0/24",
        "192.168.78.101",
        "4e:00:00:00:00:01",
    )
    .create(kube);
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
    let one = lab.node(1);
    shows(one, &["route 172.30.101.0/24", "flannel.1"]);
    let picture = one.picture().unwrap();
    let to = lab.pods()[1].ip(model::Family::V4).unwrap();
    let pings = Pinger::start(&lab.pods()[0], to, Duration::from_millis(10)).unwrap();
    kube.kill9().unwrap();
    says(one.flanneld(), &["the API server is unreachable"]);
    assert_eq!(picture.difference(&one.picture().unwrap()), [""; 0]);
    // A daemon that starts meanwhile waits, and forgets nobody either.
    lab.node(2).flanneld().stop().unwrap();
    lab.node(2).flanneld().start().unwrap();
    says(lab.node(2).flanneld(), &["waiting"]);
    kube.start().unwrap();
    says(one.flanneld(), &["the API server is reachable again"]);
    lab.node(2).flanneld().wait_ready(SOON).unwrap();
    annotate(
        kube,
        "p1",
        &[("backend-data", Some(&data("4e:00:00:00:00:02")))],
    );
    shows(one, &["4e:00:00:00:00:02", "dst 192.168.78.101"]);
    shows(lab.node(2), &["4e:00:00:00:00:02", "dst 192.168.78.101"]);
    assert_eq!(pings.stop().lost, 0);

    // It takes connections and says nothing.
    kube.freeze().unwrap();
    says(one.flanneld(), &["the API server is unreachable"]);
    let log = one.flanneld().log();
    let away = || match log.matches("the API server is unreachable").count() {
        _ if one
            .flanneld()
            .log()
            .matches("the API server is unreachable")
            .count()
            > 1 =>
        {
            Ok(())
        }
        n => Err(format!("said {n} times")),
    };
    wait_for("silence is noticed", SOON * 2, away).unwrap();
    kube.thaw().unwrap();
    annotate(kube, "p1", &[("public-ip", Some("192.168.78.103"))]);
    shows(one, &["dst 192.168.78.103"]);
    asked_over_a_restart(kube);
}

/// A daemon that slept while the API server was started anew: its history no longer reaches back.
#[test]
fn a_history_that_is_gone_is_listed_again_and_nobody_forgotten() {
    let Some(lab) = scene::lab("410", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    Peer::new(
        "stays",
        "172.30.101.0/24",
        "192.168.78.101",
        "4e:00:00:00:00:01",
    )
    .create(kube);
    Peer::new(
        "goes",
        "172.30.102.0/24",
        "192.168.78.102",
        "4e:00:00:00:00:02",
    )
    .create(kube);
    Peer::new(
        "changes",
        "172.30.103.0/24",
        "192.168.78.103",
        "4e:00:00:00:00:03",
    )
    .create(kube);
    one.flanneld().start_ready(SOON).unwrap();
    for net in ["101", "102", "103"] {
        shows(one, &[&format!("route 172.30.{net}.0/24"), "flannel.1"]);
    }
    one.flanneld().freeze().unwrap();
    kube.delete_node("goes").unwrap();
    annotate(kube, "changes", &[("public-ip", Some("192.168.78.113"))]);
    kube.stop().unwrap();
    kube.start().unwrap();
    Peer::new(
        "new",
        "172.30.104.0/24",
        "192.168.78.104",
        "4e:00:00:00:00:04",
    )
    .create(kube);
    let log = one.flanneld().log();
    one.flanneld().thaw().unwrap();
    shows(one, &["route 172.30.104.0/24", "flannel.1"]);
    shows(one, &["4e:00:00:00:00:03", "dst 192.168.78.113"]);
    loses(one, &["172.30.102.0"]);
    shows(one, &["route 172.30.101.0/24", "flannel.1"]);
    let said = since(one.flanneld(), &log);
    assert!(said.contains("listing all Nodes again"), "{said}");
    // The one that stays was never taken away.
    assert!(!said.contains("172.30.101.0"), "{said}");
    asked_over_a_restart(kube);
}
