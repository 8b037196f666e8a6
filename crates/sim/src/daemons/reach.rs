//! Where a packet of a pod arrives, by what the kernels hold: an independent reading of routes, neighbours, forwarding
//! entries and peers.

use std::net::IpAddr;

use dataplane::fake::FakeKernel;
use flanneld::identity::public_key;
use model::object::{FdbKey, LinkKind, NeighKey, NextHop, Remote, RouteTo};
use model::{IfName, Mac, Object, WgKey};

/// What one kernel holds, as far as packets depend on it.
pub struct Tables {
    objects: Vec<Object>,
}

/// Where a packet leaves a node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// To this address in the underlay, without a tunnel.
    Plain(IpAddr),
    /// In a VXLAN packet: the node's address, VNI and port, the inner MAC.
    Vxlan(IpAddr, u32, u16, Mac),
    /// In an IP packet.
    Ipip(IpAddr),
    /// In a WireGuard packet, for the peer with this key, by the owner of the other.
    Wireguard(IpAddr, u16, WgKey),
}

impl Tables {
    /// Reads a kernel.
    pub fn of(kernel: &FakeKernel) -> Tables {
        Tables {
            objects: kernel.objects(),
        }
    }

    /// Returns every object.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    fn find<T>(&self, which: impl FnMut(&Object) -> Option<T>) -> Option<T> {
        self.objects.iter().find_map(which)
    }

    fn link(&self, name: IfName) -> Option<&model::object::Link> {
        self.objects.iter().find_map(|object| match object {
            Object::Link(of, link) if *of == name => Some(link),
            _ => None,
        })
    }

    /// Returns the device and the gateway of a route.
    pub fn hop(&self, to: &RouteTo) -> Option<(IfName, Option<IpAddr>)> {
        match to {
            RouteTo::Gateway(NextHop { via, dev, .. }) => Some((*dev, Some(*via))),
            RouteTo::NextHopId(id) => self.find(|object| match object {
                Object::NextHop(of, hop) if of == id => Some((hop.dev, Some(hop.via))),
                _ => None,
            }),
            RouteTo::Dev(dev) => Some((*dev, None)),
            RouteTo::Blackhole | RouteTo::Foreign(_) => None,
        }
    }

    /// Returns how a packet to `ip` leaves, or why it does not.
    fn way(&self, ip: IpAddr) -> Result<Way, String> {
        let routes = self.objects.iter().filter_map(|object| match object {
            Object::Route(key, route) if key.dst.contains(&ip) => Some((key, route)),
            _ => None,
        });
        let best = routes.max_by_key(|(key, _)| (key.dst.prefix_len(), u32::MAX - key.metric));
        let (key, route) = best.ok_or("there is no route")?;
        if key.dst.prefix_len() == 0 {
            return Err("there is only the default route".into());
        }
        let (dev, via) = self.hop(&route.to).ok_or("the route leads nowhere")?;
        let link = self.link(dev).ok_or_else(|| format!("there is no {dev}"))?;
        if !link.up {
            return Err(format!("{dev} is down"));
        }
        let target = via.unwrap_or(ip);
        match &link.kind {
            LinkKind::Vxlan(vxlan) => {
                let neigh = NeighKey { dev, ip: target };
                let mac = self.find(|object| match object {
                    Object::Neigh(key, mac) if *key == neigh => Some(*mac),
                    _ => None,
                });
                let mac = mac.ok_or_else(|| format!("{target} has no neighbour entry on {dev}"))?;
                let entry = FdbKey { dev, mac };
                let remote = self.find(|object| match object {
                    Object::Fdb(key, Remote::At(remote)) if *key == entry => Some(*remote),
                    _ => None,
                });
                let remote = remote.ok_or_else(|| format!("{mac} has no FDB entry on {dev}"))?;
                Ok(Way::Vxlan(remote, vxlan.vni, vxlan.port, mac))
            }
            LinkKind::Ipip(_) => Ok(Way::Ipip(target)),
            LinkKind::Wireguard(_) => {
                let peers = self.objects.iter().filter_map(|object| match object {
                    Object::WgPeer(key, peer) if key.dev == dev => Some((key, peer)),
                    _ => None,
                });
                let mut behind =
                    peers.filter(|(_, peer)| peer.allowed.iter().any(|net| net.contains(&ip)));
                let (key, peer) = behind.next().ok_or("no WireGuard peer has it")?;
                let endpoint = peer.endpoint.ok_or("the WireGuard peer has no address")?;
                Ok(Way::Wireguard(endpoint.ip(), endpoint.port(), key.key))
            }
            LinkKind::Foreign(_) => Ok(Way::Plain(target)),
            LinkKind::Tun(_) => Err(format!("{dev} is a TUN device")),
        }
    }

    /// Returns whether the node takes what arrives so.
    fn takes(&self, way: &Way) -> Result<(), String> {
        let mut links = self.objects.iter().filter_map(|object| match object {
            Object::Link(name, link) if link.up => Some((name, link)),
            _ => None,
        });
        let takes = match way {
            Way::Plain(_) => true,
            Way::Vxlan(_, vni, port, mac) => links.any(|(_, link)| match &link.kind {
                LinkKind::Vxlan(own) => {
                    own.vni == *vni && own.port == *port && link.mac == Some(*mac)
                }
                _ => false,
            }),
            Way::Ipip(_) => links.any(|(_, link)| matches!(link.kind, LinkKind::Ipip(_))),
            Way::Wireguard(_, port, key) => self.objects.iter().any(|object| match object {
                Object::WgDevice(_, device) => {
                    device.port == *port && public_key(&device.private) == *key
                }
                _ => false,
            }),
        };
        if takes {
            Ok(())
        } else {
            Err(format!("nothing takes {way:?} there"))
        }
    }
}

/// Returns why a packet from one node to `ip`, of a pod on another, does not arrive there. `owner` finds the node with
/// an address of the underlay.
pub fn obstacle(
    from: &Tables,
    ip: IpAddr,
    to: (&Tables, usize),
    owner: impl Fn(IpAddr) -> Option<usize>,
) -> Option<String> {
    let way = match from.way(ip) {
        Ok(way) => way,
        Err(why) => return Some(why),
    };
    let (Way::Plain(next) | Way::Vxlan(next, ..) | Way::Ipip(next) | Way::Wireguard(next, ..)) =
        way;
    match owner(next) {
        Some(node) if node == to.1 => to.0.takes(&way).err(),
        Some(node) => Some(format!("it goes to node {node}, by {way:?}")),
        None => Some(format!("nobody has {next}")),
    }
}

/// Returns whether a device carries packets in clear text between the nodes.
pub fn is_plain(tables: &Tables, dev: IfName) -> bool {
    let kind = tables.link(dev).map(|link| &link.kind);
    !matches!(kind, Some(LinkKind::Wireguard(_)))
}
