//! What changes on the host between two runs of the daemon: it finds another world than it left.

use lab::{Lab, Node, StoreKind, wait_for};
use model::Family::{V4, V6};
use serde_json::{Value, json};

use crate::scene::{self, ETCD, Peer, SOON, ip_json, lease_of, mesh, meshed, run, says, shows};

fn two_nodes(store: StoreKind) -> Lab {
    let lab = scene::lab().nodes(2).store(store).build().unwrap();
    lab.start().unwrap();
    mesh(&lab);
    lab
}

/// Waits until `node` has neither a line with `text` nor what stands for it.
fn lacks(node: &Node, text: &str) {
    let look = || {
        let picture = node.picture().unwrap();
        match picture.has(&[text]) {
            false => Ok(()),
            true => Err(format!("{text} is still there:\n{picture}")),
        }
    };
    wait_for(&format!("{text} goes"), SOON, look).unwrap();
}

/// Waits until the daemon has seen all that others did until now: it repairs what is broken here.
fn has_caught_up(node: &Node, peer: &Node) {
    let subnet = Peer::of(peer, V4).subnet;
    run(node, &format!("ip route del {subnet}")).unwrap();
    shows(node, &[&format!("route {subnet} ")]);
}

#[test]
fn another_address_keeps_the_subnet() {
    for store in [ETCD, StoreKind::Directory] {
        let lab = two_nodes(store);
        let (node, peer) = (lab.node(1), lab.node(2));
        let before = (node.subnet_env().unwrap(), lease_of(&lab, node).0);
        node.flanneld().stop().unwrap();
        run(
            node,
            "ip addr del 192.168.78.1/24 dev eth0
             ip addr add 192.168.78.111/24 dev eth0
             ip route add 0.0.0.0/0 via 192.168.78.254 dev eth0",
        )
        .unwrap();
        let env = node.flanneld().start_ready(SOON).unwrap();
        assert_eq!(env, before.0, "{store:?}");
        shows(peer, &["fdb ", "dev flannel.1 dst 192.168.78.111"]);
        mesh(&lab);
        let leases = lab.leases().unwrap();
        assert_eq!(leases.len(), 2, "{leases:?}");
        let lease: Value = serde_json::from_str(&leases[&before.1]).unwrap();
        assert_eq!(lease["PublicIP"], json!("192.168.78.111"));
        let log = peer.flanneld().log();
        assert!(!log.contains("is not used"), "{log}");
    }
}

#[test]
fn a_second_ipv6_address_changes_nothing() {
    let lab = scene::lab()
        .nodes(2)
        .ipv4(false)
        .ipv6(true)
        .underlay(false, true)
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let before = (node.subnet_env().unwrap(), lease_of(&lab, node).0);
    node.flanneld().stop().unwrap();
    // The kernel lists the newest first.
    run(node, "ip addr add fd78:78::53/64 dev eth0 nodad").unwrap();
    let env = node.flanneld().start_ready(SOON).unwrap();
    // Found by the public address that it had.
    assert_eq!((env, lease_of(&lab, node).0), before);
    assert_eq!(lab.leases().unwrap().len(), 2);
    mesh(&lab);
}

#[test]
fn another_mtu_is_taken() {
    let lab = two_nodes(StoreKind::Directory);
    let node = lab.node(1);
    node.flanneld().stop().unwrap();
    run(node, "ip link set eth0 mtu 1400").unwrap();
    let env = node.flanneld().start_ready(SOON).unwrap();
    assert_eq!(env.mtu, 1350);
    shows(node, &["link flannel.1 up mtu 1350"]);
    mesh(&lab);
}

#[test]
fn an_interface_of_another_name_is_the_same_one() {
    let lab = two_nodes(ETCD);
    let node = lab.node(1);
    let before = node.subnet_env().unwrap();
    let index = |node: &Node| ip_json(node, "link show dev flannel.1")[0]["ifindex"].clone();
    let device = index(node);
    node.flanneld().stop().unwrap();
    rename(node);
    assert_eq!(node.flanneld().start_ready(SOON).unwrap(), before);
    says(node.flanneld(), &["using interface lan0"]);
    assert_eq!(
        index(node),
        device,
        "the tunnel's device was not made again"
    );
    meshed(&[node, lab.node(2)]);
    mesh(&lab);
}

/// The tunnel is bound to the interface and not to its name.
#[test]
fn an_interface_that_is_renamed_while_it_runs_keeps_its_tunnel() {
    let lab = two_nodes(ETCD);
    let (node, peer) = (lab.node(1), lab.node(2));
    let index = |node: &Node| ip_json(node, "link show dev flannel.1")[0]["ifindex"].clone();
    let device = index(node);
    rename(node);
    has_caught_up(node, peer);
    assert_eq!(index(node), device, "{}", node.flanneld().log_tail(10));
    mesh(&lab);
}

/// Gives the underlay's interface another name. Before Linux 6.2 it has to be down for that.
fn rename(node: &Node) {
    run(
        node,
        "ip link set eth0 down
         ip link set eth0 name lan0
         ip link set lan0 up
         ip route add 0.0.0.0/0 via 192.168.78.254 dev lan0",
    )
    .unwrap();
}

/// What is broken while nobody watches is whole again when the node says that it is ready, or soon after.
#[test]
fn what_was_broken_is_whole_again() {
    let lab = two_nodes(ETCD);
    let (node, peer) = (lab.node(1), lab.node(2));
    let before = node.picture().unwrap();
    let far = Peer::of(peer, V4);
    let (mac, subnet) = (&far.mac, &far.subnet);
    for damage in [
        "ip link del flannel.1".to_owned(),
        "ip link set flannel.1 down".to_owned(),
        "ip addr flush dev flannel.1".to_owned(),
        "ip link set flannel.1 mtu 1300".to_owned(),
        format!("ip route replace {subnet} via 192.168.78.77 dev eth0"),
        format!("bridge fdb replace {mac} dev flannel.1 dst 192.168.78.99 self permanent"),
    ] {
        node.flanneld().stop().unwrap();
        run(node, &damage).unwrap();
        node.flanneld().start_ready(SOON).unwrap();
        let look = || match before.difference(&node.picture().unwrap()).as_slice() {
            [] => Ok(()),
            lines => Err(format!("{lines:#?}\n{}", node.flanneld().log_tail(10))),
        };
        wait_for(&format!("whole after {damage}"), SOON, look).unwrap();
    }
    mesh(&lab);
}

/// Routes without a mark are upstream's when upstream ran here last, and else an administrator's.
#[test]
fn an_administrators_routes_stay_after_the_take_over() {
    const FILE: &str = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let (node, peer) = (lab.node(1), lab.node(2));
    node.write("/run/flannel/subnet.env", FILE).unwrap();
    // As upstream's host-gw leaves it.
    run(node, "ip route add 172.30.9.0/24 via 192.168.78.9").unwrap();
    lab.start().unwrap();
    mesh(&lab);
    lacks(node, "route 172.30.9.0/24 ");

    let first = "route 172.30.0.0/24 via 192.168.78.77";
    run(node, "ip route add 172.30.0.0/24 via 192.168.78.77").unwrap();
    has_caught_up(node, peer);
    shows(node, &[first]);
    node.flanneld().restart(SOON).unwrap();
    has_caught_up(node, peer);
    shows(node, &[first]);

    // A node without peers holds no route of ours; who ran here last is known all the same.
    let gone = format!("route {} ", Peer::of(peer, V4).subnet);
    let (key, _) = lease_of(&lab, peer);
    peer.flanneld().kill9().unwrap();
    lab.delete_lease(&key).unwrap();
    lacks(node, &gone);
    node.flanneld().stop().unwrap();
    run(node, "ip route add 172.30.8.0/24 via 192.168.78.78").unwrap();
    node.flanneld().start_ready(SOON).unwrap();
    peer.flanneld().start_ready(SOON).unwrap();
    mesh(&lab);
    for route in [first, "route 172.30.8.0/24 via 192.168.78.78"] {
        shows(node, &[route]);
    }
}

/// Somebody has taken the number of one of our next-hop objects.
#[test]
fn another_programs_next_hop_object_stays_what_it_is() {
    let lab = two_nodes(StoreKind::Directory);
    let (node, peer) = (lab.node(1), lab.node(2));
    let far = Peer::of(peer, V4);
    let hops = ip_json(node, "nexthop show");
    let hops = hops.as_array().unwrap();
    let hop = hops
        .iter()
        .find(|hop| hop["gateway"] == far.gateway.as_str());
    let id = hop.unwrap()["id"].as_u64().unwrap();
    node.flanneld().stop().unwrap();
    // With the object goes its route.
    run(
        node,
        &format!(
            "ip nexthop del id {id}
             ip nexthop add id {id} via 192.168.78.77 dev eth0
             ip route add 10.97.0.0/16 nhid {id}"
        ),
    )
    .unwrap();
    let theirs = "route 10.97.0.0/16 via 192.168.78.77 dev eth0";
    node.flanneld().start_ready(SOON).unwrap();
    mesh(&lab);
    shows(node, &[theirs]);
    let (key, _) = lease_of(&lab, peer);
    peer.flanneld().kill9().unwrap();
    lab.delete_lease(&key).unwrap();
    lacks(node, &format!("route {} ", far.subnet));
    shows(node, &[theirs]);
}

/// A failure that is over does not hide the one that follows it.
#[test]
fn each_failure_that_lasts_is_reported() {
    let lab = scene::lab().nodes(1).dual().build().unwrap();
    let node = lab.node(1);
    node.exec(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
        .unwrap();
    run(
        node,
        "ip link add other type vxlan id 1 dev eth0 dstport 8472\nip link set other up",
    )
    .unwrap();
    node.flanneld().start().unwrap();
    says(node.flanneld(), &["WARN", "kernel refuses", "flannel.1"]);
    run(node, "ip link del other").unwrap();
    shows(node, &["link flannel.1 up"]);
    says(
        node.flanneld(),
        &["WARN", "kernel refuses", "flannel-v6.1", "address"],
    );
    node.exec(["sysctl", "-qw", "net/ipv6/conf/flannel-v6.1/disable_ipv6=0"])
        .unwrap();
    node.flanneld().wait_ready(SOON).unwrap();
    let own = Peer::of(node, V6);
    shows(node, &["addr ", &own.gateway, "dev flannel-v6.1"]);
}
