//! The door to the kernel's WireGuard: keys, ports and peers of its devices. The kernel announces no changes
//! of them, so a device that is in use is read now and then.

mod wire;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use model::object::{LinkKind, WgDevice, WgPeer, WgPeerKey};
use model::{IfName, Object, Op};
use tokio::time::Instant;

use crate::door::Door;
use crate::failure::Failure;
use crate::netlink::refused;
use crate::{KernelError, KernelEvent, Outcome, Scope, host};
use wire::{Change, Connection, Found};

/// How often a device is read that has peers.
const POLL: Duration = Duration::from_secs(8);

/// For so long a session lasts without a new handshake: until then the peer is where it was heard last.
const SESSION: Duration = Duration::from_secs(180);

/// The most bytes of peers in one message: a nest's length has 16 bits.
const MOST_BYTES: usize = 32 << 10;

/// Returns whether this kernel has WireGuard. It loads the module if it can.
pub fn is_available() -> bool {
    matches!(Connection::open(), Ok(Some(_)))
}

/// WireGuard in the kernel.
#[derive(Default)]
pub(crate) struct KernelWireguard {
    connection: Option<Connection>,
    /// Our devices' names.
    devices: Vec<IfName>,
    /// What the kernel held when it was read or written last.
    known: BTreeMap<IfName, Known>,
    /// When it is read again.
    due: Option<Instant>,
    events: VecDeque<KernelEvent>,
}

/// A device as it was read or written last.
#[derive(Default)]
struct Known {
    device: Option<WgDevice>,
    peers: BTreeMap<WgPeerKey, KnownPeer>,
}

struct KnownPeer {
    peer: WgPeer,
    /// What was written, and when; `None` if another process wrote it.
    written: Option<Written>,
}

impl KernelWireguard {
    fn connection(&mut self) -> Result<&mut Connection, Failure> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open()?.ok_or_else(|| {
                let text = "this kernel has no WireGuard: load the module (modprobe wireguard), or set -wireguard-implementation=userspace";
                Failure::because(libc::EOPNOTSUPP, text)
            })?,
        };
        Ok(self.connection.insert(connection))
    }

    /// Reads a device of which `before` is known. `None` if there is no WireGuard device of this name.
    fn read(&mut self, name: &IfName, before: &Known) -> Result<Option<Known>, Failure> {
        let now = SystemTime::now();
        let mut peers = BTreeMap::new();
        let read = self.connection()?.read(name, |found| {
            let key = WgPeerKey {
                dev: *name,
                key: found.key,
            };
            let written = before.peers.get(&key).and_then(|known| known.written);
            let peer = as_observed(found, written, now);
            peers.insert(key, KnownPeer { peer, written });
        });
        match read {
            Ok(device) => Ok(Some(Known { device, peers })),
            Err(failure) if is_absent(&failure) => Ok(None),
            Err(failure) => {
                // What is left in it may belong to the refused request.
                self.connection = None;
                Err(failure)
            }
        }
    }

    /// Reads what is in use, and reports what somebody else changed.
    fn poll(&mut self) {
        for (name, before) in std::mem::take(&mut self.known) {
            match self.read(&name, &before) {
                Ok(Some(now)) => {
                    report(&name, &before, &now, &mut self.events);
                    self.known.insert(name, now);
                }
                Ok(None) => self.events.push_back(KernelEvent::LookAgain),
                // The full look reports what is wrong.
                Err(_) => {
                    self.events.push_back(KernelEvent::LookAgain);
                    self.known.insert(name, before);
                }
            }
        }
    }

    fn apply_device(&mut self, name: &IfName, device: Option<&WgDevice>) -> Result<(), Failure> {
        let done = self.connection()?.set(name, device);
        match done {
            Ok(()) => {
                self.known.entry(*name).or_default().device = device.copied();
                Ok(())
            }
            Err(failure) if device.is_none() && is_absent(&failure) => {
                self.known.remove(name);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Makes changes of one device's peers.
    fn apply_peers(&mut self, name: &IfName, ops: &[&Op]) -> Vec<Result<(), Failure>> {
        let removed = ops.iter().filter_map(|op| match op {
            Op::Del(Object::WgPeer(_, peer)) => Some(&peer.allowed),
            _ => None,
        });
        let left: HashSet<IpNet> = removed.flatten().copied().collect();
        let changes = ops.iter().filter_map(|op| change(op, &left));
        let changes: Vec<Change<'_>> = changes.collect();
        let mut outcomes = Vec::with_capacity(ops.len());
        let mut rest = &changes[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|change| {
                bytes += change.size();
                bytes <= MOST_BYTES
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let done = self
                .connection()
                .and_then(|connection| connection.change(name, now));
            match done {
                Ok(()) => outcomes.extend(now.iter().map(|_| Ok(()))),
                // One of them is refused, or all.
                Err(_) if now.len() > 1 => outcomes.extend(now.chunks(1).map(|one| {
                    self.connection()
                        .and_then(|connection| connection.change(name, one))
                })),
                Err(failure) => outcomes.push(Err(failure)),
            }
        }
        let now = SystemTime::now();
        for (op, outcome) in ops.iter().zip(&mut outcomes) {
            if matches!(op, Op::Del(_)) && outcome.as_ref().is_err_and(is_absent) {
                *outcome = Ok(());
            }
            if outcome.is_ok() {
                self.wrote(op, now);
            }
        }
        outcomes
    }

    fn wrote(&mut self, op: &Op, now: SystemTime) {
        match op {
            Op::Put(Object::WgPeer(key, peer)) => {
                let known = KnownPeer {
                    peer: peer.clone(),
                    written: Some((peer.endpoint, now)),
                };
                let device = self.known.entry(key.dev).or_default();
                device.peers.insert(*key, known);
            }
            Op::Del(Object::WgPeer(key, _)) => {
                if let Some(device) = self.known.get_mut(&key.dev) {
                    device.peers.remove(key);
                }
            }
            Op::Put(_) | Op::Del(_) => {}
        }
    }
}

/// Returns whether there is no WireGuard device.
fn is_absent(failure: &Failure) -> bool {
    matches!(failure.errno, libc::ENODEV | libc::EOPNOTSUPP)
}

/// When an end point was written, and which.
type Written = (Option<SocketAddr>, SystemTime);

/// Returns what the kernel holds in the terms of what was asked for. An end point that the kernel learnt from the
/// peer's packets since it was written is no difference to that; nor, while the session lasts, one that it learnt
/// before this process began.
fn as_observed(found: Found, written: Option<Written>, now: SystemTime) -> WgPeer {
    let mut peer = found.peer;
    peer.allowed.sort_unstable();
    match written {
        Some((endpoint, at)) if found.handshake > at => peer.endpoint = endpoint,
        Some(_) => {}
        None => {
            let age = now.duration_since(found.handshake).unwrap_or_default();
            if age < SESSION {
                peer.endpoint = None;
            }
        }
    }
    peer
}

fn change<'a>(op: &'a Op, left: &HashSet<IpNet>) -> Option<Change<'a>> {
    match op {
        Op::Put(Object::WgPeer(key, peer)) => Some(Change {
            key: key.key,
            peer: Some(peer),
            // It has another key than before: nothing from it is understood until both sides have begun anew.
            greet: peer.allowed.iter().any(|net| left.contains(net)),
        }),
        Op::Del(Object::WgPeer(key, _)) => Some(Change {
            key: key.key,
            peer: None,
            greet: false,
        }),
        Op::Put(_) | Op::Del(_) => None,
    }
}

/// Reports the differences between two looks at a device.
fn report(name: &IfName, before: &Known, now: &Known, events: &mut VecDeque<KernelEvent>) {
    match (before.device, now.device) {
        (before, Some(device)) if before != Some(device) => {
            events.push_back(KernelEvent::Saw(Object::WgDevice(*name, device)));
        }
        (Some(device), None) => {
            events.push_back(KernelEvent::Gone(Object::WgDevice(*name, device)));
        }
        (None | Some(_), _) => {}
    }
    for (key, known) in &now.peers {
        let same = before.peers.get(key).is_some_and(|b| b.peer == known.peer);
        if !same {
            events.push_back(KernelEvent::Saw(Object::WgPeer(*key, known.peer.clone())));
        }
    }
    for (key, known) in &before.peers {
        if !now.peers.contains_key(key) {
            events.push_back(KernelEvent::Gone(Object::WgPeer(*key, known.peer.clone())));
        }
    }
}

impl Door for KernelWireguard {
    fn set_scope(&mut self, scope: &Scope) {
        self.devices.clone_from(&scope.devices);
        self.known.retain(|name, _| scope.devices.contains(name));
    }

    async fn observe(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
        for name in self.devices.clone() {
            // The kernel's WireGuard is not asked of other devices: it may be a module that is loaded for that.
            let standing = host::standing(&name)?;
            if !standing.is_some_and(|found| matches!(found.kind, LinkKind::Wireguard(_))) {
                self.known.remove(&name);
                continue;
            }
            let before = self.known.remove(&name).unwrap_or_default();
            let known = match self.read(&name, &before) {
                Ok(Some(known)) => known,
                Ok(None) => continue,
                Err(failure) => {
                    self.known.insert(name, before);
                    return Err(refused(format!("wg show {name}"), failure));
                }
            };
            if let Some(device) = known.device {
                each(Object::WgDevice(name, device));
            }
            for (key, peer) in &known.peers {
                each(Object::WgPeer(*key, peer.peer.clone()));
            }
            self.known.insert(name, known);
        }
        self.due = Some(Instant::now() + POLL);
        Ok(())
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        let device_of = |op: &Op| match op.object() {
            Object::WgPeer(key, _) => Some(key.dev),
            _ => None,
        };
        for run in ops.chunk_by(|a, b| device_of(a) == device_of(b) && device_of(a).is_some()) {
            let done = match run {
                [Op::Put(Object::WgDevice(name, device))] => {
                    vec![self.apply_device(name, Some(device))]
                }
                [Op::Del(Object::WgDevice(name, _))] => vec![self.apply_device(name, None)],
                run => match run.first().and_then(device_of) {
                    Some(name) => self.apply_peers(&name, &run.iter().collect::<Vec<_>>()),
                    None => vec![Err(Failure::errno(libc::EINVAL)); run.len()],
                },
            };
            let done = run.iter().zip(done);
            outcomes.extend(done.map(|(op, done)| match done {
                Ok(()) => Outcome::Done,
                Err(failure) => Outcome::Refused(failure.of(op)),
            }));
            tokio::task::yield_now().await;
        }
        self.due.get_or_insert_with(|| Instant::now() + POLL);
        outcomes
    }

    async fn event(&mut self) -> KernelEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if self.known.is_empty() {
                return std::future::pending().await;
            }
            let due = *self.due.get_or_insert_with(|| Instant::now() + POLL);
            tokio::time::sleep_until(due).await;
            self.due = Some(Instant::now() + POLL);
            self.poll();
        }
    }
}

#[cfg(test)]
mod tests;
