//! What an upstream flannel leaves, laid by hand.

use std::io::Write;

use lab::{Lab, Node};

use crate::host::{Rules, cleans, cleanup, difference, furnish, witness};

/// Runs a script on the node.
fn lay(node: &Node, script: &str) {
    node.exec(["sh", "-ec", script]).unwrap();
}

fn alone() -> Lab {
    Lab::builder().nodes(1).without_flanneld().build().unwrap()
}

const ENV: &str = "mkdir -p /run/flannel
printf 'FLANNEL_NETWORK=172.30.0.0/16\\nFLANNEL_SUBNET=172.30.150.1/24\\nFLANNEL_IPV6_NETWORK=fd00:30::/48\\nFLANNEL_IPV6_SUBNET=fd00:30:0:150::1/64\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=true\\n' >/run/flannel/subnet.env\n";

const VXLAN: &str = "
ip link add flannel.1 type vxlan id 1 local 192.168.78.1 dev eth0 dstport 8472 nolearning
ip addr add 172.30.150.0/32 dev flannel.1
ip link set flannel.1 up
ip neigh add 172.30.7.0 lladdr 02:00:00:00:00:07 dev flannel.1 nud permanent
bridge fdb append 02:00:00:00:00:07 dev flannel.1 dst 192.168.78.7 self permanent
ip route add 172.30.7.0/24 via 172.30.7.0 dev flannel.1 onlink
ip link add flannel-v6.1 type vxlan id 1 local fd78:78::1 dev eth0 dstport 8472 nolearning
ip link set flannel-v6.1 up
ip route add fd00:30:0:7::/64 via fd00:30:0:7:: dev flannel-v6.1 onlink
";

/// Upstream's rules, by the iptables program that `V` names.
const IPTABLES: &str = r#"
rules() {
    i=$1 C=$2 P=$3 many=$4
    masq="-m comment --comment 'flanneld masq'" fwd="-m comment --comment 'flanneld forward'"
    cat <<END | eval "$i-restore --noflush"
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s $P -d $C -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s $C ! -d $many -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s $C -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d $C -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
END
}
rules iptables-$V 172.30.0.0/16 172.30.150.0/24 224.0.0.0/4
rules ip6tables-$V fd00:30::/48 fd00:30:0:150::/64 ff00::/8
"#;

/// Upstream's tables.
const NFTABLES: &str = "
nft -f - <<END
table ip flannel-ipv4 {
    chain postrtg { type nat hook postrouting priority srcnat; policy accept; meta mark 0x00004000 return; ip saddr 172.30.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random; }
    chain forward { type filter hook forward priority filter; policy accept; ip saddr 172.30.0.0/16 accept; }
    set extra { type ipv4_addr; }
}
table ip6 flannel-ipv6 { chain forward { type filter hook forward priority filter; policy accept; }
}
END
";

#[test]
fn vxlan_with_iptables_of_both_variants() {
    let lab = alone();
    let node = lab.node(1);
    furnish(node, Rules::Legacy);
    let before = witness(node);
    // As after an upgrade of the host's iptables.
    lay(
        node,
        &format!("{ENV}{VXLAN}V=legacy\n{IPTABLES}V=nft\n{IPTABLES}"),
    );
    let shown = cleans(node, &before, &[]);
    for wanted in [
        "iptables-legacy-restore",
        "ip6tables-legacy-restore",
        "iptables-nft-restore",
        "ip6tables-nft-restore",
    ] {
        assert!(
            shown.lines().any(|line| line.starts_with(wanted)),
            "{shown}"
        );
    }
    assert!(
        shown.contains("addresses: 1, neighbours: 1, forwarding entries: 1, routes: 1"),
        "{shown}"
    );
}

#[test]
fn vxlan_with_nftables_and_without_its_subnet_file() {
    let lab = alone();
    let node = lab.node(1);
    furnish(node, Rules::Nft);
    let before = witness(node);
    lay(node, &format!("{VXLAN}{NFTABLES}"));
    let (details, _) = cleanup(node, 3, &["--verbose"]);
    for detail in [
        "ip neigh del 172.30.7.0 dev flannel.1",
        "delete table ip flannel-ipv4",
    ] {
        assert!(details.contains(detail), "{details}");
    }
    cleans(node, &before, &[]);
}

#[test]
fn two_at_once_both_succeed() {
    let lab = alone();
    let node = lab.node(1);
    for _ in 0..3 {
        lay(
            node,
            &format!("{ENV}{VXLAN}V=legacy\n{IPTABLES}V=nft\n{IPTABLES}"),
        );
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| cleanup(node, 0, &["--yes"]));
            }
        });
        cleanup(node, 0, &[]);
    }
}

#[test]
fn host_gw_routes_are_upstream_s_where_nothing_is_ours() {
    let lab = alone();
    let node = lab.node(1);
    furnish(node, Rules::Legacy);
    // As like a flannel's as can be, but for one thing each.
    lay(
        node,
        "ip route add 172.30.8.0/24 via 192.168.78.7 dev eth0 proto static
         ip route add 172.30.9.0/25 via 192.168.78.7 dev eth0
         ip route add 172.31.7.0/24 via 192.168.78.7 dev eth0
         ip route add 172.30.10.0/24 dev eth0
         ip route add 172.30.11.0/24 via 192.168.78.7 dev eth0 metric 5",
    );
    let before = witness(node);
    const ROUTES: &str = "ip route add 172.30.7.0/24 via 192.168.78.7 dev eth0
         ip -6 route add fd00:30:0:7::/64 via fd78:78::7 dev eth0";
    let gone = [
        "ip route del 172.30.7.0/24 via 192.168.78.7 dev eth0",
        "ip route del fd00:30:0:7::/64 via fd78:78::7 dev eth0",
    ];
    lay(node, &format!("{ENV}V=legacy\n{IPTABLES}\n{ROUTES}"));
    let shown = cleans(node, &before, &[]);
    for route in gone {
        assert!(shown.contains(route), "{shown}");
    }
    assert_eq!(shown.matches(" via ").count(), 2, "{shown}");

    // Ours was here last: what it did not mark is somebody else's, unless one knows better.
    const OURS: &str = "ip route add 172.30.12.0/24 via 192.168.78.8 dev eth0 proto 241";
    lay(node, &format!("{ENV}{ROUTES}"));
    lay(node, OURS);
    let (shown, err) = cleanup(node, 3, &[]);
    assert_eq!(shown.matches(" via ").count(), 1, "{shown}");
    for route in gone {
        assert!(err.contains(&format!("left alone: {route}")), "{err}");
    }
    cleans(node, &before, &["--gateway-routes"]);

    // Nothing tells of a network: they stay, and are not even mentioned.
    lay(node, ROUTES);
    let (_, err) = cleanup(node, 0, &["--gateway-routes", "--yes"]);
    assert!(!err.contains("172.30.7.0"), "{err}");
    assert!(difference(&before, &witness(node)).contains("172.30.7.0"));
}

#[test]
fn ipsec_and_udp() {
    let lab = alone();
    let node = lab.node(1);
    furnish(node, Rules::Nft);
    let before = witness(node);
    let mut script =
        format!("{ENV}ip tuntap add flannel0 mode tun\nip addr add 172.30.150.0/16 dev flannel0\n");
    for (dir, from, to, out) in [
        ("out", "172.30.150.0/24", "172.30.7.0/24", true),
        ("in", "172.30.7.0/24", "172.30.150.0/24", false),
        ("fwd", "172.30.7.0/24", "172.30.150.0/24", false),
    ] {
        let ends = if out {
            "src 192.168.78.1 dst 192.168.78.7"
        } else {
            "src 192.168.78.7 dst 192.168.78.1"
        };
        script += &format!(
            "ip xfrm policy add src {from} dst {to} dir {dir} tmpl {ends} proto esp reqid 11 mode tunnel\n"
        );
    }
    // What only this project's flanneld writes.
    for (action, priority) in [("block", 1_073_745_681), ("allow", 1_073_745_680)] {
        let to = if action == "block" {
            "172.30.0.0/16"
        } else {
            "172.30.150.0/24"
        };
        script += &format!(
            "ip xfrm policy add src 172.30.150.0/24 dst {to} dir out action {action} priority {priority}\n"
        );
    }
    // What a key exchange begins with; it needs no cipher of the kernel's.
    let spi = "proto esp reqid 11 mode tunnel min 0x100 max 0x1ff";
    script += &format!("ip xfrm state allocspi src 192.168.78.1 dst 192.168.78.7 {spi}\n");
    lay(node, &script);
    let shown = cleans(node, &before, &[]);
    assert_eq!(
        shown.matches("ip xfrm policy delete src 172.30.").count(),
        5,
        "{shown}"
    );
    assert_eq!(
        shown
            .matches("ip xfrm state delete src 192.168.78.1 dst 192.168.78.7 proto esp spi 0x")
            .count(),
        1,
        "{shown}"
    );
    assert!(
        shown.contains("ip link del flannel0    # tun; goes with it: addresses: 1"),
        "{shown}"
    );
}

#[test]
fn devices_that_this_kernel_may_lack() {
    let lab = alone();
    let node = lab.node(1);
    for (name, kind) in [
        ("flannel-wg", "type wireguard"),
        ("flannel.ipip", "type ipip local 192.168.78.1"),
    ] {
        // The first device of this kind brings others of the kernel's along.
        let probe = format!("ip link add theirs {kind}");
        if node.exec(["sh", "-ec", &probe]).is_err() {
            // Past the test harness, which shows nothing of tests that pass.
            let said = writeln!(
                std::io::stderr(),
                "NOT RUN: {name}: this kernel has no such device ({kind})"
            );
            said.unwrap();
            continue;
        }
        let before = witness(node);
        lay(
            node,
            &format!("ip link add {name} {kind}; ip link set {name} up"),
        );
        let shown = cleans(node, &before, &[]);
        assert!(shown.contains(&format!("ip link del {name} ")), "{shown}");
    }
}
