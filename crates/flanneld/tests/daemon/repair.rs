//! Whatever is broken under a running daemon is put right by itself, by the kernel's own notice of it:
//! no full look that the daemon makes by itself comes in between. How long it takes is printed; what it
//! may take is the benchmark's to say.

use std::time::{Duration, Instant};

use lab::{Error, Lab, Namespace, Node, StoreKind, wait_for};
use model::Family::{self, V4, V6};
use serde_json::json;

use crate::scene::{self, ETCD, Peer, device, figure, ip_json, measuring, mesh, run};

/// How often a route is deleted, and how often anything else is broken.
const ROUTES: usize = 15;
const TIMES: usize = 3;

/// After this the repair has failed. The daemon looks by itself once in one to three minutes.
const GIVE_UP: Duration = Duration::from_secs(45);

/// One way of breaking a node.
struct Fault {
    name: String,
    /// The command lines that do it.
    script: String,
    /// They are several, and the daemon would repair what the first of them broke before the next:
    /// it sleeps meanwhile.
    asleep: bool,
}

fn fault(name: impl Into<String>, script: impl Into<String>) -> Fault {
    let (name, script) = (name.into(), script.into());
    // `flush` looks whether all is gone, and again: it would not end.
    let asleep = script.lines().count() > 1 || script.contains(" flush ");
    Fault {
        name,
        script,
        asleep,
    }
}

/// So long everything must have stayed as before when a repair is reported.
const SETTLED: Duration = Duration::from_millis(20);

impl Fault {
    /// Breaks `node`; returns how long it took to be whole again, since the daemon could act.
    fn strike(&self, node: &Node) -> Result<Duration, Error> {
        if !self.asleep {
            let repair = node.measure_repair(|| run(node, &self.script), GIVE_UP)?;
            return Ok(repair.took);
        }
        let mut awake = Instant::now();
        let fault = || {
            node.flanneld().freeze()?;
            let made = run(node, &self.script);
            node.flanneld().thaw()?;
            awake = Instant::now();
            made
        };
        let repair = node.measure_repair(fault, GIVE_UP)?;
        Ok(repair.took.min(awake.elapsed().saturating_sub(SETTLED)))
    }
}

/// Returns what `fault` returns, made again should the daemon have looked by itself meanwhile: then
/// nothing is known of what caused the repair.
pub fn caused_by_notices<T>(node: &Node, mut fault: impl FnMut() -> T) -> T {
    let audits = || {
        let (_, text) = node.flanneld().http_get("/metrics").unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("flannel_kernel_audits_total "));
        line.unwrap().to_owned()
    };
    for _ in 0..3 {
        let before = audits();
        let result = fault();
        if audits() == before {
            return result;
        }
    }
    panic!("{}: a full look in each of three repairs", node.name());
}

/// Breaks `node` again and again; asserts what repaired it, and that the network works afterwards.
fn survives(lab: &Lab, node: &Node, label: &str, faults: &[Fault]) {
    for fault in faults {
        let name = &fault.name;
        let times = if name.ends_with("route deleted") {
            ROUTES
        } else {
            TIMES
        };
        let strike = || {
            let repaired = fault.strike(node);
            repaired.unwrap_or_else(|e| {
                panic!("{label}, {name}: {e}\n{}", node.flanneld().log_tail(30))
            })
        };
        let took = (0..times).map(|_| caused_by_notices(node, strike));
        let (_, _, text) = figure(took.collect());
        eprintln!("repair, {label:<28} {name:<42} {text}");
    }
    lab.must_ping().unwrap();
}

/// The id of the next-hop object through `gateway`, as `ip` tells it.
fn next_hop_id(node: &Node, gateway: &str) -> Option<u64> {
    let hops = ip_json(node, "nexthop show");
    let hop = hops
        .as_array()?
        .iter()
        .find(|hop| hop["gateway"] == gateway)?;
    hop["id"].as_u64()
}

fn vxlan_faults(node: &Node, peer: &Node, family: Family) -> Vec<Fault> {
    let Peer {
        subnet,
        gateway,
        underlay,
        mac,
    } = Peer::of(peer, family);
    let dev = device(family);
    let own = Peer::of(node, family);
    let (own_addr, own_mac) = (own.gateway, own.mac);
    let (length, wrong_ip, wrong_local) = match family {
        V4 => (32, "192.168.78.99", "192.168.78.98"),
        V6 => (128, "fd78:78::99", "fd78:78::98"),
    };
    let wrong_mac = "02:00:00:00:00:99";
    let named = |name: &str| format!("{family}: {name}");
    let mut faults = vec![
        fault(named("route deleted"), format!("ip route del {subnet}")),
        fault(
            named("route replaced"),
            format!("ip route replace {subnet} via {wrong_ip} dev eth0"),
        ),
        fault(
            named("route made a black hole"),
            format!("ip route del {subnet}\nip route add blackhole {subnet}"),
        ),
        fault(
            named("foreign route on the device"),
            format!(
                "ip route add {} via {gateway} dev {dev} onlink",
                stray(family)
            ),
        ),
        fault(
            named("neighbour deleted"),
            format!("ip neigh del {gateway} dev {dev}"),
        ),
        fault(
            named("neighbour changed"),
            format!("ip neigh replace {gateway} lladdr {wrong_mac} dev {dev} nud permanent"),
        ),
        fault(
            named("neighbour no longer permanent"),
            format!("ip neigh replace {gateway} lladdr {mac} dev {dev} nud stale"),
        ),
        fault(
            named("neighbours flushed"),
            format!("ip {} neigh flush dev {dev} nud permanent", option(family)),
        ),
        fault(
            named("FDB entry deleted"),
            format!("bridge fdb del {mac} dev {dev} dst {underlay} self"),
        ),
        fault(
            named("FDB entry changed"),
            format!("bridge fdb replace {mac} dev {dev} dst {wrong_ip} self permanent"),
        ),
        fault(
            named("foreign FDB entry on the device"),
            format!("bridge fdb append {wrong_mac} dev {dev} dst {wrong_ip} self permanent"),
        ),
        fault(
            named("foreign neighbour on the device"),
            format!(
                "ip neigh add {} lladdr {wrong_mac} dev {dev} nud permanent",
                stray(family).addr()
            ),
        ),
        fault(
            named("address deleted"),
            format!("ip addr del {own_addr}/{length} dev {dev}"),
        ),
        fault(
            named("foreign address on the device"),
            format!("ip addr add {}/{length} dev {dev}", stray(family).addr()),
        ),
        fault(
            named("MAC changed"),
            format!("ip link set {dev} address {wrong_mac}"),
        ),
        fault(named("MTU changed"), format!("ip link set {dev} mtu 1300")),
        fault(named("device down"), format!("ip link set {dev} down")),
        fault(named("device deleted"), format!("ip link del {dev}")),
        fault(
            named("device of another kind in its place"),
            format!("ip link del {dev}\nip link add {dev} type bridge"),
        ),
        fault(
            named("device with other parameters"),
            format!(
                "ip link del {dev}\nip link add {dev} address {own_mac} mtu 1450 up type vxlan id 1 \
                 local {wrong_local} dev eth0 dstport 8473 nolearning"
            ),
        ),
    ];
    let Some(id) = next_hop_id(node, &gateway) else {
        // `ip route flush` cannot delete routes through next-hop objects: the kernel refuses.
        let flush = format!("ip {} route flush dev {dev} proto 241", option(family));
        faults.push(fault(named("routes flushed"), flush));
        return faults;
    };
    faults.extend([
        fault(named("next hop deleted"), format!("ip nexthop del id {id}")),
        fault(
            named("next hop replaced"),
            format!("ip nexthop replace id {id} via {wrong_ip} dev eth0"),
        ),
        fault(named("next hops flushed"), "ip nexthop flush"),
    ]);
    faults
}

/// A subnet of the lab's networks that no node of the lab gets: outside SubnetMin and SubnetMax.
fn stray(family: Family) -> ipnet::IpNet {
    match family {
        V4 => "172.30.0.0/24".parse().unwrap(),
        V6 => "fd00:30::/64".parse().unwrap(),
    }
}

fn host_gw_faults(peer: &Node, family: Family) -> Vec<Fault> {
    let Peer { subnet, .. } = Peer::of(peer, family);
    let wrong = match family {
        V4 => "192.168.78.99",
        V6 => "fd78:78::99",
    };
    let named = |name: &str| format!("{family}: {name}");
    vec![
        fault(named("route deleted"), format!("ip route del {subnet}")),
        fault(
            named("route replaced"),
            format!("ip route replace {subnet} via {wrong} dev eth0"),
        ),
        fault(
            named("route made a black hole"),
            format!("ip route del {subnet}\nip route add blackhole {subnet}"),
        ),
        fault(
            named("our routes flushed"),
            format!("ip {} route flush proto 241", option(family)),
        ),
    ]
}

/// The underlay goes away and comes back. What the kernel itself drops with it and no daemon of
/// ours owns (IPv6 addresses, default routes) is put back by the one who flaps it.
fn flaps(node: &Node) -> Vec<Fault> {
    let (v4, v6) = (node.ipv4(), node.ipv6());
    let flaps = [
        (
            "underlay interface down and up",
            format!(
                "ip link set eth0 down\nip link set eth0 up\n\
                 ip addr add {v6}/64 dev eth0 nodad\n\
                 ip route add 0.0.0.0/0 via 192.168.78.254 dev eth0\n\
                 ip route add ::/0 via fd78:78::fe dev eth0"
            ),
        ),
        (
            "underlay address gone and back",
            format!(
                "ip addr del {v4}/24 dev eth0\nip addr add {v4}/24 dev eth0\n\
                 ip route add 0.0.0.0/0 via 192.168.78.254 dev eth0"
            ),
        ),
    ];
    // Once under the daemon's eyes, step by step, and once behind its back.
    let seen = flaps.iter().map(|(name, script)| Fault {
        asleep: false,
        ..fault(*name, script)
    });
    let unseen = flaps
        .iter()
        .map(|(name, script)| fault(format!("{name}, unseen"), script));
    seen.chain(unseen).collect()
}

fn built(kind: &str, store: StoreKind, args: &[&str]) -> Lab {
    let lab = scene::lab()
        .nodes(3)
        .dual()
        .store(store)
        .backend(json!({ "Type": kind }))
        .flanneld_args(args.iter().copied())
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    lab
}

fn vxlan(label: &str, store: StoreKind, args: &[&str], objects: bool) {
    let _turn = measuring();
    let lab = built("vxlan", store, args);
    let (node, peer) = (lab.node(1), lab.node(2));
    let gateway = Peer::of(peer, V4).gateway;
    assert_eq!(next_hop_id(node, &gateway).is_some(), objects);
    for family in Family::ALL {
        survives(&lab, node, label, &vxlan_faults(node, peer, family));
    }
    survives(&lab, node, label, &flaps(node));
    unplugged(&lab, label);
}

#[test]
fn vxlan_with_next_hop_objects_on_etcd() {
    vxlan("vxlan, etcd", ETCD, &[], true);
}

#[test]
fn vxlan_with_plain_routes_on_a_directory() {
    let plain = ["-plain-routes"];
    vxlan(
        "vxlan, directory, plain",
        StoreKind::Directory,
        &plain,
        false,
    );
}

#[test]
fn host_gw() {
    let _turn = measuring();
    for (label, store) in [
        ("host-gw, etcd", ETCD),
        ("host-gw, directory", StoreKind::Directory),
    ] {
        let lab = built("host-gw", store, &[]);
        let (node, peer) = (lab.node(1), lab.node(2));
        for family in Family::ALL {
            survives(&lab, node, label, &host_gw_faults(peer, family));
        }
        survives(&lab, node, label, &flaps(node));
        unplugged(&lab, label);
    }
}

/// The cable is pulled at the other end and put back: the node sees its carrier go and come.
fn unplugged(lab: &Lab, label: &str) {
    let (node, fabric) = (lab.node(1), lab.fabric());
    let mut took = Vec::new();
    for _ in 0..TIMES {
        took.push(caused_by_notices(node, || replug(node, fabric)));
    }
    let (_, _, text) = figure(took);
    eprintln!(
        "repair, {label:<28} {:<42} {text}",
        "underlay unplugged and plugged in"
    );
    mesh(lab);
}

fn replug(node: &Node, fabric: &Namespace) -> Duration {
    let mut back = Instant::now();
    let fault = || {
        run(fabric, "ip link set n1 down")?;
        let gone = || match node.picture()?.has(&["linkdown"]) {
            true => Ok(()),
            false => Err(Error::Bad("the carrier is there".into())),
        };
        wait_for("the carrier is gone", GIVE_UP, gone)?;
        run(fabric, "ip link set n1 up")?;
        back = Instant::now();
        Ok(())
    };
    let repair = node.measure_repair(fault, GIVE_UP).unwrap();
    repair.took.min(back.elapsed().saturating_sub(SETTLED))
}

/// `ip`'s option for a family.
fn option(family: Family) -> &'static str {
    match family {
        V4 => "-4",
        V6 => "-6",
    }
}
