//! VXLAN devices.

use std::fmt;
use std::net::IpAddr;

use super::{Beneath, Tunnel};
use crate::IfName;

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
    pub beneath: Beneath,
    /// Learn addresses from traffic.
    pub learning: bool,
    /// Group-based policy extension.
    pub gbp: bool,
    /// Leave the checksums of what the device sends to the hardware beneath ("tx offload"). Desired:
    /// `None` leaves it as it is.
    pub tx_checksum: Option<bool>,
}

impl Tunnel for Vxlan {
    const NAME: &'static str = "vxlan";

    fn is_met_by(&self, observed: &Vxlan) -> bool {
        self.in_place(observed)
            && (self.tx_checksum.is_none() || self.tx_checksum == observed.tx_checksum)
    }

    /// Checksum offload can be set at any time, the rest only at creation.
    fn in_place(&self, old: &Vxlan) -> bool {
        let any = Vxlan {
            tx_checksum: self.tx_checksum,
            ..*old
        };
        *self == any
    }

    fn excludes(&self, other: &Vxlan) -> bool {
        let same_family = self.local.is_ipv4() == other.local.is_ipv4();
        self.vni == other.vni && self.port == other.port && same_family
    }

    fn beneath(&self) -> Option<Beneath> {
        Some(self.beneath)
    }

    fn local(&self) -> Option<IpAddr> {
        Some(self.local)
    }

    /// Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40 bytes.
    fn overhead(&self) -> u32 {
        match self.local {
            IpAddr::V4(_) => 50,
            IpAddr::V6(_) => 70,
        }
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn put(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Vxlan {
            vni,
            beneath,
            local,
            port,
            ..
        } = self;
        write!(f, " id {vni} dev {beneath} local {local} dstport {port}")?;
        f.write_str(if self.learning {
            " learning"
        } else {
            " nolearning"
        })?;
        f.write_str(if self.gbp { " gbp" } else { "" })
    }

    fn finish(&self, f: &mut fmt::Formatter<'_>, name: &IfName) -> fmt::Result {
        match self.tx_checksum {
            Some(true) => write!(f, " && ethtool -K {name} tx on"),
            Some(false) => write!(f, " && ethtool -K {name} tx off"),
            None => Ok(()),
        }
    }
}
