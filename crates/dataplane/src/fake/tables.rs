//! The fake kernel's tables: what it holds, takes and refuses. What goes along with it: `cascade`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use model::object::{
    AddrKey, FdbKey, IkeConnection, IkeKey, Link, LinkKind, NeighKey, NextHop, PacketLoop,
    PeerCommand, PostStartup, Remote, Route, RouteKey, RouteTo, TunnelPeer, TunnelRouteKey,
    WgDevice, WgPeer, WgPeerKey, XfrmPolicy, XfrmPolicyKey,
};
use model::{Family, IfName, Mac, Object, Op, SubnetKey};

use crate::KernelEvent;
use crate::failure::Failure;

/// The settings of a device after `wanted` was written over `before`: what `wanted` leaves open stays.
fn settings(wanted: &Link, before: Option<&Link>) -> Link {
    let mut link = wanted.clone();
    link.mac = wanted.mac.or(before.and_then(|link| link.mac));
    link.mark = wanted.mark.or(before.and_then(|link| link.mark));
    match &mut link.kind {
        LinkKind::Vxlan(vxlan) if vxlan.tx_checksum.is_none() => {
            let offload = match before.map(|link| &link.kind) {
                Some(LinkKind::Vxlan(before)) => before.tx_checksum,
                // On in a new device.
                _ => Some(true),
            };
            vxlan.tx_checksum = offload;
        }
        LinkKind::Vxlan(_)
        | LinkKind::Ipip(_)
        | LinkKind::Tun(_)
        | LinkKind::Wireguard(_)
        | LinkKind::Foreign(_) => {}
    }
    link
}

/// Whether forwarding entries can be written on such a device.
fn has_fdb(kind: &LinkKind) -> bool {
    match kind {
        LinkKind::Vxlan(_) => true,
        LinkKind::Ipip(_) | LinkKind::Tun(_) | LinkKind::Wireguard(_) | LinkKind::Foreign(_) => {
            false
        }
    }
}

/// A device and whether it has a carrier.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// What it is.
    pub link: Link,
    /// Something is at its other end.
    pub carrier: bool,
}

/// Everything that the fake kernel holds.
#[derive(Default)]
pub struct Tables {
    /// Devices.
    pub links: BTreeMap<IfName, Device>,
    /// Addresses.
    pub addrs: BTreeSet<AddrKey>,
    /// Packet loops.
    pub packet_loops: BTreeMap<IfName, PacketLoop>,
    /// Routes inside packet loops.
    pub tunnel_routes: BTreeMap<TunnelRouteKey, SocketAddr>,
    /// Peers of packet loops.
    pub tunnel_peers: BTreeMap<WgPeerKey, TunnelPeer>,
    /// Keys and ports of WireGuard devices.
    pub wg_devices: BTreeMap<IfName, WgDevice>,
    /// Peers of WireGuard devices.
    pub wg_peers: BTreeMap<WgPeerKey, WgPeer>,
    /// Neighbours.
    pub neighs: BTreeMap<NeighKey, Mac>,
    /// Forwarding-database entries.
    pub fdb: BTreeMap<FdbKey, Remote>,
    /// Next-hop objects; `None` in a kernel that has none.
    pub next_hops: Option<BTreeMap<u32, NextHop>>,
    /// Routes of the main table, one per key.
    pub routes: BTreeMap<RouteKey, Route>,
    /// IPsec policies.
    pub xfrm_policies: BTreeMap<XfrmPolicyKey, XfrmPolicy>,
    /// charon runs.
    pub ike_daemon: bool,
    /// Connections of charon.
    pub ike_connections: BTreeMap<IkeKey, IkeConnection>,
    /// The command that prepared this node.
    pub post_startup: Option<PostStartup>,
    /// Commands that were run for peers.
    pub peer_commands: BTreeMap<SubnetKey, PeerCommand>,
    /// What a kernel would have announced, in order, in scope or not.
    pub notices: Vec<Notice>,
    /// A change of a device or the deletion of an address may have taken other objects along.
    pub took_along: bool,
}

/// An announcement.
#[derive(Clone, Debug)]
pub enum Notice {
    /// An object is so, or gone.
    Of(KernelEvent),
    /// A device went up, down or away, or came to be: more changed than is announced.
    Flapped(IfName),
    /// A route took the place of another.
    Replaced(RouteKey, Route),
}

fn no_device(name: &IfName) -> Failure {
    Failure::because(libc::ENODEV, format!("there is no device {name}"))
}

fn because<T>(errno: i32, text: &str) -> Result<T, Failure> {
    Err(Failure::because(errno, text))
}

impl Tables {
    pub(super) fn saw(&mut self, object: Object) {
        self.notices.push(Notice::Of(KernelEvent::Saw(object)));
    }

    pub(super) fn gone(&mut self, object: Object) {
        self.notices.push(Notice::Of(KernelEvent::Gone(object)));
    }

    /// Every object, devices first.
    pub fn objects(&self) -> Vec<Object> {
        let links = self
            .links
            .iter()
            .map(|(k, d)| Object::Link(*k, d.link.clone()));
        let addrs = self.addrs.iter().map(|k| Object::Addr(*k, ()));
        let neighs = self.neighs.iter().map(|(k, v)| Object::Neigh(*k, *v));
        let packet_loops = self.packet_loops.iter();
        let packet_loops = packet_loops.map(|(k, v)| Object::PacketLoop(*k, *v));
        let tunnel_routes = self.tunnel_routes.iter();
        let tunnel_routes = tunnel_routes.map(|(k, v)| Object::TunnelRoute(*k, *v));
        let tunnel_peers = self.tunnel_peers.iter();
        let tunnel_peers = tunnel_peers.map(|(k, v)| Object::TunnelPeer(*k, v.clone()));
        let wg_devices = self.wg_devices.iter();
        let wg_devices = wg_devices.map(|(k, v)| Object::WgDevice(*k, *v));
        let wg_peers = self.wg_peers.iter();
        let wg_peers = wg_peers.map(|(k, v)| Object::WgPeer(*k, v.clone()));
        let fdb = self.fdb.iter().map(|(k, v)| Object::Fdb(*k, *v));
        let next_hops = self
            .next_hops
            .iter()
            .flatten()
            .map(|(k, v)| Object::NextHop(*k, *v));
        let routes = self.routes.iter().map(|(k, v)| Object::Route(*k, *v));
        let policies = self.xfrm_policies.iter();
        let policies = policies.map(|(k, v)| Object::XfrmPolicy(*k, *v));
        let daemon = self.ike_daemon.then_some(Object::IkeDaemon((), false));
        let connections = self.ike_connections.iter();
        let connections = connections.map(|(k, v)| Object::IkeConnection(*k, v.clone()));
        let post_startup = self.post_startup.iter();
        let post_startup = post_startup.map(|v| Object::PostStartup((), v.clone()));
        let peer_commands = self.peer_commands.iter();
        let peer_commands = peer_commands.map(|(k, v)| Object::PeerCommand(*k, v.clone()));
        links
            .chain(addrs)
            .chain(packet_loops)
            .chain(tunnel_routes)
            .chain(tunnel_peers)
            .chain(wg_devices)
            .chain(wg_peers)
            .chain(neighs)
            .chain(fdb)
            .chain(next_hops)
            .chain(routes)
            .chain(policies)
            .chain(daemon)
            .chain(connections)
            .chain(post_startup)
            .chain(peer_commands)
            .collect()
    }

    /// Makes one change.
    ///
    /// # Errors
    /// As a kernel would refuse it.
    pub fn apply(&mut self, op: &Op) -> Result<(), Failure> {
        match op {
            Op::Put(object) => self.put(object),
            Op::Del(object) => {
                self.del(object);
                Ok(())
            }
        }
    }

    fn device(&self, name: &IfName) -> Result<&Device, Failure> {
        self.links.get(name).ok_or_else(|| no_device(name))
    }

    fn check_wireguard(&self, name: &IfName) -> Result<(), Failure> {
        match self.device(name)?.link.kind {
            LinkKind::Wireguard(_) => Ok(()),
            LinkKind::Vxlan(_) | LinkKind::Ipip(_) | LinkKind::Tun(_) | LinkKind::Foreign(_) => {
                Err(Failure::errno(libc::EOPNOTSUPP))
            }
        }
    }

    fn put(&mut self, object: &Object) -> Result<(), Failure> {
        match object {
            Object::Link(name, link) => return self.put_link(name, link),
            Object::Addr(key, ()) => {
                self.device(&key.dev)?;
                if !self.addrs.insert(*key) {
                    return Ok(());
                }
            }
            // Not the kernel's, so that there are no notices of them.
            Object::PacketLoop(name, value) => {
                self.device(name)?;
                self.packet_loops.insert(*name, *value);
                return Ok(());
            }
            Object::TunnelRoute(key, peer) => {
                if !self.packet_loops.contains_key(&key.dev) {
                    return Err(no_device(&key.dev));
                }
                self.tunnel_routes.insert(*key, *peer);
                return Ok(());
            }
            Object::TunnelPeer(key, peer) => {
                if !self.packet_loops.contains_key(&key.dev) {
                    return Err(no_device(&key.dev));
                }
                self.tunnel_peers.insert(*key, peer.clone());
                return Ok(());
            }
            // The kernel announces no changes of these.
            Object::WgDevice(name, value) => {
                self.check_wireguard(name)?;
                self.wg_devices.insert(*name, *value);
                return Ok(());
            }
            Object::WgPeer(key, peer) => {
                self.check_wireguard(&key.dev)?;
                let others = self.wg_peers.iter_mut();
                for (_, other) in others.filter(|(other, _)| other.dev == key.dev) {
                    // A subnet is behind one peer only.
                    other.allowed.retain(|net| !peer.allowed.contains(net));
                }
                self.wg_peers.insert(*key, peer.clone());
                return Ok(());
            }
            Object::XfrmPolicy(key, value) => {
                self.xfrm_policies.insert(*key, *value);
            }
            Object::IkeDaemon((), _) => {
                self.ike_daemon = true;
                return Ok(());
            }
            Object::IkeConnection(key, value) => {
                self.ike_connections.insert(*key, value.clone());
                return Ok(());
            }
            Object::PostStartup((), value) => {
                self.post_startup = Some(value.clone());
                return Ok(());
            }
            Object::PeerCommand(key, value) => {
                self.peer_commands.insert(*key, value.clone());
                return Ok(());
            }
            Object::Neigh(key, mac) => {
                self.device(&key.dev)?;
                self.neighs.insert(*key, *mac);
            }
            Object::Fdb(key, dst) => {
                if !has_fdb(&self.device(&key.dev)?.link.kind) || *dst == Remote::Foreign {
                    return Err(Failure::errno(libc::EOPNOTSUPP));
                }
                self.fdb.insert(*key, *dst);
            }
            Object::NextHop(id, hop) => {
                if self.next_hops.is_none() {
                    return Err(Failure::errno(libc::EOPNOTSUPP));
                }
                self.check_hop(hop)?;
                if !self.device(&hop.dev)?.carrier {
                    return because(libc::ENETDOWN, "Carrier for nexthop device is down");
                }
                self.next_hops.get_or_insert_default().insert(*id, *hop);
            }
            Object::Route(key, route) => {
                self.check_route(key, route)?;
                if self.routes.insert(*key, *route).is_some() {
                    self.notices.push(Notice::Replaced(*key, *route));
                    return Ok(());
                }
            }
        }
        self.saw(object.clone());
        Ok(())
    }

    /// Adds a device; without an index the next free one.
    pub fn add_link(&mut self, name: IfName, index: Option<u32>, link: Link) {
        let highest = self.links.values().map(|device| device.index).max();
        let index = index.unwrap_or(highest.unwrap_or_default() + 1);
        let device = Device {
            index,
            link: link.clone(),
            carrier: true,
        };
        self.links.insert(name, device);
        self.saw(Object::Link(name, link));
        self.notices.push(Notice::Flapped(name));
    }

    /// Gives a device another name. What is on it stays.
    pub fn rename(&mut self, name: &IfName, to: IfName) -> bool {
        let Some(device) = self.links.remove(name) else {
            return false;
        };
        self.notices.push(Notice::Flapped(*name));
        self.notices.push(Notice::Flapped(to));
        self.gone(Object::Link(*name, device.link.clone()));
        self.saw(Object::Link(to, device.link.clone()));
        self.links.insert(to, device);
        let moved = |dev: &mut IfName| {
            if *dev == *name {
                *dev = to;
            }
        };
        let addrs = std::mem::take(&mut self.addrs).into_iter();
        self.addrs = addrs
            .map(|mut key| {
                moved(&mut key.dev);
                key
            })
            .collect();
        for route in self.routes.values_mut() {
            match &mut route.to {
                RouteTo::Gateway(hop) => moved(&mut hop.dev),
                RouteTo::Dev(dev) | RouteTo::Foreign(dev) => moved(dev),
                RouteTo::NextHopId(_) | RouteTo::Blackhole => {}
            }
        }
        true
    }

    /// The MTU that a device of this kind can have at most.
    fn most(&self, kind: &LinkKind) -> Result<u32, Failure> {
        let Some(beneath) = kind.beneath() else {
            return Ok(u32::MAX);
        };
        let mut devices = self.links.values();
        match devices.find(|device| device.index == beneath.index) {
            Some(device) => Ok(device.link.mtu.saturating_sub(kind.overhead())),
            None => {
                let text = format!("there is no device {beneath} (index {})", beneath.index);
                Err(Failure::because(libc::ENODEV, text))
            }
        }
    }

    fn put_link(&mut self, name: &IfName, wanted: &Link) -> Result<(), Failure> {
        let most = self.most(&wanted.kind)?;
        if let Some(old) = self.links.get(name)
            && !old.link.can_become(wanted)
        {
            self.del_link(name);
        }
        let Some(old) = self.links.get(name).cloned() else {
            let mut devices = self.links.iter();
            let other = devices.find(|(_, d)| d.link.kind.excludes(&wanted.kind));
            if let Some((other, _)) = other {
                return because(libc::EEXIST, &format!("{other} has the same settings"));
            }
            let mut link = settings(wanted, None);
            link.mtu = wanted.mtu.min(most);
            self.add_link(*name, None, link);
            if wanted.mtu > most {
                return because(libc::EINVAL, "more MTU does not fit the device beneath");
            }
            return Ok(());
        };
        if wanted.mtu > most && wanted.mtu != old.link.mtu {
            return because(libc::EINVAL, "more MTU does not fit the device beneath");
        }
        let mut link = settings(wanted, Some(&old.link));
        link.up = old.link.up;
        let mac_changed = link.mac != old.link.mac;
        if link != old.link {
            let device = Device {
                link: link.clone(),
                ..old
            };
            self.links.insert(*name, device);
            self.saw(Object::Link(*name, link));
        }
        if mac_changed {
            // With its address go a device's neighbours.
            self.took_along = true;
            self.drop_neighs(name);
        }
        self.set_up(name, wanted.up);
        Ok(())
    }

    /// Whether the kernel would take `hop` for a gateway.
    fn check_hop(&self, hop: &NextHop) -> Result<(), Failure> {
        let device = self.device(&hop.dev)?;
        if !device.link.up {
            return because(libc::ENETDOWN, "Nexthop device is not up");
        }
        match hop.onlink || self.on_link(&hop.dev, &hop.via) {
            true => Ok(()),
            false if Family::of(&hop.via) == Family::V4 => {
                because(libc::ENETUNREACH, "Nexthop has invalid gateway")
            }
            false => Err(Failure::errno(libc::EHOSTUNREACH)),
        }
    }

    fn on_link(&self, dev: &IfName, ip: &IpAddr) -> bool {
        let by_addr = self
            .addrs
            .iter()
            .any(|a| a.dev == *dev && a.net.contains(ip) && a.net.addr() != *ip);
        let by_route = |(key, route): (&RouteKey, &Route)| {
            route.to == RouteTo::Dev(*dev) && key.dst.contains(ip)
        };
        by_addr || self.routes.iter().any(by_route)
    }

    fn check_route(&self, key: &RouteKey, route: &Route) -> Result<(), Failure> {
        match &route.to {
            RouteTo::Gateway(hop) => self.check_hop(hop),
            RouteTo::NextHopId(id) => {
                let hop = self.next_hops.as_ref().and_then(|hops| hops.get(id));
                match hop {
                    None => because(libc::EINVAL, "Nexthop id does not exist"),
                    Some(hop) if Family::of(&hop.via) != Family::of_net(&key.dst) => {
                        because(libc::EINVAL, "Nexthop is of another family")
                    }
                    Some(_) => Ok(()),
                }
            }
            RouteTo::Dev(dev) if !self.device(dev)?.link.up => Err(Failure::errno(libc::ENETDOWN)),
            RouteTo::Dev(_) | RouteTo::Blackhole => Ok(()),
            RouteTo::Foreign(_) => Err(Failure::errno(libc::EOPNOTSUPP)),
        }
    }

    /// The device that a route leads out of.
    pub fn route_dev(&self, route: &Route) -> Option<IfName> {
        match &route.to {
            RouteTo::Gateway(hop) => Some(hop.dev),
            RouteTo::NextHopId(id) => self.next_hops.as_ref()?.get(id).map(|hop| hop.dev),
            RouteTo::Dev(dev) | RouteTo::Foreign(dev) => Some(*dev),
            RouteTo::Blackhole => None,
        }
    }

    /// Deletes; that it is gone already is as good.
    fn del(&mut self, object: &Object) {
        let was_there = match object {
            Object::Link(name, _) => return self.del_link(name),
            Object::Addr(key, ()) => {
                let there = self.addrs.remove(key);
                if there {
                    self.after_addr(key);
                }
                there
            }
            Object::PacketLoop(name, _) => {
                self.tunnel_routes.retain(|key, _| key.dev != *name);
                self.tunnel_peers.retain(|key, _| key.dev != *name);
                self.packet_loops.remove(name);
                return;
            }
            Object::TunnelRoute(key, _) => {
                self.tunnel_routes.remove(key);
                return;
            }
            Object::TunnelPeer(key, _) => {
                self.tunnel_peers.remove(key);
                return;
            }
            Object::WgDevice(name, _) => {
                self.wg_devices.remove(name);
                return;
            }
            Object::WgPeer(key, _) => {
                self.wg_peers.remove(key);
                return;
            }
            Object::XfrmPolicy(key, _) => self.xfrm_policies.remove(key).is_some(),
            Object::IkeDaemon((), _) => {
                self.ike_daemon = false;
                return;
            }
            Object::IkeConnection(key, _) => {
                self.ike_connections.remove(key);
                return;
            }
            Object::PostStartup((), _) => {
                self.post_startup = None;
                return;
            }
            Object::PeerCommand(key, _) => {
                self.peer_commands.remove(key);
                return;
            }
            Object::Neigh(key, _) => self.neighs.remove(key).is_some(),
            Object::Fdb(key, dst) => {
                self.fdb.get(key) == Some(dst) && self.fdb.remove(key).is_some()
            }
            Object::NextHop(id, _) => match self.next_hops.as_mut().and_then(|h| h.remove(id)) {
                Some(hop) => {
                    // Its routes go with it, unannounced.
                    self.routes
                        .retain(|_, route| route.to != RouteTo::NextHopId(*id));
                    return self.gone(Object::NextHop(*id, hop));
                }
                None => false,
            },
            Object::Route(key, route) => {
                let same = self.routes.get(key).is_some_and(|there| {
                    let any = matches!(route.to, RouteTo::Foreign(_));
                    there.protocol == route.protocol && (any || there.to == route.to)
                });
                same && self.routes.remove(key).is_some()
            }
        };
        if was_there {
            self.gone(object.clone());
        }
    }
}
