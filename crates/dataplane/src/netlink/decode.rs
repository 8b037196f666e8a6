//! From rtnetlink messages to what they say. Nothing here knows what is ours: see `scope.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::kernel::{Link, LinkKind, NextHop, Vxlan};
use model::{IfName, Mac};

use super::uapi::*;
use super::wire::{Attrs, Message, ip, text, u16_at, u32_at};

/// A device as a message shows it.
#[derive(Clone, Debug)]
pub struct RawLink<'a> {
    /// Its index.
    pub index: u32,
    /// Its name; `None` if it is none that a [`IfName`] can hold.
    pub name: Option<IfName>,
    /// `IFF_*`.
    pub flags: u32,
    /// In bytes.
    pub mtu: u32,
    /// Its address if it is an Ethernet device.
    pub mac: Option<Mac>,
    /// The driver's name for what it is; empty for hardware.
    pub kind: &'a str,
    data: &'a [u8],
}

/// Reads a link message. `None` for notices about bridge ports, which look alike.
pub fn link<'a>(message: &Message<'a>) -> Option<RawLink<'a>> {
    let body = message.body;
    if *body.first()? != AF_UNSPEC {
        return None;
    }
    let mut link = RawLink {
        index: u32_at(body, 4)?,
        name: None,
        flags: u32_at(body, 8)?,
        mtu: 0,
        mac: None,
        kind: "",
        data: &[],
    };
    let ethernet = u16_at(body, 2)? == ARPHRD_ETHER;
    for (kind, value) in message.attrs(16) {
        match kind {
            IFLA_IFNAME => link.name = text(value)?.parse().ok(),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_ADDRESS if ethernet => link.mac = value.try_into().ok().map(Mac),
            IFLA_LINKINFO => {
                for (kind, value) in Attrs(value) {
                    match kind {
                        IFLA_INFO_KIND => link.kind = text(value)?,
                        IFLA_INFO_DATA => link.data = value,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

/// The index and name of the device that a link message is about, without reading the rest.
pub fn link_id(message: &Message) -> Option<(u32, Option<IfName>)> {
    if *message.body.first()? != AF_UNSPEC {
        return None;
    }
    let name = message.attrs(16).find(|(kind, _)| *kind == IFLA_IFNAME);
    let name = name.and_then(|(_, v)| text(v)?.parse().ok());
    Some((u32_at(message.body, 4)?, name))
}

impl RawLink<'_> {
    /// Administratively up.
    pub fn up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// Up and with a carrier.
    pub fn running(&self) -> bool {
        self.flags & IFF_RUNNING != 0
    }

    /// The index of the device beneath.
    pub fn beneath(&self) -> Option<u32> {
        let mut data = Attrs(self.data).filter(|_| self.kind == "vxlan");
        data.find(|(kind, _)| *kind == IFLA_VXLAN_LINK)
            .and_then(|(_, v)| u32_at(v, 0))
    }

    /// As the model has it. `name_of` turns the index of the device beneath into its name.
    pub fn link(&self, name_of: impl FnOnce(u32) -> Option<IfName>) -> Link {
        let kind = match self.vxlan(name_of) {
            Some(vxlan) => LinkKind::Vxlan(vxlan),
            None if self.kind.is_empty() => LinkKind::Foreign("hardware".into()),
            None => LinkKind::Foreign(self.kind.into()),
        };
        Link {
            kind,
            mac: self.mac,
            mtu: self.mtu,
            up: self.up(),
        }
    }

    /// `None` if it is no vxlan device, or one of a form that we never make.
    fn vxlan(&self, name_of: impl FnOnce(u32) -> Option<IfName>) -> Option<Vxlan> {
        if self.kind != "vxlan" {
            return None;
        }
        let (mut vni, mut port, mut local, mut beneath) = (0, 0, None, 0);
        let (mut learning, mut gbp) = (false, false);
        for (kind, value) in Attrs(self.data) {
            match kind {
                IFLA_VXLAN_ID => vni = u32_at(value, 0)?,
                IFLA_VXLAN_LINK => beneath = u32_at(value, 0)?,
                IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => local = ip(value),
                IFLA_VXLAN_PORT => port = u16::from_be_bytes(value.try_into().ok()?),
                IFLA_VXLAN_LEARNING => learning = value.first() == Some(&1),
                IFLA_VXLAN_GBP => gbp = true,
                IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => return None,
                IFLA_VXLAN_COLLECT_METADATA if value.first() == Some(&1) => return None,
                _ => {}
            }
        }
        let local = local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        Some(Vxlan {
            vni,
            port,
            local,
            dev: name_of(beneath)?,
            learning,
            gbp,
        })
    }
}

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
    };
    for (kind, value) in message.attrs(12) {
        match kind {
            NDA_DST => neigh.dst = ip(value),
            NDA_LLADDR => neigh.mac = value.try_into().ok().map(Mac),
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

/// A route as a message shows it.
#[derive(Clone, Copy, Debug)]
pub struct RawRoute<'a> {
    /// Destination.
    pub dst: IpNet,
    /// Priority.
    pub metric: u32,
    /// Who wrote it: `RTPROT_*`.
    pub protocol: u8,
    /// `RTN_*`.
    pub rtn: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Whether the gateway counts as on-link.
    pub onlink: bool,
    /// Its device.
    pub index: Option<u32>,
    /// Its gateway.
    pub via: Option<IpAddr>,
    /// Its next-hop object.
    pub next_hop: Option<u32>,
    /// The source address that it makes the kernel prefer.
    pub source: Option<IpAddr>,
    /// `struct rtnexthop`s with their attributes.
    multipath: &'a [u8],
    /// It carries something that no route of ours does.
    pub odd: bool,
}

/// Reads a route message. `None` for what no [`model::kernel::RouteKey`] can name: another table
/// than main, a source prefix or a type of service in the key, a cached copy.
pub fn route<'a>(message: &Message<'a>) -> Option<RawRoute<'a>> {
    let body = message.body;
    let [family, len, src_len, tos, table, protocol, scope, rtn] = *body.first_chunk()?;
    let flags = u32_at(body, 8)?;
    if src_len != 0 || tos != 0 || table != RT_TABLE_MAIN || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let nowhere = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AF_INET6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut dst, onlink) = (nowhere, flags & RTNH_F_ONLINK != 0);
    let mut route = RawRoute {
        dst: IpNet::new(nowhere, 0).ok()?,
        metric: 0,
        protocol,
        rtn,
        scope,
        onlink,
        index: None,
        via: None,
        next_hop: None,
        source: None,
        multipath: &[],
        odd: false,
    };
    for (kind, value) in message.attrs(12) {
        match kind {
            RTA_DST => dst = ip(value)?,
            RTA_OIF => route.index = u32_at(value, 0),
            RTA_GATEWAY => route.via = ip(value),
            RTA_VIA => route.via = ip(value.get(2..)?),
            RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            RTA_NH_ID => route.next_hop = u32_at(value, 0),
            RTA_PREFSRC => route.source = ip(value),
            RTA_MULTIPATH => route.multipath = value,
            RTA_METRICS | RTA_ENCAP | RTA_FLOW => route.odd = true,
            RTA_TABLE if u32_at(value, 0)? != u32::from(RT_TABLE_MAIN) => return None,
            _ => {}
        }
    }
    route.dst = IpNet::new(dst, len).ok()?;
    Some(route)
}

impl<'a> RawRoute<'a> {
    /// It has several next hops, written into the route.
    pub fn is_multipath(&self) -> bool {
        !self.multipath.is_empty()
    }

    /// Every device it leads out of.
    pub fn indexes(&self) -> impl Iterator<Item = u32> + use<'a> {
        let mut rest = self.multipath;
        let hops = std::iter::from_fn(move || {
            let (len, index) = (u16_at(rest, 0)? as usize, u32_at(rest, 4)?);
            rest = if len < 8 {
                &[]
            } else {
                rest.get(len.next_multiple_of(4)..).unwrap_or_default()
            };
            Some(index)
        });
        self.index.into_iter().chain(hops)
    }
}

/// Reads the answer to "how would you send to …": device, source, gateway.
pub fn path(message: &Message) -> Option<(u32, Option<IpAddr>, Option<IpAddr>)> {
    let (mut index, mut source, mut via) = (None, None, None);
    for (kind, value) in message.attrs(12) {
        match kind {
            RTA_OIF => index = u32_at(value, 0),
            RTA_PREFSRC => source = ip(value),
            RTA_GATEWAY => via = ip(value),
            RTA_VIA => via = ip(value.get(2..)?),
            _ => {}
        }
    }
    Some((index?, source, via))
}
