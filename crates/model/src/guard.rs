//! What a node never lets in, whatever else its traffic rules are: the packets by which a pod, or
//! anybody who reaches the tunnel's port, could speak for the network itself.
//!
//! | at | packets | why |
//! |---|---|---|
//! | input | IPv6 router advertisements and redirects, IPv4 redirects, from a `flannel*` device | a forged one would take over the node's routes (CVE-2020-10749) |
//! | input | from `C` to a tunnel port of this node | only nodes speak the tunnel's protocol, and no node has an address in `C` |
//! | forward | from `C` to a tunnel port outside `C` | masquerading would lend such a packet the node's address |
//!
//! `C` is the flannel network. Packets between two pods are never affected, whatever their port.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Dual, Family};

/// The device names for which router advertisements and redirects are dropped.
pub const DEVICE_PREFIX: &str = "flannel";

/// ICMPv6 router advertisement.
const ROUTER_ADVERTISEMENT: u8 = 134;
/// ICMPv6 redirect.
const REDIRECT_V6: u8 = 137;
/// ICMP redirect.
const REDIRECT_V4: u8 = 5;

/// Where a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// It is for the node itself.
    Input,
    /// The node passes it on.
    Forward,
}

/// Which packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packets {
    /// ICMP or ICMPv6 of this type that arrives on a device whose name begins with
    /// [`DEVICE_PREFIX`].
    Icmp(Family, u8),
    /// UDP from `pods` to this port; with `outside`, to an address outside of `pods` only.
    Tunnel {
        /// The flannel network.
        pods: IpNet,
        /// The backend's port.
        port: u16,
        /// Packets that stay within the network pass.
        outside: bool,
    },
}

/// What a node drops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    networks: Vec<IpNet>,
    ports: BTreeSet<u16>,
}

impl Guard {
    /// The guard of a node with the addresses `public` in `networks`, whose backend receives its
    /// tunnel's packets on these UDP ports. Where a node's own address lies in the flannel network,
    /// nothing distinguishes its packets from a pod's: that family's tunnel is not guarded.
    pub fn new(
        networks: &Dual<IpNet>,
        public: &Dual<IpAddr>,
        ports: impl IntoIterator<Item = u16>,
    ) -> Guard {
        let apart = |(family, net): (Family, &IpNet)| {
            let inside = public.get(family).is_some_and(|ip| net.contains(ip));
            (!inside).then_some(*net)
        };
        Guard {
            networks: networks.iter().filter_map(apart).collect(),
            ports: ports.into_iter().collect(),
        }
    }

    /// Every rule, in order.
    pub fn rules(&self) -> Vec<(Hook, Packets)> {
        let mut rules = vec![
            (Hook::Input, Packets::Icmp(Family::V6, ROUTER_ADVERTISEMENT)),
            (Hook::Input, Packets::Icmp(Family::V6, REDIRECT_V6)),
            (Hook::Input, Packets::Icmp(Family::V4, REDIRECT_V4)),
        ];
        for &port in &self.ports {
            for &pods in &self.networks {
                let tunnel = |outside| Packets::Tunnel {
                    pods,
                    port,
                    outside,
                };
                rules.push((Hook::Input, tunnel(false)));
                rules.push((Hook::Forward, tunnel(true)));
            }
        }
        rules
    }
}

/// The optional check of who sends a node the tunnel's packets. It is right only where every node sends from the address
/// that it publishes: not behind address translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The UDP ports of the tunnels.
    pub ports: BTreeSet<u16>,
    /// There is a tunnel of IP in IP.
    pub ipip: bool,
    /// The addresses that the other nodes publish.
    pub peers: BTreeSet<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(public: &str) -> Vec<(Hook, Packets)> {
        let networks = Dual {
            v4: Some("10.1.0.0/16".parse().unwrap()),
            v6: None,
        };
        let public = Dual {
            v4: Some(public.parse().unwrap()),
            v6: None,
        };
        Guard::new(&networks, &public, [8472]).rules()
    }

    #[test]
    fn a_node_inside_the_flannel_network_is_not_cut_off() {
        assert_eq!(guard("192.0.2.1").len(), 5);
        let inside = guard("10.1.200.1");
        assert_eq!(inside.len(), 3, "{inside:?}");
        // Routers are never believed, backend or not.
        assert_eq!(Guard::default().rules(), inside);
    }
}
