//! Encrypted tunnels between real nodes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use lab::{Lab, Namespace};
use proxy::{Config, Peer, Proxy, Secret, Wireguard};

const PORT: u16 = 51820;
const MTU: usize = 1420;
/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn lab(nodes: usize) -> Lab {
    Lab::builder()
        .nodes(nodes)
        .pods_per_node(0)
        .without_flanneld()
        .build()
        .unwrap()
}

fn ip(node: &Namespace, command: &str) {
    node.exec(["ip"].into_iter().chain(command.split(' ')))
        .unwrap();
}

fn key(n: usize) -> Secret {
    Secret([n as u8; 32])
}

fn at(lab: &Lab, n: usize) -> SocketAddr {
    SocketAddr::from((lab.node(n).ipv4(), PORT))
}

/// Node `n`, as the others know it.
fn peer(lab: &Lab, n: usize) -> Peer {
    Peer {
        public_key: key(n).public_key(),
        endpoint: Some(at(lab, n)),
        allowed: vec![
            format!("10.99.{n}.0/24").parse().unwrap(),
            format!("fd99:{n}::/64").parse().unwrap(),
        ],
    }
}

/// The proxy of node `n`.
fn start(lab: &Lab, n: usize, private_key: Secret, preshared_key: Option<Secret>) -> Proxy {
    let keys = Wireguard {
        private_key,
        preshared_key,
        keepalive: Some(1),
    };
    start_with(lab, n, keys)
}

/// The proxy of node `n`, which sends nothing by itself.
fn start_quiet(lab: &Lab, n: usize) -> Proxy {
    let keys = Wireguard {
        private_key: key(n),
        preshared_key: None,
        keepalive: None,
    };
    start_with(lab, n, keys)
}

fn start_with(lab: &Lab, n: usize, keys: Wireguard) -> Proxy {
    let node = lab.node(n);
    if node
        .output(["ip", "link", "show", "wg"])
        .unwrap()
        .status
        .success()
    {
        ip(node, "link delete wg");
    }
    ip(node, "tuntap add dev wg mode tun multi_queue");
    ip(node, &format!("address add 10.99.{n}.1/32 dev wg"));
    ip(node, &format!("address add fd99:{n}::1/128 dev wg nodad"));
    ip(node, &format!("link set wg mtu {MTU} up"));
    ip(
        node,
        &format!("route add 10.99.0.0/16 dev wg src 10.99.{n}.1"),
    );
    ip(node, "route add fd99::/16 dev wg");
    let config = Config {
        device: "wg".into(),
        listen: at(lab, n),
        mtu: MTU,
        wireguard: Some(keys),
        queues: 2,
    };
    node.run(|| Proxy::start(config)).unwrap().unwrap()
}

fn answers(node: &Namespace, address: &str) -> bool {
    let output = node.output(["ping", "-c", "1", "-W", "1", address]);
    output.unwrap().status.success()
}

fn must_answer(node: &Namespace, address: &str) {
    let probe = || {
        if answers(node, address) {
            Ok(())
        } else {
            Err("no")
        }
    };
    lab::wait_for(&format!("{address} answers"), PATIENCE, probe).unwrap();
}

#[test]
fn streams_of_both_families_go_both_ways() {
    let lab = lab(2);
    let proxies = [1, 2].map(|n| start(&lab, n, key(n), Some(Secret([9; 32]))));
    for (n, proxy) in proxies.iter().enumerate() {
        proxy.set_peers(&[peer(&lab, 2 - n)]);
    }
    for (from, to) in [(1, 2), (2, 1)] {
        for address in [format!("10.99.{to}.1"), format!("fd99:{to}::1")] {
            must_answer(lab.node(from), &address);
            let address = address.parse().unwrap();
            lab::bulk(lab.node(from), lab.node(to), address, 8 << 20).unwrap();
        }
    }
    for proxy in &proxies {
        let counted = proxy.statistics();
        assert_eq!((counted.malformed, counted.not_sent), (0, 0), "{counted:?}");
    }
}

#[test]
fn nothing_readable_is_on_the_wire_and_nothing_unencrypted_is_let_in() {
    let lab = lab(2);
    let (one, two) = (lab.node(1), lab.node(2));
    let first = start(&lab, 1, key(1), None);
    first.set_peers(&[peer(&lab, 2)]);
    // In place of the peer's WireGuard: it reads what arrives.
    let at_two = at(&lab, 2);
    let wire = two.run(|| UdpSocket::bind(at_two)).unwrap().unwrap();
    wire.set_read_timeout(Some(PATIENCE)).unwrap();
    let running = || first.problem().map_or(Ok(()), Err);
    lab::wait_for("it runs", PATIENCE, running).unwrap();
    let sender = one
        .run(|| UdpSocket::bind("10.99.1.1:4000"))
        .unwrap()
        .unwrap();
    sender
        .send_to(b"the content of a packet", "10.99.2.1:5000")
        .unwrap();
    let mut buffer = [0; 2000];
    let (len, _) = wire.recv_from(&mut buffer).unwrap();
    // A handshake, and not the packet.
    assert_eq!((len, &buffer[..4]), (148, &[1, 0, 0, 0][..]));

    drop(wire);
    let second = start(&lab, 2, key(2), None);
    second.set_peers(&[peer(&lab, 1)]);
    must_answer(two, "10.99.1.1");
    let received = first.statistics().received;
    // A bare packet, as the `udp` backend's, from the peer's own address.
    let forged = two.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let mut packet = vec![
        0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 99, 2, 1, 10, 99, 1, 1,
    ];
    packet.extend([0x13, 0x88, 0x0f, 0xa0, 0, 8, 0, 0]);
    let before = first.statistics().malformed;
    forged.send_to(&packet, at(&lab, 1)).unwrap();
    let counted = || match first.statistics() {
        counted if counted.malformed > before => Ok(counted),
        counted => Err(format!("{counted:?}")),
    };
    let counted = lab::wait_for("it is counted", PATIENCE, counted).unwrap();
    assert!(counted.received < received + 100, "{counted:?}");
}

#[test]
fn a_peer_speaks_only_for_its_own_addresses() {
    let lab = lab(2);
    let proxies = [1, 2].map(|n| start(&lab, n, key(n), None));
    let mut narrow = peer(&lab, 2);
    narrow.allowed.truncate(1);
    proxies[0].set_peers(&[narrow]);
    proxies[1].set_peers(&[peer(&lab, 1)]);
    must_answer(lab.node(2), "10.99.1.1");
    assert!(!answers(lab.node(2), "fd99:1::1"));
    assert!(proxies[0].statistics().malformed > 0);
}

#[test]
fn a_peer_is_followed_to_where_its_packets_come_from() {
    let lab = lab(2);
    let proxies = [1, 2].map(|n| start(&lab, n, key(n), None));
    // Nobody knows where node 2 is: it begins.
    let mut unknown = peer(&lab, 2);
    unknown.endpoint = None;
    proxies[0].set_peers(&[unknown]);
    proxies[1].set_peers(&[peer(&lab, 1)]);
    must_answer(lab.node(2), "10.99.1.1");
    must_answer(lab.node(1), "10.99.2.1");
}

#[test]
fn a_changed_key_takes_the_place_of_the_old_one() {
    let lab = lab(2);
    let first = start(&lab, 1, key(1), None);
    let second = start(&lab, 2, key(2), None);
    first.set_peers(&[peer(&lab, 2)]);
    second.set_peers(&[peer(&lab, 1)]);
    must_answer(lab.node(1), "10.99.2.1");
    drop(second);
    let second = start(&lab, 2, key(7), None);
    second.set_peers(&[peer(&lab, 1)]);
    assert!(
        !answers(lab.node(2), "10.99.1.1"),
        "an unknown key is let in"
    );
    let mut changed = peer(&lab, 2);
    changed.public_key = key(7).public_key();
    first.set_peers(&[changed]);
    must_answer(lab.node(2), "10.99.1.1");
    must_answer(lab.node(1), "10.99.2.1");
}

#[test]
fn without_the_shared_key_nobody_is_let_in() {
    let lab = lab(2);
    let first = start(&lab, 1, key(1), Some(Secret([9; 32])));
    let second = start(&lab, 2, key(2), Some(Secret([8; 32])));
    first.set_peers(&[peer(&lab, 2)]);
    second.set_peers(&[peer(&lab, 1)]);
    assert!(!answers(lab.node(1), "10.99.2.1"));
    assert_eq!(first.statistics().received, 0);
}

/// Sends small packets from one node to the other, until the other's proxy has taken more of them in than `before`.
fn must_arrive(from: &Namespace, to: &str, proxy: &Proxy, before: u64) {
    let sender = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let arrive = || {
        sender.send_to(b"x", to).map_err(|e| e.to_string())?;
        match proxy.statistics().received {
            received if received > before => Ok(()),
            _ => Err(format!("{:?}", proxy.statistics())),
        }
    };
    lab::wait_for("packets arrive", PATIENCE, arrive).unwrap();
}

#[test]
fn a_peer_that_was_restarted_begins_anew_with_who_still_sends() {
    let lab = lab(2);
    let first = start_quiet(&lab, 1);
    let second = start_quiet(&lab, 2);
    first.set_peers(&[peer(&lab, 2)]);
    second.set_peers(&[peer(&lab, 1)]);
    must_arrive(lab.node(1), "10.99.2.1:5000", &second, 0);
    // Node 1 does not know of it, and node 2 has nothing to send. Without help it takes 15 s.
    drop(second);
    let second = start_quiet(&lab, 2);
    second.set_peers(&[peer(&lab, 1)]);
    let began = std::time::Instant::now();
    must_arrive(lab.node(1), "10.99.2.1:5000", &second, 0);
    eprintln!("after a restart: {:?}", began.elapsed());
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn packets_fit_a_path_that_is_narrower_than_the_tunnel() {
    let lab = lab(2);
    let proxies = [1, 2].map(|n| start(&lab, n, key(n), None));
    for (n, proxy) in proxies.iter().enumerate() {
        proxy.set_peers(&[peer(&lab, 2 - n)]);
    }
    let (one, two) = (lab.node(1), lab.node(2));
    must_answer(one, "10.99.2.1");
    ip(
        one,
        &format!("route add {} dev eth0 mtu lock 1400", two.ipv4()),
    );
    for address in ["10.99.2.1", "fd99:2::1"] {
        let address = address.parse().unwrap();
        lab::bulk(one, two, address, 8 << 20).unwrap();
    }
    // Some thousands of packets: the first ones are cut, those that follow are not.
    let said = one.exec(["nstat", "-asz", "IpFragCreates"]).unwrap();
    let cut = said
        .lines()
        .find_map(|line| {
            line.strip_prefix("IpFragCreates")?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0_u32);
    assert!(cut < 1500, "{said}");
    assert_eq!(proxies[0].statistics().not_sent, 0);
}

#[test]
fn a_flood_of_junk_stops_nobody() {
    let lab = lab(3);
    let proxies = [1, 2].map(|n| start(&lab, n, key(n), None));
    for (n, proxy) in proxies.iter().enumerate() {
        proxy.set_peers(&[peer(&lab, 2 - n)]);
    }
    must_answer(lab.node(2), "10.99.1.1");
    let target = at(&lab, 1);
    let junk = lab
        .node(3)
        .run(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    // Nothing, handshakes, answers, cookies and data of nobody; garbage.
    let mut packets: Vec<Vec<u8>> = vec![vec![], vec![0; 1], vec![9; 1400]];
    for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1400)] {
        for index in 0..8u32 {
            let mut packet = vec![7; len];
            packet[..4].copy_from_slice(&[kind, 0, 0, 0]);
            packet[4..8].copy_from_slice(&(index << 8).to_le_bytes());
            packets.push(packet);
        }
    }
    for round in 0..50_000 {
        // What does not fit into the queue is lost, as in any flood.
        let _ = junk.send_to(&packets[round % packets.len()], target);
    }
    must_answer(lab.node(2), "10.99.1.1");
    must_answer(lab.node(1), "10.99.2.1");
    let counted = proxies[0].statistics();
    assert!(
        counted.unknown_peer + counted.malformed > 100,
        "{counted:?}"
    );
}
