//! Which interface carries traffic to the other nodes, and which address the peers send to.

mod address;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::host::{
    DefaultRoute, Interface, LinkRoutes, Path, default_routes, interfaces, link_routes, route_to,
};
use dataplane::{KernelError, leftovers};
use ipnet::IpNet;
use model::{Dual, Family, Host, IfName, NetConfig};

use crate::options::IfaceChoice;
use address::{Rank, addresses, best, rank, rank_on};

/// Addresses of public services. Nothing is sent to them: the kernel is asked which way they are.
const ELSEWHERE: Dual<IpAddr> = Dual {
    v4: Some(IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8))),
    v6: Some(IpAddr::V6(Ipv6Addr::new(
        0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888,
    ))),
};

/// What the kernel reports about its interfaces, as far as the choice depends on it.
#[derive(Debug, Default)]
pub struct View {
    /// Every interface.
    pub interfaces: Vec<Interface>,
    /// The default routes.
    pub default_routes: Vec<DefaultRoute>,
    /// How `-iface-can-reach` is reached.
    pub reach: Option<Path>,
}

impl View {
    fn gather(choice: &IfaceChoice) -> Result<View, KernelError> {
        let reach = match choice.can_reach {
            Some(ip) => route_to(ip)?,
            None => None,
        };
        let mut view = View {
            interfaces: interfaces()?,
            default_routes: default_routes()?,
            reach,
        };
        for (family, ip) in ELSEWHERE.iter() {
            if default_ifaces(family, &view).is_empty() {
                // Another table than main may have the route, or the route may name a next-hop object only.
                let path = route_to(*ip)?;
                let found = path.and_then(|path| view.route_along(family, &path));
                view.default_routes.extend(found);
            }
        }
        Ok(view)
    }

    /// The path to an address elsewhere, as a default route.
    fn route_along(&self, family: Family, path: &Path) -> Option<DefaultRoute> {
        let iface = self.named(path.iface.as_str())?;
        Some(DefaultRoute {
            family,
            index: iface.index,
            metric: u32::MAX,
            via: path.via,
            // Of IPv6 the kernel prefers temporary addresses to send from; they are none to send to.
            source: path.source.filter(|_| family == Family::V4),
        })
    }

    /// The interface with this name, or this other name if none has it.
    fn named(&self, name: &str) -> Option<&Interface> {
        let mut by_name = self.interfaces.iter().filter(|i| i.name.as_str() == name);
        let mut by_other = self.interfaces.iter();
        by_name
            .next()
            .or_else(|| by_other.find(|i| i.alt_names.iter().any(|other| other == name)))
    }

    /// The interface whose address `ip` is. Packets to and from an address of the loopback go through another
    /// one: the default route's.
    fn holders(&self, ip: &IpAddr, families: &[Family]) -> Vec<&Interface> {
        let all = self.interfaces.iter().filter(|i| holds(i, ip));
        let (loopback, others): (Vec<_>, Vec<_>) = all.partition(|i| i.loopback);
        let through = by_default_route(families, self).ok();
        let through = through.filter(|_| others.is_empty() && !ip.is_loopback());
        let through = through.filter(|_| !loopback.is_empty());
        others.into_iter().chain(through).chain(loopback).collect()
    }

    /// The MTU of packets through the interface. The loopback's says nothing of the way to the peers: that of
    /// the default routes' interfaces counts, or of all that have a carrier.
    fn mtu(&self, iface: &Interface) -> u32 {
        if !iface.loopback {
            return iface.mtu;
        }
        let usable = || self.interfaces.iter().filter(|i| is_candidate(i));
        let by_default = |i: &&Interface| self.default_routes.iter().any(|r| r.index == i.index);
        let through = usable().filter(by_default).map(|i| i.mtu).min();
        let smallest = || usable().filter(|i| i.running).map(|i| i.mtu).min();
        through.or_else(smallest).unwrap_or(iface.mtu)
    }
}

/// No interface can be used, and what was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoIface {
    /// The kernel does not show its interfaces.
    #[error("{0}")]
    Kernel(String),
    /// None of those named fits.
    #[error(
        "none of {asked} names an interface that can be used: {why}; give -iface an interface or an address of `ip address`"
    )]
    NoMatch {
        /// The flags.
        asked: String,
        /// What was wrong with each.
        why: String,
    },
    /// There is no default route to go by.
    #[error("there is no {0} default route to choose the interface by: give -iface NAME")]
    NoDefaultRoute(Family),
    /// The default routes disagree.
    #[error("the default routes go through {v4} (IPv4) and {v6} (IPv6): give -iface NAME")]
    Disagree {
        /// The interface of the IPv4 one.
        v4: String,
        /// The interface of the IPv6 one.
        v6: String,
    },
    /// The interface lacks an address.
    #[error("interface {0}")]
    Unfit(String),
}

/// The interface that carries traffic to the peers, and its address of each family.
#[derive(Debug)]
pub struct Choice<'a> {
    iface: &'a Interface,
    mtu: u32,
    addr: Dual<IpAddr>,
    /// A better address may come: the chosen one is still checked for duplicates, or does not last, or one
    /// family has none.
    pub may_improve: bool,
    /// A family whose address, kept in `addr`, the interface does not have any more.
    lost: Option<Lost>,
}

/// An address that the interface does not have any more. Tunnels and peers keep it until there is another
/// one; the other family does not depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its family.
    pub family: Family,
    /// What is wrong.
    pub reason: String,
}

/// Looks for the interface and its addresses, as flags and routes say. The second value says that a
/// better address may come: see [`Choice::may_improve`].
///
/// # Errors
/// [`NoIface`], which says what was asked for and what is wrong with it.
pub fn find(
    choice: &IfaceChoice,
    public_ip: &Dual<IpAddr>,
    config: &NetConfig,
) -> Result<(Host, bool), NoIface> {
    let kernel = |error: KernelError| NoIface::Kernel(error.to_string());
    let view = View::gather(choice).map_err(kernel)?;
    let chosen = choose_at_least_one(choice, public_ip, config, &view)?;
    let routes = link_routes(chosen.iface.index).map_err(kernel)?;
    Ok((chosen.host(public_ip, routes), chosen.may_improve))
}

/// The interface chosen before, as it is now.
#[derive(Debug)]
pub struct Look {
    /// The host with it.
    pub host: Host,
    /// One family has lost its address.
    pub lost: Option<Lost>,
    /// The interface's own notifications do not show every change that matters: an address in use is not its own.
    pub is_partial: bool,
}

/// Looks at the interface chosen before, as it is now: see [`again`]. If it cannot be used any more, but another
/// one has its addresses now, that is the one: the interface became a port of a bridge or a bond.
///
/// # Errors
/// [`NoIface::Unfit`]: it is gone, or has no address left of a family; or the kernel's refusal.
pub fn find_again(
    before: &Host,
    choice: &IfaceChoice,
    public_ip: &Dual<IpAddr>,
    config: &NetConfig,
) -> Result<Look, NoIface> {
    let kernel = |error: KernelError| NoIface::Kernel(error.to_string());
    let interfaces = interfaces().map_err(kernel)?;
    let iface = interfaces.iter().find(|i| i.name == before.iface);
    let is_loopback = iface.is_some_and(|i| i.loopback);
    let routes = link_routes(iface.map_or(before.ifindex, |i| i.index)).map_err(kernel)?;
    let view = View {
        default_routes: if is_loopback {
            default_routes().map_err(kernel)?
        } else {
            routes.defaults.clone()
        },
        interfaces,
        reach: None,
    };
    let problem = match again(before, choice, public_ip, config, &view) {
        Ok(chosen) => {
            let iface = chosen.iface;
            let is_own = chosen.addr.iter().all(|(_, ip)| holds(iface, ip));
            return Ok(Look {
                host: chosen.host(public_ip, routes),
                is_partial: !is_own || iface.loopback,
                lost: chosen.lost,
            });
        }
        Err(problem) => problem,
    };
    match find(choice, public_ip, config) {
        Ok((host, _)) if host.addr == before.addr => Ok(Look {
            host,
            lost: None,
            is_partial: false,
        }),
        _ => Err(problem),
    }
}

/// As [`choose`]; but where no interface has an address of each family, chooses one that has an address of one of
/// them. The other family is served when its address comes.
///
/// # Errors
/// [`NoIface`]: neither family can be served, or the default routes disagree.
pub fn choose_at_least_one<'a>(
    choice: &IfaceChoice,
    public_ip: &Dual<IpAddr>,
    config: &NetConfig,
    view: &'a View,
) -> Result<Choice<'a>, NoIface> {
    let error = match choose(choice, public_ip, config, view) {
        Err(NoIface::Disagree { v4, v6 }) => return Err(NoIface::Disagree { v4, v6 }),
        Err(error) => error,
        chosen => return chosen,
    };
    for family in config.families() {
        let pool = |of: Family| config.pools.get(of).filter(|_| of == family).copied();
        let alone = NetConfig {
            pools: Dual::from_fn(pool),
            ..config.clone()
        };
        if let Ok(mut chosen) = choose(choice, public_ip, &alone, view) {
            chosen.may_improve = true;
            return Ok(chosen);
        }
    }
    Err(error)
}

/// Chooses the interface and its addresses (contract §7): every `-iface`, then every `-iface-regex`, then
/// `-iface-can-reach`; else the one that has the public address, else the default route's.
///
/// # Errors
/// [`NoIface`], which says what was asked for and what is wrong with it.
pub fn choose<'a>(
    choice: &IfaceChoice,
    public_ip: &Dual<IpAddr>,
    config: &NetConfig,
    view: &'a View,
) -> Result<Choice<'a>, NoIface> {
    let families: Vec<Family> = config.families().collect();
    let named = match asked(choice) {
        Some(asked) => Some(by_flags(choice, &families, view, asked)?),
        None => by_public_ip(&families, public_ip, view),
    };
    let (iface, wanted) = match named {
        Some((iface, ip)) => (iface, Dual::from_fn(|_| ip)),
        None => (by_default_route(&families, view)?, *public_ip),
    };
    Choice::of(iface, &families, &wanted, view)
}

/// The interface chosen before, as it is now: the same name, or another name and its addresses still; and the
/// same addresses as far as it still has them and they still work. A default route that moves or goes away for a while changes
/// nothing. Where one family has no address left, its former one is kept ([`Lost`]).
///
/// # Errors
/// [`NoIface::Unfit`]: it is gone, or has no address left of any family.
pub fn again<'a>(
    before: &Host,
    choice: &IfaceChoice,
    public_ip: &Dual<IpAddr>,
    config: &NetConfig,
    view: &'a View,
) -> Result<Choice<'a>, NoIface> {
    let families: Vec<Family> = config.families().collect();
    let renamed = |i: &&Interface| {
        let mut addrs = before.addr.iter();
        i.index == before.ifindex && addrs.any(|(_, ip)| holds(i, ip))
    };
    let named = || view.interfaces.iter().find(|i| i.name == before.iface);
    let iface = named().or_else(|| view.interfaces.iter().find(renamed));
    let iface = iface.ok_or_else(|| NoIface::Unfit(format!("{} is gone", before.iface)))?;
    let named = |ip: &IpAddr| {
        let mut exact = choice.exact.iter().filter_map(|name| name.parse().ok());
        exact.any(|given: IpAddr| given == *ip) || public_ip.iter().any(|(_, given)| given == ip)
    };
    let kept = Dual::from_fn(|family| {
        let ip = before.addr.get(family)?;
        let better = |(_, rank): (IpAddr, Rank)| rank < Rank::Temporary;
        let given_up = match rank_on(iface, ip, view)? {
            Rank::Deprecated => !named(ip) && best(iface, family, view).is_some_and(better),
            _ => false,
        };
        (!given_up).then_some(*ip)
    });
    let mut found = None;
    let mut absent = Vec::new();
    for family in families.iter().copied() {
        match (Choice::of(iface, &[family], &kept, view), &mut found) {
            (Err(error), _) => absent.push((family, error)),
            (Ok(of), None) => found = Some(of),
            (Ok(of), Some(found)) => {
                found.addr.set(family, of.addr.get(family).copied());
                found.may_improve |= of.may_improve;
            }
        }
    }
    let Some(mut found) = found else {
        let none = || NoIface::NoDefaultRoute(Family::V4);
        return Err(absent.pop().map_or_else(none, |(_, error)| error));
    };
    for (family, error) in absent {
        if let Some(ip) = before.addr.get(family) {
            found.addr.set(family, Some(*ip));
            let reason = error.to_string();
            found.lost = Some(Lost { family, reason });
        }
    }
    Ok(found)
}

impl<'a> Choice<'a> {
    fn of(
        iface: &'a Interface,
        families: &[Family],
        wanted: &Dual<IpAddr>,
        view: &View,
    ) -> Result<Choice<'a>, NoIface> {
        let found = addresses(iface, families, wanted, view);
        let found = found.map_err(NoIface::Unfit)?;
        let passing = |rank: &Rank| !matches!(rank, Rank::Lasting | Rank::Loopback);
        Ok(Choice {
            iface,
            mtu: view.mtu(iface),
            addr: found.map(|_, (ip, _)| *ip),
            may_improve: found.iter().any(|(_, (_, rank))| passing(rank)),
            lost: None,
        })
    }

    /// The host as a backend sees it.
    fn host(&self, public_ip: &Dual<IpAddr>, routes: LinkRoutes) -> Host {
        let iface = self.iface;
        let public_ip = Dual::from_fn(|family| {
            let own = self.addr.get(family)?;
            Some(*public_ip.get(family).unwrap_or(own))
        });
        let mut underlay: BTreeSet<IpNet> = routes.on_link.iter().copied().collect();
        let addrs = iface.addrs.iter().map(|address| address.net.addr());
        let addrs = addrs.chain(self.addr.iter().map(|(_, ip)| *ip));
        let gateways = routes.defaults.iter().filter_map(|route| route.via);
        underlay.extend(addrs.chain(gateways).map(IpNet::from));
        Host {
            iface: iface.name,
            ifindex: iface.index,
            mtu: self.mtu,
            kind: iface.kind.clone(),
            addr: self.addr,
            public_ip,
            on_link: routes.on_link,
            underlay: underlay.into_iter().collect(),
        }
    }
}

/// The flags that choose, as text; `None` when none was given.
fn asked(choice: &IfaceChoice) -> Option<String> {
    let exact = choice.exact.iter().map(|name| format!("-iface {name}"));
    let regex = choice
        .regex
        .iter()
        .map(|regex| format!("-iface-regex {regex}"));
    let reach = choice
        .can_reach
        .iter()
        .map(|ip| format!("-iface-can-reach {ip}"));
    let all: Vec<String> = exact.chain(regex).chain(reach).collect();
    Some(all.join(", ")).filter(|text| !text.is_empty())
}

/// Whether a device is flannel's own, or the bridge of the containers that flannel connects: packets
/// between nodes never go through one.
fn is_own(name: &IfName) -> bool {
    is_flannels(name) || name.as_str() == "cni0"
}

/// Whether a device is flannel's own, by its name.
pub(crate) fn is_flannels(name: &IfName) -> bool {
    leftovers::is_flannels(name.as_str(), "", None).is_some()
}

/// Whether an interface may be chosen although nobody named it.
fn is_candidate(iface: &Interface) -> bool {
    iface.up && !iface.loopback && !is_own(&iface.name)
}

/// Whether a device is the bridge of a container runtime or of virtual machines, by its name: a regular
/// expression that matches other interfaces too means those.
fn is_container_bridge(name: &IfName) -> bool {
    const PREFIXES: [&str; 5] = ["docker", "virbr", "podman", "lxcbr", "lxdbr"];
    const NAMES: [&str; 3] = ["kube-bridge", "nodelocaldns", "kube-ipvs0"];
    let name = name.as_str();
    // Docker's other networks: `br-` and the first half of a number.
    let hex = |rest: &str| rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_hexdigit());
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || NAMES.contains(&name)
        || name.strip_prefix("br-").is_some_and(hex)
}

/// The interface that has a public address which was given. `None` if none has: then the address is
/// only published, for hosts behind a translating router.
fn by_public_ip<'a>(
    families: &[Family],
    public_ip: &Dual<IpAddr>,
    view: &'a View,
) -> Option<(&'a Interface, Option<IpAddr>)> {
    let given = families.iter().filter_map(|family| public_ip.get(*family));
    let mut found = given.filter_map(|ip| {
        let mut holders = view.holders(ip, families).into_iter();
        let usable = |i: &&Interface| is_candidate(i) || (i.loopback && !ip.is_loopback());
        Some((holders.find(usable)?, Some(*ip)))
    });
    found.find(|(iface, ip)| {
        let wanted = Dual::from_fn(|_| *ip);
        addresses(iface, families, &wanted, view).is_ok()
    })
}

fn by_default_route<'a>(families: &[Family], view: &'a View) -> Result<&'a Interface, NoIface> {
    let found: Vec<(Family, Vec<&Interface>)> = families
        .iter()
        .map(|family| (*family, default_ifaces(*family, view)))
        .collect();
    let first = |place: usize| Some(*found.get(place)?.1.first()?);
    match (first(0), first(1)) {
        // Of equally good routes those count that both families have.
        (Some(v4), Some(v6)) => {
            let mut both = found[0].1.iter();
            let both = both.find(|iface| found[1].1.iter().any(|i| i.index == iface.index));
            both.copied().ok_or_else(|| NoIface::Disagree {
                v4: v4.name.to_string(),
                v6: v6.name.to_string(),
            })
        }
        // The other family's router may be silent for now: its address is what counts.
        (Some(iface), None) | (None, Some(iface)) => Ok(iface),
        (None, None) => Err(NoIface::NoDefaultRoute(
            families.first().copied().unwrap_or(Family::V4),
        )),
    }
}

/// The interfaces of the family's best default routes, in the kernel's order: those with a carrier
/// first, then those with the lowest metric. More than one only if they are equally good.
fn default_ifaces(family: Family, view: &View) -> Vec<&Interface> {
    let of_family = view.default_routes.iter().filter(|r| r.family == family);
    let usable: Vec<(bool, u32, &Interface)> = of_family
        .filter_map(|route| {
            let iface = view.interfaces.iter().find(|i| i.index == route.index)?;
            is_candidate(iface).then_some((!iface.running, route.metric, iface))
        })
        .collect();
    let order = |(silent, metric, _): &(bool, u32, &Interface)| (*silent, *metric);
    let best = usable.iter().map(order).min();
    let equal = usable.iter().filter(|route| Some(order(route)) == best);
    equal.map(|(_, _, iface)| *iface).collect()
}

/// The first interface that a flag names and that has the addresses; and the very address, if the
/// flag named that.
fn by_flags<'a>(
    choice: &IfaceChoice,
    families: &[Family],
    view: &'a View,
    asked: String,
) -> Result<(&'a Interface, Option<IpAddr>), NoIface> {
    let mut why = Vec::new();
    let mut fit = |found: Vec<(&'a Interface, Option<IpAddr>)>, what: String| {
        if found.is_empty() {
            let alias = what.split_once(':').map(|(iface, _)| iface);
            let alias = alias.filter(|iface| view.named(iface).is_some());
            why.push(match alias {
                Some(iface) => format!("{what} is an alias of {iface}: give its address"),
                None => format!("{what} is not there"),
            });
        }
        found.into_iter().find(|(iface, ip)| {
            if is_own(&iface.name) {
                why.push(format!("{} is a device of flannel's own", iface.name));
                return false;
            }
            let wanted = Dual::from_fn(|_| *ip);
            let unusable = ip.filter(|ip| rank_on(iface, ip, view).is_none());
            let problem = match unusable {
                Some(ip) => Some(format!("peers cannot send to {ip} of {}", iface.name)),
                None => addresses(iface, families, &wanted, view).err(),
            };
            why.extend(problem.clone());
            problem.is_none()
        })
    };
    for name in &choice.exact {
        let found = match name.parse::<IpAddr>() {
            Ok(ip) => {
                let holders = view.holders(&ip, families).into_iter();
                holders.map(|i| (i, Some(ip))).collect()
            }
            Err(_) => view.named(name).map(|i| (i, None)).into_iter().collect(),
        };
        if let Some(found) = fit(found, name.clone()) {
            return Ok(found);
        }
    }
    for regex in &choice.regex {
        let mut candidates: Vec<&Interface> =
            view.interfaces.iter().filter(|i| is_candidate(i)).collect();
        candidates.sort_by_key(|i| (is_container_bridge(&i.name), !i.running));
        let candidates = || candidates.iter().copied();
        let mut by_address: Vec<(Rank, &Interface, Option<IpAddr>)> = candidates()
            .flat_map(|i| i.addrs.iter().map(move |a| (i, a)))
            .filter(|(_, a)| families.contains(&Family::of_net(&a.net)))
            .filter(|(_, a)| regex.is_match(&a.net.addr().to_string()))
            .filter_map(|(i, a)| Some((rank(i, a)?, i, Some(a.net.addr()))))
            .collect();
        by_address.sort_by_key(|(rank, i, _)| (is_container_bridge(&i.name), !i.running, *rank));
        let by_name = candidates()
            .filter(|i| regex.is_match(i.name.as_str()))
            .map(|i| (i, None));
        let by_address = by_address.into_iter().map(|(_, i, ip)| (i, ip));
        let found = by_address.chain(by_name).collect();
        if let Some(found) = fit(found, format!("an interface or address like {regex}")) {
            return Ok(found);
        }
    }
    if let Some(ip) = choice.can_reach {
        let found = view.reach.as_ref().and_then(|path| {
            let iface = view.named(path.iface.as_str())?;
            if iface.loopback {
                // It is an address of this host: on the machine that all others are to reach.
                return Some((*view.holders(&ip, families).first()?, Some(ip)));
            }
            let lasting = |ip: &IpAddr| {
                let rank = rank_on(iface, ip, view);
                matches!(rank, Some(Rank::Lasting | Rank::OfHost))
            };
            // The kernel prefers temporary addresses to send from; they are none to send to.
            Some((iface, path.source.filter(lasting)))
        });
        if let Some(found) = fit(found.into_iter().collect(), format!("a route to {ip}")) {
            return Ok(found);
        }
    }
    why.dedup();
    Err(NoIface::NoMatch {
        asked,
        why: why.join("; "),
    })
}

fn holds(iface: &Interface, ip: &IpAddr) -> bool {
    iface.addrs.iter().any(|a| a.net.addr() == *ip)
}

#[cfg(test)]
mod tests;
