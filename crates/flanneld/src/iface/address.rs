//! Which address of an interface the peers send to. Pure.

use std::net::IpAddr;

use dataplane::host::{Address, AddressState, Interface};
use model::{Dual, Family};

use super::View;

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
    /// The loopback has it, or another interface: every interface of this host answers for it.
    OfHost,
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

/// The rank of `ip` for packets that leave by the interface: its own addresses, those of the loopback
/// (routers that speak BGP have their address there), and the preferred source of its default routes,
/// whichever interface has that.
pub(super) fn rank_on(iface: &Interface, ip: &IpAddr, view: &View) -> Option<Rank> {
    if let Some(rank) = rank_of(iface, ip) {
        return Some(rank);
    }
    let mut routes = view.default_routes.iter();
    let is_source =
        routes.any(|route| route.index == iface.index && route.source.as_ref() == Some(ip));
    let mut holders = view.interfaces.iter().filter(|i| i.loopback || is_source);
    let lasting = holders.any(|i| rank_of(i, ip) == Some(Rank::Lasting));
    lasting.then_some(Rank::OfHost)
}

/// The address of the family that the peers are to send to (contract §7): the preferred source of
/// the interface's default route, else the best by [`Rank`]; of equals one whose prefix holds the
/// gateway, then the first of IPv4 and the oldest of IPv6. An interface without an address of its own
/// has the loopback's, as the kernel does it.
pub(super) fn best(iface: &Interface, family: Family, view: &View) -> Option<(IpAddr, Rank)> {
    let routes = view
        .default_routes
        .iter()
        .filter(|route| route.index == iface.index && route.family == family);
    let first = routes.clone().min_by_key(|route| route.metric);
    if let Some(source) = first.and_then(|route| route.source)
        && let Some(rank) = rank_on(iface, &source, view)
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
    let own = candidates
        .min_by_key(|(order, _)| *order)
        .map(|(_, found)| found);
    own.filter(|(_, rank)| *rank < Rank::OfHost)
        .or_else(|| of_loopback(family, view))
        .or(own)
}

/// The first lasting address of the loopback that is not the loopback's own.
fn of_loopback(family: Family, view: &View) -> Option<(IpAddr, Rank)> {
    let loopbacks = view.interfaces.iter().filter(|iface| iface.loopback);
    let mut addrs = loopbacks.flat_map(|iface| iface.addrs.iter().map(move |a| (iface, a)));
    let found = addrs.find(|(iface, address)| {
        Family::of_net(&address.net) == family && rank(iface, address) == Some(Rank::Lasting)
    });
    found.map(|(_, address)| (address.net.addr(), Rank::OfHost))
}

/// The interface's address of each family, `wanted` before others, with its rank.
///
/// # Errors
/// Names what the interface lacks.
pub(super) fn addresses(
    iface: &Interface,
    families: &[Family],
    wanted: &Dual<IpAddr>,
    view: &View,
) -> Result<Dual<(IpAddr, Rank)>, String> {
    let mut addrs = Dual::default();
    for &family in families {
        let wanted = wanted
            .get(family)
            .and_then(|ip| Some((*ip, rank_on(iface, ip, view)?)))
            .filter(|(ip, _)| Family::of(ip) == family);
        let found = wanted.or_else(|| best(iface, family, view));
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
