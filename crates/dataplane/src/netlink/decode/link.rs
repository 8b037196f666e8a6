//! Devices.

use model::object::{Link, Mark};
use model::{IfName, Mac};

use crate::netlink::kind;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Attrs, Message, text, u16_at, u32_at};

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
    /// Some program keeps its carrier off (`protodown on`).
    pub proto_down: bool,
    /// Whose it is, as its alias says.
    pub mark: Option<Mark>,
    /// The driver's name for what it is; empty for hardware.
    pub kind: &'a str,
    data: &'a [u8],
    properties: &'a [u8],
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
        proto_down: false,
        mark: None,
        kind: "",
        data: &[],
        properties: &[],
    };
    let ethernet = u16_at(body, 2)? == ARPHRD_ETHER;
    for (kind, value) in message.attrs(16) {
        match kind {
            IFLA_IFNAME => link.name = text(value)?.parse().ok(),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_MASTER => link.master = u32_at(value, 0)?,
            IFLA_PROTO_DOWN => link.proto_down = value.first().is_some_and(|on| *on != 0),
            IFLA_ADDRESS if ethernet => link.mac = value.try_into().ok().map(Mac),
            IFLA_PROP_LIST => link.properties = value,
            IFLA_IFALIAS => link.mark = text(value).and_then(Mark::parse),
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

impl<'a> RawLink<'a> {
    /// The other names that it goes by (`ip link property`).
    pub fn alt_names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let names = Attrs(self.properties).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
        names.filter_map(|(_, name)| text(name))
    }

    /// Administratively up.
    pub fn up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// Up and with a carrier.
    pub fn running(&self) -> bool {
        self.flags & IFF_RUNNING != 0
    }

    /// The number of a vxlan device's network, whatever else it is like.
    pub fn vni(&self) -> Option<u32> {
        let data = Some(Attrs(self.data)).filter(|_| self.kind == "vxlan");
        data.and_then(kind::vni)
    }

    /// As the model has it. Checksum offload is no part of the message: see
    /// [`crate::netlink::ethtool`].
    pub fn link(&self) -> Link {
        Link {
            kind: kind::decode(self.kind, self.data),
            mac: self.mac,
            mtu: self.mtu,
            // Without a carrier it is as good as down.
            up: self.up() && !self.proto_down,
            mark: self.mark,
            enslaved: self.master != 0,
        }
    }
}
