//! The host as it is: its interfaces, where it would send a packet to, what stands under a name.
//! Asked for now and then, with a socket of its own each time.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use model::object::LinkKind;
use model::{Dual, Family, IfName, Mac};

use crate::KernelError;
use crate::failure::Failure;
use crate::netlink::observe::{Asked, dump_addrs, dump_some_routes};
use crate::netlink::socket::Requests;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Batch, af};
use crate::netlink::{decode, link, refused};

/// An interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: IfName,
    /// The other names that it goes by (`altname` in `ip link`).
    pub alt_names: Vec<String>,
    /// Its index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The kernel's name for the kind of device it is, such as `wireguard`; empty for hardware.
    pub kind: String,
    /// Administratively up.
    pub up: bool,
    /// Up and with a carrier.
    pub running: bool,
    /// It is the loopback.
    pub loopback: bool,
    /// Its addresses, in the kernel's order: of IPv4 the primary one first, of IPv6 the newest first.
    pub addrs: Vec<Address>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Address and prefix length.
    pub net: IpNet,
    /// Valid on its link only.
    pub link_local: bool,
    /// Given for a while and used for outgoing connections only (IPv6 privacy).
    pub temporary: bool,
    /// Whether it can be used, and for how long.
    pub state: AddressState,
}

/// What the kernel reports about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressState {
    /// In use.
    Valid,
    /// Still being checked for duplicates on its link.
    Tentative,
    /// Not to be used for new connections.
    Deprecated,
    /// Another host on the link has it: it does not work.
    Duplicate,
}

impl AddressState {
    fn of(flags: u32) -> AddressState {
        if flags & IFA_F_DADFAILED != 0 {
            AddressState::Duplicate
        } else if flags & IFA_F_TENTATIVE != 0 {
            AddressState::Tentative
        } else if flags & IFA_F_DEPRECATED != 0 {
            AddressState::Deprecated
        } else {
            AddressState::Valid
        }
    }
}

/// A default route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The family it serves.
    pub family: Family,
    /// The index of its interface. One with several next hops counts as several routes.
    pub index: u32,
    /// Its metric: the kernel uses the route with the lowest.
    pub metric: u32,
    /// Its gateway.
    pub via: Option<IpAddr>,
    /// The source address that it makes the kernel prefer.
    pub source: Option<IpAddr>,
}

/// What the main table says of one interface, both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkRoutes {
    /// What it reaches without a gateway, in order of the addresses.
    pub on_link: Vec<IpNet>,
    /// The default routes through it, in the kernel's order.
    pub defaults: Vec<DefaultRoute>,
}

/// How the kernel would send to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Out of this interface.
    pub iface: IfName,
    /// With this source address.
    pub source: Option<IpAddr>,
    /// Through this gateway.
    pub via: Option<IpAddr>,
}

/// What stands under a device's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its kind.
    pub kind: LinkKind,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its index.
    pub index: u32,
}

fn open() -> Result<Requests, KernelError> {
    Requests::open().map_err(|err| refused("open a netlink socket", err.into()))
}

/// Every interface of this host.
///
/// # Errors
/// The kernel refused to show its interfaces, addresses or routes.
pub fn interfaces() -> Result<Vec<Interface>, KernelError> {
    let mut requests = open()?;
    let mut found: Vec<Interface> = Vec::new();
    let skip_stats = |batch: &mut Batch| {
        batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    };
    let links = requests.dump(RTM_GETLINK, &[0; 16], skip_stats, |message| {
        let Some(raw) = decode::link(message) else {
            return;
        };
        let Some(name) = raw
            .name
            .filter(|_| !found.iter().any(|i| i.index == raw.index))
        else {
            return;
        };
        found.push(Interface {
            name,
            alt_names: raw.alt_names().map(str::to_owned).collect(),
            index: raw.index,
            mtu: raw.mtu,
            kind: raw.kind.to_owned(),
            up: raw.up(),
            running: raw.running(),
            loopback: raw.flags & IFF_LOOPBACK != 0,
            addrs: Vec::new(),
        });
    });
    links.map_err(|failure| refused("ip link show", failure))?;
    found.sort_by_key(|i| i.index);
    let at = |found: &[Interface], index: u32| found.binary_search_by_key(&index, |i| i.index).ok();
    for family in Family::ALL {
        let addrs = dump_addrs(&mut requests, family, 0, |raw| {
            let Some(at) = at(&found, raw.index) else {
                return;
            };
            let link_local = raw.scope == RT_SCOPE_LINK;
            // To IPv4 addresses the same bit says "secondary".
            let temporary = family == Family::V6 && raw.flags & IFA_F_TEMPORARY != 0;
            let address = Address {
                net: raw.net,
                link_local,
                temporary,
                state: AddressState::of(raw.flags),
            };
            if !found[at].addrs.contains(&address) {
                found[at].addrs.push(address);
            }
        });
        addrs.map_err(|failure| refused(format!("ip address show ({family})"), failure))?;
    }
    Ok(found)
}

/// What the main table says of the interface with this index.
///
/// # Errors
/// The kernel refused to show its routes.
pub fn link_routes(index: u32) -> Result<LinkRoutes, KernelError> {
    let mut requests = open()?;
    let mut found = LinkRoutes::default();
    for family in Family::ALL {
        let shown = main_routes(&mut requests, family, index, &mut |raw| {
            if raw.dst.prefix_len() == 0 {
                let all = default_routes_of(family, &raw);
                found
                    .defaults
                    .extend(all.filter(|route| route.index == index));
            } else if raw.via.is_none() && raw.next_hop.is_none() && !raw.is_multipath() {
                found.on_link.push(raw.dst);
            }
        });
        shown.map_err(|failure| refused(format!("ip route show ({family})"), failure))?;
    }
    // The kernel's order says nothing: the newest of equals comes last or first.
    found.on_link.sort_unstable();
    found.on_link.dedup();
    Ok(found)
}

/// Returns the networks inside `within` to which the kernel itself wrote routes because an interface is
/// connected to them, and the interface of each.
///
/// # Errors
/// The kernel refused to show its routes.
pub fn connected(within: &Dual<IpNet>) -> Result<BTreeMap<IpNet, IfName>, KernelError> {
    let mut requests = open()?;
    let mut indexes = BTreeMap::new();
    for (family, network) in within.iter() {
        let asked = Asked {
            index: 0,
            protocol: RTPROT_KERNEL,
            rtn: RTN_UNICAST,
        };
        let shown = dump_some_routes(&mut requests, family, asked, |raw, _| {
            if network.contains(&raw.dst) {
                indexes.extend(raw.indexes().next().map(|index| (raw.dst, index)));
            }
        });
        shown.map_err(|failure| refused(format!("ip route show ({family})"), failure))?;
    }
    let named = |(net, index)| Some((net, link::name_of(&mut requests, index)?));
    Ok(indexes.into_iter().filter_map(named).collect())
}

/// The routes of the main table through the interface `index`, or all for 0.
fn main_routes(
    requests: &mut Requests,
    family: Family,
    index: u32,
    each: &mut dyn FnMut(decode::RawRoute),
) -> Result<(), Failure> {
    let asked = Asked {
        index,
        protocol: 0,
        rtn: RTN_UNICAST,
    };
    dump_some_routes(requests, family, asked, |raw, _| {
        if raw.tos == 0 {
            each(raw);
        }
    })
}

/// A default route, once for each of its next hops.
fn default_routes_of<'a>(
    family: Family,
    raw: &decode::RawRoute<'a>,
) -> impl Iterator<Item = DefaultRoute> + use<'a> {
    let (metric, source) = (raw.metric, raw.source);
    raw.hops().map(move |(index, via)| DefaultRoute {
        family,
        index,
        metric,
        via,
        source,
    })
}

/// The destinations that the main table drops (blackhole routes), each with its metric.
///
/// # Errors
/// The kernel refused to show its routes.
pub fn blackholes() -> Result<Vec<(IpNet, u32)>, KernelError> {
    let mut requests = open()?;
    let mut found = Vec::new();
    for family in Family::ALL {
        let asked = Asked {
            index: 0,
            protocol: 0,
            rtn: RTN_BLACKHOLE,
        };
        let shown = dump_some_routes(&mut requests, family, asked, |raw, _| {
            // Kernels before 4.20 show the other routes, too.
            if raw.rtn == RTN_BLACKHOLE {
                found.push((raw.dst, raw.metric));
            }
        });
        let what = || format!("ip route show type blackhole ({family})");
        shown.map_err(|failure| refused(what(), failure))?;
    }
    Ok(found)
}

/// How the kernel would send to `ip`; `None` if it would not.
///
/// # Errors
/// The kernel refused for another reason than that there is no route.
pub fn route_to(ip: IpAddr) -> Result<Option<Path>, KernelError> {
    let mut requests = open()?;
    let failed = |failure| refused(format!("ip route get {ip}"), failure);
    let family = Family::of(&ip);
    let body = [af(family), family.bits(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let attrs = |batch: &mut Batch| {
        batch.attr_ip(RTA_DST, &ip);
    };
    let mut found = None;
    let asked = requests.call(RTM_GETROUTE, 0, &body, attrs, |message| {
        found = decode::path(message);
    });
    match asked {
        Err(failure) if matches!(failure.errno, libc::ENETUNREACH | libc::EHOSTUNREACH) => {
            return Ok(None);
        }
        other => other.map_err(failed)?,
    }
    let Some((index, source, via)) = found else {
        return Ok(None);
    };
    let path = link::name_of(&mut requests, index).map(|iface| Path { iface, source, via });
    Ok(path)
}

/// The default routes of the main table, both families, in the kernel's order: of equal metrics it
/// uses the first.
///
/// # Errors
/// The kernel refused to show its routes.
pub fn default_routes() -> Result<Vec<DefaultRoute>, KernelError> {
    let mut requests = open()?;
    let mut found = Vec::new();
    for family in Family::ALL {
        let shown = main_routes(&mut requests, family, 0, &mut |raw| {
            if raw.dst.prefix_len() == 0 {
                found.extend(default_routes_of(family, &raw));
            }
        });
        shown.map_err(|failure| refused(format!("ip route show default ({family})"), failure))?;
    }
    Ok(found)
}

/// What stands under the name `name` now; `None` if nothing does.
///
/// # Errors
/// The kernel refused to show it.
pub fn standing(name: &IfName) -> Result<Option<Standing>, KernelError> {
    let found = link::look(&mut open()?, name);
    let found = found.map_err(|failure| refused(format!("ip link show {name}"), failure))?;
    Ok(found.map(|f| Standing {
        kind: f.link.kind,
        mac: f.link.mac,
        index: f.index,
    }))
}
