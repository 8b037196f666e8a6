//! What concerns us: the rules of [`Scope`], for dumps and notices alike.

use std::collections::{BTreeMap, BTreeSet};

use model::object::{
    AddrKey, FdbKey, Link, NeighKey, NextHop, ROUTE_PROTOCOL, Remote, Route, RouteKey, RouteTo,
};
use model::{Family, IfName, Object};

use super::decode::{RawAddr, RawNeigh, RawNextHop, RawRoute};
use super::uapi::*;
use crate::Scope;

/// A device named in the scope: one of ours, or the host's interface.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its name.
    pub name: IfName,
    /// Ours, not the host's interface.
    pub ours: bool,
    /// Ours, left by an earlier configuration of the network.
    pub former: bool,
    /// Its index; 0 while there is none.
    pub index: u32,
    /// As it was last seen.
    pub link: Option<Link>,
    /// It was up and had a carrier when last seen.
    pub running: bool,
    /// The index of the bridge, bond or VRF that it was enslaved to when last seen; 0 for none.
    pub master: u32,
}

/// The scope together with the indexes of its devices.
pub struct View {
    /// As the caller set it.
    pub scope: Scope,
    /// Its devices, then its interface, then what an earlier configuration left.
    pub devices: Vec<Device>,
    /// Unmarked routes of another flannel that are ours, from the first full look on.
    pub taken_over: BTreeMap<RouteKey, Route>,
    /// Whether devices of an earlier configuration were looked for.
    pub searched: bool,
    /// The kernel's own routes where one of ours might be put, and the index of each one's device. To
    /// replace one would cut that device off, and nothing would write it again.
    pub kernel_routes: BTreeSet<(RouteKey, u32)>,
}

impl View {
    /// The view of `scope` before any device was looked at.
    pub fn new(scope: Scope) -> View {
        let absent = |name: &IfName, ours| Device {
            name: *name,
            ours,
            former: false,
            index: 0,
            link: None,
            running: false,
            master: 0,
        };
        let mut devices: Vec<Device> = scope.devices.iter().map(|d| absent(d, true)).collect();
        if !scope.devices.contains(&scope.iface) {
            devices.push(absent(&scope.iface, false));
        }
        View {
            scope,
            devices,
            taken_over: BTreeMap::new(),
            searched: false,
            kernel_routes: BTreeSet::new(),
        }
    }

    /// Whether no device of the view is called `name`.
    pub fn is_new(&self, name: &IfName) -> bool {
        self.devices.iter().all(|device| device.name != *name)
    }

    /// Adds a device that an earlier configuration left.
    pub fn add_former(&mut self, name: IfName) {
        self.devices.push(Device {
            name,
            ours: true,
            former: true,
            index: 0,
            link: None,
            running: false,
            master: 0,
        });
    }

    /// Forgets devices of an earlier configuration that are gone: another that gets their name is not
    /// ours.
    pub fn forget_gone(&mut self) {
        self.devices
            .retain(|device| !device.former || device.index != 0);
    }

    /// The scope's device with this index.
    pub fn at(&self, index: u32) -> Option<&Device> {
        self.devices.iter().find(|d| d.index == index && index != 0)
    }

    fn ours(&self, index: u32) -> Option<&Device> {
        self.at(index).filter(|d| d.ours)
    }

    /// An address on a device of ours, unless the kernel gave it by itself.
    pub fn addr(&self, raw: &RawAddr) -> Option<Object> {
        let device = self.ours(raw.index).filter(|_| !raw.is_kernels())?;
        let key = AddrKey {
            dev: device.name,
            net: raw.net,
        };
        Some(Object::Addr(key, ()))
    }

    /// A neighbour or FDB entry on a device of ours, and whether it is a permanent one.
    pub fn neigh(&self, raw: &RawNeigh) -> Option<(Object, bool)> {
        let dev = self.ours(raw.index)?.name;
        let permanent = raw.state & NUD_PERMANENT != 0;
        if raw.family == AF_BRIDGE {
            let mac = raw.mac.filter(|mac| mac.is_unicast())?;
            let ours = raw.flags & NTF_SELF != 0;
            let remote = match raw.dst {
                Some(dst) if !raw.odd => Remote::At(dst),
                _ => Remote::Foreign,
            };
            return ours.then_some((Object::Fdb(FdbKey { dev, mac }, remote), permanent));
        }
        let dst = raw.dst?;
        // The kernel keeps entries of its own for multicast.
        if dst.is_multicast() {
            return None;
        }
        Some((
            Object::Neigh(NeighKey { dev, ip: dst }, raw.mac.unwrap_or_default()),
            permanent,
        ))
    }

    /// A next-hop object of ours. Those on the host's interface are not: nothing tells to which of
    /// two flannels there they belong.
    pub fn next_hop(&self, raw: &RawNextHop) -> Option<(u32, NextHop)> {
        let device = self
            .ours(raw.index?)
            .filter(|_| raw.protocol == ROUTE_PROTOCOL)?;
        Some((raw.id, raw.on(device.name)?))
    }

    /// A route that concerns us.
    pub fn route(&self, raw: &RawRoute) -> Option<(RouteKey, Route)> {
        let device = raw
            .indexes()
            .filter_map(|i| self.at(i))
            .max_by_key(|d| d.ours);
        let ours = raw.protocol == ROUTE_PROTOCOL && self.inside(raw);
        let (to, concerns) = match (raw.rtn, device) {
            (RTN_BLACKHOLE, _) => (RouteTo::Blackhole, ours || self.is_upstreams_blackhole(raw)),
            (RTN_UNICAST, Some(device)) => {
                let concerns = match device.ours {
                    true => raw.protocol != RTPROT_KERNEL,
                    false => ours || self.is_upstreams(raw),
                };
                (target(raw, device.name), concerns)
            }
            _ => return None,
        };
        let route = Route {
            to,
            protocol: raw.protocol,
        };
        let taken_over = || self.taken_over.get(&raw.key()) == Some(&route);
        (concerns || taken_over()).then(|| (raw.key(), route))
    }

    /// Returns key and device of a route that the kernel wrote by itself for another's device, inside the
    /// network and outside our own subnet: we might be asked for a route to the same destination.
    pub fn kernel_route(&self, raw: &RawRoute) -> Option<(RouteKey, u32)> {
        let index = raw.indexes().next()?;
        let own = self.scope.own.get(Family::of_net(&raw.dst));
        let concerns = raw.protocol == RTPROT_KERNEL
            && raw.rtn == RTN_UNICAST
            && self.inside(raw)
            && own.is_none_or(|own| !own.contains(&raw.dst))
            && self.ours(index).is_none();
        concerns.then(|| (raw.key(), index))
    }

    /// Returns the index of the device whose kernel-made route has the key `key`.
    pub fn in_the_way(&self, key: &RouteKey) -> Option<u32> {
        let found = self.kernel_routes.range((*key, 0)..=(*key, u32::MAX));
        found.map(|(_, index)| *index).next()
    }

    /// Whether it is a route of this network, by its protocol number, out of a device that is none of
    /// the view's: an earlier configuration left it.
    pub fn is_left_elsewhere(&self, raw: &RawRoute) -> bool {
        raw.rtn == RTN_UNICAST
            && raw.protocol == ROUTE_PROTOCOL
            && self.inside(raw)
            && raw.indexes().next().is_some()
            && raw.indexes().all(|i| self.at(i).is_none())
    }

    /// What is unmarked and was there in the first full look stays ours; what comes later is not.
    pub fn take_over(&mut self, key: RouteKey, route: Route) {
        if self.scope.take_over && route.protocol == RTPROT_BOOT {
            self.taken_over.insert(key, route);
        }
    }

    /// Whether its destination lies inside the flannel network.
    pub fn inside(&self, raw: &RawRoute) -> bool {
        let network = self.scope.network.get(Family::of_net(&raw.dst));
        network.is_some_and(|network| network.contains(&raw.dst))
    }

    /// What upstream's flannel leaves on the host's interface, and nothing else.
    fn is_upstreams(&self, raw: &RawRoute) -> bool {
        let own = self.scope.own.get(Family::of_net(&raw.dst));
        self.scope.take_over
            && raw.protocol == RTPROT_BOOT
            && self.inside(raw)
            && own.is_some_and(|own| own.prefix_len() == raw.dst.prefix_len())
            && raw.key() == RouteKey::to(raw.dst)
            && raw.via.is_some()
            && raw.next_hop.is_none()
            && raw.source.is_none()
            && !raw.odd
            && !raw.is_multipath()
    }

    /// Upstream's blackhole route for the subnet that this node had, now a part of ours, where it would
    /// swallow the packets of our containers.
    fn is_upstreams_blackhole(&self, raw: &RawRoute) -> bool {
        let own = self.scope.own.get(Family::of_net(&raw.dst));
        self.scope.take_over
            && raw.protocol == RTPROT_BOOT
            && own.is_some_and(|own| own.contains(&raw.dst))
    }
}

/// Where a route out of `dev` leads.
pub fn target(raw: &RawRoute, dev: IfName) -> RouteTo {
    let v4 = matches!(raw.dst, ipnet::IpNet::V4(_));
    match (raw.next_hop, raw.via) {
        _ if raw.odd || raw.source.is_some() => RouteTo::Foreign(dev),
        // Another scope hides the route from routes that need it to be reachable.
        _ if v4 && raw.via.is_some() && raw.scope != RT_SCOPE_UNIVERSE => RouteTo::Foreign(dev),
        (Some(id), _) => RouteTo::NextHopId(id),
        _ if raw.is_multipath() => RouteTo::Foreign(dev),
        (None, Some(via)) => RouteTo::Gateway(NextHop {
            via,
            dev,
            onlink: raw.onlink,
        }),
        (None, None) if v4 && raw.scope != RT_SCOPE_LINK => RouteTo::Foreign(dev),
        (None, None) => RouteTo::Dev(dev),
    }
}

impl Device {
    /// Whether the change from `self` to `after` takes other objects along.
    pub fn takes_along(&self, after: &Device) -> bool {
        match (&self.link, &after.link) {
            (Some(_), None) => true,
            (Some(old), Some(new)) => {
                self.index != after.index
                    || self.master != after.master
                    || old.mac != new.mac
                    || (old.up && !new.up)
            }
            (None, _) => false,
        }
    }
}
