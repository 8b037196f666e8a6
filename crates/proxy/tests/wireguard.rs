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
        wireguard: Some(Wireguard {
            private_key,
            preshared_key,
            keepalive: Some(1),
        }),
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
