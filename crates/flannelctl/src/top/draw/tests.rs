use std::time::{Duration, Instant};

use anyhow::anyhow;
use flanneld::report::{EventsReport, PeersReport};
use serde_json::json;

use super::super::look::Look;
use super::super::model::Step;
use super::super::rates::Counters;
use super::*;

fn peer(subnet: &str, probe: &str, rtt: u64, loss: f64) -> PeerReport {
    let reason = (probe == "failing").then(|| format!("{subnet} is broken: {}", "why ".repeat(60)));
    serde_json::from_value(json!({
        "subnets": [subnet], "publicIps": ["192.168.78.2"], "backend": "vxlan", "state": "installed",
        "probe": {"state": probe, "reason": reason, "families": [
            {"family": "ipv4", "state": probe, "rttMicros": rtt, "loss": loss}]},
    }))
    .unwrap()
}

fn look(peers: Vec<PeerReport>) -> Look {
    let node = json!({
        "version": "0.1.0", "pid": 7, "uptimeSeconds": 8121, "ready": true, "problems": [],
        "store": "etcd https://192.168.78.254:2379", "storeReachable": true,
        "network": {"networks": ["10.1.0.0/16"], "subnets": ["10.1.9.0/24"], "publicIps": ["192.168.78.1"],
            "backend": "vxlan", "mtu": 1450, "interface": "eth0", "devices": ["flannel.1"]},
        "counts": {"peers": peers.len(), "refusedLeases": 0, "routes": 3, "pendingOperations": 0, "repairs": 3,
            "rulesRepairs": 1, "repairsByKind": {"route": 2, "neighbour": 1}},
        "mesh": {"port": 8286, "underlay": [], "overlay": [], "fullSize": 1450, "reachable": 2, "failing": 1,
            "silent": 0, "unknown": 0},
    });
    let events = json!({"events": [
        {"unixSeconds": 1, "level": "info", "text": "older"},
        {"unixSeconds": 2, "level": "warn", "text": "probes of 10.1.2.0-24 fail\u{1b}[2J"},
    ]});
    Look {
        at: Instant::now(),
        node: serde_json::from_value(node).unwrap(),
        peers: PeersReport { peers },
        events: serde_json::from_value::<EventsReport>(events).unwrap(),
        counters: Counters::new(),
    }
}

fn three() -> Vec<PeerReport> {
    vec![
        peer("10.1.1.0/24", "reachable", 230, 0.0),
        peer("10.1.2.0/24", "failing", 310, 1.0),
        peer("10.1.3.0/24", "reachable", 990, 0.03),
    ]
}

fn picture(model: &mut Model, width: u16, height: u16) -> Vec<String> {
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    draw(model, &mut buffer);
    let rows = buffer.content().chunks(usize::from(width));
    rows.map(|row| {
        let text: String = row.iter().map(|cell| cell.symbol()).collect();
        text.trim_end().to_owned()
    })
    .collect()
}

#[test]
fn everything_fits_on_80_columns_and_24_lines() {
    let mut model = Model::new(look(three()), String::new());
    model.follow(Ok(look(three())));
    let lines = picture(&mut model, 80, 24);
    let text = lines.join("\n");
    assert_eq!(
        lines[0],
        "10.1.9.0/24  vxlan, MTU 1450  ready  flanneld 0.1.0, up 2 h 15 min"
    );
    for part in [
        "nodes      3 used, 0 not used; 2 reachable, 1 failing, 0 silent, 0 unknown",
        "flannel.1  -",
        "repairs    3 (1 neighbour, 2 route), 1 of traffic rules; 0 operations refused",
        "store      etcd https://192.168.78.254:2379, reachable",
        " SUBNET       PUBLIC IP     BACKEND  STATE      PROBES     RTT      LOSS",
        "10.1.2.0/24 is broken: why",
        "ago  probes of 10.1.2.0-24 fail\\u{1b}[2J",
        "q quit  s order: health  r reverse  / filter",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // What is broken comes first, and is chosen.
    let at = lines
        .iter()
        .position(|line| line.contains("SUBNET"))
        .unwrap();
    assert!(lines[at + 1].starts_with(">10.1.2.0/24"), "{text}");
    assert!(lines[at + 2].starts_with(" 10.1.3.0/24"), "{text}");
}

#[test]
fn a_small_terminal_shows_the_nodes_and_any_size_is_drawn() {
    let mut model = Model::new(look(three()), String::new());
    let lines = picture(&mut model, 40, 8);
    assert!(
        lines.iter().any(|line| line.contains("failing")),
        "{lines:#?}"
    );
    for width in [0, 1, 3, 20, 33, 60, 300] {
        for height in [0, 1, 2, 5, 9, 60] {
            let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
            draw(&mut model, &mut buffer);
        }
    }
    // Three are used: the daemon was too busy to list them.
    let mut busy = look(three());
    busy.peers.peers.clear();
    model.follow(Ok(busy));
    assert_eq!(model.counts(), (3, 3));
}

#[test]
fn orders_filters_and_the_chosen_node() {
    let mut model = Model::new(look(three()), String::new());
    let first = |model: &mut Model| {
        let lines = picture(model, 80, 24);
        let at = lines
            .iter()
            .position(|line| line.contains("SUBNET"))
            .unwrap();
        lines[at + 1][1..12].to_owned()
    };
    assert_eq!(first(&mut model), "10.1.2.0/24");
    model.next_order();
    assert_eq!(first(&mut model), "10.1.1.0/24");
    model.next_order();
    assert_eq!(first(&mut model), "10.1.3.0/24");
    model.reverse();
    assert_eq!(first(&mut model), "10.1.1.0/24");
    model.step(Step::Down(2));
    assert_eq!(model.chosen().unwrap().subnets, ["10.1.3.0/24"]);
    // It stays chosen where it moves.
    model.reverse();
    assert_eq!(model.chosen().unwrap().subnets, ["10.1.3.0/24"]);
    model.begin_typing();
    for c in "FAILx".chars() {
        model.put(c);
    }
    assert_eq!(model.counts(), (0, 3));
    assert!(
        picture(&mut model, 80, 24)
            .join("\n")
            .contains("no node's line contains")
    );
    model.erase();
    assert_eq!(model.counts(), (1, 3));
    model.set_filter(String::new());
    assert_eq!(model.counts(), (3, 3));
}

#[test]
fn a_daemon_that_no_longer_answers_is_shown_above_its_last_report() {
    let mut model = Model::new(look(three()), String::new());
    model.follow(Err(anyhow!("/run/flannel/flanneld.sock: refused")));
    let lines = picture(&mut model, 80, 24);
    assert_eq!(lines[1], "/run/flannel/flanneld.sock: refused");
    assert!(lines.iter().any(|line| line.contains("10.1.3.0/24")));
}

#[test]
fn fifteen_thousand_nodes_are_paged_and_quickly_drawn() {
    let peers = (0..15_000)
        .map(|i| {
            peer(
                &format!("10.{}.{}.0/24", i / 250, i % 250),
                "reachable",
                i,
                0.0,
            )
        })
        .collect();
    let mut model = Model::new(look(peers), String::new());
    let began = Instant::now();
    model.step(Step::Last);
    let text = picture(&mut model, 80, 24).join("\n");
    assert!(
        text.contains("10.59.249.0/24") && text.contains("-15000 of 15000"),
        "{text}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
}
