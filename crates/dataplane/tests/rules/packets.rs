//! Parity: one table of packets, real traffic, every way of writing the rules.

#![allow(unsafe_code, reason = "a socket option that takes a pointer")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::world::{ALL, FLAGS, Kept, Net, Site, in_namespace, rules, sh};

/// Where a packet starts or ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Pod,
    Node,
    Remote,
    Outside,
    /// A group that the world outside listens to.
    Group,
}

/// An IPv4 and an IPv6 address for the same role.
type Pair = (&'static str, &'static str);

const POD: Pair = ("10.1.5.2", "fd00:0:0:5::2");
const BRIDGE: Pair = ("10.1.5.1", "fd00:0:0:5::1");
const TUNNEL: Pair = ("10.1.5.0", "fd00:0:0:5::");
const REMOTE: Pair = ("10.1.9.2", "fd00:0:0:9::2");
const NODE: Pair = ("192.0.2.10", "2001:db8::10");
const OUTSIDE: Pair = ("192.0.2.1", "2001:db8::1");
const GROUP: Pair = ("239.1.2.3", "ff02::123");

/// From where, by which address, to where, with which mark; the source that the far end sees.
const PACKETS: [(At, Pair, At, u32, Pair); 12] = [
    (At::Pod, POD, At::Remote, 0, POD),
    (At::Remote, REMOTE, At::Pod, 0, REMOTE),
    (At::Pod, POD, At::Outside, 0, NODE),
    (At::Pod, POD, At::Outside, 0x4000, POD),
    (At::Pod, POD, At::Outside, 0x4003, POD),
    (At::Pod, POD, At::Outside, 0x8003, NODE),
    (At::Node, NODE, At::Remote, 0, TUNNEL),
    (At::Node, NODE, At::Pod, 0, NODE),
    (At::Node, NODE, At::Outside, 0, NODE),
    (At::Outside, OUTSIDE, At::Pod, 0, OUTSIDE),
    (At::Outside, OUTSIDE, At::Remote, 0, TUNNEL),
    (At::Node, BRIDGE, At::Group, 0, BRIDGE),
];

fn ip(pair: Pair, v6: bool) -> IpAddr {
    if v6 { pair.1 } else { pair.0 }.parse().unwrap()
}

fn place(site: &Site, at: At) -> Option<&Net> {
    match at {
        At::Pod => Some(&site.pod),
        At::Remote => Some(&site.remote),
        At::Outside | At::Group => Some(&site.outside),
        At::Node => None,
    }
}

fn socket(net: Option<&Net>, address: SocketAddr) -> UdpSocket {
    let open = move || UdpSocket::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    net.map_or_else(open, |net| net.run(open))
}

/// Sends one packet and returns the source address that the far end sees.
fn seen_from(site: &Site, from: At, by: Pair, to: At, v6: bool, port: u16) -> IpAddr {
    let target = match to {
        At::Pod => POD,
        At::Remote => REMOTE,
        At::Outside => OUTSIDE,
        At::Group => GROUP,
        At::Node => NODE,
    };
    let any: IpAddr = if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let listener = socket(place(site, to), (any, port).into());
    listener
        .set_read_timeout(Some(Duration::from_millis(250)))
        .unwrap();
    let sender = socket(place(site, from), (ip(by, v6), 0).into());
    let mut target = SocketAddr::from((ip(target, v6), port));
    if to == At::Group {
        let up: u32 = sh("ip -o link show out | cut -d: -f1")
            .trim()
            .parse()
            .unwrap();
        let join = || match target.ip() {
            IpAddr::V4(group) => listener
                .join_multicast_v4(&group, &OUTSIDE.0.parse().unwrap())
                .unwrap(),
            IpAddr::V6(group) => {
                let index = sh("ip -o link show eth0 | cut -d: -f1")
                    .trim()
                    .parse()
                    .unwrap();
                listener.join_multicast_v6(&group, index).unwrap();
            }
        };
        site.outside.run(join);
        match &mut target {
            SocketAddr::V6(target) => target.set_scope_id(up),
            SocketAddr::V4(_) => leave_by(&sender, up),
        }
    }
    let mut buffer = [0; 8];
    // The first packet may be lost while the neighbours get to know each other.
    for _ in 0..20 {
        sender
            .send_to(b"?", target)
            .unwrap_or_else(|e| panic!("{from:?} to {target}: {e}"));
        if let Ok((_, source)) = listener.recv_from(&mut buffer) {
            return source.ip();
        }
    }
    panic!("{from:?} to {target}: nothing arrives");
}

/// `IP_MULTICAST_IF` by index: the address that the socket is bound to is another device's.
fn leave_by(socket: &UdpSocket, index: u32) {
    let request = libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: 0 },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: index.cast_signed(),
    };
    // SAFETY: the option's value is `request`, which outlives the call.
    let done = unsafe {
        let len = size_of::<libc::ip_mreqn>() as libc::socklen_t;
        let value = (&raw const request).cast();
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MULTICAST_IF,
            value,
            len,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn every_packet_leaves_with_the_same_address_however_the_rules_are_written() {
    for by in ALL {
        in_namespace(move || async move {
            let site = Site::new();
            // As kube-proxy would: before the packet is passed on.
            sh(
                "nft 'add table inet marks; add chain inet marks c { type filter hook prerouting priority -150; }'",
            );
            for (n, packet) in PACKETS
                .iter()
                .enumerate()
                .filter(|(_, packet)| packet.3 != 0)
            {
                let ports = format!("{{ {}, {} }}", 7000 + n, 7100 + n);
                sh(&format!(
                    "nft 'add rule inet marks c udp dport {ports} meta mark set {:#x}'",
                    packet.3
                ));
            }
            // A firewall that lets nothing through of itself.
            if by != crate::world::By::Nftables {
                sh(&format!(
                    "iptables{0} -P FORWARD DROP; ip6tables{0} -P FORWARD DROP",
                    by.suffix()
                ));
            }
            let mut kept = Kept::new(by, rules(FLAGS));
            kept.ensure().await;
            let mut wrong = Vec::new();
            for (n, (from, source, to, mark, expected)) in PACKETS.into_iter().enumerate() {
                for v6 in [false, true] {
                    let port = 7000 + n as u16 + if v6 { 100 } else { 0 };
                    let seen = seen_from(&site, from, source, to, v6, port);
                    if seen != ip(expected, v6) {
                        wrong.push(format!(
                            "{from:?} to {to:?}, mark {mark:#x}: {seen} in place of {}",
                            ip(expected, v6)
                        ));
                    }
                }
            }
            assert!(wrong.is_empty(), "{by:?}: {wrong:#?}");

            // The table of packets can tell: without rules, pods are seen as they are.
            sh(&format!(
                "iptables{0} -P FORWARD ACCEPT; ip6tables{0} -P FORWARD ACCEPT",
                by.suffix()
            ));
            kept.keeper.remove_all().await.unwrap();
            let seen = seen_from(&site, At::Pod, POD, At::Outside, false, 7999);
            assert_eq!(seen, ip(POD, false), "{by:?}");
        });
    }
}
