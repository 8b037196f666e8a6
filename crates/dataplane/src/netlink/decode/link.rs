//! Devices.

use std::net::{IpAddr, Ipv4Addr};

use model::kernel::{Link, LinkKind, Vxlan};
use model::{IfName, Mac};

use crate::netlink::uapi::*;
use crate::netlink::wire::{Attrs, Message, ip, text, u16_at, u32_at};

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
    /// The index of the bridge that it is plugged into; 0 for none.
    pub master: u32,
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
        master: 0,
        kind: "",
        data: &[],
    };
    let ethernet = u16_at(body, 2)? == ARPHRD_ETHER;
    for (kind, value) in message.attrs(16) {
        match kind {
            IFLA_IFNAME => link.name = text(value)?.parse().ok(),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_MASTER => link.master = u32_at(value, 0)?,
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

    /// The number of a vxlan device's network, whatever else it is like.
    pub fn vni(&self) -> Option<u32> {
        let mut data = Attrs(self.data).filter(|_| self.kind == "vxlan");
        data.find(|(kind, _)| *kind == IFLA_VXLAN_ID)
            .and_then(|(_, v)| u32_at(v, 0))
    }

    /// As the model has it. `name_of` turns the index of the device beneath into its name. Checksum
    /// offload is no part of the message: see [`crate::netlink::ethtool`].
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
            tx_checksum: None,
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
