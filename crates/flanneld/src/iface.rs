//! Which interface carries traffic to the other nodes, and which address the peers send to.

use std::net::IpAddr;

use dataplane::KernelError;
use dataplane::host::{Address, Interface, Path, default_iface, interfaces, route_to};
use model::{Dual, Family, Host, IfName, NetConfig};

use crate::options::IfaceChoice;

/// What the kernel says of its interfaces, as far as the choice depends on it.
#[derive(Debug, Default)]
pub struct View {
    /// Every interface.
    pub interfaces: Vec<Interface>,
    /// The interface of the default route.
    pub default: Dual<IfName>,
    /// How `-iface-can-reach` is reached.
    pub reach: Option<Path>,
}

impl View {
    /// Asks the kernel for its interfaces only.
    ///
    /// # Errors
    /// It refused to answer.
    pub fn of_interfaces() -> Result<View, KernelError> {
        Ok(View {
            interfaces: interfaces()?,
            ..View::default()
        })
    }

    /// Asks the kernel.
    ///
    /// # Errors
    /// It refused to answer.
    pub fn gather(choice: &IfaceChoice) -> Result<View, KernelError> {
        let mut default = Dual::default();
        if choice.is_empty() {
            for family in Family::ALL {
                default.set(family, default_iface(family)?);
            }
        }
        let reach = match choice.can_reach {
            Some(ip) => route_to(ip)?,
            None => None,
        };
        Ok(View {
            interfaces: interfaces()?,
            default,
            reach,
        })
    }

    fn named(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name.as_str() == name)
    }
}

/// No interface can be used, and what was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoIface {
    /// The kernel does not say which there are.
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
    /// The interface of the default route lacks an address.
    #[error("interface {0}")]
    Unfit(String),
}

/// Chooses the interface and its addresses (contract §7): every `-iface`, then every `-iface-regex`, then
/// `-iface-can-reach`, else the default route's.
///
/// # Errors
/// [`NoIface`], which says what was asked for and what is wrong with it.
pub fn choose(
    choice: &IfaceChoice,
    public_ip: &Dual<IpAddr>,
    config: &NetConfig,
    view: &View,
) -> Result<Host, NoIface> {
    let families: Vec<Family> = config.families().collect();
    let (iface, wanted) = match asked(choice) {
        None => (by_default_route(&families, view)?, None),
        Some(asked) => by_flags(choice, &families, view, asked)?,
    };
    let addr = addresses(iface, &families, &Dual::from_fn(|_| wanted)).map_err(NoIface::Unfit)?;
    Ok(host(iface, addr, public_ip))
}

/// The interface chosen before, as it is now: the same name, and the same addresses as far as it
/// still has them. A default route that moves or goes away for a while changes nothing.
///
/// # Errors
/// [`NoIface::Unfit`]: it is gone, or has no address left of a family.
pub fn again(
    before: &Host,
    public_ip: &Dual<IpAddr>,
    config: &NetConfig,
    view: &View,
) -> Result<Host, NoIface> {
    let families: Vec<Family> = config.families().collect();
    let iface = view.named(before.iface.as_str());
    let iface = iface.ok_or_else(|| NoIface::Unfit(format!("{} is gone", before.iface)))?;
    let kept = Dual::from_fn(|family| {
        before
            .addr
            .get(family)
            .copied()
            .filter(|ip| holds(iface, ip))
    });
    let addr = addresses(iface, &families, &kept).map_err(NoIface::Unfit)?;
    Ok(host(iface, addr, public_ip))
}

fn host(iface: &Interface, addr: Dual<IpAddr>, public_ip: &Dual<IpAddr>) -> Host {
    Host {
        iface: iface.name,
        ifindex: iface.index,
        mtu: iface.mtu,
        kind: iface.kind.clone(),
        addr,
        public_ip: Dual::from_fn(|family| {
            addr.get(family)
                .map(|addr| *public_ip.get(family).unwrap_or(addr))
        }),
        on_link: iface.on_link.clone(),
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

fn by_default_route<'a>(families: &[Family], view: &'a View) -> Result<&'a Interface, NoIface> {
    let mut found: Dual<&Interface> = Dual::default();
    for &family in families {
        let name = view
            .default
            .get(family)
            .ok_or(NoIface::NoDefaultRoute(family))?;
        let iface = view.named(name.as_str());
        found.set(family, Some(iface.ok_or(NoIface::NoDefaultRoute(family))?));
    }
    match (found.v4, found.v6) {
        (Some(v4), Some(v6)) if v4.index != v6.index => Err(NoIface::Disagree {
            v4: v4.name.to_string(),
            v6: v6.name.to_string(),
        }),
        (Some(iface), _) | (None, Some(iface)) => Ok(iface),
        (None, None) => Err(NoIface::NoDefaultRoute(Family::V4)),
    }
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
    let mut fit = |found: Option<(&'a Interface, Option<IpAddr>)>, what: String| {
        let (iface, ip) = match found {
            Some(found) => found,
            None => {
                why.push(format!("{what} is not there"));
                return None;
            }
        };
        match addresses(iface, families, &Dual::from_fn(|_| ip)) {
            Ok(_) => Some((iface, ip)),
            Err(problem) => {
                why.push(problem);
                None
            }
        }
    };
    for name in &choice.exact {
        let found = match name.parse::<IpAddr>() {
            Ok(ip) => view
                .interfaces
                .iter()
                .find(|i| holds(i, &ip))
                .map(|i| (i, Some(ip))),
            Err(_) => view.named(name).map(|i| (i, None)),
        };
        if let Some(found) = fit(found, name.clone()) {
            return Ok(found);
        }
    }
    for regex in &choice.regex {
        let addresses = view
            .interfaces
            .iter()
            .flat_map(|i| i.addrs.iter().map(move |a| (i, a.net.addr())));
        let mut by_address = addresses.filter(|(_, ip)| regex.is_match(&ip.to_string()));
        let by_address = by_address.find(|(_, ip)| families.contains(&Family::of(ip)));
        let by_name = || {
            view.interfaces
                .iter()
                .find(|i| regex.is_match(i.name.as_str()))
        };
        let found = by_address
            .map(|(i, ip)| (i, Some(ip)))
            .or_else(|| by_name().map(|i| (i, None)));
        if let Some(found) = fit(found, format!("an interface or address like {regex}")) {
            return Ok(found);
        }
    }
    if let Some(ip) = choice.can_reach {
        let found = view.reach.as_ref().and_then(|path| {
            let iface = view.named(path.iface.as_str())?;
            Some((iface, path.source.filter(|source| holds(iface, source))))
        });
        if let Some(found) = fit(found, format!("a route to {ip}")) {
            return Ok(found);
        }
    }
    Err(NoIface::NoMatch {
        asked,
        why: why.join("; "),
    })
}

fn holds(iface: &Interface, ip: &IpAddr) -> bool {
    iface.addrs.iter().any(|a| a.net.addr() == *ip)
}

/// The interface's address of each family, `wanted` before others; or what it lacks.
fn addresses(
    iface: &Interface,
    families: &[Family],
    wanted: &Dual<IpAddr>,
) -> Result<Dual<IpAddr>, String> {
    let mut addrs = Dual::default();
    for &family in families {
        let wanted = wanted
            .get(family)
            .copied()
            .filter(|ip| Family::of(ip) == family);
        let first = || best(iface, family);
        let ip = wanted.or_else(first).ok_or_else(|| {
            format!(
                "{} has no {family} address that peers can send to",
                iface.name
            )
        })?;
        addrs.set(family, Some(ip));
    }
    Ok(addrs)
}

/// The first address that lasts and is not link-local; a passing one only if there is no other.
fn best(iface: &Interface, family: Family) -> Option<IpAddr> {
    let usable = || {
        iface
            .addrs
            .iter()
            .filter(|a| Family::of_net(&a.net) == family && !link_local(a))
    };
    let lasting = usable().find(|a| !a.temporary && !a.unusable);
    lasting.or_else(|| usable().next()).map(|a| a.net.addr())
}

fn link_local(address: &Address) -> bool {
    let by_value = match address.net.addr() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    by_value || address.link_local
}

#[cfg(test)]
mod tests;
