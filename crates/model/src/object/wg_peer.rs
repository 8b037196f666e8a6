//! Peers of a WireGuard device of the kernel.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::Kind;
use crate::{IfName, WgKey, WgSecret};

/// Names a peer of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WgPeerKey {
    /// The tunnel's device.
    pub dev: IfName,
    /// The peer's public key.
    pub key: WgKey,
}

/// What a WireGuard device knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WgPeer {
    /// Where it is, until its packets come from elsewhere. Observed: `None` if the kernel learnt the address from
    /// the peer's own packets, which is no difference.
    pub endpoint: Option<SocketAddr>,
    /// The subnets behind it, in order.
    pub allowed: Vec<IpNet>,
    /// A key that both sides share, if any.
    pub preshared: Option<WgSecret>,
    /// How often a packet is sent to the peer at least, in seconds; 0 for never.
    pub keepalive: u16,
}

/// Peers of WireGuard devices.
pub struct WgPeers;

impl Kind for WgPeers {
    type Key = WgPeerKey;
    type Value = WgPeer;
    const NAME: &'static str = "WireGuard peer";

    fn is_met_by(desired: &WgPeer, observed: &WgPeer) -> bool {
        (observed.endpoint.is_none() || observed.endpoint == desired.endpoint)
            && observed.allowed == desired.allowed
            && observed.preshared == desired.preshared
            && observed.keepalive == desired.keepalive
    }

    fn device(key: &WgPeerKey, _: &WgPeer) -> Option<IfName> {
        Some(key.dev)
    }

    fn put(f: &mut fmt::Formatter<'_>, key: &WgPeerKey, peer: &WgPeer) -> fmt::Result {
        write!(f, "wg set {} peer {}", key.dev, key.key)?;
        if let Some(endpoint) = peer.endpoint {
            write!(f, " endpoint {endpoint}")?;
        }
        if peer.preshared.is_some() {
            f.write_str(" preshared-key (file)")?;
        }
        if peer.keepalive > 0 {
            write!(f, " persistent-keepalive {}", peer.keepalive)?;
        }
        f.write_str(" allowed-ips ")?;
        list(f, &peer.allowed)
    }

    fn del(f: &mut fmt::Formatter<'_>, key: &WgPeerKey, _: &WgPeer) -> fmt::Result {
        write!(f, "wg set {} peer {} remove", key.dev, key.key)
    }
}

/// Writes subnets with commas between them.
pub(super) fn list(f: &mut fmt::Formatter<'_>, nets: &[IpNet]) -> fmt::Result {
    for (at, net) in nets.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        write!(f, "{comma}{net}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_peer_was_heard_is_no_difference() {
        let desired = WgPeer {
            endpoint: Some(([192, 0, 2, 1], 51_820).into()),
            allowed: vec!["10.1.4.0/24".parse().unwrap()],
            preshared: None,
            keepalive: 0,
        };
        let learnt = WgPeer {
            endpoint: None,
            ..desired.clone()
        };
        assert!(WgPeers::is_met_by(&desired, &learnt));
        for other in [
            WgPeer {
                endpoint: Some(([192, 0, 2, 2], 51_820).into()),
                ..desired.clone()
            },
            WgPeer {
                allowed: Vec::new(),
                ..learnt.clone()
            },
            WgPeer {
                preshared: Some(WgSecret([1; 32])),
                ..learnt.clone()
            },
            WgPeer {
                keepalive: 1,
                ..learnt
            },
        ] {
            assert!(!WgPeers::is_met_by(&desired, &other), "{other:?}");
        }
    }
}
