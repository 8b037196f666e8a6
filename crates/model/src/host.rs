//! What a backend must know of the machine it runs on, gathered by a crate that may do I/O.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Dual, IfName};

/// The machine as a backend sees it: the interface that carries traffic to the peers, and the
/// addresses on it. A value: looked up by the daemon, never by the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The interface through which the peers are reached.
    pub iface: IfName,
    /// Its kernel index, to notice that it was replaced by another of the same name.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The kernel's name for the kind of device it is, such as `wireguard`; empty for hardware.
    pub kind: String,
    /// The address chosen on the interface, per family in use: the local end of tunnels.
    pub addr: Dual<IpAddr>,
    /// What the peers send to; the interface's address unless overridden.
    pub public_ip: Dual<IpAddr>,
    /// Networks that the interface reaches without a gateway: its prefixes and its
    /// `scope link` routes.
    pub on_link: Vec<IpNet>,
    /// What must stay reachable past the tunnel, in order: every address of the interface, its
    /// gateways, and `on_link`.
    pub underlay: Vec<IpNet>,
}

impl Host {
    /// Whether `ip` is reached on the interface's own link, without a gateway.
    pub fn is_on_link(&self, ip: &IpAddr) -> bool {
        self.on_link.iter().any(|net| net.contains(ip))
    }
}
