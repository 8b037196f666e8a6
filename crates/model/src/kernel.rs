//! Kernel objects as values: a key that names the object and a value that says what it holds.
//! Objects name their device, not its index: an index changes when the device is made anew.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// `rtm_protocol` of our routes and next-hop objects. Not registered by anyone in
/// `/etc/iproute2/rt_protos`; see ADR 1.
pub const ROUTE_PROTOCOL: u8 = 241;

/// Route priority ("metric") the kernel gives when none is asked for.
pub fn default_metric(dst: &IpNet) -> u32 {
    match dst {
        IpNet::V4(_) => 0,
        IpNet::V6(_) => 1024,
    }
}

/// A network device's name, 1 to 15 bytes. Small and `Copy`: tens of thousands of objects hold one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName([u8; 16]);

/// A device name that the kernel would refuse.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no device name: 1 to 15 bytes without '/', ':' or white space")]
pub struct BadIfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|b| *b == 0).unwrap_or(16);
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

impl FromStr for IfName {
    type Err = BadIfName;
    fn from_str(s: &str) -> Result<Self, BadIfName> {
        let bad = s.is_empty()
            || s.len() > 15
            || s == "."
            || s == ".."
            || s.bytes()
                .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
        if bad {
            return Err(BadIfName(s.into()));
        }
        let mut name = [0; 16];
        name[..s.len()].copy_from_slice(s.as_bytes());
        Ok(IfName(name))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// Text that is no Ethernet address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no MAC address of the form 12:34:56:78:9a:bc")]
pub struct BadMac(String);

impl Mac {
    /// Fit to be a device's address: neither multicast nor all zeros.
    pub fn is_unicast(&self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl FromStr for Mac {
    type Err = BadMac;
    fn from_str(s: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(s.into());
        let mut mac = [0; 6];
        let mut parts = s.split([':', '-']);
        for byte in &mut mac {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        match parts.next() {
            None => Ok(Mac(mac)),
            Some(_) => Err(bad()),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A device that we make, or (observed) one that stands where ours should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// Its Ethernet address; `None` where the kind has none.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// It leaves the checksums of what it sends to the hardware beneath ("tx offload"). Wanted:
    /// `None` leaves it as it is. Observed: `None` for a kind of device whose setting is not ours.
    pub tx_checksum: Option<bool>,
}

/// The kind of a device, with what is fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN tunnel end point.
    Vxlan(Vxlan),
    /// Observed only: a device of another kind under our name.
    Foreign(String),
}

/// What makes one vxlan device differ from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port, host byte order.
    pub port: u16,
    /// Source address of the outer packets.
    pub local: IpAddr,
    /// The device that carries the outer packets.
    pub dev: IfName,
    /// Learn addresses from traffic.
    pub learning: bool,
    /// Group-based policy extension.
    pub gbp: bool,
}

impl Link {
    /// Whether `self` can be turned into `wanted` without making the device anew: MAC, MTU, checksum
    /// offload and the administrative state can be set, the rest only at creation.
    pub fn can_become(&self, wanted: &Link) -> bool {
        self.kind == wanted.kind
    }
}

/// An address on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrKey {
    /// The device.
    pub dev: IfName,
    /// Address and prefix length.
    pub net: IpNet,
}

/// A permanent neighbour entry (ARP, NDP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighKey {
    /// The device.
    pub dev: IfName,
    /// The neighbour's address.
    pub ip: IpAddr,
}

/// A forwarding-database entry of a vxlan device (`self permanent`): MAC → remote VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbKey {
    /// The device.
    pub dev: IfName,
    /// The remote VTEP's MAC.
    pub mac: Mac,
}

/// A next-hop object (kernel ≥ 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The gateway.
    pub via: IpAddr,
    /// The device.
    pub dev: IfName,
    /// Take the gateway for on-link whatever the device's addresses say.
    pub onlink: bool,
}

/// A route in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination.
    pub dst: IpNet,
    /// Priority; see [`default_metric`].
    pub metric: u32,
}

impl RouteKey {
    /// The route to `dst` at the family's default priority.
    pub fn to(dst: IpNet) -> RouteKey {
        RouteKey {
            dst,
            metric: default_metric(&dst),
        }
    }
}

/// Where a route leads, and who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub to: RouteTo,
    /// Who wrote it (`rtm_protocol`); [`ROUTE_PROTOCOL`] for ours.
    pub protocol: u8,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteTo {
    /// Through a gateway, written into the route itself.
    Gateway(NextHop),
    /// Through a next-hop object, by its id.
    NextHopId(u32),
    /// Straight out of a device (`scope link`).
    Dev(IfName),
    /// Nowhere.
    Blackhole,
    /// Observed only: a form that we never write, on this device.
    Foreign(IfName),
}

impl Route {
    /// One of our routes.
    pub fn ours(to: RouteTo) -> Route {
        Route {
            to,
            protocol: ROUTE_PROTOCOL,
        }
    }
}

/// Any kernel object: key and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A device.
    Link(IfName, Link),
    /// An address.
    Addr(AddrKey),
    /// A neighbour entry.
    Neigh(NeighKey, Mac),
    /// A forwarding-database entry.
    Fdb(FdbKey, IpAddr),
    /// A next-hop object.
    NextHop(u32, NextHop),
    /// A route.
    Route(RouteKey, Route),
}
