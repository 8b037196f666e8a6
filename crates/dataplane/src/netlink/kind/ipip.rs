//! IP-in-IP devices: `IFLA_IPTUN_*`.

use std::net::{IpAddr, Ipv4Addr};

use model::object::Ipip;

use crate::netlink::uapi::*;
use crate::netlink::wire::{Attrs, Batch, ip};

/// Adds what can only be set at creation.
pub fn encode(batch: &mut Batch, ipip: &Ipip) {
    batch
        .attr_ip(IFLA_IPTUN_LOCAL, &ipip.local)
        .attr_ip(IFLA_IPTUN_REMOTE, &IpAddr::V4(Ipv4Addr::UNSPECIFIED));
}

/// Reads an ipip device. `None` if it leads to one remote address only, which we never create.
pub fn decode(data: Attrs) -> Option<Ipip> {
    let mut local = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    for (kind, value) in data {
        match kind {
            IFLA_IPTUN_LOCAL => local = ip(value)?,
            IFLA_IPTUN_REMOTE if !ip(value)?.is_unspecified() => return None,
            IFLA_IPTUN_COLLECT_METADATA => return None,
            _ => {}
        }
    }
    Some(Ipip { local })
}
