//! The door to the packet loops of this process: tunnels in user space.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use model::object::{PacketLoop, TunnelRouteKey, WgPeer, WgPeerKey};
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

/// The packet loops that run. They end with this value.
#[derive(Default)]
pub(crate) struct PacketLoops {
    running: BTreeMap<IfName, Running>,
}

struct Running {
    proxy: Proxy,
    value: PacketLoop,
    state: State,
    routes: BTreeMap<IpNet, SocketAddr>,
    peers: BTreeMap<WgKey, WgPeer>,
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
                self.running.remove(name);
                Outcome::Done
            }
            Op::Put(Object::TunnelRoute(key, peer)) => {
                let Some(running) = self.running.get_mut(&key.dev) else {
                    let text = format!("no packet loop of {} runs", key.dev);
                    return Outcome::Refused(Failure::because(libc::ENODEV, text).of(op));
                };
                running.changed |= running.routes.insert(key.dst, *peer) != Some(*peer);
                Outcome::Done
            }
            Op::Del(Object::TunnelRoute(key, _)) => {
                if let Some(running) = self.running.get_mut(&key.dev) {
                    running.changed |= running.routes.remove(&key.dst).is_some();
                }
                Outcome::Done
            }
            Op::Put(Object::WgPeer(key, peer)) => {
                let Some(running) = self.running.get_mut(&key.dev) else {
                    let text = format!("no packet loop of {} runs", key.dev);
                    return Outcome::Refused(Failure::because(libc::ENODEV, text).of(op));
                };
                let before = running.peers.insert(key.key, peer.clone());
                running.changed |= before.as_ref() != Some(peer);
                Outcome::Done
            }
            Op::Del(Object::WgPeer(key, _)) => {
                if let Some(running) = self.running.get_mut(&key.dev) {
                    running.changed |= running.peers.remove(&key.key).is_some();
                }
                Outcome::Done
            }
            Op::Put(_) | Op::Del(_) => Outcome::Refused(Failure::errno(libc::EINVAL).of(op)),
        }
    }

    /// Starts a loop, unless it runs. One with other settings is replaced, and its routes and peers
    /// are kept.
    fn start(&mut self, name: &IfName, value: &PacketLoop) -> Result<State, Failure> {
        let other = self
            .running
            .get(name)
            .is_some_and(|running| running.value != *value);
        // Its port must be free before the next one's is opened: it may be the same.
        let former = if other {
            self.running.remove(name)
        } else {
            None
        };
        let (routes, peers) = former
            .map(|running| (running.routes, running.peers))
            .unwrap_or_default();
        if !self.running.contains_key(name) {
            let queues = std::thread::available_parallelism().map_or(1, usize::from);
            let config = Config {
                device: name.to_string(),
                listen: value.listen,
                mtu: value.mtu as usize,
                wireguard: value.keys.map(|keys| Wireguard {
                    private_key: Secret(keys.private.0),
                    preshared_key: keys.preshared.map(|key| Secret(key.0)),
                    keepalive: (keys.keepalive > 0).then_some(keys.keepalive),
                }),
                queues: queues.min(MOST_QUEUES),
            };
            let proxy = Proxy::start(config).map_err(|error| {
                let text = format!("no thread for a packet loop: {error}");
                Failure::because(error.raw_os_error().unwrap_or(libc::EAGAIN), text)
            })?;
            let running = Running {
                proxy,
                value: *value,
                state: State::Down,
                changed: !routes.is_empty() || !peers.is_empty(),
                routes,
                peers,
            };
            self.running.insert(*name, running);
        }
        let Some(running) = self.running.get_mut(name) else {
            return Ok(State::Down);
        };
        running.state = match (running.proxy.problem(), running.state) {
            (None, _) => State::Up,
            (Some(_), State::Attaching(since)) => State::Attaching(since),
            (Some(_), State::Up | State::Down) => State::Attaching(Instant::now()),
        };
        Ok(running.state)
    }

    /// Returns what has changed by itself since it was asked last.
    fn news(&mut self) -> Option<KernelEvent> {
        self.running
            .iter_mut()
            .find_map(|(name, running)| running.news(name))
    }
}

impl Running {
    fn publish(&self) {
        if self.value.keys.is_none() {
            let routes = self.routes.iter();
            let routes = routes.map(|(dst, peer)| (*dst, *peer));
            return self.proxy.set_table(Table::new(routes));
        }
        let peers = self.peers.iter().map(|(key, peer)| Peer {
            public_key: key.0,
            endpoint: Some(peer.endpoint),
            allowed: peer.allowed.clone(),
        });
        self.proxy.set_peers(&peers.collect::<Vec<_>>());
    }

    fn news(&mut self, name: &IfName) -> Option<KernelEvent> {
        let object = Object::PacketLoop(*name, self.value);
        match (self.state, self.proxy.problem()) {
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
        for (name, running) in &mut self.running {
            if running.proxy.problem().is_none() {
                running.state = State::Up;
                each(Object::PacketLoop(*name, running.value));
            }
            for (dst, peer) in &running.routes {
                let key = TunnelRouteKey {
                    dev: *name,
                    dst: *dst,
                };
                each(Object::TunnelRoute(key, *peer));
            }
            for (key, peer) in &running.peers {
                let key = WgPeerKey {
                    dev: *name,
                    key: *key,
                };
                each(Object::WgPeer(key, peer.clone()));
            }
        }
        Ok(())
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let outcomes = ops.iter().map(|op| self.change(op)).collect();
        // One table for all changes of a batch.
        for running in self.running.values_mut().filter(|running| running.changed) {
            running.changed = false;
            running.publish();
        }
        outcomes
    }

    async fn event(&mut self) -> KernelEvent {
        if self.running.is_empty() {
            return std::future::pending().await;
        }
        loop {
            if let Some(event) = self.news() {
                return event;
            }
            let attaching = |running: &Running| matches!(running.state, State::Attaching(_));
            let soon = self.running.values().any(attaching);
            tokio::time::sleep(if soon { LOOK_SOON } else { LOOK }).await;
        }
    }
}
