//! From the model's objects to rtnetlink requests, straight into the batch.

use std::net::IpAddr;

use ipnet::IpNet;
use model::object::{Mark, NextHop, ROUTE_PROTOCOL, Remote, Route, RouteKey, RouteTo};
use model::{Family, IfName, Mac, Object, Op};

use super::uapi::*;
use super::wire::{Batch, af};
use crate::failure::Failure;

/// Returns the device that the kernel must be told of to do `op`; `None` if the object stands without.
pub fn device(op: &Op) -> Option<IfName> {
    match op {
        // Its id is enough.
        Op::Del(Object::NextHop(..)) => None,
        Op::Put(object) | Op::Del(object) => object.device(),
    }
}

/// Adds the message that does `op` to `batch`. `index` is that of [`device`], or 0; `marked` FDB
/// entries show their notices to be ours. A next-hop object is written over another one only if `over`.
///
/// # Errors
/// It is no single message (devices), or a form that we never write.
pub fn op(batch: &mut Batch, op: &Op, index: u32, marked: bool, over: bool) -> Result<(), Failure> {
    let put = matches!(op, Op::Put(_));
    let flags = if put { NLM_F_CREATE | NLM_F_REPLACE } else { 0 };
    let pick = |new: u16| if put { new } else { new + 1 };
    match op.object() {
        Object::Addr(key, ()) => {
            let v6 = matches!(key.net, IpNet::V6(_));
            // A duplicate check would keep the address from being used for a second.
            let no_dad = if v6 && put { IFA_F_NODAD as u8 } else { 0 };
            let [a, b, c, d] = index.to_ne_bytes();
            let family = af(Family::of_net(&key.net));
            let body = [
                family,
                key.net.prefix_len(),
                no_dad,
                RT_SCOPE_UNIVERSE,
                a,
                b,
                c,
                d,
            ];
            batch.open(pick(RTM_NEWADDR), flags, &body);
            batch
                .attr_ip(IFA_LOCAL, &key.net.addr())
                .attr_ip(IFA_ADDRESS, &key.net.addr());
        }
        Object::Neigh(key, mac) => {
            let body = neigh(af(Family::of(&key.ip)), index, NUD_PERMANENT, 0);
            batch
                .open(pick(RTM_NEWNEIGH), flags, &body)
                .attr_ip(NDA_DST, &key.ip);
            if put {
                batch.attr(NDA_LLADDR, &mac.0);
            }
        }
        Object::Fdb(_, Remote::Foreign) if put => return Err(never_written()),
        Object::Fdb(key, remote) => {
            // "Learned externally" marks the entry as a control plane's, and its notice as ours: see
            // `filter`. The kernel treats a permanent entry no differently for it.
            let mark = if marked { NTF_EXT_LEARNED } else { 0 };
            let body = neigh(AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF | mark);
            batch.open(pick(RTM_NEWNEIGH), flags, &body);
            batch.attr(NDA_LLADDR, &key.mac.0);
            match remote {
                Remote::At(dst) => {
                    batch.attr_ip(NDA_DST, dst);
                }
                // Without a remote the entry goes whatever it holds.
                Remote::Foreign => {}
            }
        }
        Object::NextHop(id, hop) => {
            // Never in the place of another program's: see `Kernel::put_over`.
            let flags = if over {
                flags
            } else {
                NLM_F_CREATE | NLM_F_EXCL
            };
            next_hop(batch, put.then_some(hop), *id, flags, index);
        }
        Object::Route(
            _,
            Route {
                to: RouteTo::Foreign(_),
                ..
            },
        ) if put => {
            return Err(never_written());
        }
        Object::Route(key, route) => {
            route_open(batch, pick(RTM_NEWROUTE), flags, (key, route));
            match &route.to {
                RouteTo::Gateway(hop) => gateway(batch, RTA_GATEWAY, key, hop, index),
                RouteTo::NextHopId(id) => {
                    batch.attr_u32(RTA_NH_ID, *id);
                }
                RouteTo::Dev(_) => {
                    batch.attr_u32(RTA_OIF, index);
                }
                RouteTo::Blackhole | RouteTo::Foreign(_) => {}
            }
        }
        Object::Link(..)
        | Object::PacketLoop(..)
        | Object::TunnelRoute(..)
        | Object::TunnelPeer(..)
        | Object::WgDevice(..)
        | Object::WgPeer(..)
        | Object::XfrmPolicy(..)
        | Object::IkeDaemon(..)
        | Object::IkeConnection(..)
        | Object::PostStartup(..)
        | Object::PeerCommand(..) => {
            return Err(Failure::because(
                libc::EOPNOTSUPP,
                "it is no single message",
            ));
        }
    }
    batch.close();
    Ok(())
}

fn never_written() -> Failure {
    Failure::because(libc::EOPNOTSUPP, "this form is never written")
}

fn next_hop(batch: &mut Batch, put: Option<&NextHop>, id: u32, flags: u16, index: u32) {
    let Some(hop) = put else {
        batch.open(RTM_DELNEXTHOP, 0, &[0; 8]).attr_u32(NHA_ID, id);
        return;
    };
    let [a, b, c, d] = onlink(hop).to_ne_bytes();
    let body = [af(Family::of(&hop.via)), 0, ROUTE_PROTOCOL, 0, a, b, c, d];
    batch
        .open(RTM_NEWNEXTHOP, flags, &body)
        .attr_u32(NHA_ID, id);
    batch
        .attr_u32(NHA_OIF, index)
        .attr_ip(NHA_GATEWAY, &hop.via);
}

fn onlink(hop: &NextHop) -> u32 {
    if hop.onlink { RTNH_F_ONLINK } else { 0 }
}

fn neigh(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let ([a, b, c, d], [s, t]) = (index.to_ne_bytes(), state.to_ne_bytes());
    [family, 0, 0, 0, a, b, c, d, s, t, flags, 0]
}

/// Everything of a route's message but its target.
fn route_open(batch: &mut Batch, kind: u16, flags: u16, (key, route): (&RouteKey, &Route)) {
    let scope = match (kind, &key.dst, &route.to) {
        // When deleting, "whatever the scope".
        (RTM_DELROUTE, ..) => RT_SCOPE_NOWHERE,
        (_, IpNet::V4(_), RouteTo::Dev(_)) => RT_SCOPE_LINK,
        _ => RT_SCOPE_UNIVERSE,
    };
    let rtn = match route.to {
        RouteTo::Blackhole => RTN_BLACKHOLE,
        _ => RTN_UNICAST,
    };
    let rtnh = match &route.to {
        RouteTo::Gateway(hop) => onlink(hop),
        _ => 0,
    };
    let [a, b, c, d] = rtnh.to_ne_bytes();
    let (family, len) = (af(Family::of_net(&key.dst)), key.dst.prefix_len());
    let body = [
        family,
        len,
        0,
        key.tos,
        RT_TABLE_MAIN,
        route.protocol,
        scope,
        rtn,
        a,
        b,
        c,
        d,
    ];
    batch.open(kind, flags, &body);
    // Without a length there is no destination to name; the kernel refuses one in a default route.
    if len > 0 {
        batch.attr_ip(RTA_DST, &key.dst.network());
    }
    if key.metric != 0 {
        batch.attr_u32(RTA_PRIORITY, key.metric);
    }
}

fn gateway(batch: &mut Batch, attr: u16, key: &RouteKey, hop: &NextHop, index: u32) {
    batch.attr_u32(RTA_OIF, index);
    if Family::of(&hop.via) == Family::of_net(&key.dst) {
        batch.attr_ip(attr, &hop.via);
        return;
    }
    // An IPv4 route through an IPv6 gateway: the family goes with the address.
    let mut via = [0u8; 18];
    via[..2].copy_from_slice(&u16::from(af(Family::of(&hop.via))).to_ne_bytes());
    let len = match hop.via {
        IpAddr::V4(ip) => {
            via[2..6].copy_from_slice(&ip.octets());
            6
        }
        IpAddr::V6(ip) => {
            via[2..18].copy_from_slice(&ip.octets());
            18
        }
    };
    batch.attr(RTA_VIA, &via[..len]);
}

/// Fixed part of a message about the device `index`; `up` raises it.
pub fn link_body(index: u32, up: Option<bool>) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Some(up) = up {
        body[8..12].copy_from_slice(&u32::from(up).to_ne_bytes());
        body[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    body
}

/// A device's name, with the NUL that the kernel wants.
pub fn link_name(batch: &mut Batch, name: &IfName) {
    let mut bytes = [0; 16];
    let name = name.as_str().as_bytes();
    bytes[..name.len()].copy_from_slice(name);
    batch.attr(IFLA_IFNAME, &bytes[..name.len() + 1]);
}

/// Whose a device is; can be set once it exists.
pub fn link_mark(batch: &mut Batch, mark: &Mark) {
    batch.attr(IFLA_IFALIAS, mark.to_string().as_bytes());
}

/// What can be set both at creation and later.
pub fn link_settings(batch: &mut Batch, mac: Option<Mac>, mtu: Option<u32>) {
    if let Some(mac) = mac {
        batch.attr(IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = mtu {
        batch.attr_u32(IFLA_MTU, mtu);
    }
}
