//! Forwarding-database entries of vxlan devices: which tunnel end point has a MAC.

use std::fmt;
use std::net::IpAddr;

use super::Kind;
use crate::{IfName, Mac};

/// A forwarding-database entry of a vxlan device (`self permanent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbKey {
    /// The device.
    pub dev: IfName,
    /// The MAC of the remote tunnel end point.
    pub mac: Mac,
}

/// Where packets to a MAC are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// To this address, with the device's own port and VNI.
    At(IpAddr),
    /// Observed only: to another port, VNI or interface, or through a next-hop object.
    Foreign,
}

/// Forwarding-database entries.
pub struct Fdb;

impl Kind for Fdb {
    type Key = FdbKey;
    type Value = Remote;
    const NAME: &'static str = "fdb";

    /// The kernel does not turn an entry that uses a next-hop object into one that does not.
    fn in_place(old: &Remote, _: &Remote) -> bool {
        *old != Remote::Foreign
    }

    fn device(key: &FdbKey, _: &Remote) -> Option<IfName> {
        Some(key.dev)
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &FdbKey, to: &Remote) -> fmt::Result {
        write!(
            f,
            "bridge fdb replace {} dev {}{to} self permanent",
            key.mac, key.dev
        )
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &FdbKey, to: &Remote) -> fmt::Result {
        write!(f, "bridge fdb del {} dev {}{to} self", key.mac, key.dev)
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remote::At(ip) => write!(f, " dst {ip}"),
            Remote::Foreign => Ok(()),
        }
    }
}
