//! IP-in-IP tunnel devices.

use std::fmt;
use std::net::IpAddr;

use super::{Beneath, Tunnel};

/// What makes one ipip device differ from another. Its remote address is any: each route names the
/// far end as its gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipip {
    /// Source address of the outer packets.
    pub local: IpAddr,
}

impl Tunnel for Ipip {
    const NAME: &'static str = "ipip";

    fn is_met_by(&self, observed: &Ipip) -> bool {
        self == observed
    }

    fn in_place(&self, old: &Ipip) -> bool {
        self == old
    }

    /// Local and remote address name the tunnel; every one of ours has the remote address "any".
    fn excludes(&self, other: &Ipip) -> bool {
        self.local == other.local
    }

    fn beneath(&self) -> Option<Beneath> {
        None
    }

    fn local(&self) -> Option<IpAddr> {
        Some(self.local)
    }

    /// One IPv4 header.
    fn overhead(&self) -> u32 {
        20
    }

    fn port(&self) -> Option<u16> {
        None
    }

    fn put(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " local {} remote any", self.local)
    }
}
