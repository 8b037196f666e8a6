//! Routes inside a packet loop: to which peer the packets for a subnet go.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::Kind;
use crate::IfName;

/// A route inside a packet loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelRouteKey {
    /// The loop's device.
    pub dev: IfName,
    /// Destination.
    pub dst: IpNet,
}

/// Routes inside packet loops. The value is the peer's address and port.
pub struct TunnelRoutes;

impl Kind for TunnelRoutes {
    type Key = TunnelRouteKey;
    type Value = SocketAddr;
    const NAME: &'static str = "tunnel route";

    fn device(key: &TunnelRouteKey, _: &SocketAddr) -> Option<IfName> {
        Some(key.dev)
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &TunnelRouteKey, peer: &SocketAddr) -> fmt::Result {
        write!(f, "packet-loop route {} {} to {peer}", key.dev, key.dst)
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &TunnelRouteKey, _: &SocketAddr) -> fmt::Result {
        write!(f, "packet-loop unroute {} {}", key.dev, key.dst)
    }
}
