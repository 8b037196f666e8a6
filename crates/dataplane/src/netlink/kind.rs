//! Kinds of device as `IFLA_LINKINFO` holds them: one file for each kind that we create.

mod ipip;
pub(crate) mod tun;
mod vxlan;

use model::object::{LinkKind, Wireguard};

use super::uapi::*;
use super::wire::{Attrs, Batch};

pub use vxlan::vni;

/// Adds the kind of a new device.
pub fn encode(batch: &mut Batch, kind: &LinkKind) {
    let info = batch.nest(IFLA_LINKINFO);
    batch.attr(IFLA_INFO_KIND, kind.name().as_bytes());
    let data = batch.nest(IFLA_INFO_DATA);
    match kind {
        LinkKind::Vxlan(vxlan) => vxlan::encode(batch, vxlan),
        LinkKind::Ipip(ipip) => ipip::encode(batch, ipip),
        // Has no settings of its own; see `crate::wireguard`.
        LinkKind::Wireguard(_) => {}
        // They do not come to this; see `link::create`.
        LinkKind::Tun(_) | LinkKind::Foreign(_) => {}
    }
    batch.end(data);
    batch.end(info);
}

/// Reads the kind of a device that the kernel calls `name`: of one that we never create, or never in
/// this form, the name alone.
pub fn decode(name: &str, data: &[u8]) -> LinkKind {
    let known = match name {
        "vxlan" => vxlan::decode(Attrs(data)).map(LinkKind::Vxlan),
        "ipip" => ipip::decode(Attrs(data)).map(LinkKind::Ipip),
        "tun" => tun::decode(Attrs(data)).map(LinkKind::Tun),
        "wireguard" => Some(LinkKind::Wireguard(Wireguard)),
        "" => Some(LinkKind::Foreign("hardware".into())),
        _ => None,
    };
    known.unwrap_or_else(|| LinkKind::Foreign(name.into()))
}
