//! What other programs put into the same kernel stays as it is, whatever happens to flannel.

use lab::{Lab, Node, wait_for};
use model::Family;
use serde_json::Value;

use crate::restart::NETWORKS;
use crate::scene::{Peer, SOON, device, ip_json, lease_of, mesh, run};

/// Routes on the flannel interface inside the flannel network are the hard case; then docker's
/// bridge, a routing daemon's routes, an administrator's black hole, policy routing, a foreign
/// tunnel with its entries and foreign next-hop objects.
const FOREIGN: &str = "
    ip addr add 10.20.0.1/24 dev eth0
    ip addr add fd20::1/64 dev lo nodad
    ip route add 172.30.0.0/24 via 192.168.78.200 proto static
    ip route add 172.30.0.128/25 via 192.168.78.200
    ip route add 172.30.0.0/16 via 192.168.78.200 proto bird metric 500
    ip route add fd00:30::/64 via fd78:78::200 dev eth0 proto static
    ip route add fd00:30::/48 via fd78:78::200 dev eth0 proto bird metric 2048
    ip route add blackhole 172.31.0.0/16
    ip route add unreachable 172.30.0.64/26 proto static
    ip route add 10.99.0.0/16 via 192.168.78.200 proto 241
    ip route add 172.30.0.0/28 dev eth0 table 100
    ip rule add from 172.30.0.0/16 lookup 100 pref 100
    ip neigh add 192.168.78.200 lladdr 02:00:00:00:00:c8 dev eth0 nud permanent
    ip neigh add fd78:78::200 lladdr 02:00:00:00:00:c8 dev eth0 nud permanent
    ip link add docker0 up type bridge
    ip addr add 172.17.0.1/16 dev docker0
    ip link add vxlan.other address 02:00:00:00:00:0a type vxlan id 4096 local 192.168.78.1 dev eth0 dstport 4789 nolearning
    ip link set vxlan.other up
    ip addr add 10.42.0.0/32 dev vxlan.other
    ip neigh add 10.42.1.0 lladdr 02:00:00:00:00:0b dev vxlan.other nud permanent
    ip route add 10.42.1.0/24 via 10.42.1.0 dev vxlan.other onlink
    ip nexthop add id 7 via 192.168.78.200 dev eth0
    ip nexthop add id 8 via 192.168.78.201 dev eth0 protocol 241
    ip nexthop add id 1073741830 blackhole
    ip route add 10.98.0.0/16 nhid 7
    bridge fdb append 02:00:00:00:00:0b dev vxlan.other dst 192.168.78.201 self permanent
";

/// What `FOREIGN` made: lines that the kernel holds and would not without it, and what `ip` says of
/// what the picture leaves out.
struct Foreign {
    lines: Vec<String>,
    rest: [Value; 3],
}

fn rest(node: &Node) -> [Value; 3] {
    [
        "rule show",
        "route show table 100",
        "nexthop show id 1073741830",
    ]
    .map(|what| ip_json(node, what))
}

impl Foreign {
    fn lay(node: &Node) -> Foreign {
        let before = node.picture().unwrap();
        run(node, FOREIGN).unwrap();
        let difference = before.difference(&node.picture().unwrap());
        let lines = difference
            .iter()
            .map(|line| line.strip_prefix("+ ").unwrap().to_string());
        let lines: Vec<String> = lines.collect();
        assert!(lines.len() > 20, "{lines:#?}");
        Foreign {
            lines,
            rest: rest(node),
        }
    }

    fn untouched(&self, node: &Node, label: &str) {
        let picture = node.picture().unwrap();
        for line in &self.lines {
            assert!(
                picture.lines().any(|l| l == line),
                "{label}: {line} is gone; there are\n{picture}"
            );
        }
        assert_eq!(rest(node), self.rest, "{label}");
    }
}

#[test]
fn what_others_put_into_the_kernel_stays() {
    for (label, backend, store, args) in NETWORKS {
        let lab = crate::scene::lab()
            .nodes(4)
            .dual()
            .store(store)
            .backend(serde_json::json!({ "Type": backend }))
            .flanneld_args(args.iter().copied())
            .build()
            .unwrap();
        let node = lab.node(1);
        let foreign = Foreign::lay(node);
        let at = |step: &str| foreign.untouched(node, &format!("{label}, {step}"));

        lab.start().unwrap();
        mesh(&lab);
        at("start");

        for family in Family::ALL {
            let Peer { subnet, .. } = Peer::of(lab.node(2), family);
            run(node, &format!("ip route del {subnet}")).unwrap();
            if backend == "vxlan" {
                run(node, &format!("ip link del {}", device(family))).unwrap();
            }
        }
        mesh(&lab);
        at("repair");

        churn(&lab);
        at("churn");

        node.flanneld().restart(SOON).unwrap();
        mesh(&lab);
        at("restart");
        node.flanneld().kill9().unwrap();
        node.flanneld().start_ready(SOON).unwrap();
        mesh(&lab);
        at("kill -9");
    }
}

/// A node leaves, and comes back with another subnet.
fn churn(lab: &Lab) {
    let (node, leaver) = (lab.node(1), lab.node(4));
    leaver.flanneld().stop().unwrap();
    let old = Peer::of(leaver, Family::V4).subnet;
    let (key, _) = lease_of(lab, leaver);
    lab.delete_lease(&key).unwrap();
    let gone = || match node.picture().unwrap().has(&[&format!("route {old} ")]) {
        true => Err("the route is there"),
        false => Ok(()),
    };
    wait_for("the route to the node that left is gone", SOON, gone).unwrap();
    leaver.flanneld().start_ready(SOON).unwrap();
    crate::scene::meshed(&lab.nodes().iter().collect::<Vec<_>>());
}
