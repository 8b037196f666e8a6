//! Short ways to say an object.

use dataplane::Scope;
use model::object::*;
use model::{Dual, IfName, Mac, Object, Op};

pub const IFACE: &str = "eth0";
pub const IFACE_INDEX: u32 = 100;
pub const OURS: &str = "flannel.1";

pub fn dev(name: &str) -> IfName {
    name.parse().unwrap()
}

/// A MAC that ends in `n`.
pub fn mac(n: u8) -> Mac {
    Mac([0x0e, 0, 0, 0, 0, n])
}

/// Our devices are `devices`; the network is 10.244.0.0/16 and fd44::/48.
pub fn scope(devices: &[&str]) -> Scope {
    Scope {
        devices: devices.iter().map(|d| dev(d)).collect(),
        iface: dev(IFACE),
        network: Dual {
            v4: Some("10.244.0.0/16".parse().unwrap()),
            v6: Some("fd44::/48".parse().unwrap()),
        },
        own: Dual {
            v4: Some("10.244.1.0/24".parse().unwrap()),
            v6: Some("fd44:0:0:1::/64".parse().unwrap()),
        },
        take_over: false,
    }
}

pub fn beneath() -> Beneath {
    Beneath {
        index: IFACE_INDEX,
        name: Some(dev(IFACE)),
    }
}

pub fn vxlan(vni: u32) -> Link {
    let local = "192.168.7.1".parse().unwrap();
    let vxlan = Vxlan {
        vni,
        port: 8472,
        local,
        beneath: beneath(),
        learning: false,
        gbp: false,
        tx_checksum: Some(true),
    };
    Link {
        kind: LinkKind::Vxlan(vxlan),
        mac: Some(mac(1)),
        mtu: 1450,
        up: true,
        mark: Mark::parse("flannel 10.244.0.0/16"),
        enslaved: false,
    }
}

/// Our device with this checksum offload.
pub fn vxlan_with_offload(wanted: Option<bool>) -> Link {
    let mut link = vxlan(1);
    if let LinkKind::Vxlan(vxlan) = &mut link.kind {
        vxlan.tx_checksum = wanted;
    }
    link
}

pub fn link(name: &str, link: Link) -> Object {
    Object::Link(dev(name), link)
}

pub fn addr(name: &str, net: &str) -> Object {
    Object::Addr(
        AddrKey {
            dev: dev(name),
            net: net.parse().unwrap(),
        },
        (),
    )
}

pub fn neigh(name: &str, ip: &str, n: u8) -> Object {
    Object::Neigh(
        NeighKey {
            dev: dev(name),
            ip: ip.parse().unwrap(),
        },
        mac(n),
    )
}

pub fn fdb(name: &str, n: u8, dst: &str) -> Object {
    Object::Fdb(
        FdbKey {
            dev: dev(name),
            mac: mac(n),
        },
        Remote::At(dst.parse().unwrap()),
    )
}

pub fn hop(via: &str, name: &str, onlink: bool) -> NextHop {
    NextHop {
        via: via.parse().unwrap(),
        dev: dev(name),
        onlink,
    }
}

/// An on-link next hop on our device.
pub fn next_hop(id: u32, via: &str) -> Object {
    Object::NextHop(id, hop(via, OURS, true))
}

/// One of our routes.
pub fn route(dst: &str, to: RouteTo) -> Object {
    Object::Route(RouteKey::to(dst.parse().unwrap()), Route::ours(to))
}

/// Another's route.
pub fn their_route(dst: &str, to: RouteTo, protocol: u8) -> Object {
    Object::Route(RouteKey::to(dst.parse().unwrap()), Route { to, protocol })
}

/// An on-link route through a gateway on our device.
pub fn via(dst: &str, gateway: &str) -> Object {
    route(dst, RouteTo::Gateway(hop(gateway, OURS, true)))
}

pub fn by_id(dst: &str, id: u32) -> Object {
    route(dst, RouteTo::NextHopId(id))
}

pub fn puts(objects: &[Object]) -> Vec<Op> {
    objects.iter().cloned().map(Op::Put).collect()
}

pub fn dels(objects: &[Object]) -> Vec<Op> {
    objects.iter().cloned().map(Op::Del).collect()
}

/// Our device with its addresses.
pub fn node() -> Vec<Object> {
    vec![
        link(OURS, vxlan(1)),
        addr(OURS, "10.244.1.0/32"),
        addr(OURS, "fd44:0:0:1::/128"),
    ]
}

/// What one IPv4 and one IPv6 peer need; with next-hop objects or without.
pub fn peer(next_hops: bool) -> Vec<Object> {
    let mut objects = vec![
        neigh(OURS, "10.244.2.0", 2),
        neigh(OURS, "fd44:0:0:2::", 2),
        fdb(OURS, 2, "192.168.7.2"),
    ];
    objects.extend(match next_hops {
        true => vec![
            next_hop(5, "10.244.2.0"),
            next_hop(6, "fd44:0:0:2::"),
            by_id("10.244.2.0/24", 5),
            by_id("fd44:0:0:2::/64", 6),
        ],
        false => vec![
            via("10.244.2.0/24", "10.244.2.0"),
            via("fd44:0:0:2::/64", "fd44:0:0:2::"),
        ],
    });
    objects
}

/// Node and peer.
pub fn mesh(next_hops: bool) -> Vec<Object> {
    [node(), peer(next_hops)].concat()
}
