//! From rtnetlink messages to what they say. Nothing here knows what is ours: see `scope.rs`.

mod link;
mod route;

use std::net::IpAddr;

use ipnet::IpNet;
use model::object::NextHop;
use model::{IfName, Mac};

use super::uapi::*;
use super::wire::{Message, ip, u16_at, u32_at};

pub use link::{RawLink, link, link_id};
pub use route::{RawRoute, path, route};

/// An address as a message shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawAddr {
    /// Its device.
    pub index: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `IFA_F_*`.
    pub flags: u32,
}

impl RawAddr {
    /// A link-local IPv6 address: the kernel gives every device one by itself.
    pub fn is_kernels(&self) -> bool {
        matches!(self.net, IpNet::V6(net) if net.addr().is_unicast_link_local())
    }
}

/// Reads an address message.
pub fn addr(message: &Message) -> Option<RawAddr> {
    let body = message.body;
    let (len, scope) = (*body.get(1)?, *body.get(3)?);
    let mut flags = u32::from(*body.get(2)?);
    let (mut local, mut far) = (None, None);
    for (kind, value) in message.attrs(8) {
        match kind {
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => far = ip(value),
            IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    let net = IpNet::new(local.or(far)?, len).ok()?;
    Some(RawAddr {
        index: u32_at(body, 4)?,
        net,
        scope,
        flags,
    })
}

/// A neighbour or FDB entry as a message shows it.
#[derive(Clone, Copy, Debug)]
pub struct RawNeigh {
    /// `AF_BRIDGE` for FDB entries.
    pub family: u8,
    /// Its device.
    pub index: u32,
    /// `NUD_*`.
    pub state: u16,
    /// `NTF_*`.
    pub flags: u8,
    /// The neighbour's address; of an FDB entry the remote VTEP.
    pub dst: Option<IpAddr>,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// It names a port, a VNI or an interface other than its device's own, or a next-hop object.
    pub odd: bool,
    /// The message is the driver's, and says everything. Linux up to 6.12 announces each change of an FDB entry
    /// a second time, by code that knows no more of it than the Ethernet address.
    pub complete: bool,
}

/// Reads a neighbour message.
pub fn neigh(message: &Message) -> Option<RawNeigh> {
    let body = message.body;
    let mut neigh = RawNeigh {
        family: *body.first()?,
        index: u32_at(body, 4)?,
        state: u16_at(body, 8)?,
        flags: *body.get(10)?,
        dst: None,
        mac: None,
        odd: false,
        complete: false,
    };
    for (kind, value) in message.attrs(12) {
        match kind {
            NDA_DST => neigh.dst = ip(value),
            NDA_LLADDR => neigh.mac = value.try_into().ok().map(Mac),
            NDA_PORT | NDA_VNI | NDA_IFINDEX | NDA_SRC_VNI | NDA_NH_ID => neigh.odd = true,
            NDA_CACHEINFO => neigh.complete = true,
            _ => {}
        }
    }
    Some(neigh)
}

/// A next-hop object as a message shows it.
#[derive(Clone, Copy, Debug)]
pub struct RawNextHop {
    /// Its number.
    pub id: u32,
    /// Who made it.
    pub protocol: u8,
    /// Its device; `None` for groups and blackholes.
    pub index: Option<u32>,
    /// Its gateway.
    pub via: Option<IpAddr>,
    /// Whether the gateway counts as on-link.
    pub onlink: bool,
}

/// Reads a next-hop message.
pub fn next_hop(message: &Message) -> Option<RawNextHop> {
    let body = message.body;
    let onlink = u32_at(body, 4)? & RTNH_F_ONLINK != 0;
    let mut hop = RawNextHop {
        id: 0,
        protocol: *body.get(2)?,
        index: None,
        via: None,
        onlink,
    };
    for (kind, value) in message.attrs(8) {
        match kind {
            NHA_ID => hop.id = u32_at(value, 0)?,
            NHA_OIF => hop.index = u32_at(value, 0),
            NHA_GATEWAY => hop.via = ip(value),
            _ => {}
        }
    }
    Some(hop)
}

impl RawNextHop {
    /// As the model has it, on the device `dev`; `None` without a gateway.
    pub fn on(&self, dev: IfName) -> Option<NextHop> {
        Some(NextHop {
            via: self.via?,
            dev,
            onlink: self.onlink,
        })
    }
}
