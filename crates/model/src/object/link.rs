//! Devices. What all kinds of device have is here; each kind that we create has a file of its own, and
//! is listed once, in [`LinkKind`].

mod ipip;
mod mark;
mod tun;
mod vxlan;
mod wireguard;

use std::fmt;
use std::net::IpAddr;

pub use ipip::Ipip;
pub use mark::Mark;
pub use tun::Tun;
pub use vxlan::Vxlan;
pub use wireguard::Wireguard;

use super::Kind;
use crate::{IfName, Mac};

/// A device that we create, or (observed) one that has the name of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// Its Ethernet address; `None` where the kind has none.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whose it is, as its alias (`IFLA_IFALIAS`) says. `None` if the alias is empty or somebody else's.
    pub mark: Option<Mark>,
    /// Whether it is enslaved to a bridge, a bond or a VRF, which ends its own traffic. Never desired.
    pub enslaved: bool,
}

/// The kind of a device, with the settings that only this kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel end point.
    Vxlan(Vxlan),
    /// An IP-in-IP tunnel.
    Ipip(Ipip),
    /// A device whose other end is a program.
    Tun(Tun),
    /// A WireGuard device.
    Wireguard(Wireguard),
    /// Observed only: a device of another kind, or in a form that we never create.
    Foreign(String),
}

/// A kind of device that we create.
trait Tunnel {
    /// The kernel's name for it.
    const NAME: &'static str;

    /// Returns whether a device observed as `observed` is as `self` asks.
    fn is_met_by(&self, observed: &Self) -> bool;

    /// Returns whether a device observed as `old` can be given the settings of `self` without being
    /// recreated.
    fn in_place(&self, old: &Self) -> bool;

    /// Returns whether the kernel refuses one of both where the other exists.
    fn excludes(&self, other: &Self) -> bool;

    /// Returns the device that carries the outer packets.
    fn beneath(&self) -> Option<Beneath>;

    /// Returns the source address of the outer packets.
    fn local(&self) -> Option<IpAddr>;

    /// Returns how many bytes the outer headers take from the MTU of the device beneath.
    fn overhead(&self) -> u32;

    /// Returns the UDP port on which the tunnel's packets arrive.
    fn port(&self) -> Option<u16>;

    /// Writes the kind's part of `ip link add`.
    fn put(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// Writes the commands that set what `ip link add` cannot.
    fn finish(&self, _f: &mut fmt::Formatter<'_>, _name: &IfName) -> fmt::Result {
        Ok(())
    }
}

macro_rules! for_kind {
    ($kind:expr, $tunnel:ident => $body:expr, $name:ident => $foreign:expr) => {
        match $kind {
            LinkKind::Vxlan($tunnel) => $body,
            LinkKind::Ipip($tunnel) => $body,
            LinkKind::Tun($tunnel) => $body,
            LinkKind::Wireguard($tunnel) => $body,
            LinkKind::Foreign($name) => $foreign,
        }
    };
}

impl LinkKind {
    /// Returns the kernel's name for the kind.
    pub fn name(&self) -> &str {
        fn name<T: Tunnel>(_: &T) -> &'static str {
            T::NAME
        }
        for_kind!(self, tunnel => name(tunnel), kind => kind)
    }

    /// Returns the device that carries the outer packets, if the kind is bound to one.
    pub fn beneath(&self) -> Option<Beneath> {
        for_kind!(self, tunnel => tunnel.beneath(), _kind => None)
    }

    /// Returns the source address of the outer packets.
    pub fn local(&self) -> Option<IpAddr> {
        for_kind!(self, tunnel => tunnel.local(), _kind => None)
    }

    /// Returns how many bytes the outer headers take from the MTU of the device beneath.
    pub fn overhead(&self) -> u32 {
        for_kind!(self, tunnel => tunnel.overhead(), _kind => 0)
    }

    /// Returns the UDP port on which the tunnel's packets arrive, if it uses UDP.
    pub fn port(&self) -> Option<u16> {
        for_kind!(self, tunnel => tunnel.port(), _kind => None)
    }

    /// Returns whether the kernel refuses a second device of such settings in one namespace, whatever
    /// its name.
    pub fn excludes(&self, other: &LinkKind) -> bool {
        match (self, other) {
            (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => a.excludes(b),
            (LinkKind::Ipip(a), LinkKind::Ipip(b)) => a.excludes(b),
            (LinkKind::Tun(a), LinkKind::Tun(b)) => a.excludes(b),
            (LinkKind::Wireguard(a), LinkKind::Wireguard(b)) => a.excludes(b),
            (
                LinkKind::Vxlan(_)
                | LinkKind::Ipip(_)
                | LinkKind::Tun(_)
                | LinkKind::Wireguard(_)
                | LinkKind::Foreign(_),
                _,
            ) => false,
        }
    }

    fn is_met_by(&self, observed: &LinkKind) -> bool {
        match (self, observed) {
            (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => a.is_met_by(b),
            (LinkKind::Ipip(a), LinkKind::Ipip(b)) => a.is_met_by(b),
            (LinkKind::Tun(a), LinkKind::Tun(b)) => a.is_met_by(b),
            (LinkKind::Wireguard(a), LinkKind::Wireguard(b)) => a.is_met_by(b),
            (
                LinkKind::Vxlan(_)
                | LinkKind::Ipip(_)
                | LinkKind::Tun(_)
                | LinkKind::Wireguard(_)
                | LinkKind::Foreign(_),
                _,
            ) => false,
        }
    }

    fn in_place(&self, old: &LinkKind) -> bool {
        match (self, old) {
            (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => a.in_place(b),
            (LinkKind::Ipip(a), LinkKind::Ipip(b)) => a.in_place(b),
            (LinkKind::Tun(a), LinkKind::Tun(b)) => a.in_place(b),
            (LinkKind::Wireguard(a), LinkKind::Wireguard(b)) => a.in_place(b),
            (
                LinkKind::Vxlan(_)
                | LinkKind::Ipip(_)
                | LinkKind::Tun(_)
                | LinkKind::Wireguard(_)
                | LinkKind::Foreign(_),
                _,
            ) => false,
        }
    }
}

/// The device beneath a tunnel. Compared by index: a device keeps its index when it is renamed.
#[derive(Clone, Copy, Debug)]
pub struct Beneath {
    /// Its index.
    pub index: u32,
    /// Its name, for people. Unknown when observed.
    pub name: Option<IfName>,
}

impl PartialEq for Beneath {
    fn eq(&self, other: &Beneath) -> bool {
        self.index == other.index
    }
}

impl Eq for Beneath {}

impl fmt::Display for Beneath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name}"),
            None => write!(f, "if{}", self.index),
        }
    }
}

impl Link {
    /// Returns whether `self` can be turned into `wanted` without being recreated.
    pub fn can_become(&self, wanted: &Link) -> bool {
        wanted.kind.in_place(&self.kind)
    }

    /// Returns whether a device observed as `observed` is as `self` asks.
    pub fn is_settled(&self, observed: &Link) -> bool {
        let Link {
            kind,
            mac,
            mtu,
            up,
            mark,
            enslaved,
        } = observed;
        self.kind.is_met_by(kind)
            && (self.mac.is_none() || self.mac == *mac)
            && self.mtu == *mtu
            && self.up == *up
            && (self.mark.is_none() || self.mark == *mark)
            && self.enslaved == *enslaved
    }
}

/// Devices, by name.
pub struct Links;

impl Kind for Links {
    type Key = IfName;
    type Value = Link;
    const NAME: &'static str = "link";
    const DELETES_ONLY_ITSELF: bool = false;

    fn is_met_by(desired: &Link, observed: &Link) -> bool {
        desired.is_settled(observed)
    }

    fn device(name: &IfName, _: &Link) -> Option<IfName> {
        Some(*name)
    }

    fn put(f: &mut fmt::Formatter<'_>, name: &IfName, link: &Link) -> fmt::Result {
        if let LinkKind::Tun(_) = link.kind {
            // Not by rtnetlink.
            write!(f, "ip tuntap add {name} mode tun multi_queue")?;
            write!(f, " && ip link set {name} mtu {}", link.mtu)?;
            return finish(f, name, link);
        }
        write!(f, "ip link add {name}")?;
        if let Some(mac) = link.mac {
            write!(f, " address {mac}")?;
        }
        write!(f, " mtu {} type {}", link.mtu, link.kind.name())?;
        for_kind!(&link.kind, tunnel => tunnel.put(f), _kind => Ok(()))?;
        for_kind!(&link.kind, tunnel => tunnel.finish(f, name), _kind => Ok(()))?;
        finish(f, name, link)
    }

    fn del(f: &mut fmt::Formatter<'_>, name: &IfName, _: &Link) -> fmt::Result {
        write!(f, "ip link del {name}")
    }
}

/// Writes the commands that set what every kind of device has.
fn finish(f: &mut fmt::Formatter<'_>, name: &IfName, link: &Link) -> fmt::Result {
    if let Some(mark) = &link.mark {
        write!(f, " && ip link set {name} alias '{mark}'")?;
    }
    if link.up {
        write!(f, " && ip link set {name} up")?;
    }
    Ok(())
}
