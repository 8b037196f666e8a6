//! Which address of an interface the peers send to. Pure.

use std::net::IpAddr;

use dataplane::host::{Address, AddressState, DefaultRoute, Interface};
use model::{Dual, Family};

/// How well an address serves as the one that peers send to; the first is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It works and stays.
    Lasting,
    /// It will, once the check for duplicates has ended.
    Tentative,
    /// It changes every day (IPv6 privacy).
    Temporary,
    /// It is on its way out.
    Deprecated,
    /// Valid on the link only; IPv4.
    LinkLocal,
    /// Nobody else reaches it: only for whoever names the loopback.
    Loopback,
}

/// The rank of an address, or `None` if no peer can ever send to it.
pub(super) fn rank(iface: &Interface, address: &Address) -> Option<Rank> {
    let ip = address.net.addr();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || address.link_local,
        IpAddr::V6(ip) if ip.is_unicast_link_local() || address.link_local => return None,
        IpAddr::V6(_) => false,
    };
    match address.state {
        AddressState::Duplicate => None,
        _ if ip.is_loopback() => iface.loopback.then_some(Rank::Loopback),
        _ if link_local => Some(Rank::LinkLocal),
        AddressState::Deprecated => Some(Rank::Deprecated),
        _ if address.temporary => Some(Rank::Temporary),
        AddressState::Tentative => Some(Rank::Tentative),
        AddressState::Valid => Some(Rank::Lasting),
    }
}

/// The rank of `ip` on the interface; `None` if the interface does not have it, or no peer can ever
/// send to it.
pub(super) fn rank_of(iface: &Interface, ip: &IpAddr) -> Option<Rank> {
    let address = iface.addrs.iter().find(|a| a.net.addr() == *ip)?;
    rank(iface, address)
}

/// The address of the family that the peers are to send to (contract §7): the preferred source of
/// the interface's default route, else the best by [`Rank`]; of equals one whose prefix holds the
/// gateway, then the first of IPv4 and the oldest of IPv6.
pub(super) fn best(
    iface: &Interface,
    family: Family,
    default_routes: &[DefaultRoute],
) -> Option<(IpAddr, Rank)> {
    let routes = default_routes
        .iter()
        .filter(|route| route.index == iface.index && route.family == family);
    let first = routes.clone().min_by_key(|route| route.metric);
    if let Some(source) = first.and_then(|route| route.source)
        && let Some(rank) = rank_of(iface, &source)
    {
        return Some((source, rank));
    }
    let holds_gateway = |address: &Address| {
        let mut gateways = routes.clone().filter_map(|route| route.via);
        gateways.any(|gateway| address.net.contains(&gateway))
    };
    let of_family = iface
        .addrs
        .iter()
        .filter(|address| Family::of_net(&address.net) == family);
    let candidates = of_family.enumerate().filter_map(|(place, address)| {
        // The kernel shows the newest IPv6 address first, and IPv4's in the order they came.
        let place = match family {
            Family::V4 => place,
            Family::V6 => usize::MAX - place,
        };
        // A host address beside others is a service's that moves from node to node.
        let service = family == Family::V4 && address.net.prefix_len() == 32;
        let rank = rank(iface, address)?;
        let order = (rank, !holds_gateway(address), service, place);
        Some((order, (address.net.addr(), rank)))
    });
    candidates
        .min_by_key(|(order, _)| *order)
        .map(|(_, found)| found)
}

/// The interface's address of each family, `wanted` before others, with its rank.
///
/// # Errors
/// Names what the interface lacks.
pub(super) fn addresses(
    iface: &Interface,
    families: &[Family],
    wanted: &Dual<IpAddr>,
    default_routes: &[DefaultRoute],
) -> Result<Dual<(IpAddr, Rank)>, String> {
    let mut addrs = Dual::default();
    for &family in families {
        let wanted = wanted
            .get(family)
            .and_then(|ip| Some((*ip, rank_of(iface, ip)?)))
            .filter(|(ip, _)| Family::of(ip) == family);
        let found = wanted.or_else(|| best(iface, family, default_routes));
        let found = found.ok_or_else(|| {
            format!(
                "{} has no {family} address that peers can send to",
                iface.name
            )
        })?;
        addrs.set(family, Some(found));
    }
    Ok(addrs)
}
