//! Permanent neighbour entries (ARP, NDP).

use std::fmt;
use std::net::IpAddr;

use super::Kind;
use crate::{IfName, Mac};

/// A permanent neighbour entry (ARP, NDP).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighKey {
    /// The device.
    pub dev: IfName,
    /// The neighbour's address.
    pub ip: IpAddr,
}

/// Permanent neighbour entries.
pub struct Neighs;

impl Kind for Neighs {
    type Key = NeighKey;
    type Value = Mac;
    const NAME: &'static str = "neighbour";

    fn device(key: &NeighKey, _: &Mac) -> Option<IfName> {
        Some(key.dev)
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &NeighKey, mac: &Mac) -> fmt::Result {
        let NeighKey { ip, dev } = key;
        write!(
            f,
            "ip neigh replace {ip} lladdr {mac} dev {dev} nud permanent"
        )
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &NeighKey, _: &Mac) -> fmt::Result {
        write!(f, "ip neigh del {} dev {}", key.ip, key.dev)
    }
}
