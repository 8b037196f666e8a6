//! WireGuard in user space: the peers, and packets sealed for them and opened from them.
//!
//! The protocol is boringtun's. Here is what lies around it: which peer a packet goes to and may come
//! from, where that peer is at present, and when its timers run.

mod sources;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;

use crate::socket::{Patience, Socket};
use crate::statistics::{Counters, count};
use crate::table::Table;
use sources::Sources;

/// What a sealed packet is longer than its content, in bytes.
pub(crate) const OVERHEAD: usize = 32;
/// The longest message that is no data.
pub(crate) const LONGEST_MESSAGE: usize = 148;
/// The first byte of a message that holds a packet.
const DATA: u8 = 4;
/// How often the timers of all peers are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// How many handshakes a second are answered before their senders must prove their address.
const HANDSHAKES: u64 = 200;
/// How many packets for one peer wait for its handshake at most, and for all peers together. Beyond that, one.
const WAITING: usize = 64;
const WAITING_OF_ALL: usize = 4096;

/// A secret key. Never shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Returns the public key that belongs to a private one.
    pub fn public_key(&self) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(self.0)).to_bytes()
    }
}

/// With what the packets of a tunnel are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wireguard {
    /// This node's private key.
    pub private_key: Secret,
    /// A key that all peers share, if any.
    pub preshared_key: Option<Secret>,
    /// How often a packet is sent to each peer at least, in seconds.
    pub keepalive: Option<u16>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its public key.
    pub public_key: [u8; 32],
    /// Where it is, until its packets come from elsewhere. Unknown of one that begins by itself.
    pub endpoint: Option<SocketAddr>,
    /// The addresses behind it.
    pub allowed: Vec<IpNet>,
}

/// A peer and the state of its tunnel, which outlives changes of the other peers.
pub(crate) struct Tunnel {
    index: u32,
    identity: Arc<Identity>,
    state: Mutex<State>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.state().set_waiting(0, &self.identity);
    }
}

struct State {
    noise: Tunn,
    /// Where it is, as the daemon says.
    configured: Option<SocketAddr>,
    /// Where its packets came from last, else as configured.
    endpoint: Option<SocketAddr>,
    /// How many packets wait for a handshake.
    waiting: usize,
    /// Begin a handshake with the next look at the timers.
    greet: bool,
}

impl State {
    /// Sets how many packets wait, here and in the sum of all peers.
    fn set_waiting(&mut self, waiting: usize, identity: &Identity) {
        let before = std::mem::replace(&mut self.waiting, waiting);
        if waiting > before {
            identity
                .waiting
                .fetch_add(waiting - before, Ordering::Relaxed);
        } else {
            identity
                .waiting
                .fetch_sub(before - waiting, Ordering::Relaxed);
        }
    }

    /// Returns whether packets can be sealed now.
    fn has_session(&self) -> bool {
        self.noise.time_since_last_handshake().is_some()
    }

    /// Begins a handshake, unless one is under way or not needed.
    fn greet(&mut self, socket: &Socket, patience: &mut Patience) {
        let mut buffer = [0; LONGEST_MESSAGE];
        if let Some(to) = self.endpoint
            && !self.has_session()
            && let TunnResult::WriteToNetwork(message) =
                self.noise.format_handshake_initiation(&mut buffer, false)
        {
            // Lost like any other datagram; the next one is sent in time.
            let _ = socket.send_one(message, to, patience);
        }
    }
}

impl Tunnel {
    /// Returns where the peer is.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.state().endpoint
    }

    /// Takes in where the peer is, if the daemon says something else than before: what was learnt from its
    /// packets is kept otherwise. Its sessions go on.
    fn move_to(&self, endpoint: Option<SocketAddr>) {
        let mut state = self.state();
        if state.configured != endpoint {
            state.configured = endpoint;
            state.endpoint = endpoint;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock only means that another worker panicked while it held it.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The node's own keys.
pub(crate) struct Identity {
    keys: Wireguard,
    secret: StaticSecret,
    public: PublicKey,
    limiter: RateLimiter,
    /// Handshakes have passed `limiter` before a tunnel sees them.
    unlimited: Arc<RateLimiter>,
    /// Who began handshakes lately.
    sources: Sources,
    /// How many packets wait for handshakes.
    waiting: AtomicUsize,
    next_index: AtomicU32,
}

impl Identity {
    pub(crate) fn new(keys: Wireguard) -> Identity {
        let secret = StaticSecret::from(keys.private_key.0);
        let public = PublicKey::from(&secret);
        Identity {
            keys,
            limiter: RateLimiter::new(&public, HANDSHAKES),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            secret,
            public,
            sources: Sources::default(),
            waiting: AtomicUsize::new(0),
            next_index: AtomicU32::new(1),
        }
    }

    fn tunnel(self: &Arc<Identity>, peer: &Peer, greet: bool) -> Arc<Tunnel> {
        // 24 bits: the protocol's implementation keeps eight for the sessions of one peer.
        let index = self.next_index.fetch_add(1, Ordering::Relaxed) & 0x00ff_ffff;
        let noise = Tunn::new(
            self.secret.clone(),
            PublicKey::from(peer.public_key),
            self.keys.preshared_key.map(|key| key.0),
            self.keys.keepalive,
            index,
            Some(self.unlimited.clone()),
        );
        let state = State {
            noise,
            configured: peer.endpoint,
            endpoint: peer.endpoint,
            waiting: 0,
            greet,
        };
        Arc::new(Tunnel {
            index,
            identity: self.clone(),
            state: Mutex::new(state),
        })
    }
}

/// All peers, as the workers read them.
pub(crate) struct Peers {
    identity: Arc<Identity>,
    by_key: HashMap<[u8; 32], Arc<Tunnel>>,
    by_index: HashMap<u32, Arc<Tunnel>>,
    /// Where peers are as the daemon says.
    by_endpoint: HashMap<SocketAddr, Arc<Tunnel>>,
    /// Which tunnel an address is behind, by its index.
    allowed: Table<u32>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} peers", self.by_key.len())
    }
}

impl Peers {
    pub(crate) fn none(identity: Arc<Identity>) -> Peers {
        Peers {
            identity,
            by_key: HashMap::new(),
            by_index: HashMap::new(),
            by_endpoint: HashMap::new(),
            allowed: Table::default(),
        }
    }

    /// Returns the same node with other peers. Those that stay keep their sessions, and, unless their
    /// configured end point changes, where they were heard last.
    pub(crate) fn with(&self, peers: &[Peer]) -> Peers {
        let mut next = Peers::none(self.identity.clone());
        let mut allowed = Vec::new();
        for peer in peers {
            let kept = self.by_key.get(&peer.public_key);
            let tunnel = match kept {
                Some(kept) => {
                    kept.move_to(peer.endpoint);
                    kept.clone()
                }
                // It has another key than before: nothing from it is understood until both sides have begun anew.
                None => self.identity.tunnel(peer, self.is_left(peer, peers)),
            };
            if let Some(endpoint) = peer.endpoint {
                next.by_endpoint.insert(endpoint, tunnel.clone());
            }
            allowed.extend(peer.allowed.iter().map(|net| (*net, tunnel.index)));
            next.by_index.insert(tunnel.index, tunnel.clone());
            next.by_key.insert(peer.public_key, tunnel);
        }
        next.allowed = Table::new(allowed);
        next
    }

    /// Returns whether a subnet of `peer` was behind another peer until now, which is not among `peers`.
    fn is_left(&self, peer: &Peer, peers: &[Peer]) -> bool {
        let before = peer
            .allowed
            .iter()
            .find_map(|net| self.to(net.addr()).map(|tunnel| tunnel.index));
        let Some(before) = before else { return false };
        let mut kept = peers
            .iter()
            .filter_map(|peer| self.by_key.get(&peer.public_key));
        !kept.any(|tunnel| tunnel.index == before)
    }

    /// Returns the tunnel to `destination`.
    pub(crate) fn to(&self, destination: IpAddr) -> Option<&Arc<Tunnel>> {
        self.by_index.get(&self.allowed.next_hop(destination)?)
    }

    /// Runs the timers of all peers: repeated and renewed handshakes, keepalives.
    pub(crate) fn tick(&self, socket: &Socket) {
        self.identity.limiter.reset_count();
        let mut buffer = [0; LONGEST_MESSAGE + OVERHEAD];
        let patience = &mut Patience::new();
        for tunnel in self.by_key.values() {
            let mut state = tunnel.state();
            let endpoint = state.endpoint;
            if std::mem::take(&mut state.greet) {
                state.greet(socket, patience);
            }
            match (state.noise.update_timers(&mut buffer), endpoint) {
                (TunnResult::WriteToNetwork(message), Some(to)) => {
                    // Lost like any other datagram; the next one is sent in time.
                    let _ = socket.send_one(message, to, patience);
                }
                // No handshake came about for 90 s, or no packet for nine minutes: what waited was dropped.
                (TunnResult::Err(_), _) => {
                    state.set_waiting(0, &self.identity);
                    if self.identity.keys.keepalive.is_some() {
                        state.greet(socket, patience);
                    }
                }
                _ => {}
            }
        }
    }

    /// Opens one received datagram. What it holds, if anything, is written to `into`; returns its length.
    /// Answers are sent at once.
    pub(crate) fn open(
        &self,
        socket: &Socket,
        from: SocketAddr,
        datagram: &[u8],
        into: &mut [u8],
        counters: &Counters,
        patience: &mut Patience,
    ) -> Option<usize> {
        let mut cookie = [0; 64];
        let limiter = &self.identity.limiter;
        let packet = match limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                let _ = socket.send_one(cookie, from, patience);
                return None;
            }
            Err(_) => {
                count(&counters.malformed, 1);
                return None;
            }
        };
        let (is_data, is_cookie) = (
            matches!(packet, Packet::PacketData(_)),
            matches!(packet, Packet::PacketCookieReply(_)),
        );
        let tunnel = match packet {
            Packet::HandshakeInit(init) => {
                // Each costs as much as hundreds of packets.
                if !self.identity.sources.may_begin(from.ip()) {
                    count(&counters.unknown_peer, 1);
                    return None;
                }
                let (secret, public) = (&self.identity.secret, &self.identity.public);
                let half = parse_handshake_anon(secret, public, &init).ok();
                half.and_then(|half| self.by_key.get(&half.peer_static_public))
            }
            Packet::HandshakeResponse(response) => self.by_index.get(&(response.receiver_idx >> 8)),
            Packet::PacketCookieReply(reply) => self.by_index.get(&(reply.receiver_idx >> 8)),
            Packet::PacketData(data) => self.by_index.get(&(data.receiver_idx >> 8)),
        };
        let Some(tunnel) = tunnel else {
            count(&counters.unknown_peer, 1);
            if is_data {
                self.greet_at(from, socket, patience);
            }
            return None;
        };
        let mut state = tunnel.state();
        let (len, source) = match state.noise.decapsulate(Some(from.ip()), datagram, into) {
            TunnResult::Err(_) => {
                count(&counters.unknown_peer, 1);
                drop(state);
                if is_data {
                    self.greet_at(from, socket, patience);
                }
                return None;
            }
            // Whoever has seen a handshake can make one of these.
            TunnResult::Done if is_cookie => return None,
            TunnResult::Done => (0, None),
            TunnResult::WriteToTunnelV4(packet, source) => (packet.len(), Some(IpAddr::V4(source))),
            TunnResult::WriteToTunnelV6(packet, source) => (packet.len(), Some(IpAddr::V6(source))),
            TunnResult::WriteToNetwork(answer) => {
                let _ = socket.send_one(answer, from, patience);
                state.endpoint = Some(from);
                // A session may have begun, for which packets waited.
                while let TunnResult::WriteToNetwork(waiting) =
                    state.noise.decapsulate(None, &[], into)
                {
                    let _ = socket.send_one(waiting, from, patience);
                }
                return None;
            }
        };
        // The packet is the peer's own, so this is where it is now.
        state.endpoint = Some(from);
        let source = source?;
        if self.allowed.next_hop(source) != Some(tunnel.index) {
            count(&counters.malformed, 1);
            return None;
        }
        Some(len)
    }

    /// Begins a handshake with the peer that is at `from`, if there is no session with it: it uses one of an
    /// earlier run of this process, and would notice only after a while.
    fn greet_at(&self, from: SocketAddr, socket: &Socket, patience: &mut Patience) {
        if let Some(tunnel) = self.by_endpoint.get(&from) {
            tunnel.state().greet(socket, patience);
        }
    }
}

/// Sealed packets that wait to be sent.
pub(crate) struct Sealed {
    pub(crate) data: Vec<u8>,
    used: usize,
}

/// What became of a packet that was to be sealed.
pub(crate) enum Seal {
    /// It, or a handshake that must come first, is here, to be sent there.
    Send(Range<usize>, SocketAddr),
    /// It waits for a handshake.
    Waits,
    /// Nobody knows where the peer is.
    NoEndpoint,
}

impl Sealed {
    pub(crate) fn new(size: usize) -> Sealed {
        Sealed {
            data: vec![0; size],
            used: 0,
        }
    }

    /// Returns whether a packet of this length fits.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.data.len() - self.used >= (len + OVERHEAD).max(LONGEST_MESSAGE)
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }

    /// Seals a packet for the peer behind `tunnel`. There must be room for it.
    pub(crate) fn seal(&mut self, tunnel: &Tunnel, packet: &[u8]) -> Seal {
        let mut state = tunnel.state();
        let Some(to) = state.endpoint else {
            return Seal::NoEndpoint;
        };
        let identity = &tunnel.identity;
        let most = if identity.waiting.load(Ordering::Relaxed) < WAITING_OF_ALL {
            WAITING
        } else {
            1
        };
        if state.waiting >= most && !state.has_session() {
            return Seal::Waits;
        }
        match state.noise.encapsulate(packet, &mut self.data[self.used..]) {
            TunnResult::WriteToNetwork(sealed) => {
                let range = self.used..self.used + sealed.len();
                self.used = range.end;
                let waiting = if sealed.first() == Some(&DATA) {
                    0
                } else {
                    state.waiting + 1
                };
                if waiting != state.waiting {
                    state.set_waiting(waiting, identity);
                }
                Seal::Send(range, to)
            }
            _ => {
                let waiting = state.waiting + 1;
                state.set_waiting(waiting, identity);
                Seal::Waits
            }
        }
    }
}
