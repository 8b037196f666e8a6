//! VXLAN devices: `IFLA_VXLAN_*`.

use std::net::{IpAddr, Ipv4Addr};

use model::object::{Beneath, Vxlan};

use crate::netlink::uapi::*;
use crate::netlink::wire::{Attrs, Batch, ip, u32_at};

/// Adds what can only be set at creation.
pub fn encode(batch: &mut Batch, vxlan: &Vxlan) {
    let Vxlan {
        vni,
        port,
        local,
        beneath,
        learning,
        gbp,
        tx_checksum: _,
    } = vxlan;
    batch
        .attr_u32(IFLA_VXLAN_ID, *vni)
        .attr_u32(IFLA_VXLAN_LINK, beneath.index);
    match local {
        IpAddr::V4(_) => batch.attr_ip(IFLA_VXLAN_LOCAL, local),
        IpAddr::V6(_) => batch.attr_ip(IFLA_VXLAN_LOCAL6, local),
    };
    batch.attr(IFLA_VXLAN_PORT, &port.to_be_bytes());
    batch.attr(IFLA_VXLAN_LEARNING, &[u8::from(*learning)]);
    if *gbp {
        batch.attr(IFLA_VXLAN_GBP, &[]);
    }
}

/// Reads a vxlan device. `None` if it is of a form that we never create. Checksum offload is no part
/// of the message: see [`crate::netlink::ethtool`].
pub fn decode(data: Attrs) -> Option<Vxlan> {
    let (mut vni, mut port, mut local, mut beneath) = (0, 0, None, 0);
    let (mut learning, mut gbp) = (false, false);
    for (kind, value) in data {
        match kind {
            IFLA_VXLAN_ID => vni = u32_at(value, 0)?,
            IFLA_VXLAN_LINK => beneath = u32_at(value, 0)?,
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => local = ip(value),
            IFLA_VXLAN_PORT => port = u16::from_be_bytes(value.try_into().ok()?),
            IFLA_VXLAN_LEARNING => learning = value.first() == Some(&1),
            IFLA_VXLAN_GBP => gbp = true,
            IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => return None,
            // None of ours has another than the kernel's own choice, which is 0.
            IFLA_VXLAN_TTL
            | IFLA_VXLAN_TOS
            | IFLA_VXLAN_TTL_INHERIT
            | IFLA_VXLAN_DF
            | IFLA_VXLAN_LABEL
                if value.iter().any(|byte| *byte != 0) =>
            {
                return None;
            }
            IFLA_VXLAN_COLLECT_METADATA if value.first() == Some(&1) => return None,
            _ => {}
        }
    }
    Some(Vxlan {
        vni,
        port,
        local: local.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        beneath: Beneath {
            index: beneath,
            name: None,
        },
        learning,
        gbp,
        tx_checksum: None,
    })
}

/// Reads the network's number alone, whatever form the device has.
pub fn vni(mut data: Attrs) -> Option<u32> {
    let (_, value) = data.find(|(kind, _)| *kind == IFLA_VXLAN_ID)?;
    u32_at(value, 0)
}
