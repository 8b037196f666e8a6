//! Routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::object::RouteKey;

use crate::netlink::uapi::*;
use crate::netlink::wire::{Attrs, Message, ip, u16_at, u32_at};

/// A route as a message shows it.
#[derive(Clone, Copy, Debug)]
pub struct RawRoute<'a> {
    /// Destination.
    pub dst: IpNet,
    /// Priority.
    pub metric: u32,
    /// Type of service.
    pub tos: u8,
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
    /// The message says the number of its next-hop object and not the device.
    pub by_number_only: bool,
    /// It carries something that no route of ours does.
    pub odd: bool,
}

/// Reads a route message. `None` for what no [`model::object::RouteKey`] can name: another table
/// than main, a source prefix in the key, a cached copy.
pub fn route<'a>(message: &Message<'a>) -> Option<RawRoute<'a>> {
    let body = message.body;
    let [family, len, src_len, tos, table, protocol, scope, rtn] = *body.first_chunk()?;
    let flags = u32_at(body, 8)?;
    if src_len != 0 || table != RT_TABLE_MAIN || flags & RTM_F_CLONED != 0 {
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
        tos,
        protocol,
        rtn,
        scope,
        onlink,
        index: None,
        via: None,
        next_hop: None,
        source: None,
        multipath: &[],
        by_number_only: false,
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
            RTA_PREF => route.odd |= value.first().is_some_and(|pref| *pref != 0),
            // A route of IPv6 that ends by itself.
            RTA_CACHEINFO => route.odd |= u32_at(value, 8).is_some_and(|expires| expires != 0),
            RTA_METRICS | RTA_ENCAP | RTA_FLOW => route.odd = true,
            RTA_TABLE if u32_at(value, 0)? != u32::from(RT_TABLE_MAIN) => return None,
            _ => {}
        }
    }
    route.dst = IpNet::new(dst, len).ok()?;
    Some(route)
}

impl<'a> RawRoute<'a> {
    /// Its key in the model.
    pub fn key(&self) -> RouteKey {
        RouteKey {
            dst: self.dst,
            metric: self.metric,
            tos: self.tos,
        }
    }

    /// It has several next hops, written into the route.
    pub fn is_multipath(&self) -> bool {
        !self.multipath.is_empty()
    }

    /// Every device it leads out of.
    pub fn indexes(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.hops().map(|(index, _)| index)
    }

    /// Every device it leads out of, each with its gateway.
    pub fn hops(&self) -> impl Iterator<Item = (u32, Option<IpAddr>)> + use<'a> {
        let mut rest = self.multipath;
        let hops = std::iter::from_fn(move || {
            let (len, index) = (u16_at(rest, 0)? as usize, u32_at(rest, 4)?);
            let mut via = None;
            for (kind, value) in Attrs(rest.get(8..len).unwrap_or_default()) {
                match kind {
                    RTA_GATEWAY => via = ip(value),
                    RTA_VIA => via = value.get(2..).and_then(ip),
                    _ => {}
                }
            }
            rest = if len < 8 {
                &[]
            } else {
                rest.get(len.next_multiple_of(4)..).unwrap_or_default()
            };
            Some((index, via))
        });
        let via = self.via;
        self.index.map(|index| (index, via)).into_iter().chain(hops)
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
