//! Peers of a WireGuard tunnel.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::Kind;
use crate::{IfName, WgKey};

/// Names a peer of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WgPeerKey {
    /// The tunnel's device.
    pub dev: IfName,
    /// The peer's public key.
    pub key: WgKey,
}

/// What a tunnel knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WgPeer {
    /// Where it is, until its packets come from elsewhere.
    pub endpoint: SocketAddr,
    /// The subnets behind it.
    pub allowed: Vec<IpNet>,
}

/// Peers of WireGuard tunnels.
pub struct WgPeers;

impl Kind for WgPeers {
    type Key = WgPeerKey;
    type Value = WgPeer;
    const NAME: &'static str = "WireGuard peer";

    fn device(key: &WgPeerKey, _: &WgPeer) -> Option<IfName> {
        Some(key.dev)
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &WgPeerKey, peer: &WgPeer) -> fmt::Result {
        write!(
            f,
            "wg set {} peer {} endpoint {} allowed-ips ",
            key.dev, key.key, peer.endpoint
        )?;
        for (at, net) in peer.allowed.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{net}")?;
        }
        Ok(())
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &WgPeerKey, _: &WgPeer) -> fmt::Result {
        write!(f, "wg set {} peer {} remove", key.dev, key.key)
    }
}
