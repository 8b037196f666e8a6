//! Packet loops: what carries the packets of a TUN device, in threads of the daemon.

use std::fmt;
use std::net::SocketAddr;

use super::Kind;
use crate::IfName;

/// What a packet loop is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketLoop {
    /// Address and port for the peers' datagrams, which also are the source of ours.
    pub listen: SocketAddr,
    /// The largest packet that peers take, in bytes.
    pub mtu: u32,
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
        )
    }

    fn del(f: &mut fmt::Formatter<'_>, name: &IfName, _: &PacketLoop) -> fmt::Result {
        write!(f, "packet-loop stop {name}")
    }
}
