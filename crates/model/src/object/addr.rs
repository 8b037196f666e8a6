//! Addresses on devices.

use std::fmt;

use ipnet::IpNet;

use super::Kind;
use crate::IfName;

/// An address on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrKey {
    /// The device.
    pub dev: IfName,
    /// Address and prefix length.
    pub net: IpNet,
}

/// Addresses. The key says everything.
pub struct Addrs;

impl Kind for Addrs {
    type Key = AddrKey;
    type Value = ();
    const NAME: &'static str = "address";

    fn device(key: &AddrKey, (): &()) -> Option<IfName> {
        Some(key.dev)
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &AddrKey, (): &()) -> fmt::Result {
        write!(f, "ip address replace {} dev {}", key.net, key.dev)
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &AddrKey, (): &()) -> fmt::Result {
        write!(f, "ip address del {} dev {}", key.net, key.dev)
    }
}
