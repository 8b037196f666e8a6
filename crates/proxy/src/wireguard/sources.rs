//! How often each address begins a handshake.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How many handshakes an address may begin in a second.
const PER_SECOND: u64 = 20;

/// Addresses share places when there are many of them.
const PLACES: usize = 1024;

/// Handshakes of the current second, by address. Takes the same memory whoever sends what.
pub(super) struct Sources {
    hasher: RandomState,
    start: Instant,
    /// The second since `start`, and the handshakes in it.
    places: Box<[AtomicU64]>,
}

impl Default for Sources {
    fn default() -> Sources {
        Sources {
            hasher: RandomState::new(),
            start: Instant::now(),
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Sources {
    /// Returns whether a handshake that comes from this address is to be answered.
    pub(super) fn may_begin(&self, from: IpAddr) -> bool {
        self.may_begin_in(from, self.start.elapsed().as_secs())
    }

    fn may_begin_in(&self, from: IpAddr, second: u64) -> bool {
        // Of IPv6 the network: a host has all addresses of it.
        let from = match from {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
        };
        let place = self.hasher.hash_one(from) as usize % PLACES;
        let Some(place) = self.places.get(place) else {
            return true;
        };
        let now = second << 16;
        let before = place.load(Ordering::Relaxed);
        let so_far = if before & !0xffff == now {
            before & 0xffff
        } else {
            0
        };
        if so_far >= PER_SECOND {
            return false;
        }
        // Of two threads that do this at once, one is not counted.
        place.store(now | (so_far + 1), Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_begins_too_often_is_not_answered_for_a_second() {
        let sources = Sources::default();
        let bad: IpAddr = "192.0.2.1".parse().unwrap();
        let begun = (0..1000).filter(|_| sources.may_begin_in(bad, 7)).count();
        assert_eq!(begun, PER_SECOND as usize);
        assert!(sources.may_begin_in(bad, 8));
        // Others have other places, nearly always.
        let others = (2..102u8).filter(|n| sources.may_begin_in([192, 0, 2, *n].into(), 8));
        assert!(others.count() > 90);
        let same_network = |n: u128| IpAddr::from(((0xfd00 << 112) | n).to_be_bytes());
        let begun = (0..100).filter(|n| sources.may_begin_in(same_network(*n), 9));
        assert!(begun.count() <= PER_SECOND as usize);
    }
}
