//! The packet loop of tunnels in user space: a TUN device on one side, UDP sockets on the other.
//!
//! The kernel hands over packets of up to 64 KB that are still to be cut (TSO, USO). They are cut here, and
//! the parts go out in one call as datagrams of one size (UDP GSO). What arrives is handed over by the kernel
//! in one piece, too (UDP GRO), and is joined again for the device. So the cost is a few calls for 64 KB, and
//! not for every packet.
//!
//! On the wire each datagram is one bare IP packet, as upstream's `udp` backend sends and expects it: never
//! longer than the tunnel's MTU, for upstream's buffer has no room for more.
//!
//! With [`Wireguard`] keys each datagram is a packet of WireGuard instead, and nodes whose kernel has WireGuard are
//! peers like any other.
//!
//! The threads are the proxy's own. The daemon only swaps the table of next hops ([`Proxy::set_table`]),
//! which they read without a lock.

mod busy_poll;
mod checksum;
mod coalesce;
mod icmp;
mod narrow;
mod outgoing;
mod packet;
#[cfg(test)]
mod properties;
mod proxy;
#[cfg(test)]
mod samples;
mod segment;
mod socket;
mod statistics;
mod table;
mod tun;
mod virtio;
mod wake;
mod wireguard;
mod worker;

pub use proxy::{Config, Problem, Proxy};
pub use statistics::Statistics;
pub use table::Table;
pub use tun::TunError;
pub use wireguard::{Peer, Secret, Wireguard};
