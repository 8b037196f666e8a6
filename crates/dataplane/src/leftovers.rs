//! What any flannel, ours or another, has left in this network namespace, whatever its configuration
//! was: for `flannelctl cleanup`, which removes it. The daemon never looks this way: what concerns it
//! follows from its configuration (ADR 1).
//!
//! Traffic rules are [`crate::rules`]' matter.

mod devices;
mod xfrm;

use std::collections::HashSet;

use ipnet::IpNet;
use model::object::{ROUTE_PROTOCOL, Route, RouteTo, default_metric};
use model::{Family, IfName, Object, Op};

use crate::netlink::decode::RawRoute;
use crate::netlink::observe::{Asked, dump_some_routes};
use crate::netlink::scope::target;
use crate::netlink::socket::Requests;
use crate::netlink::uapi::*;
use crate::netlink::{decode, refused};
use crate::{Dataplane, Kernel, KernelError, Outcome};
use devices::{devices, find_bridge, with_what_they_hold};

pub use crate::names::is_flannels;
pub use devices::{Bridge, kind_of};
pub use xfrm::{Xfrm, remove_xfrm};

/// What a `subnet.env` tells of the flannel that wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// `FLANNEL_NETWORK` and `FLANNEL_IPV6_NETWORK`; older files name several.
    pub networks: Vec<IpNet>,
    /// `FLANNEL_SUBNET` and `FLANNEL_IPV6_SUBNET`, masked to their networks.
    pub own: Vec<IpNet>,
    /// Our flannel was the last to write it: routes that it did not mark are not its.
    pub ours: bool,
}

/// What stands, devices first.
#[derive(Clone, Debug, Default)]
pub struct Leftovers {
    /// Devices that a flannel made, each with everything that goes when it goes.
    pub devices: Vec<(Object, Vec<Object>)>,
    /// Routes and next-hop objects elsewhere that carry our protocol number.
    pub marked: Vec<Object>,
    /// Routes without a mark that look like those of an upstream flannel with host-gw or
    /// DirectRouting, where an upstream flannel wrote the `subnet.env`.
    pub unmarked: Vec<Object>,
    /// Such routes where ours wrote it: an administrator's, as far as anybody can tell.
    pub unproven: Vec<Object>,
    /// Policies and states of the ipsec backend.
    pub xfrm: Vec<Xfrm>,
    /// Devices under a name of flannel's that no flannel made, and what they are.
    pub strangers: Vec<(IfName, String)>,
    /// The bridge that was asked for.
    pub bridge: Option<Bridge>,
}

/// Looks at everything. `written` is what the host's `subnet.env`s tell, `bridge` a bridge that may
/// be a flannel's.
///
/// # Errors
/// The kernel refused to show something.
pub async fn find(written: &[Written], bridge: &IfName) -> Result<Leftovers, KernelError> {
    let mut requests =
        Requests::open().map_err(|err| refused("open a netlink socket", err.into()))?;
    let devices = devices(&mut requests)?;
    let mut found = Leftovers::default();
    let mut ours = Vec::new();
    for device in &devices {
        let object = Object::Link(device.name, device.link.clone());
        match is_flannels(device.name.as_str(), &device.kind, device.vni) {
            Some(true) => ours.push((device.index, object)),
            Some(false) => found.strangers.push((device.name, device.kind.clone())),
            None => {}
        }
    }
    let indexes: Vec<u32> = ours.iter().map(|(index, _)| *index).collect();
    let elsewhere = |raw: &RawRoute| !raw.indexes().any(|i| indexes.contains(&i));
    let name_of = |index: u32| devices.iter().find(|d| d.index == index).map(|d| d.name);

    for family in Family::ALL {
        let failed = |failure| refused(format!("ip route show ({family})"), failure);
        let (any, protocol) = (0, ROUTE_PROTOCOL);
        for rtn in [RTN_UNICAST, RTN_BLACKHOLE] {
            let asked = Asked {
                index: any,
                protocol,
                rtn,
            };
            dump_some_routes(&mut requests, family, asked, |raw, _| {
                if elsewhere(&raw) {
                    found.marked.extend(route(&raw, name_of));
                }
            })
            .map_err(failed)?;
        }
        let asked = Asked {
            index: any,
            protocol: RTPROT_BOOT,
            rtn: RTN_UNICAST,
        };
        dump_some_routes(&mut requests, family, asked, |raw, _| {
            if !elsewhere(&raw) {
                return;
            }
            let mut led = written.iter().filter(|w| w.may_have_led(&raw)).peekable();
            if led.peek().is_none() {
                return;
            }
            if led.all(|w| w.ours) {
                found.unproven.extend(route(&raw, name_of));
            } else {
                found.unmarked.extend(route(&raw, name_of));
            }
        })
        .map_err(failed)?;
    }
    next_hops(&mut requests, |raw| {
        let on = raw.index.filter(|index| !indexes.contains(index));
        let hop = on.and_then(name_of).and_then(|name| raw.on(name));
        found
            .marked
            .extend(hop.map(|hop| Object::NextHop(raw.id, hop)));
    })?;
    once(&mut found.marked);
    once(&mut found.unmarked);
    once(&mut found.unproven);
    found.bridge = find_bridge(&mut requests, &devices, bridge)?;
    found.xfrm = xfrm::find(written)?;
    found.devices = with_what_they_hold(ours.into_iter().map(|(_, object)| object)).await?;
    Ok(found)
}

/// Removes `objects` in this order; returns what could not be removed.
///
/// # Errors
/// No netlink socket to be had.
pub async fn remove(
    objects: impl IntoIterator<Item = Object>,
) -> Result<Vec<KernelError>, KernelError> {
    let mut kernel = Kernel::open(false)?;
    let ops: Vec<Op> = objects.into_iter().map(Op::Del).collect();
    let outcomes = kernel.apply(&ops).await;
    Ok(outcomes
        .iter()
        .filter_map(Outcome::refusal)
        .cloned()
        .collect())
}

impl Written {
    /// Whether the flannel that wrote this may have written the route to a peer: see ADR 1.
    fn may_have_led(&self, raw: &RawRoute) -> bool {
        let plain = raw.via.is_some()
            && raw.next_hop.is_none()
            && raw.source.is_none()
            && !raw.odd
            && !raw.onlink
            && !raw.is_multipath()
            && raw.metric == default_metric(&raw.dst);
        let inside = self
            .networks
            .iter()
            .any(|network| network.contains(&raw.dst));
        let family = Family::of_net(&raw.dst);
        let mut own = self.own.iter().filter(|net| Family::of_net(net) == family);
        let a_peers = own.any(|net| net.prefix_len() == raw.dst.prefix_len() && *net != raw.dst);
        plain && inside && a_peers
    }

    /// Whether `net` lies in one of its networks.
    pub fn has(&self, net: &IpNet) -> bool {
        self.networks.iter().any(|network| network.contains(net))
    }
}

/// A table that changes while it is read is read again: some objects are seen twice.
fn once(objects: &mut Vec<Object>) {
    let mut seen = HashSet::new();
    objects.retain(|object| seen.insert(Op::Del(object.clone()).to_string()));
}

fn route(raw: &RawRoute, name_of: impl Fn(u32) -> Option<IfName>) -> Option<Object> {
    let to = match raw.rtn {
        RTN_BLACKHOLE => RouteTo::Blackhole,
        _ => target(raw, raw.indexes().find_map(name_of)?),
    };
    let protocol = raw.protocol;
    Some(Object::Route(raw.key(), Route { to, protocol }))
}

fn next_hops(
    requests: &mut Requests,
    mut each: impl FnMut(decode::RawNextHop),
) -> Result<(), KernelError> {
    let done = requests.dump(
        RTM_GETNEXTHOP,
        &[0; 8],
        |_| {},
        |message| {
            let raw = decode::next_hop(message).filter(|raw| raw.protocol == ROUTE_PROTOCOL);
            raw.into_iter().for_each(&mut each);
        },
    );
    match done {
        // A kernel before 5.3 has none.
        Err(failure) if failure.errno == libc::EOPNOTSUPP => Ok(()),
        done => done.map_err(|failure| refused("ip nexthop show", failure)),
    }
}
