//! What [`crate::host`] reports of a real kernel, of a fake one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::object::{KERNEL_PROTOCOL, NextHop, RouteTo};
use model::{Dual, Family, IfName};

use super::FakeKernel;
use crate::host::{Address, AddressState, DefaultRoute, Interface, LinkRoutes, Path, Standing};

impl FakeKernel {
    /// Returns every interface; see [`crate::host::interfaces`].
    pub fn interfaces(&self) -> Vec<Interface> {
        self.with(|_, tables| {
            let mut all: Vec<Interface> = tables
                .links
                .iter()
                .map(|(name, device)| Interface {
                    name: *name,
                    alt_names: Vec::new(),
                    index: device.index,
                    mtu: device.link.mtu,
                    kind: device.link.kind.name().to_owned(),
                    up: device.link.up,
                    running: device.link.up && device.carrier,
                    loopback: false,
                    addrs: tables
                        .addrs
                        .iter()
                        .filter(|addr| addr.dev == *name)
                        .map(|addr| address(addr.net))
                        .collect(),
                })
                .collect();
            all.sort_by_key(|iface| iface.index);
            all
        })
    }

    /// Returns what the main table says of the interface with this index; see [`crate::host::link_routes`].
    pub fn link_routes(&self, index: u32) -> LinkRoutes {
        let mut found = LinkRoutes::default();
        let name = self.with(|_, tables| {
            let mut links = tables.links.iter();
            links
                .find(|(_, device)| device.index == index)
                .map(|(name, _)| *name)
        });
        let Some(name) = name else { return found };
        self.with(|_, tables| {
            let addrs = tables.addrs.iter().filter(|addr| addr.dev == name);
            found.on_link.extend(addrs.map(|addr| addr.net.trunc()));
            for (key, route) in &tables.routes {
                if route.to == RouteTo::Dev(name) && key.dst.prefix_len() > 0 {
                    found.on_link.push(key.dst);
                }
            }
        });
        found.on_link.sort_unstable();
        found.on_link.dedup();
        let defaults = self.default_routes().into_iter();
        found.defaults = defaults.filter(|route| route.index == index).collect();
        found
    }

    /// Returns the default routes; see [`crate::host::default_routes`].
    pub fn default_routes(&self) -> Vec<DefaultRoute> {
        self.with(|_, tables| {
            let defaults = tables.routes.iter();
            let defaults = defaults.filter(|(key, _)| key.dst.prefix_len() == 0);
            defaults
                .filter_map(|(key, route)| {
                    let dev = tables.route_dev(route)?;
                    let via = match route.to {
                        RouteTo::Gateway(NextHop { via, .. }) => Some(via),
                        _ => None,
                    };
                    Some(DefaultRoute {
                        family: Family::of_net(&key.dst),
                        index: tables.links.get(&dev)?.index,
                        metric: key.metric,
                        via,
                        source: None,
                    })
                })
                .collect()
        })
    }

    /// Returns how a packet to `ip` leaves; see [`crate::host::route_to`].
    pub fn route_to(&self, ip: IpAddr) -> Option<Path> {
        self.with(|_, tables| {
            let addrs = tables
                .addrs
                .iter()
                .map(|addr| (addr.net.trunc(), addr.dev, None));
            let routes = tables.routes.iter().filter_map(|(key, route)| {
                let via = match route.to {
                    RouteTo::Gateway(NextHop { via, .. }) => Some(via),
                    _ => None,
                };
                Some((key.dst, tables.route_dev(route)?, via))
            });
            let all = addrs.chain(routes).filter(|(dst, ..)| dst.contains(&ip));
            let (_, iface, via) = all.max_by_key(|(dst, ..)| dst.prefix_len())?;
            let mut own = tables.addrs.iter().filter(|addr| addr.dev == iface);
            let source = own.find(|addr| Family::of_net(&addr.net) == Family::of(&ip));
            Some(Path {
                iface,
                source: source.map(|addr| addr.net.addr()),
                via,
            })
        })
    }

    /// Returns the networks inside `within` to which interfaces are connected; see [`crate::host::connected`].
    pub fn connected(&self, within: &Dual<IpNet>) -> BTreeMap<IpNet, IfName> {
        let inside = |net: &IpNet| {
            let network = within.get(Family::of_net(net));
            network.is_some_and(|network| network.contains(net))
        };
        self.with(|_, tables| {
            // The kernel writes no route for an address of full length.
            let whole = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
            let addrs = tables.addrs.iter().filter(|addr| !whole(&addr.net));
            let addrs = addrs.map(|addr| (addr.net.trunc(), addr.dev));
            let routes = tables.routes.iter();
            let routes = routes.filter(|(_, route)| route.protocol == KERNEL_PROTOCOL);
            let routes =
                routes.filter_map(|(key, route)| Some((key.dst, tables.route_dev(route)?)));
            addrs.chain(routes).filter(|(net, _)| inside(net)).collect()
        })
    }

    /// Returns the device with this name; see [`crate::host::standing`].
    pub fn standing(&self, name: &IfName) -> Option<Standing> {
        self.with(|_, tables| {
            tables.links.get(name).map(|device| Standing {
                kind: device.link.kind.clone(),
                mac: device.link.mac,
                index: device.index,
            })
        })
    }
}

fn address(net: IpNet) -> Address {
    Address {
        net,
        link_local: false,
        temporary: false,
        state: AddressState::Valid,
    }
}
