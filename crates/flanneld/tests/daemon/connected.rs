//! Interfaces of this host that are connected to a network which a lease names.

use lab::{Node, StoreKind, wait_for};

use crate::lies::good;
use crate::scene::{self, SOON, ip_json, mesh, run, says, shows};

const KEY: &str = "172.30.250.0-24";
const NET: &str = "172.30.250.0/24";

/// Waits until the routes to [`NET`] lead through exactly these devices.
fn leads_through(node: &Node, wanted: &[&str]) {
    let look = || {
        let routes = ip_json(node, &format!("route show {NET}"));
        let devices: Vec<&str> = routes
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|route| route["dev"].as_str())
            .collect();
        match devices == wanted {
            true => Ok(()),
            false => Err(format!("{routes:#}\n{}", node.flanneld().log_tail(10))),
        }
    };
    wait_for(&format!("{NET} leads through {wanted:?}"), SOON, look).unwrap();
}

#[test]
fn the_kernels_own_routes_stay() {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let lease = good("192.168.78.200", "02:00:00:00:02:00").to_string();

    run(
        node,
        "ip link add br9 up type bridge
         ip addr add 172.30.250.1/24 dev br9",
    )
    .unwrap();
    lab.put_lease(KEY, &lease).unwrap();
    says(node.flanneld(), &["WARN", KEY, "interface br9", "remove"]);
    leads_through(node, &["br9"]);
    // The other node has no such interface.
    shows(lab.node(2), &["route 172.30.250.0/24 "]);

    // The kernel drops the route without a notification.
    run(node, "ip link set br9 down").unwrap();
    leads_through(node, &["flannel.1"]);

    // And puts its own behind ours.
    run(node, "ip link set br9 up").unwrap();
    leads_through(node, &["br9"]);

    node.flanneld().restart(SOON).unwrap();
    says(node.flanneld(), &["WARN", KEY, "interface br9"]);
    leads_through(node, &["br9"]);
    run(node, "ip link del br9").unwrap();
    leads_through(node, &["flannel.1"]);

    // The network of the node's own containers is no reason to take another subnet.
    let before = node.subnet_env().unwrap();
    let own = before.subnet.iter().next().unwrap().1;
    run(
        node,
        &format!("ip link add br9 up type bridge\nip addr add {own} dev br9"),
    )
    .unwrap();
    node.flanneld().restart(SOON).unwrap();
    assert_eq!(node.subnet_env().unwrap(), before);
    mesh(&lab);
}
