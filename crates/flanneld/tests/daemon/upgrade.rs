//! An upgrade in place from an upstream flanneld.

use std::collections::BTreeMap;

use lab::{Lab, StoreKind};
use model::Family::{self, V4, V6};
use serde_json::json;

use crate::flow::{Traffic, forgets};
use crate::scene::{self, ETCD, Peer, SOON, device, lease_of, mesh};

/// The kernel as an upstream flanneld leaves it: everything `proto boot`.
struct Upstream {
    label: &'static str,
    vxlan: bool,
    store: StoreKind,
    args: &'static [&'static str],
}

const OWN: &str = "172.30.150.0";
const OWN6: &str = "fd00:30:0:150::";
const OWN_MAC: &str = "4e:00:00:00:00:01";
const OWN_MAC6: &str = "4e:00:00:00:00:06";

impl Upstream {
    /// Lays it on node 1 of `lab`, where the other nodes run ours already.
    fn lay(&self, lab: &Lab) {
        let node = lab.node(1);
        let mut lease = json!({
            "PublicIP": node.ipv4(),
            "PublicIPv6": node.ipv6(),
            "BackendType": if self.vxlan { "vxlan" } else { "host-gw" },
        });
        let mut ip = Vec::new();
        let mut bridge = Vec::new();
        if self.vxlan {
            lease["BackendData"] = json!({"VNI": 1, "VtepMAC": OWN_MAC});
            lease["BackendV6Data"] = json!({"VNI": 1, "VtepMAC": OWN_MAC6});
            for (family, mac, own, mtu) in [(V4, OWN_MAC, OWN, 1450), (V6, OWN_MAC6, OWN6, 1430)] {
                let (dev, local, len) = (device(family), node.ip(family), length(family));
                ip.push(format!(
                    "link add {dev} address {mac} mtu {mtu} type vxlan id 1 local {local} dev eth0 \
                     dstport 8472 nolearning"
                ));
                ip.push(format!("link set {dev} up"));
                ip.push(format!("addr add {own}/{len} dev {dev}"));
            }
        }
        let mut peers: Vec<(Family, Peer)> = Vec::new();
        for family in Family::ALL {
            peers.extend(
                lab.nodes()[1..]
                    .iter()
                    .map(|n| (family, Peer::of(n, family))),
            );
            peers.push((family, departed(family)));
        }
        for (family, peer) in &peers {
            let Peer {
                subnet,
                gateway,
                underlay,
                mac,
            } = peer;
            let dev = device(*family);
            match self.vxlan {
                true => {
                    ip.push(format!(
                        "neigh add {gateway} lladdr {mac} dev {dev} nud permanent"
                    ));
                    ip.push(format!("route add {subnet} via {gateway} dev {dev} onlink"));
                    bridge.push(format!(
                        "bridge fdb append {mac} dev {dev} dst {underlay} self permanent"
                    ));
                }
                false => ip.push(format!("route add {subnet} via {underlay} dev eth0")),
            }
        }
        node.ip_batch(&ip).unwrap();
        scene::run(node, &bridge.join("\n")).unwrap();
        let mtu = if self.vxlan { 1430 } else { 1500 };
        let env = format!(
            "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.150.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00:30::/48\nFLANNEL_IPV6_SUBNET=fd00:30:0:150::1/64\n\
             FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=false\n"
        );
        node.write("/run/flannel/subnet.env", &env).unwrap();
        node.add_pods(1).unwrap();
        lab.put_lease(&format!("{OWN}-24&{OWN6}-64"), &lease.to_string())
            .unwrap();
    }
}

fn length(family: Family) -> u8 {
    match family {
        V4 => 32,
        V6 => 128,
    }
}

/// A node that left while no flanneld ran here.
fn departed(family: Family) -> Peer {
    let (subnet, underlay) = match family {
        V4 => ("172.30.177.0/24", "192.168.78.77"),
        V6 => ("fd00:30:0:177::/64", "fd78:78::77"),
    };
    let subnet: ipnet::IpNet = subnet.parse().unwrap();
    Peer {
        subnet,
        gateway: subnet.addr().to_string(),
        underlay: underlay.into(),
        mac: "4e:00:00:00:00:77".into(),
    }
}

#[test]
fn an_upgrade_from_upstream_in_place_loses_no_packet() {
    let scenes = [
        Upstream {
            label: "vxlan, etcd",
            vxlan: true,
            store: ETCD,
            args: &[],
        },
        Upstream {
            label: "vxlan, directory, plain",
            vxlan: true,
            store: StoreKind::Directory,
            args: &["-plain-routes"],
        },
        Upstream {
            label: "host-gw, etcd",
            vxlan: false,
            store: ETCD,
            args: &[],
        },
        Upstream {
            label: "host-gw, directory",
            vxlan: false,
            store: StoreKind::Directory,
            args: &[],
        },
    ];
    for upstream in scenes {
        upgrade(&upstream);
    }
}

fn upgrade(upstream: &Upstream) {
    let label = format!("upgrade, {}", upstream.label);
    let lab = scene::lab()
        .nodes(3)
        .dual()
        .store(upstream.store)
        .backend(json!({ "Type": if upstream.vxlan { "vxlan" } else { "host-gw" } }))
        .flanneld_args(upstream.args.iter().copied())
        .build()
        .unwrap();
    let node = lab.node(1);
    for other in &lab.nodes()[1..] {
        other.flanneld().start_ready(SOON).unwrap();
        other.add_pods(1).unwrap();
    }
    upstream.lay(&lab);
    mesh(&lab);
    let env = node.subnet_env().unwrap();
    let index = |family| {
        node.exec(["ip", "-o", "link", "show", device(family)])
            .ok()
            .map(|text| text.split(':').next().unwrap_or_default().to_string())
    };
    let indexes = Family::ALL.map(index);
    assert!(node.picture().unwrap().has(&["route 172.30.177.0/24"]));

    // An administrator's: as long as a subnet, and no upstream flanneld writes these.
    let foreign = [
        "ip route add 172.30.0.0/24 via 192.168.78.200 proto static",
        "ip route add 172.30.240.0/20 via 192.168.78.200",
        "ip route add fd00:30:0:fe::/64 via fd78:78::200 dev eth0 proto static",
    ];
    scene::run(node, &foreign.join("\n")).unwrap();
    let administrators = node.picture().unwrap().only(".200 ");

    let traffic = Traffic::between(node, lab.node(2));
    node.flanneld().start_ready(SOON).unwrap();
    let old: Vec<String> = Family::ALL
        .into_iter()
        .flat_map(|family| {
            let Peer {
                subnet,
                underlay,
                mac,
                ..
            } = departed(family);
            [subnet.to_string(), underlay, mac]
        })
        .collect();
    forgets(node, &old, &[]);
    traffic.all_arrived(&label);

    assert_eq!(node.subnet_env().unwrap(), env, "{label}");
    assert_eq!(
        Family::ALL.map(index),
        indexes,
        "{label}: the devices are the same"
    );
    assert_eq!(lease_of(&lab, node).0, format!("{OWN}-24&{OWN6}-64"));
    let picture = node.picture().unwrap();
    assert_eq!(picture.only(".200 "), administrators, "{label}");
    assert!(
        picture.has(&["route fd00:30:0:fe::/64 via fd78:78::200"]),
        "{label}:\n{picture}"
    );
    if upstream.vxlan {
        for mac in [OWN_MAC, OWN_MAC6] {
            assert!(picture.has(&["link flannel", mac]), "{label}:\n{picture}");
        }
    }
    let mut routes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in picture.lines().filter(|line| line.starts_with("route ")) {
        let subnet = line.split(' ').nth(1).unwrap();
        routes.entry(subnet.into()).or_default().push(line.into());
    }
    for other in &lab.nodes()[1..] {
        for family in Family::ALL {
            let subnet = Peer::of(other, family).subnet.to_string();
            let found = &routes[&subnet];
            assert!(
                found.len() == 1 && found[0].ends_with("proto 241"),
                "{label}: {found:?}"
            );
        }
    }
    mesh(&lab);
}
