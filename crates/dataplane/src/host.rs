//! The host as it is: its interfaces, where it would send a packet to, what stands under a name.
//! Asked for now and then, with a socket of its own each time.

use std::net::IpAddr;

use ipnet::IpNet;
use model::object::LinkKind;
use model::{Family, IfName, Mac};

use crate::KernelError;
use crate::failure::Failure;
use crate::netlink::observe::dump_addrs;
use crate::netlink::socket::Requests;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Batch, af};
use crate::netlink::{decode, link, refused};

/// An interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: IfName,
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
    /// Its addresses, in the kernel's order: the first of a family is its primary one.
    pub addrs: Vec<Address>,
    /// What it reaches without a gateway, by the main table; both families.
    pub on_link: Vec<IpNet>,
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
    /// Not usable: still being checked for duplicates, found to be one, or deprecated.
    pub unusable: bool,
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
            index: raw.index,
            mtu: raw.mtu,
            kind: raw.kind.to_owned(),
            up: raw.up(),
            running: raw.running(),
            loopback: raw.flags & IFF_LOOPBACK != 0,
            addrs: Vec::new(),
            on_link: Vec::new(),
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
            let unusable = IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_DEPRECATED;
            let link_local = raw.scope == RT_SCOPE_LINK;
            // To IPv4 addresses the same bit says "secondary".
            let temporary = family == Family::V6 && raw.flags & IFA_F_TEMPORARY != 0;
            let unusable = raw.flags & unusable != 0;
            let address = Address {
                net: raw.net,
                link_local,
                temporary,
                unusable,
            };
            if !found[at].addrs.contains(&address) {
                found[at].addrs.push(address);
            }
        });
        addrs.map_err(|failure| refused(format!("ip address show ({family})"), failure))?;
        let routes = main_routes(&mut requests, family, &mut |raw| {
            let on_link = raw.via.is_none() && raw.next_hop.is_none() && raw.dst.prefix_len() > 0;
            let at = raw
                .index
                .filter(|_| on_link)
                .and_then(|index| at(&found, index));
            if let Some(at) = at.filter(|at| !found[*at].on_link.contains(&raw.dst)) {
                found[at].on_link.push(raw.dst);
            }
        });
        routes.map_err(|failure| refused(format!("ip route show ({family})"), failure))?;
    }
    Ok(found)
}

fn main_routes(
    requests: &mut Requests,
    family: Family,
    each: &mut dyn FnMut(decode::RawRoute),
) -> Result<(), Failure> {
    let body = [
        af(family),
        0,
        0,
        0,
        RT_TABLE_MAIN,
        0,
        0,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    requests.dump(
        RTM_GETROUTE,
        &body,
        |_| {},
        |message| {
            decode::route(message)
                .filter(|raw| raw.rtn == RTN_UNICAST && raw.tos == 0)
                .into_iter()
                .for_each(&mut *each);
        },
    )
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

/// The interface of the family's default route with the lowest metric; `None` without one.
///
/// # Errors
/// The kernel refused to show its routes.
pub fn default_iface(family: Family) -> Result<Option<IfName>, KernelError> {
    let mut requests = open()?;
    let mut best: Option<(u32, u32)> = None;
    let routes = main_routes(&mut requests, family, &mut |raw| {
        let index = raw.indexes().next().filter(|_| raw.dst.prefix_len() == 0);
        if let Some(index) = index.filter(|_| best.is_none_or(|(metric, _)| raw.metric < metric)) {
            best = Some((raw.metric, index));
        }
    });
    routes.map_err(|failure| refused(format!("ip route show default ({family})"), failure))?;
    Ok(best.and_then(|(_, index)| link::name_of(&mut requests, index)))
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
