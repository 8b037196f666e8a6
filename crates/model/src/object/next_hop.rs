//! Next-hop objects (kernel ≥ 5.3).

use std::fmt;
use std::net::IpAddr;

use super::{Kind, ROUTE_PROTOCOL};
use crate::IfName;

/// A gateway and the device through which it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The gateway.
    pub via: IpAddr,
    /// The device.
    pub dev: IfName,
    /// Treat the gateway as on-link, whatever the device's addresses say.
    pub onlink: bool,
}

/// Next-hop objects, by their id.
pub struct NextHops;

impl Kind for NextHops {
    type Key = u32;
    type Value = NextHop;
    const NAME: &'static str = "nexthop";
    const DELETES_ONLY_ITSELF: bool = false;

    fn device(_: &u32, hop: &NextHop) -> Option<IfName> {
        Some(hop.dev)
    }

    fn put(f: &mut fmt::Formatter<'_>, id: &u32, hop: &NextHop) -> fmt::Result {
        write!(
            f,
            "ip nexthop replace id {id} {hop} protocol {ROUTE_PROTOCOL}"
        )
    }

    fn del(f: &mut fmt::Formatter<'_>, id: &u32, _: &NextHop) -> fmt::Result {
        write!(f, "ip nexthop del id {id}")
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "via {} dev {}", self.via, self.dev)?;
        f.write_str(if self.onlink { " onlink" } else { "" })
    }
}
