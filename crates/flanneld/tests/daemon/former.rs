//! Another backend, VNI or port than before: nothing of the former configuration stays.

use lab::{Lab, Node, wait_for};
use serde_json::{Value, json};

use crate::scene::{self, SOON, mesh, run};

/// Stops the daemon, gives the network another backend, and starts the daemon again, which does not know what it had
/// in use: as after a reboot, or another flannel.
fn reconfigure(lab: &Lab, node: &Node, backend: &Value) {
    node.flanneld().stop().unwrap();
    run(node, "rm -f /run/flannel/subnet.env.backends").unwrap();
    let config = json!({ "Network": "172.30.0.0/16", "Backend": backend });
    lab.put_config(&config.to_string()).unwrap();
    node.flanneld().start_ready(SOON).unwrap();
}

/// Waits until no flannel device but `devices` exists, and every route of ours leads through one of
/// them; without a device, through the interface.
fn only(node: &Node, devices: &[&str], label: &str) {
    let look = || {
        let show = |command: &str| node.exec(command.split(' ')).unwrap();
        let links = show("ip -o link show");
        let routes = show("ip route show proto 241");
        let names = links.lines().filter_map(|line| line.split(": ").nth(1));
        let flannels: Vec<&str> = names.filter(|name| name.starts_with("flannel")).collect();
        let stray = routes.lines().find(|route| {
            let through = |device: &&&str| route.contains(&format!("dev {device} "));
            let right = match devices {
                [] => through(&&"eth0"),
                devices => devices.iter().any(|device| through(&device)),
            };
            !right && !route.starts_with("blackhole")
        });
        match (flannels == devices, stray) {
            (true, None) => Ok(()),
            _ => Err(format!(
                "{flannels:?}\n{routes}\n{}",
                node.flanneld().log_tail(8)
            )),
        }
    };
    wait_for(label, SOON, look).unwrap_or_else(|e| panic!("{label}: {e}"));
}

#[test]
fn nothing_of_a_former_configuration_stays() {
    let lab = scene::lab().nodes(2).build().unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let steps = [
        (json!({"Type": "vxlan", "VNI": 2}), vec!["flannel.2"]),
        (
            json!({"Type": "vxlan", "VNI": 2, "Port": 4789}),
            vec!["flannel.2"],
        ),
        (json!({"Type": "host-gw"}), vec![]),
        (json!({"Type": "vxlan"}), vec!["flannel.1"]),
        (json!({"Type": "alloc"}), vec![]),
    ];
    for (backend, devices) in steps {
        reconfigure(&lab, node, &backend);
        only(node, &devices, &backend.to_string());
    }
}

#[test]
fn upstreams_device_goes_when_it_is_not_needed_any_more() {
    let lab = scene::lab()
        .nodes(1)
        .backend(json!({"Type": "host-gw"}))
        .build()
        .unwrap();
    let node = lab.node(1);
    // What upstream with vxlan leaves, and a second network's device beside it.
    node.write(
        "/run/flannel/subnet.env",
        "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
    )
    .unwrap();
    for (vni, net) in [(1, "172.30.7.0/32"), (9, "10.60.7.0/32")] {
        let script = format!(
            "ip link add flannel.{vni} type vxlan id {vni} dev eth0 dstport 8472 nolearning
             ip link set flannel.{vni} up
             ip address add {net} dev flannel.{vni}"
        );
        run(node, &script).unwrap();
    }
    run(
        node,
        "ip route add 172.30.8.0/24 via 172.30.8.0 dev flannel.1 onlink",
    )
    .unwrap();
    lab.start().unwrap();
    only(node, &["flannel.9"], "upstream's device");
}
