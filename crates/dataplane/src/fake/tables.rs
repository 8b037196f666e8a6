//! The fake kernel's tables: what it holds, takes and refuses. What goes along with it: `cascade`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::kernel::{AddrKey, FdbKey, Link, LinkKind, NeighKey, NextHop, Route, RouteKey, RouteTo};
use model::{Family, IfName, Mac, Object, Op};

use crate::KernelEvent;
use crate::netlink::socket::Failure;

/// Checksum offload after `wanted` was written over what had `before`: a kind of device that we
/// never make is not looked at that closely.
fn offload(wanted: &Link, before: Option<bool>) -> Option<bool> {
    match wanted.kind {
        LinkKind::Vxlan(_) => wanted.tx_checksum.or(before),
        LinkKind::Foreign(_) => None,
    }
}

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
                tx_checksum: offload(wanted, Some(true)),
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
            tx_checksum: offload(wanted, old.link.tx_checksum),
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
}

fn same_tunnel(a: &Link, b: &Link) -> bool {
    match (&a.kind, &b.kind) {
        (LinkKind::Vxlan(a), LinkKind::Vxlan(b)) => {
            a.vni == b.vni && a.port == b.port && Family::of(&a.local) == Family::of(&b.local)
        }
        _ => false,
    }
}
