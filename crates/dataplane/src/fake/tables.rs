//! The fake kernel's tables, and what follows in a kernel from each change: what goes with a device,
//! with a next hop, with a link that goes down; what is announced, and what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::kernel::{AddrKey, FdbKey, Link, LinkKind, NeighKey, NextHop, Route, RouteKey, RouteTo};
use model::{Family, IfName, Mac, Object, Op};

use crate::KernelEvent;
use crate::netlink::socket::Failure;

/// What a vxlan header takes off the MTU.
fn vxlan_headroom(local: &IpAddr) -> u32 {
    match Family::of(local) {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// A device and whether it has a carrier.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
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
    /// Neighbours.
    pub neighs: BTreeMap<NeighKey, Mac>,
    /// Forwarding-database entries.
    pub fdb: BTreeMap<FdbKey, IpAddr>,
    /// Next-hop objects; `None` in a kernel that has none.
    pub next_hops: Option<BTreeMap<u32, NextHop>>,
    /// Routes of the main table, one per key.
    pub routes: BTreeMap<RouteKey, Route>,
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
    fn saw(&mut self, object: Object) {
        self.notices.push(Notice::Of(KernelEvent::Saw(object)));
    }

    fn gone(&mut self, object: Object) {
        self.notices.push(Notice::Of(KernelEvent::Gone(object)));
    }

    /// Every object, devices first.
    pub fn objects(&self) -> Vec<Object> {
        let links = self
            .links
            .iter()
            .map(|(k, d)| Object::Link(*k, d.link.clone()));
        let addrs = self.addrs.iter().map(|k| Object::Addr(*k));
        let neighs = self.neighs.iter().map(|(k, v)| Object::Neigh(*k, *v));
        let fdb = self.fdb.iter().map(|(k, v)| Object::Fdb(*k, *v));
        let next_hops = self
            .next_hops
            .iter()
            .flatten()
            .map(|(k, v)| Object::NextHop(*k, *v));
        let routes = self.routes.iter().map(|(k, v)| Object::Route(*k, *v));
        links
            .chain(addrs)
            .chain(neighs)
            .chain(fdb)
            .chain(next_hops)
            .chain(routes)
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

    fn put(&mut self, object: &Object) -> Result<(), Failure> {
        match object {
            Object::Link(name, link) => return self.put_link(name, link),
            Object::Addr(key) => {
                self.device(&key.dev)?;
                if !self.addrs.insert(*key) {
                    return Ok(());
                }
            }
            Object::Neigh(key, mac) => {
                self.device(&key.dev)?;
                self.neighs.insert(*key, *mac);
            }
            Object::Fdb(key, dst) => {
                match self.device(&key.dev)?.link.kind {
                    LinkKind::Vxlan(_) => self.fdb.insert(*key, *dst),
                    LinkKind::Foreign(_) => return Err(Failure::errno(libc::EOPNOTSUPP)),
                };
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

    fn put_link(&mut self, name: &IfName, wanted: &Link) -> Result<(), Failure> {
        let beneath = match &wanted.kind {
            LinkKind::Vxlan(v) => Some((self.device(&v.dev)?.link.mtu, vxlan_headroom(&v.local))),
            LinkKind::Foreign(_) => None,
        };
        let most = beneath.map_or(u32::MAX, |(mtu, headroom)| mtu.saturating_sub(headroom));
        let Some(old) = self.links.get(name).cloned() else {
            if self.links.values().any(|d| same_tunnel(&d.link, wanted)) {
                return because(
                    libc::EEXIST,
                    "A VXLAN device with the specified VNI already exists",
                );
            }
            let link = Link {
                mtu: wanted.mtu.min(most),
                ..wanted.clone()
            };
            self.links.insert(
                *name,
                Device {
                    link: link.clone(),
                    carrier: true,
                },
            );
            self.saw(Object::Link(*name, link));
            self.notices.push(Notice::Flapped(*name));
            return match wanted.mtu > most {
                true => because(libc::EINVAL, "more MTU does not fit the device beneath"),
                false => Ok(()),
            };
        };
        if old.link.kind != wanted.kind {
            return because(
                libc::EEXIST,
                "it exists and is made otherwise; it has to be deleted first",
            );
        }
        if wanted.mtu > most && wanted.mtu != old.link.mtu {
            return because(libc::EINVAL, "more MTU does not fit the device beneath");
        }
        let mac = wanted.mac.or(old.link.mac);
        let link = Link {
            mac,
            mtu: wanted.mtu,
            up: old.link.up,
            kind: wanted.kind.clone(),
        };
        if link != old.link {
            self.links.insert(
                *name,
                Device {
                    link: link.clone(),
                    carrier: old.carrier,
                },
            );
            self.saw(Object::Link(*name, link));
        }
        if mac != old.link.mac {
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
            Object::Addr(key) => {
                let there = self.addrs.remove(key);
                if there {
                    self.after_addr(key);
                }
                there
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

    /// With a device's last IPv4 address go its plain IPv4 routes and its neighbours, unannounced.
    fn after_addr(&mut self, key: &AddrKey) {
        self.took_along = true;
        let v4 = |net: &IpNet| matches!(net, IpNet::V4(_));
        if v4(&key.net) && !self.addrs.iter().any(|a| a.dev == key.dev && v4(&a.net)) {
            self.neighs
                .retain(|n, _| n.dev != key.dev || n.ip.is_ipv6());
            self.routes.retain(|k, route| {
                let plain = match &route.to {
                    RouteTo::Gateway(hop) => hop.dev == key.dev,
                    RouteTo::Dev(dev) | RouteTo::Foreign(dev) => *dev == key.dev,
                    RouteTo::NextHopId(_) | RouteTo::Blackhole => false,
                };
                !(plain && v4(&k.dst))
            });
        }
    }

    fn del_link(&mut self, name: &IfName) {
        let Some(device) = self.links.remove(name) else {
            return;
        };
        self.took_along = true;
        self.leave(name);
        self.addrs.retain(|a| a.dev != *name);
        self.neighs.retain(|n, _| n.dev != *name);
        self.fdb.retain(|e, _| e.dev != *name);
        self.gone(Object::Link(*name, device.link));
        self.notices.push(Notice::Flapped(*name));
        let on_top = |d: &Device| matches!(&d.link.kind, LinkKind::Vxlan(v) if v.dev == *name);
        let above: Vec<IfName> = self
            .links
            .iter()
            .filter(|(_, d)| on_top(d))
            .map(|(n, _)| *n)
            .collect();
        above.iter().for_each(|name| self.del_link(name));
    }

    /// Sets a device up or down.
    pub fn set_up(&mut self, name: &IfName, up: bool) {
        let Some(device) = self.links.get_mut(name).filter(|d| d.link.up != up) else {
            return;
        };
        device.link.up = up;
        let link = device.link.clone();
        self.saw(Object::Link(*name, link));
        if !up {
            self.leave(name);
            let v6 = |net: &IpNet| matches!(net, IpNet::V6(_));
            let lost: Vec<AddrKey> = self
                .addrs
                .iter()
                .filter(|a| a.dev == *name && v6(&a.net))
                .copied()
                .collect();
            for key in lost {
                self.addrs.remove(&key);
                self.gone(Object::Addr(key));
            }
            self.drop_neighs(name);
            self.took_along = true;
        }
        self.notices.push(Notice::Flapped(*name));
    }

    fn drop_neighs(&mut self, name: &IfName) {
        let on_it = self.neighs.iter().filter(|(n, _)| n.dev == *name);
        let lost: Vec<(NeighKey, Mac)> = on_it.map(|(k, v)| (*k, *v)).collect();
        for (key, mac) in lost {
            self.neighs.remove(&key);
            self.gone(Object::Neigh(key, mac));
        }
    }

    /// Gives a device a carrier or takes it away.
    pub fn set_carrier(&mut self, name: &IfName, carrier: bool) {
        let Some(device) = self.links.get_mut(name).filter(|d| d.carrier != carrier) else {
            return;
        };
        device.carrier = carrier;
        let link = device.link.clone();
        if !carrier {
            self.drop_next_hops(name);
        }
        self.saw(Object::Link(*name, link));
        self.notices.push(Notice::Flapped(*name));
    }

    /// Next hops and their routes, unannounced.
    fn drop_next_hops(&mut self, name: &IfName) {
        let Some(hops) = &mut self.next_hops else {
            return;
        };
        let lost: BTreeSet<u32> = hops
            .iter()
            .filter(|(_, h)| h.dev == *name)
            .map(|(i, _)| *i)
            .collect();
        hops.retain(|id, _| !lost.contains(id));
        self.routes
            .retain(|_, r| !matches!(r.to, RouteTo::NextHopId(id) if lost.contains(&id)));
    }

    /// What leads out of a device that goes down: of routes, only IPv6 ones are announced.
    fn leave(&mut self, name: &IfName) {
        self.drop_next_hops(name);
        let lost: Vec<RouteKey> = self
            .routes
            .iter()
            .filter(|(_, r)| self.route_dev(r) == Some(*name))
            .map(|(k, _)| *k)
            .collect();
        for key in lost {
            let announced = matches!(key.dst, IpNet::V6(_));
            if let Some(route) = self.routes.remove(&key).filter(|_| announced) {
                self.gone(Object::Route(key, route));
            }
        }
    }
}

fn same_tunnel(a: &Link, b: &Link) -> bool {
    match (&a.kind, &b.kind) {
        (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => {
            a.vni == b.vni && a.port == b.port && Family::of(&a.local) == Family::of(&b.local)
        }
        _ => false,
    }
}
