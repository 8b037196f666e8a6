//! What any flannel, ours or another, has left in this network namespace, whatever its configuration
//! was: for `flannelctl cleanup`, which removes it. The daemon never looks this way: what concerns it
//! follows from its configuration (ADR 1).
//!
//! Traffic rules are [`crate::rules`]' matter.

mod names;
mod xfrm;

use std::collections::HashMap;

use ipnet::IpNet;
use model::kernel::{Link, LinkKind, ROUTE_PROTOCOL, Route, RouteKey, RouteTo, default_metric};
use model::{Dual, Family, IfName, Object, Op};

use crate::netlink::decode::RawRoute;
use crate::netlink::observe::{Asked, dump_addrs, dump_some_routes};
use crate::netlink::scope::target;
use crate::netlink::socket::Requests;
use crate::netlink::uapi::*;
use crate::netlink::wire::Batch;
use crate::netlink::{decode, refused};
use crate::{Dataplane, Kernel, KernelError, Scope};

pub use names::is_flannels;
pub use xfrm::{Xfrm, remove_xfrm};

/// What a `subnet.env` tells of the flannel that wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// `FLANNEL_NETWORK` and `FLANNEL_IPV6_NETWORK`; older files name several.
    pub networks: Vec<IpNet>,
    /// `FLANNEL_SUBNET` and `FLANNEL_IPV6_SUBNET`, masked to their networks.
    pub own: Vec<IpNet>,
}

/// What stands, devices first.
#[derive(Clone, Debug, Default)]
pub struct Leftovers {
    /// Devices that a flannel made, each with everything that goes when it goes.
    pub devices: Vec<(Object, Vec<Object>)>,
    /// Routes and next-hop objects elsewhere that carry our protocol number.
    pub marked: Vec<Object>,
    /// Routes without a mark that look like those of an upstream flannel with host-gw or
    /// DirectRouting, and like those of an administrator.
    pub unmarked: Vec<Object>,
    /// Policies and states of the ipsec backend.
    pub xfrm: Vec<Xfrm>,
    /// Devices under a name of flannel's that no flannel made, and what they are.
    pub strangers: Vec<(IfName, String)>,
    /// The bridge that was asked for.
    pub bridge: Option<Bridge>,
}

/// A bridge between containers.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// The device.
    pub link: Object,
    /// Its addresses, link-local ones apart.
    pub addrs: Vec<IpNet>,
    /// How many devices are plugged into it.
    pub ports: usize,
}

/// A device of this host.
struct Device {
    name: IfName,
    index: u32,
    master: u32,
    link: Link,
    kind: String,
    vni: Option<u32>,
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
            if elsewhere(&raw) && written.iter().any(|w| w.may_have_led(&raw)) {
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
    Ok(outcomes.into_iter().filter_map(Result::err).collect())
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

fn devices(requests: &mut Requests) -> Result<Vec<Device>, KernelError> {
    let mut devices: Vec<Device> = Vec::new();
    let skip_stats = |batch: &mut Batch| {
        batch.attr_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    };
    let done = requests.dump(RTM_GETLINK, &[0; 16], skip_stats, |message| {
        let Some(raw) = decode::link(message) else {
            return;
        };
        let Some(name) = raw
            .name
            .filter(|_| devices.iter().all(|d| d.index != raw.index))
        else {
            return;
        };
        devices.push(Device {
            name,
            index: raw.index,
            master: raw.master,
            // What it stands on does not matter to who is about to remove it.
            link: raw.link(|_| Some(name)),
            kind: raw.kind.to_owned(),
            vni: raw.vni(),
        });
    });
    done.map_err(|failure| refused("ip link show", failure))?;
    Ok(devices)
}

fn route(raw: &RawRoute, name_of: impl Fn(u32) -> Option<IfName>) -> Option<Object> {
    let to = match raw.rtn {
        RTN_BLACKHOLE => RouteTo::Blackhole,
        _ => target(raw, raw.indexes().find_map(name_of)?),
    };
    let key = RouteKey {
        dst: raw.dst,
        metric: raw.metric,
    };
    let protocol = raw.protocol;
    Some(Object::Route(key, Route { to, protocol }))
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

fn find_bridge(
    requests: &mut Requests,
    devices: &[Device],
    name: &IfName,
) -> Result<Option<Bridge>, KernelError> {
    let Some(device) = devices
        .iter()
        .find(|d| d.name == *name && d.kind == "bridge")
    else {
        return Ok(None);
    };
    let mut addrs = Vec::new();
    for family in Family::ALL {
        let done = dump_addrs(requests, family, device.index, |raw| {
            addrs.extend((!raw.is_kernels()).then_some(raw.net));
        });
        done.map_err(|failure| refused(format!("ip address show dev {name}"), failure))?;
    }
    let ports = devices.iter().filter(|d| d.master == device.index);
    Ok(Some(Bridge {
        link: Object::Link(*name, device.link.clone()),
        addrs,
        ports: ports.count(),
    }))
}

/// Each of `devices` with the addresses, neighbours, entries, next hops and routes on it.
async fn with_what_they_hold(
    devices: impl Iterator<Item = Object>,
) -> Result<Vec<(Object, Vec<Object>)>, KernelError> {
    let mut found: Vec<(Object, Vec<Object>)> = devices.map(|d| (d, Vec::new())).collect();
    let names: Vec<IfName> = found.iter().filter_map(|(d, _)| device_of(d)).collect();
    let Some(first) = names.first() else {
        return Ok(found);
    };
    let mut kernel = Kernel::open(false)?;
    kernel.set_scope(Scope {
        // One of ours, so that nothing is seen of the host's own interfaces.
        iface: *first,
        devices: names,
        network: Dual::default(),
        subnet_len: Dual::default(),
        take_over: false,
    });
    let mut hops: HashMap<u32, IfName> = HashMap::new();
    kernel
        .observe(&mut |object| {
            let on = match &object {
                Object::NextHop(id, hop) => {
                    hops.insert(*id, hop.dev);
                    Some(hop.dev)
                }
                Object::Route(
                    _,
                    Route {
                        to: RouteTo::NextHopId(id),
                        ..
                    },
                ) => hops.get(id).copied(),
                Object::Link(..) => None,
                other => device_of(other),
            };
            let holder = found
                .iter_mut()
                .find(|(d, _)| on.is_some() && device_of(d) == on);
            if let Some((_, held)) = holder {
                held.push(object);
            }
        })
        .await?;
    Ok(found)
}

/// The device that an object is, or is on, as far as the object tells it.
fn device_of(object: &Object) -> Option<IfName> {
    use RouteTo::{Dev, Foreign, Gateway};
    match object {
        Object::Link(name, _) => Some(*name),
        Object::Addr(key) => Some(key.dev),
        Object::Neigh(key, _) => Some(key.dev),
        Object::Fdb(key, _) => Some(key.dev),
        Object::NextHop(_, hop) => Some(hop.dev),
        Object::Route(_, route) => match route.to {
            Gateway(hop) => Some(hop.dev),
            Dev(dev) | Foreign(dev) => Some(dev),
            _ => None,
        },
    }
}

/// What a device is, for people.
pub fn kind_of(link: &Link) -> String {
    match &link.kind {
        LinkKind::Vxlan(vxlan) => format!("vxlan {}", vxlan.vni),
        LinkKind::Foreign(kind) => kind.clone(),
    }
}
