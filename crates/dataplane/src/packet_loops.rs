//! The door to the packet loops of this process: tunnels in user space.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use model::object::{PacketLoop, TunnelPeer, TunnelRouteKey, WgPeerKey};
use model::{IfName, Object, Op, WgKey};
use proxy::{Config, Peer, Proxy, Secret, Table, Wireguard};
use tokio::time::Instant;

use crate::door::Door;
use crate::failure::Failure;
use crate::{KernelError, KernelEvent, Outcome, Scope};

/// More queues than this help no one peer, and cost memory.
const MOST_QUEUES: usize = 4;

/// How long a loop is given to attach to its device and port before that counts as a failure. It goes on
/// trying.
const ATTACH: Duration = Duration::from_millis(500);

/// How often a loop that is attaching is looked at, and one that runs.
const LOOK_SOON: Duration = Duration::from_millis(2);
const LOOK: Duration = Duration::from_millis(500);

/// The packet loops of this process. They end with this value.
pub(crate) struct PacketLoops {
    loops: BTreeMap<IfName, Loop>,
    start: fn(Config) -> io::Result<Proxy>,
}

impl Default for PacketLoops {
    fn default() -> Self {
        PacketLoops {
            loops: BTreeMap::new(),
            start: Proxy::start,
        }
    }
}

/// A loop that was asked for. Its routes and peers were acknowledged, so they are kept whether it runs or not.
struct Loop {
    /// What runs; `None` while its threads cannot be started.
    proxy: Option<Proxy>,
    value: PacketLoop,
    state: State,
    routes: BTreeMap<IpNet, SocketAddr>,
    peers: BTreeMap<WgKey, TunnelPeer>,
    /// The proxy does not have the routes and peers yet.
    changed: bool,
}

/// What the reconciler believes of a loop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It was asked for at this time.
    Attaching(Instant),
    /// It carries packets.
    Up,
    /// It does not.
    Down,
}

impl PacketLoops {
    fn change(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Put(Object::PacketLoop(name, value)) => match self.start(name, value) {
                Ok(State::Up) => Outcome::Done,
                Ok(State::Attaching(_) | State::Down) => Outcome::UnderWay,
                Err(failure) => Outcome::Refused(failure.of(op)),
            },
            Op::Del(Object::PacketLoop(name, _)) => {
                self.loops.remove(name);
                Outcome::Done
            }
            Op::Put(Object::TunnelRoute(key, peer)) => {
                let Some(the_loop) = self.loops.get_mut(&key.dev) else {
                    return no_loop(op, &key.dev);
                };
                the_loop.changed |= the_loop.routes.insert(key.dst, *peer) != Some(*peer);
                Outcome::Done
            }
            Op::Del(Object::TunnelRoute(key, _)) => {
                if let Some(the_loop) = self.loops.get_mut(&key.dev) {
                    the_loop.changed |= the_loop.routes.remove(&key.dst).is_some();
                }
                Outcome::Done
            }
            Op::Put(Object::TunnelPeer(key, peer)) => {
                let Some(the_loop) = self.loops.get_mut(&key.dev) else {
                    return no_loop(op, &key.dev);
                };
                let before = the_loop.peers.insert(key.key, peer.clone());
                the_loop.changed |= before.as_ref() != Some(peer);
                Outcome::Done
            }
            Op::Del(Object::TunnelPeer(key, _)) => {
                if let Some(the_loop) = self.loops.get_mut(&key.dev) {
                    the_loop.changed |= the_loop.peers.remove(&key.key).is_some();
                }
                Outcome::Done
            }
            Op::Put(_) | Op::Del(_) => Outcome::Refused(Failure::errno(libc::EINVAL).of(op)),
        }
    }

    /// Starts a loop, unless it runs. One with other settings is replaced. Routes and peers are kept, also
    /// where the threads cannot be started: the next attempt passes them on.
    fn start(&mut self, name: &IfName, value: &PacketLoop) -> Result<State, Failure> {
        let the_loop = self.loops.entry(*name).or_insert_with(|| Loop {
            proxy: None,
            value: *value,
            state: State::Down,
            routes: BTreeMap::new(),
            peers: BTreeMap::new(),
            changed: false,
        });
        if the_loop.value != *value {
            // Its port must be free before the next one's is opened: it may be the same.
            the_loop.proxy = None;
            the_loop.state = State::Down;
            the_loop.value = *value;
        }
        let proxy = match the_loop.proxy.take() {
            Some(proxy) => proxy,
            None => {
                let proxy = (self.start)(config(name, value)).map_err(|error| {
                    let text = format!("no thread for a packet loop: {error}");
                    Failure::because(error.raw_os_error().unwrap_or(libc::EAGAIN), text)
                })?;
                the_loop.changed = true;
                proxy
            }
        };
        the_loop.state = match (proxy.problem(), the_loop.state) {
            (None, _) => State::Up,
            (Some(_), State::Attaching(since)) => State::Attaching(since),
            (Some(_), State::Up | State::Down) => State::Attaching(Instant::now()),
        };
        the_loop.proxy = Some(proxy);
        Ok(the_loop.state)
    }

    /// Returns what has changed by itself since it was asked last.
    fn news(&mut self) -> Option<KernelEvent> {
        self.loops
            .iter_mut()
            .find_map(|(name, the_loop)| the_loop.news(name))
    }
}

fn no_loop(op: &Op, dev: &IfName) -> Outcome {
    let text = format!("no packet loop of {dev} was asked for");
    Outcome::Refused(Failure::because(libc::ENODEV, text).of(op))
}

fn config(name: &IfName, value: &PacketLoop) -> Config {
    let queues = std::thread::available_parallelism().map_or(1, usize::from);
    Config {
        device: name.to_string(),
        listen: value.listen,
        mtu: value.mtu as usize,
        wireguard: value.keys.map(|keys| Wireguard {
            private_key: Secret(keys.private.0),
            preshared_key: keys.preshared.map(|key| Secret(key.0)),
            keepalive: (keys.keepalive > 0).then_some(keys.keepalive),
        }),
        queues: queues.min(MOST_QUEUES),
    }
}

impl Loop {
    /// Passes routes and peers on, if they changed since.
    fn publish(&mut self) {
        let Some(proxy) = self.proxy.as_ref().filter(|_| self.changed) else {
            return;
        };
        self.changed = false;
        if self.value.keys.is_none() {
            let routes = self.routes.iter();
            let routes = routes.map(|(dst, peer)| (*dst, *peer));
            return proxy.set_table(Table::new(routes));
        }
        let peers = self.peers.iter().map(|(key, peer)| Peer {
            public_key: key.0,
            endpoint: Some(peer.endpoint),
            allowed: peer.allowed.clone(),
        });
        proxy.set_peers(&peers.collect::<Vec<_>>());
    }

    fn news(&mut self, name: &IfName) -> Option<KernelEvent> {
        let object = Object::PacketLoop(*name, self.value);
        // One without threads was refused, and is asked for again.
        match (self.state, self.proxy.as_ref()?.problem()) {
            (State::Attaching(_) | State::Down, None) => {
                self.state = State::Up;
                Some(KernelEvent::Saw(object))
            }
            (State::Attaching(since), Some(problem)) if since.elapsed() >= ATTACH => {
                self.state = State::Down;
                let op = Op::Put(object);
                let error = Failure::because(libc::ENETDOWN, problem).of(&op);
                Some(KernelEvent::Refused(op, error))
            }
            (State::Up, Some(_)) => {
                self.state = State::Down;
                Some(KernelEvent::Gone(object))
            }
            (State::Up, None) | (State::Attaching(_) | State::Down, Some(_)) => None,
        }
    }
}

impl Door for PacketLoops {
    /// What runs in this process is ours.
    fn set_scope(&mut self, _: &Scope) {}

    async fn observe(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
        for (name, the_loop) in &mut self.loops {
            let proxy = the_loop.proxy.as_ref();
            if proxy.is_some_and(|proxy| proxy.problem().is_none()) {
                the_loop.state = State::Up;
                each(Object::PacketLoop(*name, the_loop.value));
            }
            for (dst, peer) in &the_loop.routes {
                let key = TunnelRouteKey {
                    dev: *name,
                    dst: *dst,
                };
                each(Object::TunnelRoute(key, *peer));
            }
            for (key, peer) in &the_loop.peers {
                let key = WgPeerKey {
                    dev: *name,
                    key: *key,
                };
                each(Object::TunnelPeer(key, peer.clone()));
            }
        }
        Ok(())
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let outcomes = ops.iter().map(|op| self.change(op)).collect();
        // One table for all changes of a batch.
        self.loops.values_mut().for_each(Loop::publish);
        outcomes
    }

    async fn event(&mut self) -> KernelEvent {
        if self.loops.is_empty() {
            return std::future::pending().await;
        }
        loop {
            if let Some(event) = self.news() {
                return event;
            }
            let attaching = |the_loop: &Loop| matches!(the_loop.state, State::Attaching(_));
            let soon = self.loops.values().any(attaching);
            tokio::time::sleep(if soon { LOOK_SOON } else { LOOK }).await;
        }
    }
}

#[cfg(test)]
mod tests;
