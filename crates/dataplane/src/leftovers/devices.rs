//! The devices of a host, and what goes when one of them goes.

use std::collections::HashMap;

use ipnet::IpNet;
use model::object::{Link, LinkKind, Route, RouteTo};
use model::{Dual, Family, IfName, Object};

use crate::netlink::observe::dump_addrs;
use crate::netlink::socket::Requests;
use crate::netlink::uapi::*;
use crate::netlink::wire::Batch;
use crate::netlink::{decode, refused};
use crate::{Dataplane, Kernel, KernelError, Scope};

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
pub struct Device {
    pub name: IfName,
    pub index: u32,
    pub master: u32,
    pub link: Link,
    pub kind: String,
    pub vni: Option<u32>,
}

/// Every device.
///
/// # Errors
/// The kernel refused to show them.
pub fn devices(requests: &mut Requests) -> Result<Vec<Device>, KernelError> {
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
            link: raw.link(),
            kind: raw.kind.to_owned(),
            vni: raw.vni(),
        });
    });
    done.map_err(|failure| refused("ip link show", failure))?;
    Ok(devices)
}

/// The bridge called `name`, if there is one.
///
/// # Errors
/// The kernel refused to show its addresses.
pub fn find_bridge(
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
///
/// # Errors
/// The kernel refused to show them.
pub async fn with_what_they_hold(
    devices: impl Iterator<Item = Object>,
) -> Result<Vec<(Object, Vec<Object>)>, KernelError> {
    let mut found: Vec<(Object, Vec<Object>)> = devices.map(|d| (d, Vec::new())).collect();
    let names: Vec<IfName> = found.iter().filter_map(|(d, _)| d.device()).collect();
    let Some(first) = names.first() else {
        return Ok(found);
    };
    let mut kernel = Kernel::open(false)?;
    kernel.set_scope(Scope {
        // One of ours, so that nothing is seen of the host's own interfaces.
        iface: *first,
        devices: names,
        network: Dual::default(),
        own: Dual::default(),
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
                other => other.device(),
            };
            let holder = found
                .iter_mut()
                .find(|(d, _)| on.is_some() && d.device() == on);
            if let Some((_, held)) = holder {
                held.push(object);
            }
        })
        .await?;
    Ok(found)
}

/// What a device is, for people.
pub fn kind_of(link: &Link) -> String {
    match &link.kind {
        LinkKind::Vxlan(vxlan) => format!("vxlan {}", vxlan.vni),
        LinkKind::Ipip(_) | LinkKind::Tun(_) | LinkKind::Wireguard(_) | LinkKind::Foreign(_) => {
            link.kind.name().to_owned()
        }
    }
}
