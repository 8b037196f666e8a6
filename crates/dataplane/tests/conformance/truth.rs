//! What the kernel holds in a scope, as `ip`, `bridge` and `ethtool` show it: a witness that shares
//! neither decoder nor filter with the code under test.

use std::collections::BTreeMap;

use dataplane::Scope;
use ipnet::IpNet;
use model::object::*;
use model::{Family, IfName, Object};
use serde_json::Value;

use crate::objects::dev;
use crate::worlds::sh;

/// What `ip` and `bridge` print; some of their answers are several documents.
fn json(command: &str) -> Vec<Vec<Value>> {
    let text = sh(command);
    let documents = serde_json::Deserializer::from_str(&text).into_iter::<Vec<Value>>();
    let documents = documents.collect::<Result<_, _>>();
    documents.unwrap_or_else(|e| panic!("{command}: {e}: {text}"))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn number(value: &Value, name: &str) -> u32 {
    value[name].as_u64().unwrap_or_default() as u32
}

fn has(value: &Value, list: &str, word: &str) -> bool {
    let list = value[list].as_array();
    list.is_some_and(|list| list.iter().any(|one| one == word))
}

/// Returns all that concerns a program with this scope.
pub fn of(scope: &Scope) -> Vec<Object> {
    // One process for each family of question: there are many of these looks.
    let [links, addrs, neighs, hops, routes] = &json(
        "printf '%s\n' 'link show' 'address show' 'neigh show' 'nexthop show' 'route show table main' | ip -j -d -N -batch -",
    )[..] else {
        panic!("ip does not answer each question");
    };
    let routes6 = json("ip -j -d -N -6 route show table main");
    let fdb = json("bridge -j -d fdb show");
    let links: Vec<Device> = links.iter().filter_map(Device::new).collect();
    let witness = Witness { scope, links };
    let mut all: Vec<Object> = witness.links().collect();
    all.extend(addrs.iter().flat_map(|one| witness.addresses(one)));
    all.extend(neighs.iter().filter_map(|one| witness.neighbour(one)));
    all.extend(fdb.iter().flatten().filter_map(|one| witness.entry(one)));
    let hops: BTreeMap<u32, &Value> = hops.iter().map(|hop| (number(hop, "id"), hop)).collect();
    all.extend(hops.values().filter_map(|one| witness.next_hop(one)));
    let routes = routes.iter().map(|one| (Family::V4, one));
    let routes6 = routes6.iter().flatten().map(|one| (Family::V6, one));
    all.extend(
        routes
            .chain(routes6)
            .filter_map(|(family, one)| witness.route(family, one)),
    );
    all
}

struct Device {
    name: IfName,
    link: Link,
}

impl Device {
    fn new(shown: &Value) -> Option<Device> {
        let name: IfName = text(shown, "ifname").parse().ok()?;
        let info = &shown["linkinfo"];
        let data = &info["info_data"];
        let local = || {
            let local = ["local", "local6"].map(|name| text(data, name));
            local.into_iter().find_map(|ip| ip.parse().ok())
        };
        let kind = match (text(info, "info_kind"), local()) {
            ("vxlan", Some(local)) if data["link"].is_string() => LinkKind::Vxlan(Vxlan {
                vni: number(data, "id"),
                port: number(data, "port") as u16,
                local,
                beneath: Beneath {
                    index: 0,
                    name: Some(dev(text(data, "link"))),
                },
                learning: data["learning"] == true,
                gbp: data["gbp"] == true,
                tx_checksum: Some(
                    sh(&format!("ethtool -k {name}")).contains("tx-checksumming: on"),
                ),
            }),
            ("ipip", Some(local)) => LinkKind::Ipip(Ipip { local }),
            ("tun", _) => LinkKind::Tun(Tun),
            ("wireguard", _) => LinkKind::Wireguard(Wireguard),
            ("", _) => LinkKind::Foreign("hardware".into()),
            (other, _) => LinkKind::Foreign(other.into()),
        };
        let mac = match kind {
            LinkKind::Ipip(_) | LinkKind::Tun(_) | LinkKind::Wireguard(_) => None,
            LinkKind::Vxlan(_) | LinkKind::Foreign(_) => text(shown, "address").parse().ok(),
        };
        let link = Link {
            kind,
            mac,
            mtu: number(shown, "mtu"),
            up: has(shown, "flags", "UP"),
            mark: Mark::parse(text(shown, "ifalias")),
            enslaved: shown["master"].is_string(),
        };
        Some(Device { name, link })
    }
}

struct Witness<'a> {
    scope: &'a Scope,
    links: Vec<Device>,
}

impl Witness<'_> {
    /// Ours by name, or by a mark that says which network's it is.
    fn is_ours(&self, name: &str) -> bool {
        self.links.iter().any(|device| {
            let mark = device.link.mark;
            device.name.to_string() == name
                && (self.scope.devices.contains(&device.name)
                    || mark.is_some_and(|mark| mark.names(&self.scope.network)))
        })
    }

    fn links(&self) -> impl Iterator<Item = Object> {
        let ours = |device: &&Device| self.is_ours(&device.name.to_string());
        let ours = self.links.iter().filter(ours);
        ours.map(|device| Object::Link(device.name, device.link.clone()))
    }

    fn addresses(&self, shown: &Value) -> Vec<Object> {
        let name = text(shown, "ifname");
        let list = shown["addr_info"].as_array().filter(|_| self.is_ours(name));
        let given = list.into_iter().flatten().filter_map(|one| {
            let ip: std::net::IpAddr = text(one, "local").parse().ok()?;
            // What the kernel gives by itself.
            let own = matches!(ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local());
            let net = IpNet::new(ip, number(one, "prefixlen") as u8).ok()?;
            let key = AddrKey {
                dev: dev(name),
                net,
            };
            (!own).then_some(Object::Addr(key, ()))
        });
        given.collect()
    }

    fn neighbour(&self, shown: &Value) -> Option<Object> {
        let name = text(shown, "dev");
        let ip = text(shown, "dst").parse().ok()?;
        let mac = text(shown, "lladdr").parse().unwrap_or_default();
        let concerns = self.is_ours(name) && has(shown, "state", "PERMANENT");
        concerns.then(|| Object::Neigh(NeighKey { dev: dev(name), ip }, mac))
    }

    fn entry(&self, shown: &Value) -> Option<Object> {
        let name = text(shown, "ifname");
        let mac: model::Mac = text(shown, "mac").parse().ok()?;
        let concerns = self.is_ours(name)
            && has(shown, "flags", "self")
            && shown["state"] == "permanent"
            && mac.is_unicast();
        let elsewhere = ["port", "vni", "via", "src_vni", "nhid"];
        let remote = match text(shown, "dst").parse() {
            Ok(ip) if elsewhere.iter().all(|name| shown.get(name).is_none()) => Remote::At(ip),
            _ => Remote::Foreign,
        };
        concerns.then(|| {
            Object::Fdb(
                FdbKey {
                    dev: dev(name),
                    mac,
                },
                remote,
            )
        })
    }

    fn next_hop(&self, shown: &Value) -> Option<Object> {
        let name = text(shown, "dev");
        let hop = NextHop {
            via: text(shown, "gateway").parse().ok()?,
            dev: dev(name),
            onlink: has(shown, "flags", "onlink"),
        };
        let concerns = self.is_ours(name) && protocol(shown) == ROUTE_PROTOCOL;
        concerns.then(|| Object::NextHop(number(shown, "id"), hop))
    }

    fn route(&self, family: Family, shown: &Value) -> Option<Object> {
        let whole = match family {
            Family::V4 => ("0.0.0.0/0", "/32"),
            Family::V6 => ("::/0", "/128"),
        };
        let dst = match text(shown, "dst") {
            "default" => whole.0.to_owned(),
            dst if dst.contains('/') => dst.to_owned(),
            dst => format!("{dst}{}", whole.1),
        };
        let dst: IpNet = dst.parse().ok()?;
        let mut key = RouteKey::with_metric(dst, number(shown, "metric"));
        let tos = text(shown, "tos").trim_start_matches("0x");
        key.tos = u8::from_str_radix(tos, 16).unwrap_or_default();
        let protocol = protocol(shown);
        let inside = self.scope.network.get(family);
        let inside = inside.is_some_and(|network| network.contains(&dst));
        let ours = protocol == ROUTE_PROTOCOL && inside;
        let hops = shown["nexthops"].as_array();
        let mut names: Vec<&str> = hops
            .into_iter()
            .flatten()
            .map(|hop| text(hop, "dev"))
            .collect();
        names.extend(shown["dev"].as_str());
        let on_ours = names.iter().find(|name| self.is_ours(name));
        let upstreams = self.scope.take_over && protocol == BOOT_PROTOCOL;
        let own = self.scope.own.get(family);
        let (to, concerns) = match (text(shown, "type"), on_ours) {
            ("6", _) => {
                let own = own.is_some_and(|own| own.contains(&dst));
                (RouteTo::Blackhole, ours || (upstreams && own))
            }
            ("" | "1", Some(name)) => (target(shown, family, name), protocol != KERNEL_PROTOCOL),
            ("" | "1", None) => {
                let name = names.first()?;
                let to = target(shown, family, name);
                let subnet = own.is_some_and(|own| own.prefix_len() == dst.prefix_len());
                let plain = matches!(to, RouteTo::Gateway(_)) && key == RouteKey::to(dst);
                let theirs = upstreams && inside && subnet && plain;
                let on_iface = *name == self.scope.iface.to_string();
                (to, ours || (theirs && on_iface))
            }
            _ => return None,
        };
        concerns.then_some(Object::Route(key, Route { to, protocol }))
    }
}

fn protocol(shown: &Value) -> u8 {
    text(shown, "protocol").parse().unwrap_or_default()
}

fn target(shown: &Value, family: Family, name: &str) -> RouteTo {
    let dev = dev(name);
    // Anything that no route of ours has.
    let odd = [
        "nexthops", "prefsrc", "metrics", "encap", "via", "src", "realm",
    ];
    let odd = odd.iter().any(|name| shown.get(name).is_some());
    let scope = text(shown, "scope");
    let v4 = family == Family::V4;
    match (shown["nhid"].as_u64(), text(shown, "gateway").parse()) {
        _ if odd => RouteTo::Foreign(dev),
        (_, Ok(_)) if v4 && !matches!(scope, "" | "0") => RouteTo::Foreign(dev),
        (Some(id), _) => RouteTo::NextHopId(id as u32),
        (None, Ok(via)) => {
            let onlink = has(shown, "flags", "onlink");
            RouteTo::Gateway(NextHop { via, dev, onlink })
        }
        (None, Err(_)) if v4 && scope != "253" => RouteTo::Foreign(dev),
        (None, Err(_)) => RouteTo::Dev(dev),
    }
}
