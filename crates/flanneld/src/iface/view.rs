//! What the kernel reports about its interfaces, and what follows from it about each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::host::{DefaultRoute, Interface, Path};
use dataplane::{KernelError, leftovers};
use model::{Dual, Family, IfName};

use super::NoIface;
use crate::machine::Machine;
use crate::options::IfaceChoice;

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
    pub(super) fn gather(machine: &dyn Machine, choice: &IfaceChoice) -> Result<View, KernelError> {
        let reach = match choice.can_reach {
            Some(ip) => machine.route_to(ip)?,
            None => None,
        };
        let mut view = View {
            interfaces: machine.interfaces()?,
            default_routes: machine.default_routes()?,
            reach,
        };
        for (family, ip) in ELSEWHERE.iter() {
            if default_ifaces(family, &view).is_empty() {
                // Another table than main may have the route, or the route may name a next-hop object only.
                let path = machine.route_to(*ip)?;
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
    pub(super) fn named(&self, name: &str) -> Option<&Interface> {
        let mut by_name = self.interfaces.iter().filter(|i| i.name.as_str() == name);
        let mut by_other = self.interfaces.iter();
        by_name
            .next()
            .or_else(|| by_other.find(|i| i.alt_names.iter().any(|other| other == name)))
    }

    /// The interface whose address `ip` is. Packets to and from an address of the loopback go through another
    /// one: the default route's.
    pub(super) fn holders(&self, ip: &IpAddr, families: &[Family]) -> Vec<&Interface> {
        let all = self.interfaces.iter().filter(|i| holds(i, ip));
        let (loopback, others): (Vec<_>, Vec<_>) = all.partition(|i| i.loopback);
        let through = by_default_route(families, self).ok();
        let through = through.filter(|_| others.is_empty() && !ip.is_loopback());
        let through = through.filter(|_| !loopback.is_empty());
        others.into_iter().chain(through).chain(loopback).collect()
    }

    /// The MTU of packets through the interface. The loopback's says nothing of the way to the peers: that of
    /// the default routes' interfaces counts, or of all that have a carrier.
    pub(super) fn mtu(&self, iface: &Interface) -> u32 {
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

/// Whether a device is flannel's own, or the bridge of the containers that flannel connects: packets
/// between nodes never go through one.
pub(super) fn is_own(name: &IfName) -> bool {
    is_flannels(name) || name.as_str() == "cni0"
}

/// Whether a device is flannel's own, by its name.
pub(crate) fn is_flannels(name: &IfName) -> bool {
    leftovers::is_flannels(name.as_str(), "", None).is_some()
}

/// Whether an interface may be chosen although nobody named it.
pub(super) fn is_candidate(iface: &Interface) -> bool {
    iface.up && !iface.loopback && !is_own(&iface.name)
}

/// Whether a device is the bridge of a container runtime or of virtual machines, by its name: a regular
/// expression that matches other interfaces too means those.
pub(super) fn is_container_bridge(name: &IfName) -> bool {
    const PREFIXES: [&str; 5] = ["docker", "virbr", "podman", "lxcbr", "lxdbr"];
    const NAMES: [&str; 3] = ["kube-bridge", "nodelocaldns", "kube-ipvs0"];
    let name = name.as_str();
    // Docker's other networks: `br-` and the first half of a number.
    let hex = |rest: &str| rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_hexdigit());
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || NAMES.contains(&name)
        || name.strip_prefix("br-").is_some_and(hex)
}

/// The interface of the families' best default routes.
///
/// # Errors
/// There is none, or those of the two families differ.
pub(super) fn by_default_route<'a>(
    families: &[Family],
    view: &'a View,
) -> Result<&'a Interface, NoIface> {
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

/// Whether the interface has the address.
pub(super) fn holds(iface: &Interface, ip: &IpAddr) -> bool {
    iface.addrs.iter().any(|a| a.net.addr() == *ip)
}
