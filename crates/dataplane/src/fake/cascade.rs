//! What goes along in a kernel: with an address, with a device, with a link that goes down or loses its
//! carrier. Most of it unannounced.

use std::collections::BTreeSet;

use ipnet::IpNet;
use model::object::{AddrKey, Beneath, NeighKey, RouteKey, RouteTo};
use model::{IfName, Mac, Object};

use super::tables::{Device, Notice, Tables};

impl Tables {
    /// With a device's last IPv4 address go its plain IPv4 routes and its neighbours, unannounced.
    pub(super) fn after_addr(&mut self, key: &AddrKey) {
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

    pub(super) fn del_link(&mut self, name: &IfName) {
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
        let gone = Beneath {
            index: device.index,
            name: None,
        };
        let on_top = |d: &Device| d.link.kind.beneath() == Some(gone);
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
                self.gone(Object::Addr(key, ()));
            }
            self.drop_neighs(name);
            self.took_along = true;
        }
        self.notices.push(Notice::Flapped(*name));
    }

    /// Gives a device another MTU.
    pub fn set_mtu(&mut self, name: &IfName, mtu: u32) {
        let Some(device) = self.links.get_mut(name).filter(|d| d.link.mtu != mtu) else {
            return;
        };
        device.link.mtu = mtu;
        let link = device.link.clone();
        self.saw(Object::Link(*name, link));
    }

    pub(super) fn drop_neighs(&mut self, name: &IfName) {
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
