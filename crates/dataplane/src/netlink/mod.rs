//! The Linux kernel through rtnetlink.
//!
//! | module | holds |
//! |---|---|
//! | `uapi` | the kernel's numbers |
//! | `wire` | messages and attributes as bytes |
//! | `socket` | the request socket: bulk sender, dumps, an outcome for each message |
//! | `encode`, `decode` | model objects to messages, messages to what they say |
//! | `link`, `kind` | devices: looked at, created, changed, deleted; one file for each kind of device |
//! | `ethtool` | checksum offload, which rtnetlink does not know |
//! | `distrust` | what a new device is told not to believe |
//! | `foreign` | the deletion of routes that we would never write |
//! | `observe` | dumps of everything in scope |
//! | `scope` | what concerns us |
//! | `events`, `filter` | the notice socket, and what it need not even see |

pub(crate) mod decode;
mod distrust;
mod encode;
mod ethtool;
mod events;
mod filter;
mod foreign;
pub(crate) mod kind;
pub(crate) mod link;
pub(crate) mod observe;
pub(crate) mod room;
pub(crate) mod scope;
pub(crate) mod socket;
pub(crate) mod uapi;
pub(crate) mod wire;

use std::collections::BTreeSet;

use ipnet::IpNet;
use model::object::{NextHop, ROUTE_PROTOCOL, Route, RouteKey, RouteTo};
use model::{Family, IfName, Object, Op};

use crate::door::Door;
use crate::failure::Failure;
use crate::{Features, KernelError, KernelEvent, Outcome, Scope};
use events::Events;
use observe::find_devices;
use scope::View;
use socket::Requests;
use uapi::*;
use wire::Batch;

/// From this many operations on, FDB entries are written with a mark (`extern_learn`) that shows
/// their notices to be ours. Fewer are written plainly, as upstream's are.
const BULK: usize = 256;

/// What became of one operation: rtnetlink does it at once or not at all.
type Tried = Result<(), KernelError>;

/// The rtnetlink of the network namespace in which it was opened.
///
/// Requests block the thread for as long as the kernel takes to do them: it does so within the
/// system call, and no faster way exists. Between two sends of 1,000 messages others on the runtime
/// get their turn.
pub(crate) struct Rtnetlink {
    requests: Requests,
    events: Events,
    view: Option<View>,
    features: Features,
    batch: Batch,
    /// Ids of other programs' next-hop objects, as of the last full look.
    taken: BTreeSet<u32>,
    /// So much is written that our FDB entries are marked, rather than each notice of one read.
    bulk: bool,
}

impl Rtnetlink {
    /// Opens the kernel, on the current tokio runtime. `plain_routes` does without next-hop objects
    /// even where the kernel has them.
    ///
    /// # Errors
    /// No netlink socket to be had.
    pub(crate) fn open(plain_routes: bool) -> Result<Rtnetlink, KernelError> {
        let open = |err: std::io::Error| refused("open a netlink socket", err.into());
        let mut requests = Requests::open().map_err(open)?;
        let has_next_hops = probe_next_hops(&mut requests);
        let mut events = Events::open(requests.port(), has_next_hops).map_err(open)?;
        events.refilter(None);
        let features = Features {
            next_hops: has_next_hops && !plain_routes,
        };
        Ok(Rtnetlink {
            requests,
            events,
            view: None,
            features,
            batch: Batch::default(),
            taken: BTreeSet::new(),
            bulk: false,
        })
    }

    /// Returns what this kernel can do.
    pub(crate) fn features(&self) -> Features {
        self.features
    }

    /// Returns the ids that next-hop objects of other programs had at the last full look.
    pub(crate) fn taken_ids(&self) -> BTreeSet<u32> {
        self.taken.clone()
    }

    /// Makes or deletes a device, and knows its notices for our own.
    fn apply_link(&mut self, op: &Op) -> Result<(), Failure> {
        let Object::Link(name, _) = op.object() else {
            return Err(Failure::errno(libc::EINVAL));
        };
        if let Some(view) = &mut self.view {
            // What others did until now is told.
            while self.events.drain(view, &mut self.requests) {}
        }
        let done = link::apply(&mut self.requests, op);
        let Some(view) = &mut self.view else {
            return done;
        };
        if let Some(device) = view.devices.iter_mut().find(|d| d.name == *name) {
            let before = device.clone();
            // If it cannot be looked at, the next full look says so.
            if observe::find_device(device, &mut self.requests).is_err()
                || before.takes_along(device)
            {
                self.events.look_again();
            }
            self.events.refilter(Some(view));
            self.events.read_own(*name, view, &mut self.requests);
            view.forget_gone();
        }
        done
    }

    /// Sends what is in the batch; `sent` are the positions of its operations.
    fn flush(&mut self, ops: &[Op], sent: &mut Vec<u32>, outcomes: &mut [Tried]) {
        let (mut blocked, mut existing) = (Vec::new(), Vec::new());
        self.requests.send(&mut self.batch, |at, failure| {
            let Some(&at) = sent.get(at) else { return };
            let op = &ops[at as usize];
            if failure.errno == libc::EINVAL && may_be_blocked(op) {
                blocked.push(at);
            }
            if failure.errno == libc::EEXIST && matches!(op, Op::Put(Object::NextHop(..))) {
                existing.push(at);
            }
            outcomes[at as usize] = outcome(op, Err(failure));
        });
        sent.clear();
        if let Some(view) = self.view.as_mut().filter(|_| self.events.expects()) {
            // The notices of what we did ourselves, before there are too many to be remembered.
            while self.events.drain(view, &mut self.requests) {}
        }
        for at in existing {
            let op = &ops[at as usize];
            outcomes[at as usize] = outcome(op, self.put_over(op));
        }
        for at in blocked {
            let op = &ops[at as usize];
            outcomes[at as usize] = outcome(op, self.put_past(op));
        }
    }

    /// Writes a next-hop object over the one that has its id, if that one is ours.
    fn put_over(&mut self, op: &Op) -> Result<(), Failure> {
        self.check_id(op)?;
        if let Err(failure) = self.encode(op, &mut Indexes::default(), true) {
            self.batch.clear();
            return Err(failure);
        }
        let mut done = Ok(());
        self.requests
            .send(&mut self.batch, |_, failure| done = Err(failure));
        match done {
            Err(failure) if failure.errno == libc::EINVAL && may_be_blocked(op) => {
                self.put_past(op)
            }
            done => done,
        }
    }

    /// Checks that no other program's next-hop object has the id that `op` writes. One is ours if it
    /// has our protocol number, or if a route of ours uses it: then somebody changed it since.
    fn check_id(&mut self, op: &Op) -> Result<(), Failure> {
        let Op::Put(Object::NextHop(id, hop)) = op else {
            return Ok(());
        };
        let found = observe::find_next_hop(&mut self.requests, *id)?;
        match found.filter(|found| found.protocol != ROUTE_PROTOCOL) {
            Some(found)
                if !observe::is_used_by_us(&mut self.requests, *id, Family::of(&hop.via))? =>
            {
                let text = format!(
                    "the next-hop object {id} is another program's (protocol {}); another id is taken",
                    found.protocol
                );
                Err(Failure::because(libc::EEXIST, text))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Writes an IPv6 gateway that stands behind another's route. The kernel refuses an "onlink" gateway
    /// that its table would look for on another device, as it does while a route that we are about to
    /// replace leads there. So, for a moment, the table gets a route to the gateway alone.
    fn put_past(&mut self, op: &Op) -> Result<(), Failure> {
        const METRIC: u32 = 0xf1a1;
        self.check_id(op)?;
        let aside = onlink_v6(op).map(|hop| {
            let key = RouteKey::with_metric(IpNet::from(hop.via), METRIC);
            Object::Route(key, Route::ours(RouteTo::Dev(hop.dev)))
        });
        let before = aside.clone().map(Op::Put);
        let after = aside.map(Op::Del);
        let mut indexes = Indexes::default();
        for step in before.iter().chain([op]).chain(&after) {
            if let Err(failure) = self.encode(step, &mut indexes, true) {
                self.batch.clear();
                return Err(failure);
            }
        }
        let at_op = usize::from(before.is_some());
        let mut done = Ok(());
        self.requests.send(&mut self.batch, |at, failure| {
            if at == at_op {
                done = Err(failure);
            }
        });
        done
    }

    /// An unmarked route that we deleted or replaced is ours no longer: whoever writes it again is
    /// somebody else.
    fn forget_taken_over(&mut self, ops: &[Op], outcomes: &[Tried]) {
        let Some(view) = self
            .view
            .as_mut()
            .filter(|view| !view.taken_over.is_empty())
        else {
            return;
        };
        for (op, outcome) in ops.iter().zip(outcomes) {
            if let (Object::Route(key, _), Ok(())) = (op.object(), outcome) {
                view.taken_over.remove(key);
            }
        }
    }

    /// Refuses to write a route in the place of one that the kernel wrote by itself.
    fn check_kernels(&mut self, op: &Op) -> Result<(), Failure> {
        let Op::Put(Object::Route(key, _)) = op else {
            return Ok(());
        };
        let Some(view) = self.view.as_mut().filter(|v| v.in_the_way(key).is_some()) else {
            return Ok(());
        };
        // With a device that goes down they go without a notification.
        observe::find_kernel_routes(view, &mut self.requests)?;
        let Some(index) = view.in_the_way(key) else {
            return Ok(());
        };
        let dev = link::find_name(&mut self.requests, index)?;
        let dev = dev.map_or_else(|| format!("if{index}"), |name| name.to_string());
        let text = format!(
            "the kernel's own route to {} through {dev} is never replaced; remove that address from {dev}",
            key.dst
        );
        Err(Failure::because(libc::EEXIST, text))
    }

    /// Adds `op` to the batch. A next-hop object is written over another one only if `over`.
    fn encode(&mut self, op: &Op, indexes: &mut Indexes, over: bool) -> Result<(), Failure> {
        self.check_kernels(op)?;
        let index = match encode::device(op) {
            Some(dev) => indexes.of(&mut self.requests, self.view.as_ref(), dev)?,
            None => 0,
        };
        encode::op(&mut self.batch, op, index, self.bulk, over)
    }

    /// Which of our own doings the kernel announces without saying whose they are.
    fn expect_echo(&mut self, op: &Op) {
        let unmarked = match op.object() {
            // The notice of an entry that is written in bulk carries our mark.
            Object::Fdb(..) => is_del(op) || !self.bulk,
            Object::Addr(key, ()) => Family::of_net(&key.net) == Family::V6,
            _ => false,
        };
        if is_del(op) && matches!(op.object(), Object::Addr(..)) {
            // A device's last IPv4 address takes routes and neighbours along.
            self.events.look_again();
        }
        if unmarked {
            self.events.expect(match op {
                Op::Put(object) => KernelEvent::Saw(object.clone()),
                Op::Del(object) => KernelEvent::Gone(object.clone()),
            });
        }
    }
}

impl Door for Rtnetlink {
    fn set_scope(&mut self, scope: &Scope) {
        let mut view = View::new(scope.clone());
        if let Some(before) = self.view.take() {
            view.taken_over = before.taken_over;
        }
        // If they cannot be looked at, the full look that follows says so.
        let _ = find_devices(&mut view, &mut self.requests);
        self.events.refilter(Some(&view));
        self.events.learn_host(&view, &mut self.requests);
        self.view = Some(view);
    }

    async fn observe(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
        let Some(view) = &mut self.view else {
            return Ok(());
        };
        // Notices until now are older than what follows.
        while self.events.drain(view, &mut self.requests) {}
        self.events.forget();
        if find_devices(view, &mut self.requests)? {
            self.events.host_changed(view, &mut self.requests);
        }
        self.events.refilter(Some(view));
        let before = view.kernel_routes.clone();
        self.taken = observe::observe(view, &mut self.requests, each)?;
        if view.kernel_routes != before {
            self.events.host_changed(view, &mut self.requests);
        }
        Ok(())
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        self.bulk = ops.len() > BULK;
        let puts_routes = |op: &Op| matches!(op, Op::Put(Object::Route(..)));
        if ops.iter().any(puts_routes)
            && let Some(view) = &mut self.view
        {
            // The kernel's own routes of which we were not yet told.
            while self.events.drain(view, &mut self.requests) {}
        }
        let mut outcomes = vec![Ok(()); ops.len()];
        let mut sent = Vec::with_capacity(ops.len().min(1_000));
        let mut indexes = Indexes::default();
        for (at, op) in ops.iter().enumerate() {
            let done = match op.object() {
                // Others may need the device, or its absence.
                Object::Link(..) => {
                    self.flush(ops, &mut sent, &mut outcomes);
                    indexes = Indexes::default();
                    self.apply_link(op)
                }
                Object::Route(
                    key,
                    Route {
                        to: RouteTo::Foreign(dev),
                        protocol,
                    },
                ) if is_del(op) => {
                    self.flush(ops, &mut sent, &mut outcomes);
                    foreign::delete(&mut self.requests, key, *protocol, dev)
                }
                _ => self.encode(op, &mut indexes, false).map(|()| {
                    sent.push(at as u32);
                    self.expect_echo(op);
                }),
            };
            if done.is_err() {
                outcomes[at] = outcome(op, done);
            }
            if self.requests.is_full(&self.batch) {
                self.flush(ops, &mut sent, &mut outcomes);
                tokio::task::yield_now().await;
            }
        }
        self.flush(ops, &mut sent, &mut outcomes);
        self.forget_taken_over(ops, &outcomes);
        outcomes.into_iter().map(Outcome::from).collect()
    }

    async fn event(&mut self) -> KernelEvent {
        loop {
            if let Some(event) = self.events.pop() {
                return event;
            }
            if self.view.is_none() || self.events.readable().await.is_err() {
                return std::future::pending().await;
            }
            if let Some(view) = &mut self.view {
                while self.events.drain(view, &mut self.requests) {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// Indexes of devices, asked for once in each [`Door::apply`]: nothing to go stale.
#[derive(Default)]
struct Indexes(Vec<(IfName, Result<u32, Failure>)>);

impl Indexes {
    /// Returns the index of `dev`. Where `view` knows one, only whether it is still that device's is asked: for a
    /// device's index, the kernel would describe the whole device.
    fn of(
        &mut self,
        requests: &mut Requests,
        view: Option<&View>,
        dev: IfName,
    ) -> Result<u32, Failure> {
        if let Some((_, index)) = self.0.iter().find(|(name, _)| *name == dev) {
            return index.clone();
        }
        let mut devices = view.into_iter().flat_map(|view| &view.devices);
        let seen = devices.find(|device| device.name == dev && device.index != 0);
        let index = match seen {
            Some(seen) if requests.has_name(seen.index, &dev) => Ok(seen.index),
            _ => link::index_of(requests, &dev),
        };
        self.0.push((dev, index.clone()));
        index
    }
}

/// The error of `op`.
pub(crate) fn refused(op: impl ToString, failure: Failure) -> KernelError {
    failure.of(op)
}

fn is_del(op: &Op) -> bool {
    matches!(op, Op::Del(_))
}

/// What became of `op`: to delete what is not there is a success.
fn outcome(op: &Op, done: Result<(), Failure>) -> Tried {
    done.or_else(
        |failure| match is_del(op) && is_absence(op, failure.errno) {
            true => Ok(()),
            false => Err(refused(op, failure)),
        },
    )
}

fn is_absence(op: &Op, errno: i32) -> bool {
    match errno {
        libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::ENXIO | libc::EADDRNOTAVAIL => true,
        // Said of a route whose next-hop object is not there: then nor is the route.
        libc::EINVAL => {
            matches!(
                op.object(),
                Object::Route(
                    _,
                    Route {
                        to: RouteTo::NextHopId(_),
                        ..
                    }
                )
            )
        }
        _ => false,
    }
}

/// The IPv6 gateway that `op` writes and declares to be on-link.
fn onlink_v6(op: &Op) -> Option<NextHop> {
    let hop = match op {
        Op::Put(Object::NextHop(_, hop)) => hop,
        Op::Put(Object::Route(
            _,
            Route {
                to: RouteTo::Gateway(hop),
                ..
            },
        )) => hop,
        _ => return None,
    };
    (hop.onlink && Family::of(&hop.via) == Family::V6).then_some(*hop)
}

/// Whether `op` may fail because of another's route, or because such a next hop failed before it.
fn may_be_blocked(op: &Op) -> bool {
    let through = |key: &RouteKey, route: &Route| {
        matches!((key.dst, route.to), (IpNet::V6(_), RouteTo::NextHopId(_)))
    };
    onlink_v6(op).is_some()
        || matches!(op, Op::Put(Object::Route(key, route)) if through(key, route))
}

/// Whether the kernel knows next-hop objects: then it finds none, or one, under a number.
fn probe_next_hops(requests: &mut Requests) -> bool {
    let attrs = |batch: &mut Batch| {
        batch.attr_u32(NHA_ID, u32::MAX);
    };
    match requests.call(RTM_GETNEXTHOP, 0, &[0; 8], attrs, |_| {}) {
        Ok(()) => true,
        Err(failure) => failure.errno == libc::ENOENT,
    }
}
