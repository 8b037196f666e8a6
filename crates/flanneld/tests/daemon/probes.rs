//! Health of the mesh: what probes show of healthy nodes and of each fault, beside nodes that answer none, and under
//! attack.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use flanneld::probes::packet::{self, HEADER, Wish};
use flanneld::report::{NodeReport, PeersReport, ProbeReport, ProbeState};
use lab::{Lab, LabBuilder, Node, StoreKind, wait_for};
use model::Family;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::mixed;
use crate::relay::Relay;
use crate::scene::{self, SOON, mesh};

const PORT: u16 = 8286;

fn ask<T: DeserializeOwned>(node: &Node, page: &str) -> Result<T, String> {
    let url = format!("http://flanneld/v1/{page}");
    let socket = "/run/flannel/flanneld.sock";
    let text = node.exec(["curl", "-sS", "--unix-socket", socket, &url]);
    let text = text.map_err(|e| e.to_string())?;
    serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))
}

/// What `here` knows of `there`.
fn probe(here: &Node, there: &Node) -> Result<ProbeReport, String> {
    let report: PeersReport = ask(here, "peers")?;
    let ips = [there.ip(Family::V4), there.ip(Family::V6)];
    let mut peers = report.peers.into_iter();
    let peer = peers.find(|peer| peer.public_ips.iter().any(|ip| ips.contains(ip)));
    peer.and_then(|peer| peer.probe)
        .ok_or("not probed".to_owned())
}

/// Waits until `here` thinks this of `there`: a state, or a cause.
pub fn thinks(here: &Node, there: &Node, wanted: &str) -> ProbeReport {
    let what = format!("{} finds {} {wanted}", here.name(), there.name());
    wait_for(&what, SOON, || {
        let report = probe(here, there)?;
        let cause = serde_json::to_value(report.cause).map_err(|e| e.to_string())?;
        if report.state.name() == wanted || cause == wanted {
            Ok(report)
        } else {
            Err(format!("{report:?}"))
        }
    })
    .unwrap()
}

/// Waits until full-size packets were seen to arrive in every family.
fn whole(here: &Node, there: &Node) {
    let what = format!(
        "{} sends {} packets of full size",
        here.name(),
        there.name()
    );
    wait_for(&what, SOON, || {
        let report = probe(here, there)?;
        let all = |f: &flanneld::report::FamilyReport| f.full_size == Some(true);
        if report.families.iter().all(all) {
            Ok(())
        } else {
            Err(format!("{report:?}"))
        }
    })
    .unwrap();
}

fn two(builder: LabBuilder) -> Lab {
    let lab = builder
        .nodes(2)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    lab
}

#[test]
fn healthy_nodes_are_measured_in_both_families() {
    let lab = scene::lab()
        .nodes(3)
        .dual()
        .store(StoreKind::Directory)
        .flanneld_args(["-check-tunnel-sources", "-ip-masq"])
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    for here in lab.nodes() {
        for there in lab.nodes().iter().filter(|n| n.index() != here.index()) {
            thinks(here, there, "reachable");
            whole(here, there);
            let report = wait_for("the underlay is probed", SOON, || {
                let report = probe(here, there)?;
                let both = report.families.iter();
                match both.filter(|f| f.underlay_rtt_micros.is_some()).count() {
                    2 => Ok(report),
                    _ => Err(format!("{report:?}")),
                }
            });
            for family in report.unwrap().families {
                assert!(family.rtt_micros > Some(0), "{family:?}");
                assert!(family.least_rtt_micros <= family.rtt_micros.max(Some(1)));
                assert_eq!(family.cause, None);
            }
        }
        let node: NodeReport = ask(here, "status").unwrap();
        let report = node.mesh.unwrap();
        assert_eq!((report.reachable, report.failing), (2, 0), "{report:?}");
        assert_eq!((report.port, report.problem), (PORT, None));
        assert_eq!((report.underlay.len(), report.overlay.len()), (2, 2));
    }
}

#[test]
fn backends_with_other_devices_and_without_are_probed() {
    std::thread::scope(|scope| {
        for backend in ["host-gw", "udp", "wireguard"] {
            scope.spawn(move || {
                if backend != "host-gw" {
                    scene::load_tun();
                }
                let lab = two(scene::lab().backend(json!({"Type": backend})));
                let (a, b) = (lab.node(1), lab.node(2));
                thinks(a, b, "reachable");
                whole(a, b);
                let node: NodeReport = ask(a, "status").unwrap();
                let overlay = node.mesh.unwrap().overlay;
                assert_eq!(overlay.is_empty(), backend == "host-gw", "{backend}");
            });
        }
    });
}

#[test]
fn a_filtered_tunnel_is_named_on_both_ends_and_forgotten_afterwards() {
    let lab = two(scene::lab());
    let (a, b) = (lab.node(1), lab.node(2));
    thinks(a, b, "reachable");
    thinks(b, a, "reachable");
    for rule in [
        "add table ip t",
        "add chain ip t in { type filter hook input priority -300; }",
        "add rule ip t in udp dport 8472 drop",
    ] {
        b.exec(["nft", rule]).unwrap();
    }
    let report = thinks(a, b, "tunnelFiltered");
    assert_eq!(report.state, ProbeState::Failing);
    let reason = report.reason.unwrap();
    assert!(reason.contains("vxlan (UDP 8472)"), "{reason}");
    // What it asks arrives; the answers do not.
    thinks(b, a, "noRouteBack");
    let log = a.flanneld().log();
    let lines = log.lines().filter(|l| l.contains("probes of")).count();
    assert_eq!(lines, 1, "{log}");
    b.exec(["nft", "delete table ip t"]).unwrap();
    thinks(a, b, "reachable");
    thinks(b, a, "reachable");
}

#[test]
fn a_fault_that_was_there_before_the_start_is_named_too() {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let (a, b) = (lab.node(1), lab.node(2));
    for rule in [
        "add table ip t",
        "add chain ip t in { type filter hook input priority -300; }",
        "add rule ip t in udp dport 8472 drop",
    ] {
        b.exec(["nft", rule]).unwrap();
    }
    lab.start().unwrap();
    thinks(a, b, "tunnelFiltered");
}

#[test]
fn a_cut_underlay_is_named() {
    let lab = two(scene::lab());
    let (a, b) = (lab.node(1), lab.node(2));
    thinks(a, b, "reachable");
    lab.fabric()
        .exec(["ip", "link", "set", "n2", "down"])
        .unwrap();
    let report = thinks(a, b, "underlayDown");
    assert_eq!(report.state, ProbeState::Failing);
}

#[test]
fn a_firewall_that_rejects_everything_is_named_with_its_address() {
    std::thread::scope(|scope| {
        for how in [
            "admin-prohibited",
            "port-unreachable",
            "host-unreachable",
            "own",
        ] {
            scope.spawn(move || {
                let lab = two(scene::lab());
                let (a, b) = (lab.node(1), lab.node(2));
                thinks(a, b, "reachable");
                let (a_ip, b_ip) = (a.ipv4(), b.ipv4());
                let (node, hook, rule, said) = if how == "own" {
                    let rule = format!("ip daddr {b_ip} drop");
                    (a, "output", rule, "a firewall of this host".to_owned())
                } else {
                    let rule = format!("ip saddr {a_ip} reject with icmp {how}");
                    let said = format!("a firewall of the node, {b_ip},");
                    (b, "input", rule, said)
                };
                for rule in [
                    "add table ip t".to_owned(),
                    format!("add chain ip t c {{ type filter hook {hook} priority 0; }}"),
                    format!("add rule ip t c {rule}"),
                ] {
                    node.exec(["nft", &rule]).unwrap();
                }
                let report = thinks(a, b, "filtered");
                assert_eq!(report.state, ProbeState::Failing);
                let reason = report.reason.unwrap();
                assert!(reason.contains(&said), "{how}: {reason}");
                node.exec(["nft", "delete table ip t"]).unwrap();
                thinks(a, b, "reachable");
            });
        }
    });
}

#[test]
fn a_firewall_that_lets_the_tunnel_through_breaks_nothing() {
    let lab = two(scene::lab());
    let (a, b) = (lab.node(1), lab.node(2));
    thinks(a, b, "reachable");
    // As firewalld does: what is not allowed is rejected, in the tunnel, too, and past it even pings.
    for rule in [
        "add table ip t",
        "add chain ip t c { type filter hook input priority 0; }",
        "add rule ip t c udp dport 8472 accept",
        "add rule ip t c meta l4proto { udp, icmp } reject with icmp admin-prohibited",
    ] {
        b.exec(["nft", rule]).unwrap();
    }
    let report = thinks(a, b, "probesFiltered");
    assert_eq!(report.state, ProbeState::Silent);
}

#[test]
fn upstream_s_nodes_are_silent_and_not_broken() {
    let Some(program) = mixed::program() else {
        return;
    };
    std::thread::scope(|scope| {
        for backend in ["vxlan", "host-gw"] {
            scope.spawn(move || {
                let lab = scene::lab()
                    .nodes(3)
                    .store(StoreKind::Etcd { tls: true })
                    .backend(json!({ "Type": backend }))
                    .build()
                    .unwrap();
                let (theirs, ours, third) = (lab.node(1), lab.node(2), lab.node(3));
                let upstream = mixed::start(&lab, theirs, program, &[]);
                for node in [ours, third] {
                    node.flanneld().start_ready(SOON).unwrap();
                }
                let silent = || {
                    let report = thinks(ours, theirs, "silent");
                    let reason = report.reason.unwrap();
                    let said = "does not answer probes (upstream's flannel";
                    assert!(reason.starts_with(said), "{backend}: {reason}");
                };
                silent();
                thinks(ours, third, "reachable");
                // Packets still pass.
                drop(upstream);
                silent();
                let node: NodeReport = ask(ours, "status").unwrap();
                assert_eq!(node.mesh.unwrap().failing, 0, "{backend}");
                let log = ours.flanneld().log();
                assert!(!log.contains("probes of"), "{log}");
            });
        }
    });
}

#[test]
fn a_small_mtu_on_the_way_is_named() {
    let lab = two(scene::lab());
    let (a, b) = (lab.node(1), lab.node(2));
    whole(a, b);
    lab.fabric()
        .exec(["ip", "link", "set", "n2", "mtu", "1300"])
        .unwrap();
    let report = thinks(a, b, "mtu");
    assert_eq!(report.state, ProbeState::Failing);
    assert_eq!(report.families[0].full_size, Some(false));
    // One may be lost while the nodes start.
    assert!(report.families[0].loss < Some(0.5), "{report:?}");
}

#[test]
fn wrong_checksums_are_named() {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    let (a, b) = (lab.node(1), lab.node(2));
    thinks(a, b, "reachable");
    let _relay = Relay::in_the_wire_of_node_1(&lab);
    thinks(a, b, "checksum");
}

#[test]
fn a_node_that_answers_no_probes_is_silent_and_not_broken() {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let (a, b) = (lab.node(1), lab.node(2));
    b.flanneld().set_args(["-probe-port=0"]);
    lab.start().unwrap();
    let report = thinks(a, b, "silent");
    assert!(report.reason.is_some());
    let node: NodeReport = ask(b, "status").unwrap();
    assert_eq!(node.mesh, None);
    let none = probe(b, a);
    assert_eq!(none.unwrap_err(), "not probed");
    // A new version is noticed because it asks.
    b.flanneld().set_args(["-v=0"]);
    b.flanneld().restart(SOON).unwrap();
    thinks(a, b, "reachable");
}

#[test]
fn hostile_datagrams_get_nothing_and_change_nothing() {
    let lab = two(scene::lab());
    let (a, b) = (lab.node(1), lab.node(2));
    thinks(a, b, "reachable");
    let to = SocketAddr::new(a.ip(Family::V4), PORT);
    let ask_one = packet::request(7, HEADER, Wish::default());
    // From an address that is no node's.
    let strange = b.ip(Family::V4).to_string();
    let strange = format!("{}.200", strange.rsplit_once('.').unwrap().0);
    b.exec([
        "ip",
        "address",
        "add",
        &format!("{strange}/24"),
        "dev",
        "eth0",
    ])
    .unwrap();
    let from_node = b.ip(Family::V4).to_string();
    let answers = b
        .run(|| {
            let mut answers = Vec::new();
            for from in [&strange, &from_node] {
                let socket = UdpSocket::bind((from.as_str(), 0)).unwrap();
                socket
                    .set_read_timeout(Some(Duration::from_millis(300)))
                    .unwrap();
                let mut sent = 0;
                let mut random = fastrand::Rng::with_seed(1);
                for round in 0..3000usize {
                    let mut bytes = ask_one.clone();
                    bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(round % 1200));
                    if round % 3 == 0 {
                        let at = random.usize(..bytes.len());
                        bytes[at] = random.u8(..);
                    }
                    if round % 7 == 0 {
                        bytes.truncate(round % 12);
                    }
                    if socket.send_to(&bytes, to).is_ok() {
                        sent += bytes.len();
                    }
                }
                let (mut count, mut received) = (0, 0);
                let mut buffer = [0; 2048];
                while let Ok((len, _)) = socket.recv_from(&mut buffer) {
                    (count, received) = (count + 1, received + len);
                }
                answers.push((sent, count, received));
            }
            answers
        })
        .unwrap();
    assert_eq!(answers[0].1, 0, "{answers:?}");
    let (sent, count, received) = answers[1];
    assert!((1..200).contains(&count) && received < sent, "{answers:?}");
    // Its answers are used up for a while: that alone makes no node broken.
    for _ in 0..10 {
        let report = probe(b, a).unwrap();
        assert_ne!(report.state, ProbeState::Failing, "{report:?}");
        let report = probe(a, b).unwrap();
        assert_ne!(report.state, ProbeState::Failing, "{report:?}");
    }
    thinks(a, b, "reachable");
    thinks(b, a, "reachable");
}

#[test]
fn the_page_is_for_those_who_may_see_it() {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let (a, b) = (lab.node(1), lab.node(2));
    a.flanneld()
        .set_args(["-healthz-ip=0.0.0.0", "-health-page=local"]);
    lab.start().unwrap();
    thinks(a, b, "reachable");
    let get = |from: &Node, to: &str, page: &str| {
        let url = format!("http://{to}:10471{page}");
        from.exec(["curl", "-sS", "-i", &url]).unwrap()
    };
    let page = get(a, "127.0.0.1", "/mesh");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("content-type: text/html"), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none'"));
    assert!(!page.contains("http://") && !page.contains("https://"));
    let data = get(a, "127.0.0.1", "/mesh.json");
    let json = data.split_once("\r\n\r\n").unwrap().1;
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(json["peers"][0]["probe"]["state"], "reachable", "{json}");
    assert_eq!(json["node"]["ready"], true, "{json}");
    for page in ["/mesh", "/mesh.json"] {
        let other = get(b, &a.ipv4().to_string(), page);
        assert!(other.starts_with("HTTP/1.1 404"), "{other}");
        // Off unless asked for.
        let off = get(b, "127.0.0.1", page);
        assert!(off.starts_with("HTTP/1.1 404"), "{off}");
    }
}
