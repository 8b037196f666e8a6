//! The Linux kernel through rtnetlink.
//!
//! | module | holds |
//! |---|---|
//! | `uapi` | the kernel's numbers |
//! | `wire` | messages and attributes as bytes |
//! | `socket` | the request socket: bulk sender, dumps, an outcome for each message |
//! | `encode`, `decode` | model objects to messages, messages to what they say |
//! | `link` | devices: looked at, made, changed, deleted |
//! | `scope` | what concerns us |
//! | `events`, `filter` | the notice socket, and what it need not even see |

pub(crate) mod decode;
mod encode;
mod events;
mod filter;
pub(crate) mod link;
mod scope;
pub(crate) mod socket;
pub(crate) mod uapi;
pub(crate) mod wire;

use model::kernel::{ROUTE_PROTOCOL, Route, RouteKey, RouteTo};
use model::{Family, IfName, Object, Op};

use crate::{Dataplane, Features, KernelError, KernelEvent, Outcome, Scope};
use decode::{RawAddr, RawRoute};
use events::Events;
use scope::View;
use socket::{Failure, Requests};
use uapi::*;
use wire::{Batch, Message, af};

/// From this many operations on, the notices of our own FDB changes are kept away altogether.
const BULK: usize = 256;

/// The kernel of the network namespace in which it was opened.
///
/// Requests block the thread for as long as the kernel takes to do them: it does so within the
/// system call, and no faster way exists. Between two sends of 1,000 messages others on the runtime
/// get their turn.
pub struct Kernel {
    requests: Requests,
    events: Events,
    view: Option<View>,
    features: Features,
    batch: Batch,
}

impl Kernel {
    /// Opens the kernel, on the current tokio runtime. `plain_routes` does without next-hop objects
    /// even where the kernel has them.
    ///
    /// # Errors
    /// No netlink socket to be had.
    pub fn open(plain_routes: bool) -> Result<Kernel, KernelError> {
        let open = |err: std::io::Error| refused("open a netlink socket", err.into());
        let mut requests = Requests::open().map_err(open)?;
        let has_next_hops = probe_next_hops(&mut requests);
        let mut events = Events::open(requests.port(), has_next_hops).map_err(open)?;
        events.refilter(None);
        let features = Features {
            next_hops: has_next_hops && !plain_routes,
        };
        Ok(Kernel {
            requests,
            events,
            view: None,
            features,
            batch: Batch::default(),
        })
    }

    /// Makes or deletes a device, and knows its notices for our own.
    fn apply_link(&mut self, op: &Op) -> Result<(), Failure> {
        let mine = |name: &IfName| {
            self.view
                .as_ref()
                .is_some_and(|v| v.devices.iter().any(|d| d.name == *name))
        };
        let Object::Link(name, _) = op.object() else {
            return Err(Failure::errno(libc::EINVAL));
        };
        if !mine(name) {
            return link::apply(&mut self.requests, op);
        }
        let Some(view) = &mut self.view else {
            return Err(Failure::errno(libc::EINVAL));
        };
        // What others did until now is told; what we do is taken for known.
        while self.events.drain(view, &mut self.requests) {}
        let done = link::apply(&mut self.requests, op);
        find_devices(view, &mut self.requests);
        self.events.refilter(Some(view));
        self.events.settle(*name, view, &mut self.requests);
        done
    }

    /// Sends what is in the batch; `sent` are the positions of its operations.
    fn flush(&mut self, ops: &[Op], sent: &mut Vec<u32>, outcomes: &mut [Outcome]) {
        self.requests.send(&mut self.batch, |at, failure| {
            let Some(&at) = sent.get(at) else { return };
            let op = &ops[at as usize];
            if !(matches!(op, Op::Del(_)) && is_absence(failure.errno)) {
                outcomes[at as usize] = Err(refused(op, failure));
            }
        });
        sent.clear();
    }

    /// Adds `op` to the batch.
    fn encode(&mut self, op: &Op, indexes: &mut Indexes) -> Result<(), Failure> {
        let index = match encode::device(op) {
            Some(dev) => indexes.of(&mut self.requests, dev)?,
            None => 0,
        };
        let seq = self
            .requests
            .first_seq()
            .wrapping_add(self.batch.count() as u32);
        encode::op(&mut self.batch, seq, op, index)
    }

    /// Which of our own doings the kernel announces without saying whose they are.
    fn expect_echo(&mut self, op: &Op) {
        let unmarked = match op.object() {
            Object::Fdb(..) => true,
            Object::Addr(key) => Family::of_net(&key.net) == Family::V6,
            _ => false,
        };
        if unmarked {
            self.events.expect(match op {
                Op::Put(object) => KernelEvent::Saw(object.clone()),
                Op::Del(object) => KernelEvent::Gone(object.clone()),
            });
        }
    }
}

impl Dataplane for Kernel {
    fn features(&self) -> Features {
        self.features
    }

    fn set_scope(&mut self, scope: Scope) {
        let mut view = View::new(scope);
        find_devices(&mut view, &mut self.requests);
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
        find_devices(view, &mut self.requests);
        self.events.refilter(Some(view));
        observe(view, &mut self.requests, each)
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let mut outcomes = vec![Ok(()); ops.len()];
        let mut sent = Vec::with_capacity(ops.len().min(1_000));
        let mut indexes = Indexes::default();
        let bulk = ops.len() > BULK && ops.iter().any(|op| matches!(op.object(), Object::Fdb(..)));
        if bulk {
            self.events.set_strict(self.view.as_ref(), true);
        }
        for (at, op) in ops.iter().enumerate() {
            let done = match op.object() {
                // Others may need the device, or its absence.
                Object::Link(..) => {
                    self.flush(ops, &mut sent, &mut outcomes);
                    indexes = Indexes::default();
                    self.apply_link(op)
                }
                _ => self.encode(op, &mut indexes).map(|()| {
                    sent.push(at as u32);
                    if !bulk {
                        self.expect_echo(op);
                    }
                }),
            };
            match done {
                Err(failure) if matches!(op, Op::Del(_)) && is_absence(failure.errno) => {}
                Err(failure) => outcomes[at] = Err(refused(op, failure)),
                Ok(()) => {}
            }
            if self.requests.is_full(&self.batch) {
                self.flush(ops, &mut sent, &mut outcomes);
                tokio::task::yield_now().await;
            }
        }
        self.flush(ops, &mut sent, &mut outcomes);
        if bulk {
            self.events.set_strict(self.view.as_ref(), false);
        }
        outcomes
    }

    async fn event(&mut self) -> KernelEvent {
        // An apply that was cancelled half-way leaves it set.
        self.events.set_strict(self.view.as_ref(), false);
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

/// Indexes of devices, asked for once in each [`Dataplane::apply`]: nothing to go stale.
#[derive(Default)]
struct Indexes(Vec<(IfName, Result<u32, Failure>)>);

impl Indexes {
    fn of(&mut self, requests: &mut Requests, dev: IfName) -> Result<u32, Failure> {
        if let Some((_, index)) = self.0.iter().find(|(name, _)| *name == dev) {
            return index.clone();
        }
        let index = link::index_of(requests, &dev);
        self.0.push((dev, index.clone()));
        index
    }
}

/// The error of `op`.
pub(crate) fn refused(op: impl ToString, failure: Failure) -> KernelError {
    KernelError {
        op: op.to_string(),
        errno: failure.errno,
        reason: failure.text,
    }
}

/// To delete what is not there is a success.
fn is_absence(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::ENXIO | libc::EADDRNOTAVAIL
    )
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

/// Looks at every device of the view.
fn find_devices(view: &mut View, requests: &mut Requests) {
    for device in &mut view.devices {
        // Not to be had counts as absent: the operations on it tell why.
        let found = link::look(requests, &device.name).ok().flatten();
        device.index = found.as_ref().map_or(0, |f| f.index);
        device.running = found.as_ref().is_some_and(|f| f.running);
        device.link = found.map(|f| f.link);
    }
}

/// Shows every object in scope to `each`.
fn observe(
    view: &View,
    requests: &mut Requests,
    each: &mut dyn FnMut(Object),
) -> Result<(), KernelError> {
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
        let done = dump_next_hops(view, requests, device.index, |id, hop| {
            each(Object::NextHop(id, hop))
        });
        done.map_err(|failure| refused(format!("ip nexthop show dev {}", device.name), failure))?;
    }
    let mut used = Vec::new();
    for family in Family::ALL {
        let done = dump_routes(view, requests, family, &mut |key, route, on_host| {
            if let (RouteTo::NextHopId(id), true) = (route.to, on_host) {
                used.push(id);
            }
            each(Object::Route(key, route));
        });
        done.map_err(|failure| refused(format!("ip route show ({family})"), failure))?;
    }
    // A next hop on the host's interface may belong to another flannel's network: its routes tell.
    for device in view.devices.iter().filter(|d| !d.ours && d.index != 0) {
        used.sort_unstable();
        let done = dump_next_hops(view, requests, device.index, |id, hop| {
            if used.binary_search(&id).is_ok() {
                each(Object::NextHop(id, hop));
            }
        });
        done.map_err(|failure| refused(format!("ip nexthop show dev {}", device.name), failure))?;
    }
    Ok(())
}

/// A table that the kernel does not have, or a device that just went away, shows nothing.
fn or_nothing(done: Result<(), Failure>) -> Result<(), Failure> {
    match done {
        Err(failure) if matches!(failure.errno, libc::EOPNOTSUPP | libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Shows every address of the device `index`.
pub(crate) fn dump_addrs(
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
    index: u32,
    mut each: impl FnMut(u32, model::kernel::NextHop),
) -> Result<(), Failure> {
    let attrs = |batch: &mut Batch| {
        batch.attr_u32(NHA_OIF, index);
    };
    or_nothing(requests.dump(RTM_GETNEXTHOP, &[0; 8], attrs, |message| {
        let raw = decode::next_hop(message).filter(|raw| raw.index == Some(index));
        if let Some((id, hop, _)) = raw.and_then(|raw| view.next_hop(&raw)) {
            each(id, hop);
        }
    }))
}

/// Which routes the kernel is asked for.
#[derive(Clone, Copy)]
struct Asked {
    index: u32,
    protocol: u8,
    rtn: u8,
}

/// Shows every route in scope, and whether it leads out of the host's interface.
fn dump_routes(
    view: &View,
    requests: &mut Requests,
    family: Family,
    each: &mut dyn FnMut(RouteKey, Route, bool),
) -> Result<(), Failure> {
    let nowhere = Asked {
        index: 0,
        protocol: ROUTE_PROTOCOL,
        rtn: RTN_BLACKHOLE,
    };
    let on_devices = view.devices.iter().filter(|d| d.index != 0).map(|d| {
        // On the host's interface only ours, unless those of another flannel are ours too.
        let protocol = if d.ours || view.scope.take_over {
            0
        } else {
            ROUTE_PROTOCOL
        };
        (
            Asked {
                index: d.index,
                protocol,
                rtn: RTN_UNICAST,
            },
            !d.ours,
        )
    });
    for (asked, on_host) in on_devices.chain([(nowhere, false)]) {
        dump_some_routes(requests, family, asked, &mut |raw| {
            if let Some((key, route)) = view.route(&raw) {
                each(key, route, on_host);
            }
        })?;
    }
    Ok(())
}

fn dump_some_routes(
    requests: &mut Requests,
    family: Family,
    asked: Asked,
    each: &mut dyn FnMut(RawRoute),
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
            }
            // A kernel before 4.20 chooses nothing.
            let asked_for = raw.rtn == rtn && (index == 0 || raw.indexes().any(|i| i == index));
            if asked_for && (protocol == 0 || raw.protocol == protocol) {
                each(raw);
            }
        }),
    )
}
