//! Proxies on real nodes: network namespaces with a TUN device each, and a wire between them.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::{Lab, Namespace};
use proxy::{Config, Proxy, Table};

const PORT: u16 = 8285;
const MTU: usize = 1472;
/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn lab() -> Lab {
    Lab::builder()
        .nodes(2)
        .pods_per_node(0)
        .without_flanneld()
        .build()
        .unwrap()
}

fn ip(node: &Namespace, command: &str) {
    node.exec(["ip"].into_iter().chain(command.split(' ')))
        .unwrap();
}

/// A device as the daemon makes it.
fn device(node: &Namespace, n: usize) {
    ip(node, "tuntap add dev flannel0 mode tun multi_queue");
    ip(node, &format!("address add 10.99.{n}.1/32 dev flannel0"));
    ip(node, &format!("link set flannel0 mtu {MTU} up"));
    ip(
        node,
        &format!("route add 10.99.0.0/16 dev flannel0 src 10.99.{n}.1"),
    );
}

fn at(lab: &Lab, n: usize) -> SocketAddr {
    SocketAddr::from((lab.node(n).ipv4(), PORT))
}

/// The proxy of node `n`, which knows the other one.
fn start(lab: &Lab, n: usize) -> Proxy {
    let other = 3 - n;
    let table = Table::new([(
        format!("10.99.{other}.0/24").parse().unwrap(),
        at(lab, other),
    )]);
    let config = Config {
        device: "flannel0".into(),
        listen: at(lab, n),
        mtu: MTU,
        wireguard: None,
        queues: 2,
    };
    let proxy = lab.node(n).run(|| Proxy::start(config)).unwrap().unwrap();
    proxy.set_table(table);
    proxy
}

fn both(lab: &Lab) -> [Proxy; 2] {
    [1, 2].map(|n| {
        device(lab.node(n), n);
        start(lab, n)
    })
}

fn wait_for(deadline: Duration, holds: impl Fn() -> bool) -> bool {
    let probe = || if holds() { Ok(()) } else { Err("not so") };
    lab::wait_for("a condition", deadline, probe).is_ok()
}

fn answers(node: &Namespace, address: &str) -> bool {
    node.output(["ping", "-c", "1", "-W", "2", address])
        .unwrap()
        .status
        .success()
}

fn must_answer(node: &Namespace, address: &str) {
    assert!(
        wait_for(PATIENCE, || answers(node, address)),
        "{address} does not answer"
    );
}

/// What `ping` says.
fn ping(node: &Namespace, args: &[&str]) -> String {
    let output = node
        .output(["ping", "-c", "1", "-W", "20"].iter().chain(args))
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn streams_go_both_ways() {
    let lab = lab();
    let proxies = both(&lab);
    must_answer(lab.node(1), "10.99.2.1");
    for (from, to) in [(1, 2), (2, 1)] {
        let address = format!("10.99.{to}.1").parse().unwrap();
        lab::bulk(lab.node(from), lab.node(to), address, 32 << 20).unwrap();
    }
    for proxy in &proxies {
        let counted = proxy.statistics();
        assert!(counted.sent > 0 && counted.received > 0, "{counted:?}");
        assert_eq!((counted.malformed, counted.not_sent), (0, 0), "{counted:?}");
    }
}

#[test]
fn a_device_that_is_made_anew_is_attached_to() {
    let lab = lab();
    let proxies = both(&lab);
    let (one, two) = (lab.node(1), lab.node(2));
    must_answer(one, "10.99.2.1");
    ip(one, "link delete flannel0");
    let noticed = || {
        proxies[0]
            .problem()
            .is_some_and(|problem| problem.contains("flannel0"))
    };
    assert!(wait_for(PATIENCE, noticed));
    device(one, 1);
    must_answer(one, "10.99.2.1");
    must_answer(two, "10.99.1.1");
    assert_eq!(proxies[0].problem(), None);
}

#[test]
fn device_and_connections_outlive_a_restart() {
    let lab = lab();
    let [one, _two] = both(&lab);
    must_answer(lab.node(1), "10.99.2.1");
    let flow = lab::Flow::start(
        lab.node(1),
        lab.node(2),
        "10.99.2.1".parse().unwrap(),
        Duration::from_millis(20),
    )
    .unwrap();
    drop(one);
    ip(lab.node(1), "link show flannel0");
    let _one = start(&lab, 1);
    must_answer(lab.node(1), "10.99.2.1");
    let report = flow.stop();
    assert_eq!(report.broken, None);
}

#[test]
fn who_has_no_route_is_told() {
    let lab = lab();
    let [one, _two] = both(&lab);
    must_answer(lab.node(1), "10.99.2.1");
    let said = ping(lab.node(1), &["10.99.7.1"]);
    assert!(said.contains("Net Unreachable"), "{said}");
    // The table is swapped, and the route gone.
    one.set_table(Table::default());
    let said = ping(lab.node(1), &["10.99.2.1"]);
    assert!(said.contains("Net Unreachable"), "{said}");
    assert!(one.statistics().no_route >= 2);
}

#[test]
fn nothing_larger_than_the_tunnel_is_sent() {
    let lab = lab();
    let [one, _two] = both(&lab);
    let node = lab.node(1);
    must_answer(node, "10.99.2.1");
    // Somebody sets the device's MTU, and only that.
    ip(node, "link set flannel0 mtu 9000");
    let said = ping(node, &["-M", "do", "-s", "3000", "10.99.2.1"]);
    assert!(
        said.contains("mtu = 1472") || said.contains("mtu=1472"),
        "{said}"
    );
    assert!(one.statistics().too_big >= 1);
    let said = ping(node, &["-M", "dont", "-s", "3000", "10.99.2.1"]);
    assert!(said.contains("1 received"), "{said}");
    lab::bulk(node, lab.node(2), "10.99.2.1".parse().unwrap(), 4 << 20).unwrap();
}

#[test]
fn a_path_narrower_than_the_tunnel_is_found_out() {
    let lab = lab();
    let _proxies = both(&lab);
    let (one, two) = (lab.node(1), lab.node(2));
    must_answer(one, "10.99.2.1");
    let narrow = format!("route replace {}/32 dev eth0 mtu lock 1200", two.ipv4());
    ip(one, &narrow);
    lab::bulk(one, two, "10.99.2.1".parse().unwrap(), 4 << 20).unwrap();
    let said = ping(one, &["-s", "1400", "10.99.2.1"]);
    assert!(said.contains("1 received"), "{said}");
}

#[test]
fn each_datagram_is_one_bare_packet() {
    let lab = lab();
    let (one, two) = (lab.node(1), lab.node(2));
    device(one, 1);
    let proxy = start(&lab, 1);
    assert!(wait_for(PATIENCE, || proxy.problem().is_none()));
    // In place of upstream's daemon.
    let at_two = at(&lab, 2);
    let peer = two.run(|| UdpSocket::bind(at_two)).unwrap().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = one
        .run(|| UdpSocket::bind("10.99.1.1:4000"))
        .unwrap()
        .unwrap();
    sender.set_read_timeout(Some(PATIENCE)).unwrap();
    // A device that has got its carrier just now drops packets for some moments.
    peer.set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let arrives = || {
        sender.send_to(b"probe", "10.99.2.1:4999").unwrap();
        peer.recv_from(&mut [0; 65_535]).is_ok()
    };
    assert!(wait_for(PATIENCE, arrives));
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    for len in [0, 1, 700, 1444] {
        sender.send_to(&vec![7; len], "10.99.2.1:5000").unwrap();
        let mut buffer = [0; 65_535];
        let (got, from) = loop {
            let (got, from) = peer.recv_from(&mut buffer).unwrap();
            let is_probe = buffer[22..24] == 4999u16.to_be_bytes();
            if !is_probe {
                break (got, from);
            }
        };
        assert_eq!(from, at(&lab, 1));
        assert_eq!(got, 28 + len);
        assert_eq!(buffer[0], 0x45);
        assert_eq!(usize::from(u16::from_be_bytes([buffer[2], buffer[3]])), got);
        assert_eq!(buffer[12..20], [10, 99, 1, 1, 10, 99, 2, 1]);
        // Back, with the ends exchanged: both checksums stay right.
        let mut back = buffer[..got].to_vec();
        back[12..20].copy_from_slice(&[10, 99, 2, 1, 10, 99, 1, 1]);
        let ports = [back[22], back[23], back[20], back[21]];
        back[20..24].copy_from_slice(&ports);
        peer.send_to(&back, from).unwrap();
        let mut payload = [0; 2_000];
        assert_eq!(sender.recv(&mut payload).unwrap(), len);
    }
    // What is no packet is counted, and harms nothing.
    for noise in [&[0u8; 3][..], &[0x45; 19], &[0xff; 1500], &[]] {
        peer.send_to(noise, at(&lab, 1)).unwrap();
    }
    assert!(wait_for(PATIENCE, || proxy.statistics().malformed >= 3));
}

#[test]
fn a_port_in_use_is_named_and_waited_for() {
    let lab = lab();
    let one = lab.node(1);
    device(one, 1);
    device(lab.node(2), 2);
    let at_one = at(&lab, 1);
    let other = one.run(|| UdpSocket::bind(at_one)).unwrap().unwrap();
    let proxy = start(&lab, 1);
    let _two = start(&lab, 2);
    let named = || {
        proxy
            .problem()
            .is_some_and(|problem| problem.contains("8285"))
    };
    assert!(wait_for(PATIENCE, named));
    drop(other);
    must_answer(one, "10.99.2.1");
    assert_eq!(proxy.problem(), None);
}

#[test]
fn a_link_that_is_full_does_not_hold_up_what_arrives() {
    let lab = lab();
    let (one, two) = (lab.node(1), lab.node(2));
    device(one, 1);
    let proxy = start(&lab, 1);
    assert!(wait_for(PATIENCE, || proxy.problem().is_none()));
    one.exec("tc qdisc add dev eth0 root tbf rate 10mbit burst 20kb limit 64mb".split(' '))
        .unwrap();
    let inner = one
        .run(|| UdpSocket::bind("10.99.1.1:4000"))
        .unwrap()
        .unwrap();
    inner
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let at_two = at(&lab, 2);
    // Many peers, so that no two packets travel in one piece.
    let peers = (2..34).map(|n| {
        let to = SocketAddr::new(at_two.ip(), PORT + n);
        (format!("10.99.{n}.0/24").parse().unwrap(), to)
    });
    proxy.set_table(Table::new(peers));
    let peer = two.run(|| UdpSocket::bind(at_two)).unwrap().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for n in 2..34 {
                    let _ = inner.send_to(&[7; 1400], format!("10.99.{n}.1:5000"));
                }
            }
        });
        let full = wait_for(PATIENCE, || proxy.statistics().not_sent > 0);
        // A packet from the other node, and the next one when it has arrived.
        let packet = udp_packet();
        let mut times = Vec::new();
        let arrived = (0..30).all(|_| {
            let began = Instant::now();
            peer.send_to(&packet, at(&lab, 1)).unwrap();
            let arrived = wait_for(PATIENCE, || inner.recv(&mut [0; 100]).is_ok());
            times.push(began.elapsed());
            arrived
        });
        done.store(true, Ordering::Relaxed);
        assert!(full && arrived);
        times.sort_unstable();
        // A packet of each peer may wait for room; not one after the other.
        assert!(times[15] < Duration::from_millis(250), "{times:?}");
    });
}

/// A datagram without a checksum from 10.99.2.1:5000 to 10.99.1.1:4000.
fn udp_packet() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend([
        10, 99, 2, 1, 10, 99, 1, 1, 0x13, 0x88, 0x0f, 0xa0, 0, 12, 0, 0, 1, 2, 3, 4,
    ]);
    let words = packet[..20].chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}
