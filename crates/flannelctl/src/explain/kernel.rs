//! What the kernel must hold for the other node, compared with what it holds: by the daemon's own code, which would
//! write the difference.

use anyhow::Result;
use dataplane::{Dataplane, Kernel, Scope};
use model::object::{Route, RouteTo};
use model::{Family, IfName, KernelState, Lease, Object, Owner};
use store::ListedLease;

use super::ends::{End, Ends};
use super::steps::{Daemon, Steps};
use crate::check::scene::Scene;
use crate::check::settings::Settings;
use crate::runtime::wait_for;

/// Differences that are looked for.
const MOST: usize = 64;

/// The steps that objects are shown in, in a packet's order, with the kinds of object.
const STEPS: [(&str, &[&str]); 6] = [
    ("device", &["link", "address"]),
    ("route", &["route"]),
    ("next hop", &["nexthop"]),
    ("neighbour", &["neighbour"]),
    ("fdb", &["fdb"]),
    ("wireguard", &["WireGuard device", "WireGuard peer"]),
];

/// Compares; returns the device by which packets to the other node should leave.
///
/// # Errors
/// The kernel does not show its objects.
pub(super) fn objects(
    steps: &mut Steps,
    ends: &Ends,
    remote: &End,
    scene: &Scene,
    settings: &Settings,
    daemon: &Daemon,
) -> Result<Option<IfName>> {
    let (Some(backend), Some(host), Some(config)) =
        (&scene.backend, &scene.host, &scene.stored.config)
    else {
        let kind = scene.stored.config.as_ref();
        let kind = kind.map(|config| config.backend.kind.to_string());
        steps.skip(
            "device",
            format!(
                "what the backend {} needs is known to flanneld alone: see `flannelctl peers`",
                kind.unwrap_or_default()
            ),
        );
        return Ok(None);
    };
    let (Some(own), Some(peer)) = (lease(&ends.own), remote.lease.as_ref().and_then(lease)) else {
        return Ok(None);
    };
    let plan = backend.peer(&peer, host);
    for fault in &plan.faults {
        steps.fail(
            "lease",
            format!("lease {}: {fault}", peer.key),
            "restart that node's flanneld; its backend must be this node's",
        );
    }
    let devices: Vec<IfName> = backend.devices().iter().map(|own| own.name).collect();
    let scope = Scope {
        devices: devices.clone(),
        iface: host.iface,
        network: config.pools.map(|_, pool| pool.network),
        own: *own.key.nets(),
        take_over: false,
    };
    // The file's key is not read here: each peer would differ by it.
    let has_psk_file = settings.options.keys.psk_file.is_some();
    let is_compared = |object: &Object| {
        is_kernels(object) && !(has_psk_file && matches!(object, Object::WgPeer(..)))
    };
    let missing = wait_for(async {
        let mut kernel = Kernel::open(settings.options.plain_routes)?;
        let mut state = KernelState::new(kernel.features().next_hops, devices);
        kernel.set_scope(scope);
        let of_kernel = |objects: Vec<Object>| objects.into_iter().filter(is_compared);
        state.set(Owner::Node, of_kernel(backend.node(&own, host)));
        state.set(Owner::Peer(1), of_kernel(plan.objects.clone()));
        state.begin_audit();
        kernel.observe(&mut |object| state.observe(object)).await?;
        state.end_audit();
        state.set_taken_ids(kernel.taken_ids());
        Ok::<_, dataplane::KernelError>(state.batch(MOST, false))
    })?;
    let remedy = match daemon {
        Ok(_) => {
            "flanneld repairs it at once; if it does not, its log says what the kernel refuses"
        }
        Err(_) => "start flanneld, which writes it: systemctl start flanneld",
    };
    let wanted: Vec<&Object> = plan.objects.iter().filter(|o| is_compared(o)).collect();
    for (step, kinds) in STEPS {
        let of_step = missing
            .iter()
            .filter(|op| kinds.contains(&op.object().kind()));
        let differing: Vec<String> = of_step.map(ToString::to_string).collect();
        if !differing.is_empty() {
            let text = format!(
                "missing, or not as it should be: `{}`",
                differing.join("`, `")
            );
            steps.fail(step, text, remedy);
            continue;
        }
        if step == "device" {
            for device in backend.devices() {
                steps.ok(step, format!("{}, {}", device.name, device.kind));
            }
        }
        for object in wanted
            .iter()
            .filter(|object| kinds.contains(&object.kind()))
        {
            steps.ok(step, model::Op::Put((*object).clone()).to_string());
        }
    }
    let elsewhere = plan.objects.iter().any(|object| !is_compared(object));
    if elsewhere {
        steps.skip(
            "tunnel",
            "what else it needs is known to flanneld alone: `flannelctl peers` shows how far it is",
        );
    }
    Ok(leaves_by(&plan.objects, ends.family))
}

/// Whether an object is in the kernel, and not in flanneld's memory or what a command of the configuration makes.
fn is_kernels(object: &Object) -> bool {
    matches!(
        object,
        Object::Link(..)
            | Object::Addr(..)
            | Object::Neigh(..)
            | Object::Fdb(..)
            | Object::NextHop(..)
            | Object::Route(..)
            | Object::WgDevice(..)
            | Object::WgPeer(..)
    )
}

/// The device of the route among `objects`.
fn leaves_by(objects: &[Object], family: Family) -> Option<IfName> {
    objects.iter().find_map(|object| match object {
        Object::Route(key, Route { to, .. }) if Family::of(&key.dst.addr()) == family => match to {
            RouteTo::Gateway(hop) => Some(hop.dev),
            RouteTo::Dev(dev) => Some(*dev),
            RouteTo::NextHopId(_) | RouteTo::Blackhole | RouteTo::Foreign(_) => None,
        },
        _ => None,
    })
}

fn lease(listed: &ListedLease) -> Option<Lease> {
    let attrs = listed.attrs.as_ref().ok()?;
    Some(Lease {
        key: listed.key,
        attrs: attrs.clone(),
        seniority: 0,
    })
}
