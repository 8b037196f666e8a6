//! Dumps: everything in scope, handed out message by message as it arrives, holding nothing.

use std::collections::BTreeSet;

use model::object::{NextHop, ROUTE_PROTOCOL, Route, RouteKey, RouteTo};
use model::state::FIRST_ID;
use model::{Family, Object};

use super::decode::{self, RawAddr, RawNextHop, RawRoute};
use super::scope::{Device, View};
use super::socket::Requests;
use super::uapi::*;
use super::wire::{Batch, Message, af};
use super::{link, refused};
use crate::KernelError;
use crate::failure::Failure;
use crate::names::is_flannels;

/// Looks at every device of the view. Returns whether the host's interface is other than before.
///
/// # Errors
/// The kernel did not show a device. Then it is not known whether there is one, and what was known
/// of it stays.
pub fn find_devices(view: &mut View, requests: &mut Requests) -> Result<bool, KernelError> {
    search(view, requests)?;
    let mut host_changed = false;
    for device in &mut view.devices {
        let before = device.clone();
        find_device(device, requests)
            .map_err(|failure| refused(format!("ip link show {}", device.name), failure))?;
        host_changed |= !device.ours && *device != before;
    }
    view.forget_gone();
    Ok(host_changed)
}

/// Looks, once, for devices that an earlier configuration of the network left.
fn search(view: &mut View, requests: &mut Requests) -> Result<(), KernelError> {
    if view.searched {
        return Ok(());
    }
    let mut marked = Vec::new();
    let mut unmarked = Vec::new();
    let skip_stats = |batch: &mut Batch| {
        batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    };
    let links = requests.dump(RTM_GETLINK, &[0; 16], skip_stats, |message| {
        let Some(raw) = decode::link(message) else {
            return;
        };
        let Some(name) = raw.name.filter(|name| view.is_new(name)) else {
            return;
        };
        if is_flannels(name.as_str(), raw.kind, raw.vni()) != Some(true) {
            return;
        }
        match raw.mark {
            Some(mark) if mark.names(&view.scope.network) => marked.push(name),
            Some(_) => {}
            None => unmarked.push((name, raw.index)),
        }
    });
    links.map_err(|failure| refused("ip link show", failure))?;
    if view.scope.take_over {
        // Upstream marks nothing: its device is known by an address inside the network.
        for (name, index) in unmarked {
            let mut inside = false;
            for family in Family::ALL {
                let network = view.scope.network.get(family).copied();
                dump_addrs(requests, family, index, |raw| {
                    inside |= network.is_some_and(|network| network.contains(&raw.net.addr()));
                })
                .map_err(|failure| refused(format!("ip address show dev {name}"), failure))?;
            }
            marked.extend(inside.then_some(name));
        }
    }
    marked.sort_unstable();
    marked.dedup();
    marked.into_iter().for_each(|name| view.add_former(name));
    view.searched = true;
    Ok(())
}

/// Looks at one device.
///
/// # Errors
/// The kernel did not show it.
pub fn find_device(device: &mut Device, requests: &mut Requests) -> Result<(), Failure> {
    let found = link::look(requests, &device.name)?;
    device.index = found.as_ref().map_or(0, |f| f.index);
    device.master = found.as_ref().map_or(0, |f| f.master);
    device.running = found.as_ref().is_some_and(|f| f.running);
    device.link = found.map(|f| f.link);
    Ok(())
}

/// Shows every object in scope to `each`. Returns the ids, of those that we might use, that other
/// programs' next-hop objects have.
pub fn observe(
    view: &mut View,
    requests: &mut Requests,
    each: &mut dyn FnMut(Object),
) -> Result<BTreeSet<u32>, KernelError> {
    let ours = || view.devices.iter().filter(|d| d.ours && d.index != 0);
    for device in ours() {
        if let Some(link) = &device.link {
            each(Object::Link(device.name, link.clone()));
        }
    }
    for device in ours() {
        for family in Family::ALL {
            let each = |raw| view.addr(&raw).into_iter().for_each(&mut *each);
            let done = dump_addrs(requests, family, device.index, each);
            done.map_err(|failure| {
                refused(format!("ip address show dev {}", device.name), failure)
            })?;
        }
        for family in [AF_INET, AF_INET6, AF_BRIDGE] {
            let each = |object| each(object);
            let done = dump_neighs(view, requests, family, device.index, each);
            done.map_err(|failure| refused(format!("ip neigh show dev {}", device.name), failure))?;
        }
    }
    let taken = dump_next_hops(view, requests, |id, hop| each(Object::NextHop(id, hop)));
    let taken = taken.map_err(|failure| refused("ip nexthop show", failure))?;
    let mut seen = Vec::new();
    for family in Family::ALL {
        let each = |key, route: Route| {
            if route.protocol != ROUTE_PROTOCOL && view.scope.take_over {
                seen.push((key, route));
            }
            each(Object::Route(key, route));
        };
        let done = dump_routes(view, requests, family, each);
        done.map_err(|failure| refused(format!("ip route show ({family})"), failure))?;
    }
    find_kernel_routes(view, requests)
        .map_err(|failure| refused("ip route show proto kernel", failure))?;
    seen.into_iter()
        .for_each(|(key, route)| view.take_over(key, route));
    // What comes from now on without our mark is not another flannel's.
    view.scope.take_over = false;
    Ok(taken)
}

/// A table that the kernel does not have (IPv4's with `lo` down, in a namespace that never used it), or a
/// device that just went away, shows nothing.
fn or_nothing(done: Result<(), Failure>) -> Result<(), Failure> {
    match done {
        Err(failure)
            if matches!(
                failure.errno,
                libc::EOPNOTSUPP | libc::ENODEV | libc::ENOENT
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Shows every address of the device `index`.
pub fn dump_addrs(
    requests: &mut Requests,
    family: Family,
    index: u32,
    mut each: impl FnMut(RawAddr),
) -> Result<(), Failure> {
    let [a, b, c, d] = index.to_ne_bytes();
    or_nothing(requests.dump(
        RTM_GETADDR,
        &[af(family), 0, 0, 0, a, b, c, d],
        |_| {},
        |message| {
            decode::addr(message)
                .filter(|raw| index == 0 || raw.index == index)
                .into_iter()
                .for_each(&mut each);
        },
    ))
}

fn dump_neighs(
    view: &View,
    requests: &mut Requests,
    family: u8,
    index: u32,
    mut each: impl FnMut(Object),
) -> Result<(), Failure> {
    let mut body = [0; 12];
    body[0] = family;
    if family == AF_BRIDGE {
        body[4..8].copy_from_slice(&index.to_ne_bytes());
    }
    let attrs = |batch: &mut Batch| {
        if family != AF_BRIDGE {
            batch.attr_u32(NDA_IFINDEX, index);
        }
    };
    or_nothing(requests.dump(RTM_GETNEIGH, &body, attrs, |message| {
        let raw = decode::neigh(message).filter(|raw| raw.index == index);
        if let Some((object, true)) = raw.and_then(|raw| view.neigh(&raw)) {
            each(object);
        }
    }))
}

fn dump_next_hops(
    view: &View,
    requests: &mut Requests,
    mut each: impl FnMut(u32, NextHop),
) -> Result<BTreeSet<u32>, Failure> {
    let mut taken = BTreeSet::new();
    or_nothing(requests.dump(
        RTM_GETNEXTHOP,
        &[0; 8],
        |_| {},
        |message| {
            let Some(raw) = decode::next_hop(message) else {
                return;
            };
            match view.next_hop(&raw) {
                Some((id, hop)) => each(id, hop),
                None if raw.id >= FIRST_ID => drop(taken.insert(raw.id)),
                None => {}
            }
        },
    ))?;
    Ok(taken)
}

/// Looks at the kernel's own routes where one of ours might be put.
///
/// # Errors
/// The kernel's refusal; what was known stays.
pub fn find_kernel_routes(view: &mut View, requests: &mut Requests) -> Result<(), Failure> {
    let asked = Asked {
        index: 0,
        protocol: RTPROT_KERNEL,
        rtn: RTN_UNICAST,
    };
    let mut found = BTreeSet::new();
    for family in Family::ALL {
        dump_some_routes(requests, family, asked, |raw, _| {
            found.extend(view.kernel_route(&raw));
        })?;
    }
    view.kernel_routes = found;
    Ok(())
}

/// Returns whether a route of ours leads through the next-hop object `id`.
///
/// # Errors
/// The kernel's refusal.
pub fn is_used_by_us(requests: &mut Requests, id: u32, family: Family) -> Result<bool, Failure> {
    let asked = Asked {
        index: 0,
        protocol: ROUTE_PROTOCOL,
        rtn: RTN_UNICAST,
    };
    let mut used = false;
    dump_some_routes(requests, family, asked, |raw, _| {
        used |= raw.next_hop == Some(id);
    })?;
    Ok(used)
}

/// Returns the next-hop object `id`; `None` if there is none.
///
/// # Errors
/// The kernel's refusal.
pub fn find_next_hop(requests: &mut Requests, id: u32) -> Result<Option<RawNextHop>, Failure> {
    let mut found = None;
    let attrs = |batch: &mut Batch| {
        batch.attr_u32(NHA_ID, id);
    };
    let each = |message: &Message| found = decode::next_hop(message);
    match requests.call(RTM_GETNEXTHOP, 0, &[0; 8], attrs, each) {
        Err(failure) if failure.errno == libc::ENOENT => Ok(None),
        done => done.map(|()| found),
    }
}

/// Which routes the kernel is asked for.
#[derive(Clone, Copy)]
pub struct Asked {
    /// Out of this device; 0 for any.
    pub index: u32,
    /// Written by this program; 0 for any.
    pub protocol: u8,
    /// `RTN_*`.
    pub rtn: u8,
}

fn dump_routes(
    view: &View,
    requests: &mut Requests,
    family: Family,
    mut each: impl FnMut(RouteKey, Route),
) -> Result<(), Failure> {
    let take_over = view.scope.take_over || !view.taken_over.is_empty();
    let on = |index, protocol| Asked {
        index,
        protocol,
        rtn: RTN_UNICAST,
    };
    let nowhere = |protocol| Asked {
        rtn: RTN_BLACKHOLE,
        ..on(0, protocol)
    };
    // Ours on any device, then all others on our devices.
    let mut asked = vec![on(0, ROUTE_PROTOCOL), nowhere(ROUTE_PROTOCOL)];
    let there = view.devices.iter().filter(|d| d.index != 0);
    for device in there.filter(|d| d.ours || take_over) {
        let protocol = if device.ours { 0 } else { RTPROT_BOOT };
        asked.push(on(device.index, protocol));
    }
    if take_over {
        asked.push(nowhere(RTPROT_BOOT));
    }
    let mut elsewhere = Vec::new();
    for asked in asked {
        dump_some_routes(requests, family, asked, |raw, _| {
            let shown_before = asked.index != 0
                && raw.protocol == ROUTE_PROTOCOL
                && view.inside(&raw)
                && !raw.by_number_only;
            if shown_before {
                return;
            }
            if let Some((key, route)) = view.route(&raw) {
                each(key, route);
            } else if view.is_left_elsewhere(&raw) {
                elsewhere.extend(raw.indexes().next().map(|index| (raw.key(), index)));
            }
        })?;
    }
    for (key, index) in elsewhere {
        if let Some(name) = link::find_name(requests, index)? {
            each(key, Route::ours(RouteTo::Foreign(name)));
        }
    }
    Ok(())
}

/// Shows the routes asked for, and the message that each was read from.
pub fn dump_some_routes(
    requests: &mut Requests,
    family: Family,
    asked: Asked,
    mut each: impl FnMut(RawRoute, &Message),
) -> Result<(), Failure> {
    let Asked {
        index,
        protocol,
        rtn,
    } = asked;
    let body = [
        af(family),
        0,
        0,
        0,
        RT_TABLE_MAIN,
        protocol,
        0,
        rtn,
        0,
        0,
        0,
        0,
    ];
    let attrs = |batch: &mut Batch| {
        if index != 0 {
            batch.attr_u32(RTA_OIF, index);
        }
    };
    or_nothing(
        requests.dump(RTM_GETROUTE, &body, attrs, |message: &Message| {
            let Some(mut raw) = decode::route(message) else {
                return;
            };
            if raw.next_hop.is_some() && raw.indexes().next().is_none() && index != 0 {
                // With net.ipv4.nexthop_compat_mode=0 only the next hop's number is told, but the
                // kernel chose by device.
                raw.index = Some(index);
                raw.by_number_only = true;
            }
            // A kernel before 4.20 chooses nothing.
            let asked_for = raw.rtn == rtn && (index == 0 || raw.indexes().any(|i| i == index));
            if asked_for && (protocol == 0 || raw.protocol == protocol) {
                each(raw, message);
            }
        }),
    )
}
