//! Packet loops: what carries the packets of a TUN device, in threads of the daemon.

use std::fmt;
use std::net::SocketAddr;

use super::Kind;
use crate::{IfName, WgSecret};

/// What a packet loop is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketLoop {
    /// Address and port for the peers' datagrams, which also are the source of ours.
    pub listen: SocketAddr,
    /// The largest packet that peers take, in bytes.
    pub mtu: u32,
    /// What the packets are encrypted with; without, they are sent as they are.
    pub keys: Option<WgKeys>,
}

/// WireGuard's keys of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WgKeys {
    /// This node's own.
    pub private: WgSecret,
    /// One that all nodes share, if any.
    pub preshared: Option<WgSecret>,
    /// How often a packet is sent to each peer at least, in seconds; 0 for never.
    pub keepalive: u16,
}

/// Packet loops, by device.
pub struct PacketLoops;

impl Kind for PacketLoops {
    type Key = IfName;
    type Value = PacketLoop;
    const NAME: &'static str = "packet loop";

    fn device(name: &IfName, _: &PacketLoop) -> Option<IfName> {
        Some(*name)
    }

    fn put(f: &mut fmt::Formatter<'_>, name: &IfName, to: &PacketLoop) -> fmt::Result {
        write!(
            f,
            "packet-loop start {name} udp {} mtu {}",
            to.listen, to.mtu
        )?;
        match &to.keys {
            Some(keys) if keys.preshared.is_some() => f.write_str(" wireguard psk"),
            Some(_) => f.write_str(" wireguard"),
            None => Ok(()),
        }
    }

    fn del(f: &mut fmt::Formatter<'_>, name: &IfName, _: &PacketLoop) -> fmt::Result {
        write!(f, "packet-loop stop {name}")
    }
}
