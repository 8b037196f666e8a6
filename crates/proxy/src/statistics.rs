//! What the workers count, and what they say in the log.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How often one kind of fault is logged.
const LINE_EVERY: Duration = Duration::from_secs(600);

/// What a proxy has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Datagrams handed to the kernel for the peers.
    pub sent: u64,
    /// Packets that came from the peers.
    pub received: u64,
    /// Packets for a destination that no peer has.
    pub no_route: u64,
    /// Packets larger than the tunnel or the path takes; their senders were told.
    pub too_big: u64,
    /// Datagrams and packets that are no IP packets.
    pub malformed: u64,
    /// Encrypted datagrams of nobody known, or that cannot be decrypted.
    pub unknown_peer: u64,
    /// Datagrams that the kernel refused to send.
    pub not_sent: u64,
    /// Packets from peers that the kernel refused to take.
    pub not_taken: u64,
}

/// The counters of all workers.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) no_route: AtomicU64,
    pub(crate) too_big: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) unknown_peer: AtomicU64,
    pub(crate) not_sent: AtomicU64,
    pub(crate) not_taken: AtomicU64,
    /// When each kind of fault (errno) was logged last.
    logged: Mutex<BTreeMap<i32, Instant>>,
}

impl Counters {
    pub(crate) fn read(&self) -> Statistics {
        Statistics {
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            no_route: self.no_route.load(Relaxed),
            too_big: self.too_big.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            unknown_peer: self.unknown_peer.load(Relaxed),
            not_sent: self.not_sent.load(Relaxed),
            not_taken: self.not_taken.load(Relaxed),
        }
    }

    /// Counts a datagram that was not sent, and logs the first of its kind.
    pub(crate) fn not_sent(&self, to: SocketAddr, error: &io::Error) {
        self.not_sent.fetch_add(1, Relaxed);
        if self.is_due(error) {
            tracing::warn!("cannot send to {to}: {error}; the packets are dropped, and counted");
        }
    }

    /// Counts a packet that the kernel did not take, and logs the first of its kind.
    pub(crate) fn not_taken(&self, device: &str, error: &io::Error) {
        self.not_taken.fetch_add(1, Relaxed);
        if self.is_due(error) {
            tracing::warn!(
                "{device}: the kernel does not take a packet: {error}; the packets are dropped, and counted"
            );
        }
    }

    fn is_due(&self, error: &io::Error) -> bool {
        let kind = error.raw_os_error().unwrap_or(0);
        let now = Instant::now();
        // A poisoned lock only means that another worker panicked while it held it.
        let mut logged = self
            .logged
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let due = logged
            .get(&kind)
            .is_none_or(|last| now.duration_since(*last) >= LINE_EVERY);
        if due {
            logged.insert(kind, now);
        }
        due
    }
}

/// Counts `by` more.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Relaxed);
}
