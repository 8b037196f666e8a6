//! What strongSwan's charon, which agrees on keys with the peers, must be told.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Kind;
use crate::IfName;

/// A secret text.
#[derive(Clone, PartialEq, Eq)]
pub struct Psk(pub Arc<str>);

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeKey {
    /// This node's subnet.
    pub local: IpNet,
    /// The peer's.
    pub remote: IpNet,
}

/// A connection to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeConnection {
    /// This node's address, as its packets leave it.
    pub local: IpAddr,
    /// This node's address, as the peers know it.
    pub local_id: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    /// What both agree on for the packets, as strongSwan writes it.
    pub esp: Arc<str>,
    /// Packets travel in UDP even where no address is translated.
    pub encap: bool,
    /// By it both sides know each other.
    pub psk: Psk,
}

impl IkeConnection {
    /// Returns its name, which is upstream's.
    pub fn name(&self, key: &IkeKey) -> String {
        format!(
            "{}-{}-{}-{}",
            self.local, key.local, key.remote, self.remote
        )
    }

    /// Returns the subnets of a connection with such a name.
    pub fn key_of(name: &str) -> Option<IkeKey> {
        let mut parts = name.split('-');
        let mut next = || parts.next();
        let (local_ip, local, remote, remote_ip) = (next()?, next()?, next()?, next()?);
        local_ip.parse::<IpAddr>().ok()?;
        remote_ip.parse::<IpAddr>().ok()?;
        if next().is_some() {
            return None;
        }
        Some(IkeKey {
            local: local.parse().ok()?,
            remote: remote.parse().ok()?,
        })
    }
}

/// That charon runs. There is one. The value says whether an earlier run of the daemon started it and this one
/// has not spoken to it yet.
pub struct IkeDaemons;

impl Kind for IkeDaemons {
    type Key = ();
    type Value = bool;
    const NAME: &'static str = "charon";

    fn device((): &(), _: &bool) -> Option<IfName> {
        None
    }

    fn put(f: &mut fmt::Formatter<'_>, (): &(), _: &bool) -> fmt::Result {
        f.write_str("charon")
    }

    fn del(f: &mut fmt::Formatter<'_>, (): &(), _: &bool) -> fmt::Result {
        f.write_str("# charon is not needed any more")
    }
}

/// Connections of charon. One that exists is up.
pub struct IkeConnections;

impl Kind for IkeConnections {
    type Key = IkeKey;
    type Value = IkeConnection;
    const NAME: &'static str = "IKE connection";

    fn device(_: &IkeKey, _: &IkeConnection) -> Option<IfName> {
        None
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &IkeKey, value: &IkeConnection) -> fmt::Result {
        write!(f, "swanctl --initiate --ike {}", value.name(key))?;
        let encap = if value.encap { ", in UDP" } else { "" };
        write!(f, " # {}, as {}{encap}", value.esp, value.local_id)
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &IkeKey, value: &IkeConnection) -> fmt::Result {
        write!(f, "swanctl --terminate --ike {}", value.name(key))
    }
}
