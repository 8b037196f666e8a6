//! A kernel in memory: the same trait, the same refusals and the same cascades as the real one, and
//! failures on demand. The conformance suite keeps it honest.
//!
//! A [`FakeKernel`] is a handle: clone it, give one to the daemon's loop and damage the kernel
//! through the other.

pub mod fault;
mod tables;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use model::kernel::{
    AddrKey, Link, LinkKind, NextHop, ROUTE_PROTOCOL, Route, RouteKey, RouteTo, default_metric,
};
use model::state::FIRST_ID;
use model::{Family, IfName, Object, Op};
use tokio::sync::Notify;

use crate::netlink::refused;
use crate::netlink::socket::Failure;
use crate::netlink::uapi::{RTPROT_BOOT, RTPROT_KERNEL, RTPROT_RA};
use crate::{Dataplane, Features, KernelError, KernelEvent, Outcome, Scope};
use fault::{Fault, Faults};
use tables::{Notice, Tables};

/// A kernel in memory.
#[derive(Clone)]
pub struct FakeKernel {
    state: Arc<Mutex<State>>,
    /// Which of the programs that use the kernel this handle belongs to.
    client: usize,
    news: Arc<Notify>,
}

/// What a fake kernel was asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations through [`Dataplane::apply`], refused ones included.
    pub ops: usize,
    /// Of these, how many had an error for an outcome.
    pub failed: usize,
    /// Full looks.
    pub observed: usize,
}

struct State {
    tables: Tables,
    clients: Vec<Client>,
}

/// A program that uses the kernel.
struct Client {
    scope: Option<Scope>,
    queue: VecDeque<KernelEvent>,
    look_again: bool,
    host_changed: bool,
    faults: Faults,
    counts: Counts,
    news: Arc<Notify>,
}

impl FakeKernel {
    /// An empty kernel, with next-hop objects or without.
    pub fn new(next_hops: bool) -> FakeKernel {
        let tables = Tables {
            next_hops: next_hops.then(Default::default),
            ..Tables::default()
        };
        let state = State {
            tables,
            clients: Vec::new(),
        };
        FakeKernel::client(Arc::new(Mutex::new(state)))
    }

    /// The same kernel as another program sees it: with a scope, events, faults and counts of its
    /// own. What one does is told to the other.
    pub fn another(&self) -> FakeKernel {
        FakeKernel::client(Arc::clone(&self.state))
    }

    fn client(state: Arc<Mutex<State>>) -> FakeKernel {
        let news = Arc::new(Notify::new());
        let client = Client {
            scope: None,
            queue: VecDeque::new(),
            look_again: false,
            host_changed: false,
            faults: fault::none(),
            counts: Counts::default(),
            news: Arc::clone(&news),
        };
        let mut all = state.lock().unwrap_or_else(PoisonError::into_inner);
        all.clients.push(client);
        let client = all.clients.len() - 1;
        drop(all);
        FakeKernel {
            state,
            client,
            news,
        }
    }

    /// Adds a network interface of the host, up, with these addresses.
    pub fn add_iface(&self, name: IfName, mtu: u32, addrs: &[IpNet]) {
        let kind = LinkKind::Foreign("veth".into());
        self.outside(&Op::Put(Object::Link(
            name,
            Link {
                kind,
                mac: None,
                mtu,
                up: true,
            },
        )));
        for net in addrs {
            self.outside(&Op::Put(Object::Addr(AddrKey {
                dev: name,
                net: *net,
            })));
        }
    }

    /// Somebody else makes a change. Returns whether the kernel let him.
    pub fn outside(&self, op: &Op) -> bool {
        self.change(|tables| tables.apply(op).is_ok())
    }

    /// Somebody else sets a device up or down.
    pub fn set_up(&self, name: &IfName, up: bool) {
        self.change(|tables| tables.set_up(name, up));
    }

    /// A device's carrier comes or goes.
    pub fn set_carrier(&self, name: &IfName, carrier: bool) {
        self.change(|tables| tables.set_carrier(name, carrier));
    }

    /// Notices are lost: what was not yet read is never told, only that there was something.
    pub fn lose_notices(&self) {
        self.with(|client, _| {
            client.queue.clear();
            client.look_again = true;
            client.host_changed = true;
        });
        self.news.notify_one();
    }

    /// From now on operations fail as `faults` says.
    pub fn set_faults(&self, faults: Faults) {
        self.with(|client, _| client.faults = faults);
    }

    /// Everything in the kernel, ours or not, devices first.
    pub fn objects(&self) -> Vec<Object> {
        self.lock().tables.objects()
    }

    /// What [`Dataplane::observe`] would show now, without counting as a look.
    pub fn in_scope(&self) -> Vec<Object> {
        self.with(|client, tables| client.in_scope(tables))
    }

    /// Everything in the kernel, as sorted `ip` and `bridge` commands, one a line.
    pub fn render(&self) -> String {
        let mut lines: Vec<String> = self
            .objects()
            .into_iter()
            .map(|object| Op::Put(object).to_string())
            .collect();
        lines.sort();
        lines
            .iter()
            .flat_map(|line| [line.as_str(), "\n"])
            .collect()
    }

    /// What was asked until now.
    pub fn counts(&self) -> Counts {
        self.with(|client, _| client.counts)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, what: impl FnOnce(&mut Client, &mut Tables) -> T) -> T {
        let State { tables, clients } = &mut *self.lock();
        what(&mut clients[self.client], tables)
    }

    fn change<T>(&self, what: impl FnOnce(&mut Tables) -> T) -> T {
        let mut state = self.lock();
        let done = what(&mut state.tables);
        state.announce(None);
        done
    }
}

impl Dataplane for FakeKernel {
    fn features(&self) -> Features {
        Features {
            next_hops: self.lock().tables.next_hops.is_some(),
        }
    }

    fn set_scope(&mut self, scope: Scope) {
        self.with(|client, _| client.scope = Some(scope));
    }

    async fn observe(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
        let seen = self.with(|client, tables| {
            client.counts.observed += 1;
            client.queue.clear();
            client.look_again = false;
            client.in_scope(tables)
        });
        seen.into_iter().for_each(each);
        Ok(())
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let outcomes = ops
            .iter()
            .map(|op| self.lock().apply(self.client, op))
            .collect();
        tokio::task::yield_now().await;
        outcomes
    }

    async fn event(&mut self) -> KernelEvent {
        loop {
            if let Some(event) = self.with(|client, _| client.pop()) {
                return event;
            }
            self.news.notified().await;
        }
    }
}

impl State {
    fn apply(&mut self, client: usize, op: &Op) -> Outcome {
        let counts = &mut self.clients[client];
        counts.counts.ops += 1;
        let fault = (counts.faults)(op);
        let done = match fault {
            Some(Fault::Refused(errno)) => Err(Failure::errno(errno)),
            _ => self.tables.apply(op),
        };
        self.announce(Some(client));
        let outcome = match fault {
            Some(Fault::AnswerLost) => Err(Failure::errno(libc::ENOBUFS)),
            _ => done,
        };
        self.clients[client].counts.failed += usize::from(outcome.is_err());
        outcome.map_err(|failure| refused(op, failure))
    }

    /// Tells what changed to everybody but him who did it.
    fn announce(&mut self, by: Option<usize>) {
        let notices = std::mem::take(&mut self.tables.notices);
        let took_along = std::mem::take(&mut self.tables.took_along);
        if let Some(client) = by
            .and_then(|by| self.clients.get_mut(by))
            .filter(|_| took_along)
        {
            client.look_again = true;
            client.news.notify_one();
        }
        for (_, client) in self
            .clients
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| Some(*i) != by)
        {
            for notice in &notices {
                client.hear(notice, &self.tables);
            }
            client.news.notify_one();
        }
    }
}

impl Client {
    fn in_scope(&self, tables: &Tables) -> Vec<Object> {
        let Some(scope) = &self.scope else {
            return Vec::new();
        };
        let all = tables.objects().into_iter();
        all.filter(|object| concerns(scope, tables, object))
            .collect()
    }

    fn pop(&mut self) -> Option<KernelEvent> {
        if let Some(event) = self.queue.pop_front() {
            return Some(event);
        }
        if std::mem::take(&mut self.host_changed) {
            return Some(KernelEvent::HostChanged);
        }
        std::mem::take(&mut self.look_again).then_some(KernelEvent::LookAgain)
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
            KernelEvent::LookAgain | KernelEvent::HostChanged => return,
        };
        let on_host = dev_of(tables, object) == Some(scope.iface);
        self.host_changed |= on_host && shapes_host(object);
        self.look_again |= gone && on_host && matches!(object, Object::Addr(_));
        if concerns(scope, tables, object) {
            self.look_again |= gone && matches!(object, Object::Addr(_) | Object::NextHop(..));
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
        Object::Link(..) | Object::Addr(_) => true,
        Object::Route(_, route) => matches!(route.to, RouteTo::Dev(_)),
        Object::Neigh(..) | Object::Fdb(..) | Object::NextHop(..) => false,
    }
}

fn dev_of(tables: &Tables, object: &Object) -> Option<IfName> {
    match object {
        Object::Link(name, _) => Some(*name),
        Object::Addr(key) => Some(key.dev),
        Object::Neigh(key, _) => Some(key.dev),
        Object::Fdb(key, _) => Some(key.dev),
        Object::NextHop(_, hop) => Some(hop.dev),
        Object::Route(_, route) => tables.route_dev(route),
    }
}

fn inside(scope: &Scope, dst: &IpNet) -> bool {
    scope
        .network
        .get(Family::of_net(dst))
        .is_some_and(|network| network.contains(dst))
}

/// The rules of [`Scope`].
fn concerns(scope: &Scope, tables: &Tables, object: &Object) -> bool {
    let dev = dev_of(tables, object);
    let ours = dev.is_some_and(|dev| scope.devices.contains(&dev));
    match object {
        Object::Link(..) | Object::Addr(_) | Object::Neigh(..) | Object::Fdb(..) => ours,
        Object::NextHop(..) => ours,
        Object::Route(key, route) => match dev {
            _ if ours => !matches!(route.protocol, RTPROT_KERNEL | RTPROT_RA),
            None => route.protocol == ROUTE_PROTOCOL && inside(scope, &key.dst),
            Some(dev) if dev == scope.iface => {
                inside(scope, &key.dst)
                    && (route.protocol == ROUTE_PROTOCOL || upstreams(scope, key, route))
            }
            Some(_) => false,
        },
    }
}

fn upstreams(scope: &Scope, key: &RouteKey, route: &Route) -> bool {
    scope.take_over
        && route.protocol == RTPROT_BOOT
        && scope.subnet_len.get(Family::of_net(&key.dst)) == Some(&key.dst.prefix_len())
        && key.metric == default_metric(&key.dst)
        && matches!(route.to, RouteTo::Gateway(NextHop { .. }))
}
