//! What a node never lets in, attacked by sockets without any privilege.

#![allow(unsafe_code, reason = "the capabilities of one thread")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use dataplane::guard::{GuardKeeper, PREFIX, SourcesKeeper, remove_sources};
use dataplane::rules::{Mode, RulesKeeper};
use model::guard::{Guard, Sources};
use model::{Dual, TrafficRules};

use crate::world::{Net, Site, in_namespace, sh};

const PORT: u16 = 8472;

fn keeper() -> GuardKeeper {
    let networks = Dual {
        v4: Some("10.1.0.0/16".parse().unwrap()),
        v6: Some("fd00::/47".parse().unwrap()),
    };
    let public = Dual {
        v4: Some("192.0.2.10".parse().unwrap()),
        v6: Some("2001:db8::10".parse().unwrap()),
    };
    let guard = Guard::new(&networks, &public, [PORT]);
    GuardKeeper::new(guard, &"10.1.0.0/16".parse().unwrap(), Vec::new())
}

fn table() -> String {
    sh(
        "nft list table inet flannel-guard-10.1.0.0-16 | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'",
    )
}

/// Waits until `well`, on a busy machine too.
fn eventually(what: &str, well: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !well() {
        assert!(Instant::now() < deadline, "{what}");
    }
}

/// The checksum of ICMPv6 over its pseudo header.
fn checksum(source: &[u8], destination: &[u8], message: &[u8]) -> u16 {
    let mut pseudo = [source, destination].concat();
    pseudo.extend((message.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(message);
    let words = pseudo
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A VXLAN packet that holds a router advertisement: a default router for half an hour.
fn advertisement(vni: u32) -> Vec<u8> {
    let source = "fe80::bad".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let group = "ff02::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut message = vec![134, 0, 0, 0, 64, 0x08, 0x07, 0x08];
    message.extend([0; 8]);
    message.extend([1, 1, 2, 0, 0, 0, 0, 0xba]);
    let sum = checksum(&source, &group, &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend([0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0xba, 0x86, 0xdd]);
    packet.extend([0x60, 0, 0, 0]);
    packet.extend((message.len() as u16).to_be_bytes());
    packet.extend([58, 255]);
    packet.extend(source);
    packet.extend(group);
    packet.extend(message);
    packet
}

/// A host that does not forward IPv6 and has a VXLAN device; somebody sends it what he likes.
fn attacked() -> Net {
    let attacker = Net::new();
    sh(&format!(
        "ip link add eth0 type veth peer name eth0 netns {}
         ip address add 192.0.2.10/24 dev eth0 && ip link set eth0 up
         ip link add flannel.1 type vxlan id 1 dstport {PORT} local 192.0.2.10 dev eth0 nolearning
         ip link set flannel.1 up",
        attacker.path()
    ));
    attacker.sh("ip address add 192.0.2.66/24 dev eth0 && ip link set eth0 up");
    eventually("the link-local address is settled", || {
        let shown = sh("ip -6 address show dev flannel.1");
        shown.contains("fe80") && !shown.contains("tentative")
    });
    attacker
}

fn received() -> u64 {
    let shown = sh("ip -s -j link show flannel.1");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

fn send(attacker: &Net, packet: &[u8]) {
    let before = received();
    let socket = attacker.run(|| UdpSocket::bind("192.0.2.66:0").unwrap());
    eventually("the packet arrives on flannel.1", || {
        socket.send_to(packet, ("192.0.2.10", PORT)).unwrap();
        received() > before
    });
}

#[test]
fn a_forged_router_advertisement_changes_nothing() {
    in_namespace(|| async {
        let attacker = attacked();
        let mut keeper = keeper();
        assert!(keeper.ensure().await.unwrap());
        send(&attacker, &advertisement(1));
        assert_eq!(sh("ip -6 route show default"), "");
        eventually("the drop is counted", || {
            let listed = sh("nft list table inet flannel-guard-10.1.0.0-16");
            listed
                .lines()
                .any(|l| l.contains("nd-router-advert") && !l.contains("packets 0 "))
        });

        // Without the guard the same packet takes over the default route: the attack is a real one.
        keeper.remove().await.unwrap();
        eventually("the attack works without the guard", || {
            send(&attacker, &advertisement(1));
            sh("ip -6 route show default").contains("fe80::bad dev flannel.1 proto ra")
        });
    });
}

/// Whether a packet from `from` to `to` arrives at a socket in `at`.
fn arrives(from: (Option<&Net>, &str), at: Option<&Net>, to: &str, port: u16) -> bool {
    let bind = |net: Option<&Net>, address: SocketAddr| {
        // An address of a device that just came up may not be usable yet.
        let deadline = Instant::now() + Duration::from_secs(20);
        let open = move || loop {
            match UdpSocket::bind(address) {
                Ok(socket) => return socket,
                Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
            }
            std::thread::yield_now();
        };
        net.map_or_else(open, |net| net.run(open))
    };
    let any = if to.contains(':') { "[::]" } else { "0.0.0.0" };
    let listener = bind(at, format!("{any}:{port}").parse().unwrap());
    listener
        .set_read_timeout(Some(Duration::from_millis(150)))
        .unwrap();
    let sender = bind(from.0, SocketAddr::new(from.1.parse().unwrap(), 0));
    let to = SocketAddr::new(to.parse().unwrap(), port);
    (0..4).any(|_| {
        sender.send_to(b"?", to).unwrap();
        listener.recv_from(&mut [0; 8]).is_ok()
    })
}

#[test]
fn a_pod_cannot_reach_the_tunnels_port_of_any_node() {
    in_namespace(|| async {
        let site = Site::new();
        let pod = Some(&site.pod);
        let outside = Some(&site.outside);
        // In both families: to another node, to its own by the node's and the bridge's address.
        let attacks = [
            (("10.1.5.2"), outside, "192.0.2.1"),
            (("10.1.5.2"), None, "192.0.2.10"),
            (("10.1.5.2"), None, "10.1.5.1"),
            (("fd00:0:0:5::2"), outside, "2001:db8::1"),
            (("fd00:0:0:5::2"), None, "2001:db8::10"),
        ];
        for (source, at, to) in attacks {
            assert!(
                arrives((pod, source), at, to, PORT),
                "{to}: without the guard"
            );
        }
        let mut keeper = keeper();
        keeper.ensure().await.unwrap();
        for (source, at, to) in attacks {
            assert!(!arrives((pod, source), at, to, PORT), "{to}");
            assert!(
                arrives((pod, source), at, to, PORT + 1),
                "{to}: another port"
            );
        }
        // A remote pod whose packet was not masqueraded.
        let remote = Some(&site.remote);
        assert!(!arrives((remote, "10.1.9.2"), None, "10.1.5.0", PORT));
        // Nodes among themselves, the node to its pods and pods among themselves.
        assert!(arrives((outside, "192.0.2.1"), None, "192.0.2.10", PORT));
        assert!(arrives((None, "192.0.2.10"), outside, "192.0.2.1", PORT));
        assert!(arrives((None, "10.1.5.1"), pod, "10.1.5.2", PORT));
        assert!(arrives((pod, "10.1.5.2"), remote, "10.1.9.2", PORT));
    });
}

#[test]
fn the_table_is_kept_and_removed() {
    in_namespace(|| async {
        let mut keeper = keeper();
        assert!(keeper.ensure().await.unwrap());
        let right = table();
        assert!(
            right.contains(r#"iifname "flannel*" icmpv6 type nd-router-advert"#),
            "{right}"
        );
        assert!(
            right.contains("ip saddr 10.1.0.0/16 ip daddr != 10.1.0.0/16 udp dport 8472"),
            "{right}"
        );
        assert!(
            right.contains("ip6 saddr fd00::/47 udp dport 8472"),
            "{right}"
        );
        assert!(
            !keeper.ensure().await.unwrap(),
            "what is right is not written again"
        );
        // Traffic that is counted is no change.
        sh("nft reset counters >/dev/null 2>&1 || true");
        assert!(!keeper.ensure().await.unwrap());
        let restarted = self::keeper;
        assert!(
            !restarted().ensure().await.unwrap(),
            "what an earlier run wrote is not written again"
        );

        let name = "flannel-guard-10.1.0.0-16";
        for damage in [
            format!("nft delete table inet {name}"),
            format!("nft flush chain inet {name} input"),
            format!("nft insert rule inet {name} input accept"),
            format!(
                "handle=$(nft -a list chain inet {name} input | sed -n 's/.*nd-redirect.*handle //p')
                 nft replace rule inet {name} input handle $handle iifname 'flannel*' icmpv6 type nd-router-solicit \
                     counter drop comment '\"flanneld: no routers or redirects behind the tunnel\"'"
            ),
            format!("nft 'add chain inet {name} forward {{ policy drop; }}'"),
            format!("nft 'add table inet {name} {{ flags dormant; }}'"),
            "nft flush ruleset".into(),
        ] {
            sh(&damage);
            let noticed = tokio::time::timeout(Duration::from_secs(10), keeper.changed()).await;
            assert!(noticed.is_ok(), "{damage}: not noticed");
            assert!(keeper.ensure().await.unwrap(), "{damage}");
            assert_eq!(table(), right, "{damage}");
            sh(&damage);
            assert!(restarted().ensure().await.unwrap(), "{damage}, between two runs");
            assert_eq!(table(), right, "{damage}");
            assert!(!keeper.ensure().await.unwrap(), "{damage}, after another's repair");
        }
        // Others' changes, and its own writing, wake it not.
        sh("nft add table inet firewalld");
        let idle = tokio::time::timeout(Duration::from_millis(200), keeper.changed()).await;
        assert!(idle.is_err());

        // A second network's table, and one of a former network.
        let other = "10.60.0.0/16".parse().unwrap();
        GuardKeeper::new(Guard::default(), &other, Vec::new())
            .ensure()
            .await
            .unwrap();
        let former = "10.61.0.0/16".parse().unwrap();
        GuardKeeper::new(Guard::default(), &former, Vec::new())
            .ensure()
            .await
            .unwrap();
        GuardKeeper::new(Guard::default(), &other, vec![former])
            .ensure()
            .await
            .unwrap();
        keeper.remove().await.unwrap();
        keeper.remove().await.unwrap();
        let left = sh("nft list tables");
        assert_eq!(left.matches(PREFIX).count(), 1, "{left}");
        assert!(left.contains("flannel-guard-10.60.0.0-16"), "{left}");
    });
}

#[test]
fn nothing_but_net_admin_is_needed() {
    in_namespace(|| async {
        // SAFETY: the two structures are what `capset` reads; this thread ends with the test.
        let kept = unsafe {
            let header = [0x2008_0522u32, 0];
            let net_admin = 1u32 << 12;
            let data = [net_admin, net_admin, 0, 0, 0, 0];
            libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr())
        };
        assert_eq!(kept, 0);
        assert!(keeper().ensure().await.unwrap());
    });
}

/// A kernel without nf_tables: legacy iptables does the same.
#[test]
fn without_nf_tables_iptables_keeps_forged_packets_out() {
    in_namespace(|| async {
        let shown = || sh("iptables-legacy-save -t filter; ip6tables-legacy-save -t filter");
        let count = || shown().matches("flanneld guard 10.1.0.0/16").count();
        {
            let attacker = attacked();
            let mut keeper = keeper().without_nf_tables();
            assert!(keeper.ensure().await.unwrap());
            assert!(keeper.uses_iptables());
            assert_eq!(sh("nft list tables | grep flannel || true"), "");
            send(&attacker, &advertisement(1));
            assert_eq!(sh("ip -6 route show default"), "");
            keeper.remove().await.unwrap();
            assert_eq!(count(), 0);
            sh("ip link del eth0");
        }
        let site = Site::new();
        let (pod, outside) = (Some(&site.pod), Some(&site.outside));
        let attacks = [
            ("10.1.5.2", outside, "192.0.2.1"),
            ("10.1.5.2", None, "192.0.2.10"),
            ("fd00:0:0:5::2", outside, "2001:db8::1"),
        ];
        sh("iptables-legacy -A INPUT -m comment --comment mine -j ACCEPT");
        let mut keeper = keeper().without_nf_tables();
        assert!(keeper.ensure().await.unwrap());
        for (source, at, to) in attacks {
            assert!(!arrives((pod, source), at, to, PORT), "{to}: {}", shown());
            assert!(arrives((pod, source), at, to, PORT + 1), "{to}");
        }
        assert!(arrives((outside, "192.0.2.1"), None, "192.0.2.10", PORT));
        let whole = count();
        assert!(whole >= 7, "{}", shown());
        assert!(
            !keeper.ensure().await.unwrap(),
            "what is right is not written again"
        );
        let mut restarted = self::keeper().without_nf_tables();
        assert!(!restarted.ensure().await.unwrap());
        // Somebody flushes them.
        sh("iptables-legacy -F INPUT; ip6tables-legacy -F FORWARD");
        let noticed = tokio::time::timeout(Duration::from_secs(60), keeper.changed()).await;
        assert!(noticed.is_ok());
        assert!(keeper.ensure().await.unwrap());
        assert_eq!(count(), whole);
        // `flannelctl cleanup` finds them.
        sh("iptables-legacy -A INPUT -m comment --comment mine -j ACCEPT");
        let hour = Duration::from_secs(3600);
        let mut cleaner = RulesKeeper::new(Mode::Iptables, TrafficRules::default(), hour);
        let (removals, errors) = cleaner.would_remove().await;
        assert!(
            errors.is_empty() && removals.len() == 2,
            "{removals:?} {errors:?}"
        );
        for removal in &removals {
            cleaner.remove(removal).await.unwrap();
        }
        assert_eq!(count(), 0);
        assert!(keeper.ensure().await.unwrap());
        // The module was loaded meanwhile: the table takes over.
        assert!(self::keeper().ensure().await.unwrap());
        assert_eq!(count(), 0);
        assert!(table().contains("nd-router-advert"));
        assert!(shown().contains("mine"));
    });
}

#[test]
fn tunnel_packets_come_from_nodes_alone() {
    in_namespace(|| async {
        let site = Site::new();
        let outside = Some(&site.outside);
        site.outside.sh(
            "ip address add 192.0.2.66/24 dev eth0; ip address add 2001:db8::66/64 dev eth0 nodad",
        );
        let network = "10.1.0.0/16".parse().unwrap();
        let sources = |peers: &[&str]| Sources {
            ports: [PORT].into(),
            ipip: false,
            peers: peers.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        let from = |ip: &str, port| {
            let to = if ip.contains(':') {
                "2001:db8::10"
            } else {
                "192.0.2.10"
            };
            arrives((outside, ip), None, to, port)
        };
        let nodes = ["192.0.2.1", "2001:db8::1"];
        let mut keeper = SourcesKeeper::new(&network, sources(&nodes));
        assert!(!keeper.ensure().unwrap(), "the first writing is no repair");
        for node in nodes {
            assert!(from(node, PORT), "{node}");
        }
        for stranger in ["192.0.2.66", "2001:db8::66"] {
            assert!(!from(stranger, PORT), "{stranger}");
            assert!(from(stranger, PORT + 1), "{stranger}: another port");
        }
        // Another node joins, and very many do.
        let more = [&nodes[..], &["192.0.2.66"]].concat();
        keeper.set_desired(sources(&more));
        assert!(!keeper.ensure().unwrap());
        assert!(from("192.0.2.66", PORT) && !from("2001:db8::66", PORT));
        let mut many = sources(&nodes);
        let all = (0..50_000u32).map(|n| IpAddr::from(Ipv4Addr::from(0x0b00_0000 + n)));
        many.peers.extend(all);
        keeper.set_desired(many);
        assert!(!keeper.ensure().unwrap());
        assert!(from(nodes[0], PORT) && !from("192.0.2.66", PORT));
        keeper.set_desired(sources(&nodes));
        assert!(!keeper.ensure().unwrap());

        let name = "flannel-guard-10.1.0.0-16-sources";
        for damage in [
            format!("nft delete table inet {name}"),
            format!("nft flush chain inet {name} input"),
            format!("nft delete element inet {name} peers4 '{{ 192.0.2.1 }}'"),
            format!("nft add element inet {name} peers4 '{{ 192.0.2.66 }}'"),
        ] {
            sh(&damage);
            let noticed = tokio::time::timeout(Duration::from_secs(60), keeper.changed()).await;
            assert!(noticed.is_ok(), "{damage}: not noticed");
            assert!(keeper.ensure().unwrap(), "{damage}");
            assert!(!keeper.ensure().unwrap(), "{damage}: settled");
            assert!(
                from(nodes[0], PORT) && !from("192.0.2.66", PORT),
                "{damage}"
            );
        }
        // A backend without a tunnel.
        let mut none = sources(&nodes);
        none.ports.clear();
        keeper.set_desired(none);
        assert!(!keeper.ensure().unwrap() && !keeper.ensure().unwrap());
        assert!(from("192.0.2.66", PORT));
        keeper.set_desired(sources(&nodes));
        assert!(!keeper.ensure().unwrap());
        assert!(!from("192.0.2.66", PORT));
        remove_sources(&network).unwrap();
        remove_sources(&network).unwrap();
        assert!(from("192.0.2.66", PORT));
    });
}
