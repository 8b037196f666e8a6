//! Peers of a packet loop that encrypts.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::Kind;
use super::wg_peer::{WgPeerKey, list};
use crate::IfName;

/// What a packet loop knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelPeer {
    /// Where it is, until its packets come from elsewhere.
    pub endpoint: SocketAddr,
    /// The subnets behind it.
    pub allowed: Vec<IpNet>,
}

/// Peers of packet loops.
pub struct TunnelPeers;

impl Kind for TunnelPeers {
    type Key = WgPeerKey;
    type Value = TunnelPeer;
    const NAME: &'static str = "tunnel peer";

    fn device(key: &WgPeerKey, _: &TunnelPeer) -> Option<IfName> {
        Some(key.dev)
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &WgPeerKey, peer: &TunnelPeer) -> fmt::Result {
        let WgPeerKey { dev, key } = key;
        write!(
            f,
            "packet-loop peer {dev} {key} endpoint {} allowed-ips ",
            peer.endpoint
        )?;
        list(f, &peer.allowed)
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &WgPeerKey, _: &TunnelPeer) -> fmt::Result {
        write!(f, "packet-loop unpeer {} {}", key.dev, key.key)
    }
}
