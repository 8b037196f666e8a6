//! After our own daemon, in every mode.

use lab::{Lab, LabBuilder};
use serde_json::json;

use crate::host::{Rules, SOON, cleans, cleanup, difference, furnish, witness};

/// What the CNI plugin and `mk-docker-opts.sh` leave.
const FILES: &str = r#"
mkdir -p /var/lib/cni/flannel
echo '{"name":"cbr0","type":"bridge"}' >/var/lib/cni/flannel/0123456789abcdef
echo '{"name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]}' >/run/cni-conf/10-flannel.conflist
echo 'DOCKER_NETWORK_OPTIONS=" --bip=172.30.1.1/24"' >/run/flannel/docker
echo 'DOCKER_OPTS=" --bip=172.30.1.1/24 --mtu=1450"' >/run/docker_opts.env
echo half >/run/flannel/.subnet.env.4711.tmp
"#;

/// Has flanneld run on the first of two nodes until it knows the second (`peer` is in its kernel), and
/// cleans up behind it. Each of `wanted` must be shown.
fn is_cleaned_up(builder: LabBuilder, rules: Rules, peer: Option<&str>, wanted: &[&str]) {
    let lab = builder
        .nodes(2)
        .flanneld_args(["-ip-masq", "-ip-blackhole-route"])
        .build()
        .unwrap();
    let node = lab.node(1);
    furnish(node, rules);
    let before = witness(node);
    lab.node(2).flanneld().start_ready(SOON).unwrap();
    node.flanneld().start_ready(SOON).unwrap();
    let knows = || {
        let picture = node.picture().unwrap();
        match peer.is_none_or(|peer| picture.has(&["route ", peer])) {
            true => Ok(()),
            false => Err(picture.to_string()),
        }
    };
    lab::wait_for("the peer's route is there", SOON, knows).unwrap();
    node.exec(["sh", "-ec", FILES]).unwrap();

    let with = witness(node);
    let pid = node.flanneld().pid().unwrap();
    let (_, err) = cleanup(node, 1, &["--yes"]);
    assert!(
        err.contains(&format!("process {pid}: stop it first")),
        "{err}"
    );
    // What it still does by itself is no removal.
    let changed = difference(&with, &witness(node));
    assert!(!changed.contains("- "), "a daemon runs: {changed}");
    node.flanneld().stop().unwrap();

    let shown = cleans(node, &before, &[]);
    let files = [
        "rm /run/flannel/subnet.env",
        "rm /run/flannel/docker",
        "rm /run/docker_opts.env",
        "rm /run/flannel/.subnet.env.4711.tmp",
        "rm /run/cni-conf/10-flannel.conflist",
        "rm /var/lib/cni/flannel/0123456789abcdef",
        "rmdir /run/flannel",
        "rmdir /var/lib/cni/flannel",
        "ip route del blackhole ",
    ];
    for wanted in files.iter().chain(wanted) {
        assert!(shown.contains(wanted), "no {wanted} in\n{shown}");
    }
}

#[test]
fn vxlan_dual_stack_with_legacy_iptables() {
    let wanted = [
        "ip link del flannel.1    # vxlan 1; goes with it: addresses: 1, neighbours: 1, forwarding entries: 1",
        "ip link del flannel-v6.1    # vxlan 1; goes with it: addresses: 1",
        "iptables-legacy-restore --noflush    # IPv4 traffic rules",
        "ip6tables-legacy-restore --noflush    # IPv6 traffic rules",
    ];
    is_cleaned_up(
        Lab::builder().dual(),
        Rules::Legacy,
        Some("dev flannel.1"),
        &wanted,
    );
}

#[test]
fn vxlan_ipv6_with_iptables_nft() {
    let wanted = [
        "ip link del flannel-v6.1 ",
        "ip6tables-nft-restore --noflush",
    ];
    let builder = Lab::builder().ipv4(false).ipv6(true);
    is_cleaned_up(builder, Rules::Nft, Some("dev flannel-v6.1"), &wanted);
}

#[test]
fn vxlan_direct_routing_with_nftables() {
    let wanted = [
        "ip link del flannel.1 ",
        " via 192.168.78.2 dev eth0",
        "nft -f -    # IPv4 traffic rules",
    ];
    let builder = Lab::builder()
        .backend(json!({"Type": "vxlan", "DirectRouting": true}))
        .config("EnableNFTables", json!(true));
    is_cleaned_up(builder, Rules::Nft, Some("via 192.168.78.2 "), &wanted);
}

#[test]
fn host_gw_with_nftables() {
    let wanted = [
        " via 192.168.78.2 dev eth0",
        "nft -f -    # IPv4 traffic rules",
    ];
    let builder = Lab::builder()
        .backend(json!({"Type": "host-gw"}))
        .config("EnableNFTables", json!(true));
    is_cleaned_up(builder, Rules::Legacy, Some("via 192.168.78.2 "), &wanted);
}

#[test]
fn host_gw_dual_stack_with_iptables_nft() {
    let wanted = [" via 192.168.78.2 dev eth0", " via fd78:78::2 dev eth0"];
    let builder = Lab::builder().backend(json!({"Type": "host-gw"})).dual();
    is_cleaned_up(builder, Rules::Nft, Some("via fd78:78::2 "), &wanted);
}

#[test]
fn alloc_with_legacy_iptables() {
    let builder = Lab::builder().backend(json!({"Type": "alloc"}));
    is_cleaned_up(builder, Rules::Legacy, None, &["iptables-legacy-restore"]);
}

/// Without peers a node's kernel holds nothing with our mark, and with alloc it never does: an
/// administrator's route within the network stays, through a restart of the daemon and a cleanup.
#[test]
fn an_administrator_s_route_stays_on_a_node_without_peers() {
    for backend in [
        json!({"Type": "alloc"}),
        json!({"Type": "host-gw"}),
        json!({"Type": "vxlan"}),
        json!({"Type": "vxlan", "DirectRouting": true}),
    ] {
        let lab = Lab::builder().nodes(1).backend(backend.clone());
        let lab = lab.build().unwrap();
        let node = lab.node(1);
        node.flanneld().start_ready(SOON).unwrap();
        const ROUTE: [&str; 6] = [
            "route",
            "add",
            "172.30.200.0/24",
            "via",
            "192.168.78.2",
            "dev",
        ];
        node.exec([&["ip"], &ROUTE[..], &["eth0"]].concat())
            .unwrap();
        let stays = |when: &str| {
            let picture = node.picture().unwrap();
            assert!(
                picture.has(&["route 172.30.200.0/24 via"]),
                "{backend} {when}"
            );
        };
        node.flanneld().restart(SOON).unwrap();
        stays("after a restart");
        node.flanneld().stop().unwrap();
        let (_, err) = cleanup(node, 0, &["--yes"]);
        let left = "left alone: ip route del 172.30.200.0/24 via 192.168.78.2";
        assert!(err.contains(left), "{backend}: {err}");
        stays("after a cleanup");
        // A second one knows nothing of the network any more.
        cleanup(node, 0, &["--yes"]);
        stays("after two cleanups");
    }
}

/// Upstream ran after us: the record of what we wrote says nothing about its file.
#[test]
fn a_route_of_upstream_s_after_ours_goes() {
    let lab = Lab::builder().nodes(1).backend(json!({"Type": "host-gw"}));
    let lab = lab.build().unwrap();
    let node = lab.node(1);
    let before = witness(node);
    node.flanneld().start_ready(SOON).unwrap();
    node.flanneld().stop().unwrap();
    // As upstream does: the same text without our mark, in a new file.
    let upstream = "cd /run/flannel; grep -v '^#' subnet.env >new; mv new subnet.env
                    ip route add 172.30.200.0/24 via 192.168.78.2 dev eth0";
    node.exec(["sh", "-ec", upstream]).unwrap();
    let shown = cleans(node, &before, &[]);
    assert!(shown.contains("ip route del 172.30.200.0/24"), "{shown}");
}
