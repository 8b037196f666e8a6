//! A kernel in memory: the same trait, the same refusals and the same cascades as the real one, and
//! failures on demand. The conformance suite keeps it honest.
//!
//! A [`FakeKernel`] is a handle: clone it, give one to the daemon's loop and damage the kernel
//! through the other.

mod cascade;
mod client;
pub mod fault;
mod host;
mod tables;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use model::object::{AddrKey, Link, LinkKind};
use model::{IfName, Object, Op};
use tokio::sync::Notify;

use crate::failure::Failure;
use crate::{Dataplane, Features, KernelError, KernelEvent, Outcome, Scope};
use client::Client;
use fault::{Delays, Fault, Faults, LookFaults, Meddler};
use tables::Tables;

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
            taken_over: BTreeMap::new(),
            late: VecDeque::new(),
            faults: fault::none(),
            look_faults: fault::no_look_fails(),
            delays: fault::no_delay(),
            meddler: fault::nobody(),
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

    /// Adds a network interface of the host with this index, up, with these addresses.
    pub fn add_iface(&self, name: IfName, index: u32, mtu: u32, addrs: &[IpNet]) {
        let link = Link {
            kind: LinkKind::Foreign("veth".into()),
            mac: None,
            mtu,
            up: true,
            mark: None,
            enslaved: false,
        };
        self.change(|tables| tables.add_link(name, Some(index), link));
        for net in addrs {
            let key = AddrKey {
                dev: name,
                net: *net,
            };
            self.outside(&Op::Put(Object::Addr(key, ())));
        }
    }

    /// Somebody else gives a device another name. Returns whether there was one.
    pub fn rename(&self, name: &IfName, to: IfName) -> bool {
        self.change(|tables| tables.rename(name, to))
    }

    /// Somebody else makes a change. Returns whether the kernel accepted it.
    pub fn outside(&self, op: &Op) -> bool {
        self.change(|tables| tables.apply(op).is_ok())
    }

    /// Somebody else sets a device up or down.
    pub fn set_up(&self, name: &IfName, up: bool) {
        self.change(|tables| tables.set_up(name, up));
    }

    /// Somebody else gives a device another MTU.
    pub fn set_mtu(&self, name: &IfName, mtu: u32) {
        self.change(|tables| tables.set_mtu(name, mtu));
    }

    /// A device's carrier comes or goes.
    pub fn set_carrier(&self, name: &IfName, carrier: bool) {
        self.change(|tables| tables.set_carrier(name, carrier));
    }

    /// Notices are lost: what was not yet read is never told, only that there was something.
    pub fn lose_notices(&self) {
        self.with(|client, _| {
            client.queue.clear();
            client.late.clear();
            client.look_again = true;
            client.host_changed = true;
        });
        self.news.notify_one();
    }

    /// From now on operations fail as `faults` says.
    pub fn set_faults(&self, faults: Faults) {
        self.with(|client, _| client.faults = faults);
    }

    /// From now on full looks fail as `faults` says.
    pub fn set_look_faults(&self, faults: LookFaults) {
        self.with(|client, _| client.look_faults = faults);
    }

    /// From now on notices arrive as late as `delays` says.
    pub fn set_delays(&self, delays: Delays) {
        self.with(|client, _| client.delays = delays);
    }

    /// From now on `meddler` acts before each operation of this program, and in the middle of its full
    /// looks.
    pub fn set_meddler(&self, meddler: Meddler) {
        self.with(|client, _| client.meddler = meddler);
    }

    /// Ends all that goes wrong: faults, delays and meddling. Notices that are still to come arrive.
    pub fn calm(&self) {
        self.with(|client, _| {
            client.faults = fault::none();
            client.look_faults = fault::no_look_fails();
            client.delays = fault::no_delay();
            client.meddler = fault::nobody();
            client.deliver();
        });
        self.news.notify_one();
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
        let (seen, done) = self.lock().observe(self.client);
        seen.into_iter().for_each(each);
        done
    }

    fn taken_ids(&self) -> BTreeSet<u32> {
        self.with(|client, tables| client.taken_ids(tables))
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
    /// A full look: what was seen, all of it or not. A kernel is asked for one kind of object after the
    /// other, and others do not wait meanwhile.
    fn observe(&mut self, client: usize) -> (Vec<Object>, Result<(), KernelError>) {
        let looker = &mut self.clients[client];
        looker.counts.observed += 1;
        looker.turn();
        looker.queue.clear();
        looker.look_again = false;
        let fails = (looker.look_faults)();
        let mut seen = Vec::new();
        for kind in Object::KINDS.iter().copied() {
            self.meddle(client);
            let found = self.clients[client].in_scope(&self.tables);
            seen.extend(found.into_iter().filter(|object| object.kind() == kind));
        }
        if let Some(fails) = fails {
            seen.truncate(fails.after);
            let failure = Failure::errno(fails.errno);
            return (seen, Err(failure.of("a full look")));
        }
        self.clients[client].looked(&seen);
        (seen, Ok(()))
    }

    /// Somebody else's turn.
    fn meddle(&mut self, client: usize) {
        if let Some(op) = (self.clients[client].meddler)() {
            // A refusal is his own concern.
            let _ = self.tables.apply(&op);
            self.announce(None);
        }
    }

    fn apply(&mut self, client: usize, op: &Op) -> Outcome {
        self.meddle(client);
        let counts = &mut self.clients[client];
        counts.turn();
        counts.counts.ops += 1;
        let fault = (counts.faults)(op);
        let done = match fault {
            Some(Fault::Refused(errno) | Fault::RefusedLater(errno)) => Err(Failure::errno(errno)),
            _ => match self.clients[client].kernels(op, &self.tables) {
                Some(failure) => Err(failure),
                None => self.tables.apply(op),
            },
        };
        let ends_later = matches!(fault, Some(Fault::DoneLater | Fault::RefusedLater(_)));
        self.announce(Some(client));
        let outcome = match fault {
            Some(Fault::AnswerLost) => Err(Failure::errno(libc::ENOBUFS)),
            _ => done,
        };
        self.clients[client].counts.failed += usize::from(outcome.is_err());
        if let (Object::Route(key, _), Ok(())) = (op.object(), &outcome) {
            self.clients[client].taken_over.remove(key);
        }
        let outcome = outcome.map_err(|failure| failure.of(op));
        if !ends_later {
            return outcome.into();
        }
        let client = &mut self.clients[client];
        client.queue.push_back(match (outcome, op) {
            (Ok(()), Op::Put(object)) => KernelEvent::Saw(object.clone()),
            (Ok(()), Op::Del(object)) => KernelEvent::Gone(object.clone()),
            (Err(error), op) => KernelEvent::Refused(op.clone(), error),
        });
        client.news.notify_one();
        Outcome::UnderWay
    }

    /// Notifies every client except the one that made the change.
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
            client.announce(&notices, &self.tables);
            client.news.notify_one();
        }
    }
}
