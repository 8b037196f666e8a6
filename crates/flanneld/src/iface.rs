//! Which interface carries traffic to the other nodes, and which address the peers send to.

mod address;
mod view;

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::KernelError;
use dataplane::host::{Interface, LinkRoutes};
use ipnet::IpNet;
use model::{Dual, Family, Host, NetConfig};

use crate::machine::Machine;
use crate::options::IfaceChoice;
use address::{Rank, addresses, best, rank, rank_on};
use view::{by_default_route, holds, is_candidate, is_container_bridge, is_own};

pub use view::View;
pub(crate) use view::is_flannels;

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
    machine: &dyn Machine,
    choice: &IfaceChoice,
    public_ip: &Dual<IpAddr>,
    config: &NetConfig,
) -> Result<(Host, bool), NoIface> {
    let kernel = |error: KernelError| NoIface::Kernel(error.to_string());
    let view = View::gather(machine, choice).map_err(kernel)?;
    let chosen = choose_at_least_one(choice, public_ip, config, &view)?;
    let routes = machine.link_routes(chosen.iface.index).map_err(kernel)?;
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
    machine: &dyn Machine,
    before: &Host,
    choice: &IfaceChoice,
    public_ip: &Dual<IpAddr>,
    config: &NetConfig,
) -> Result<Look, NoIface> {
    let kernel = |error: KernelError| NoIface::Kernel(error.to_string());
    let interfaces = machine.interfaces().map_err(kernel)?;
    let iface = interfaces.iter().find(|i| i.name == before.iface);
    let is_loopback = iface.is_some_and(|i| i.loopback);
    let index = iface.map_or(before.ifindex, |i| i.index);
    let routes = machine.link_routes(index).map_err(kernel)?;
    let view = View {
        default_routes: if is_loopback {
            machine.default_routes().map_err(kernel)?
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
    match find(machine, choice, public_ip, config) {
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

#[cfg(test)]
mod tests;
