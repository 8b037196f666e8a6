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
