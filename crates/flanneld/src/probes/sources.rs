//! Which node sends from an address.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;

use super::peer::Peer;

/// Positions of nodes by the addresses that they send from: 8 bytes an address, where a map of addresses takes 50.
#[derive(Default)]
pub(super) struct Sources {
    /// An address in 4 bytes, and a position. Sorted.
    places: Vec<(u32, u32)>,
    /// With a secret key: nobody can choose IPv6 addresses that are equal in 4 bytes.
    hasher: RandomState,
}

impl Sources {
    /// Replaces all by the addresses of `peers`.
    pub(super) fn set(&mut self, peers: &[Peer]) {
        let hasher = &self.hasher;
        let count = peers.iter().map(|peer| peer.target.sources().count()).sum();
        self.places = Vec::with_capacity(count);
        for (peer, at) in peers.iter().zip(0..) {
            let short = peer.target.sources().map(|ip| (short(hasher, &ip), at));
            self.places.extend(short);
        }
        self.places.sort_unstable();
    }

    /// Returns the position of the node that sends from `ip`; the last one, if several do.
    pub(super) fn find(&self, ip: &IpAddr, peers: &[Peer]) -> Option<usize> {
        let short = short(&self.hasher, ip);
        let end = self.places.partition_point(|(of, _)| *of <= short);
        let before = self.places.get(..end)?.iter().rev();
        let candidates = before.take_while(|(of, _)| *of == short);
        let mut candidates = candidates.map(|(_, at)| *at as usize);
        candidates.find(|at| {
            let peer = peers.get(*at);
            peer.is_some_and(|peer| peer.target.sources().any(|own| own == *ip))
        })
    }
}

/// An IPv4 address is a number of 4 bytes already.
fn short(hasher: &RandomState, ip: &IpAddr) -> u32 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits(),
        IpAddr::V6(ip) => hasher.hash_one(ip) as u32,
    }
}
