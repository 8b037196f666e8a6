//! One of the programs that use the fake kernel: what concerns it, and what it is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ipnet::IpNet;
use model::object::{
    BOOT_PROTOCOL, KERNEL_PROTOCOL, NextHop, ROUTE_PROTOCOL, Route, RouteKey, RouteTo,
};
use model::state::FIRST_ID;
use model::{Family, IfName, Object, Op};
use tokio::sync::Notify;

use super::Counts;
use super::fault::{Delays, Faults, LookFaults, Meddler};
use super::tables::{Notice, Tables};
use crate::failure::Failure;
use crate::{KernelEvent, Scope};

/// A program that uses the kernel.
pub struct Client {
    pub(super) scope: Option<Scope>,
    pub(super) queue: VecDeque<KernelEvent>,
    pub(super) look_again: bool,
    pub(super) host_changed: bool,
    /// Unmarked routes of another flannel that are this program's, from its first full look on.
    pub(super) taken_over: BTreeMap<RouteKey, Route>,
    /// What was announced and has not arrived yet.
    pub(super) late: VecDeque<Late>,
    pub(super) faults: Faults,
    pub(super) look_faults: LookFaults,
    pub(super) delays: Delays,
    pub(super) meddler: Meddler,
    pub(super) counts: Counts,
    pub(super) news: Arc<Notify>,
}

/// Events on their way to a program.
pub struct Late {
    /// After so many more operations and looks of that program they arrive, if all before them have.
    turns: usize,
    queue: VecDeque<KernelEvent>,
    look_again: bool,
    host_changed: bool,
}

impl Client {
    pub(super) fn in_scope(&self, tables: &Tables) -> Vec<Object> {
        let Some(scope) = &self.scope else {
            return Vec::new();
        };
        let all = tables.objects().into_iter();
        all.filter(|object| {
            concerns(scope, tables, object)
                || left_elsewhere(scope, tables, object)
                || self.is_taken_over(object)
        })
        .collect()
    }

    /// Ends a full look, which showed these.
    pub(super) fn looked(&mut self, seen: &[Object]) {
        let Some(scope) = &mut self.scope else { return };
        if !std::mem::take(&mut scope.take_over) {
            return;
        }
        for object in seen {
            if let Object::Route(key, route) = object
                && route.protocol == BOOT_PROTOCOL
            {
                self.taken_over.insert(*key, *route);
            }
        }
    }

    fn is_taken_over(&self, object: &Object) -> bool {
        match object {
            Object::Route(key, route) => self.taken_over.get(key) == Some(route),
            _ => false,
        }
    }

    /// Ids of next-hop objects that do not concern this program, of those that it might use.
    pub(super) fn taken_ids(&self, tables: &Tables) -> BTreeSet<u32> {
        let Some(scope) = &self.scope else {
            return BTreeSet::new();
        };
        let foreign = tables
            .next_hops
            .iter()
            .flatten()
            .filter(|(id, hop)| **id >= FIRST_ID && !is_ours(scope, tables, &hop.dev));
        foreign.map(|(id, _)| *id).collect()
    }

    /// Returns why a route is not written: one that the kernel wrote by itself would go for it.
    pub(super) fn kernels(&self, op: &Op, tables: &Tables) -> Option<Failure> {
        let Op::Put(Object::Route(key, _)) = op else {
            return None;
        };
        let found = tables.routes.get(key)?;
        let dev = tables.route_dev(found)?;
        let scope = self.scope.as_ref()?;
        is_kernels(scope, tables, key, found).then(|| {
            let text = format!(
                "the kernel's own route to {} through {dev} is never replaced",
                key.dst
            );
            Failure::because(libc::EEXIST, text)
        })
    }

    pub(super) fn pop(&mut self) -> Option<KernelEvent> {
        if let Some(event) = self.queue.pop_front() {
            return Some(event);
        }
        if std::mem::take(&mut self.host_changed) {
            return Some(KernelEvent::HostChanged);
        }
        std::mem::take(&mut self.look_again).then_some(KernelEvent::LookAgain)
    }

    /// The kernel announces something. What follows from it is decided now; it may arrive later.
    pub(super) fn announce(&mut self, notices: &[Notice], tables: &Tables) {
        let arrived = std::mem::take(&mut self.queue);
        let flags = (self.look_again, self.host_changed);
        (self.look_again, self.host_changed) = (false, false);
        for notice in notices {
            self.hear(notice, tables);
        }
        let queue = std::mem::replace(&mut self.queue, arrived);
        let late = Late {
            turns: (self.delays)(),
            queue,
            look_again: self.look_again,
            host_changed: self.host_changed,
        };
        (self.look_again, self.host_changed) = flags;
        self.late.push_back(late);
        self.arrive();
    }

    /// The program does something: what is late comes nearer.
    pub(super) fn turn(&mut self) {
        if let Some(late) = self.late.front_mut() {
            late.turns = late.turns.saturating_sub(1);
        }
        self.arrive();
    }

    /// All that is late arrives.
    pub(super) fn deliver(&mut self) {
        self.late.iter_mut().for_each(|late| late.turns = 0);
        self.arrive();
    }

    fn arrive(&mut self) {
        while self.late.front().is_some_and(|late| late.turns == 0) {
            let Some(late) = self.late.pop_front() else {
                return;
            };
            self.queue.extend(late.queue);
            self.look_again |= late.look_again;
            self.host_changed |= late.host_changed;
        }
    }

    /// Turns what the kernel announces into events.
    fn hear(&mut self, notice: &Notice, tables: &Tables) {
        let Some(scope) = &self.scope else { return };
        match notice {
            Notice::Flapped(name) if *name == scope.iface => {
                self.look_again = true;
                self.host_changed = true;
            }
            Notice::Flapped(name) => self.look_again |= scope.devices.contains(name),
            Notice::Replaced(key, route) => {
                let object = Object::Route(*key, *route);
                if concerns(scope, tables, &object) {
                    self.queue.push_back(KernelEvent::Saw(object));
                } else if inside(scope, &key.dst) {
                    // What it replaced may have been ours.
                    self.queue.push_back(KernelEvent::Gone(object));
                }
            }
            Notice::Of(event) => self.hear_of(event, tables),
        }
    }

    fn hear_of(&mut self, event: &KernelEvent, tables: &Tables) {
        let Some(scope) = &self.scope else { return };
        let (object, gone) = match event {
            KernelEvent::Gone(object) => (object, true),
            KernelEvent::Saw(object) => (object, false),
            KernelEvent::Refused(..) | KernelEvent::LookAgain | KernelEvent::HostChanged => return,
        };
        let on_host = dev_of(tables, object) == Some(scope.iface);
        let kernels =
            matches!(object, Object::Route(key, route) if is_kernels(scope, tables, key, route));
        self.host_changed |= kernels || (on_host && shapes_host(object));
        self.look_again |= gone && on_host && matches!(object, Object::Addr(..));
        if concerns(scope, tables, object) || self.is_taken_over(object) {
            self.look_again |= gone && matches!(object, Object::Addr(..) | Object::NextHop(..));
            self.queue.push_back(event.clone());
        } else if matches!(object, Object::NextHop(id, _) if !gone && *id >= FIRST_ID) {
            // Another's took the place of what may have been ours.
            self.queue.push_back(KernelEvent::Gone(object.clone()));
        }
    }
}

/// A change of this, on the host's interface, changes [`model::Host`].
fn shapes_host(object: &Object) -> bool {
    match object {
        Object::Link(..) | Object::Addr(..) => true,
        Object::Route(_, route) => matches!(route.to, RouteTo::Dev(_)),
        Object::Neigh(..)
        | Object::Fdb(..)
        | Object::NextHop(..)
        | Object::PacketLoop(..)
        | Object::TunnelRoute(..)
        | Object::TunnelPeer(..)
        | Object::WgDevice(..)
        | Object::WgPeer(..)
        | Object::XfrmPolicy(..)
        | Object::IkeDaemon(..)
        | Object::IkeConnection(..)
        | Object::PostStartup(..)
        | Object::PeerCommand(..) => false,
    }
}

fn dev_of(tables: &Tables, object: &Object) -> Option<IfName> {
    match object {
        Object::Route(_, route) => tables.route_dev(route),
        other => other.device(),
    }
}

fn inside(scope: &Scope, dst: &IpNet) -> bool {
    scope
        .network
        .get(Family::of_net(dst))
        .is_some_and(|network| network.contains(dst))
}

/// Whether a device is ours: one of the scope's, or left by an earlier configuration of the network.
fn is_ours(scope: &Scope, tables: &Tables, dev: &IfName) -> bool {
    let link = tables.links.get(dev).map(|device| &device.link);
    let mark = link.and_then(|link| link.mark);
    scope.devices.contains(dev) || mark.is_some_and(|mark| mark.names(&scope.network))
}

/// The rules of [`Scope`].
fn concerns(scope: &Scope, tables: &Tables, object: &Object) -> bool {
    let dev = dev_of(tables, object);
    let ours = dev.is_some_and(|dev| is_ours(scope, tables, &dev));
    match object {
        Object::Link(..) | Object::Addr(..) | Object::Neigh(..) | Object::Fdb(..) => ours,
        Object::NextHop(..)
        | Object::PacketLoop(..)
        | Object::TunnelRoute(..)
        | Object::TunnelPeer(..)
        | Object::WgDevice(..)
        | Object::WgPeer(..) => ours,
        Object::PostStartup(..) | Object::IkeDaemon(..) => true,
        Object::XfrmPolicy(key, _) => inside(scope, &key.src) && inside(scope, &key.dst),
        Object::IkeConnection(key, _) => inside(scope, &key.local) && inside(scope, &key.remote),
        Object::PeerCommand(_, peer) => peer.env.network == scope.network,
        Object::Route(key, route) => match dev {
            _ if ours => route.protocol != KERNEL_PROTOCOL,
            None => {
                inside(scope, &key.dst)
                    && (route.protocol == ROUTE_PROTOCOL || upstreams_blackhole(scope, key, route))
            }
            Some(dev) if dev == scope.iface => {
                inside(scope, &key.dst)
                    && (route.protocol == ROUTE_PROTOCOL || upstreams(scope, key, route))
            }
            Some(_) => false,
        },
    }
}

/// A route that the kernel wrote by itself, for another's device, where one of ours might be put.
fn is_kernels(scope: &Scope, tables: &Tables, key: &RouteKey, route: &Route) -> bool {
    let own = scope.own.get(Family::of_net(&key.dst));
    let dev = tables.route_dev(route);
    route.protocol == KERNEL_PROTOCOL
        && inside(scope, &key.dst)
        && own.is_none_or(|own| !own.contains(&key.dst))
        && dev.is_some_and(|dev| !is_ours(scope, tables, &dev))
}

/// What only a full look shows: routes of this network that an earlier configuration left on a device
/// that is none of the scope's.
fn left_elsewhere(scope: &Scope, tables: &Tables, object: &Object) -> bool {
    match object {
        Object::Route(key, route) => {
            route.protocol == ROUTE_PROTOCOL
                && inside(scope, &key.dst)
                && tables.route_dev(route).is_some()
        }
        _ => false,
    }
}

fn upstreams_blackhole(scope: &Scope, key: &RouteKey, route: &Route) -> bool {
    let own = scope.own.get(Family::of_net(&key.dst));
    scope.take_over
        && route.protocol == BOOT_PROTOCOL
        && own.is_some_and(|own| own.contains(&key.dst))
}

fn upstreams(scope: &Scope, key: &RouteKey, route: &Route) -> bool {
    scope.take_over
        && route.protocol == BOOT_PROTOCOL
        && scope
            .own
            .get(Family::of_net(&key.dst))
            .map(IpNet::prefix_len)
            == Some(key.dst.prefix_len())
        && *key == RouteKey::to(key.dst)
        && matches!(route.to, RouteTo::Gateway(NextHop { .. }))
}
