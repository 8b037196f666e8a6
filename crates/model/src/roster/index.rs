//! Finds leases by what they claim. Ordered sets of small tuples: a lease costs some hundred
//! bytes here, and a look-up the logarithm of their number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::range::{ends, number, subnet};
use crate::{Family, SubnetKey};

/// A lease's place in the roster.
pub(super) type Id = u32;

/// What all leases claim, whether or not they are accepted.
#[derive(Default)]
pub(super) struct Index {
    v4: Nets<u32>,
    v6: Nets<[u8; 16]>,
    /// Of leases that may be right only, in the order of age.
    claims: [BTreeSet<(u64, u64, u32, Id)>; 2],
}

/// Orders leases with one claim: seniority, then the key in short.
pub(super) type Age = (u64, u32);

/// The first or last address of a network, in as few bytes as its family needs. An IPv6 address is not a number, which
/// would be aligned to 16 bytes; the order is the same.
trait Address: Copy + Ord {
    fn of(number: u128) -> Self;
}

impl Address for u32 {
    fn of(number: u128) -> u32 {
        number as u32
    }
}

impl Address for [u8; 16] {
    fn of(number: u128) -> [u8; 16] {
        number.to_be_bytes()
    }
}

/// Networks of one family by their first address: one that contains others comes before them.
#[derive(Default)]
struct Nets<A: Address> {
    sorted: BTreeSet<(A, u8, Id)>,
    /// How many there are of each length. Mostly one length: that of the configuration.
    lengths: BTreeMap<u8, usize>,
}

impl Index {
    pub(super) fn insert(&mut self, id: Id, key: &SubnetKey) {
        for (family, net) in key.nets().iter() {
            match family {
                Family::V4 => self.v4.insert(net, id),
                Family::V6 => self.v6.insert(net, id),
            }
        }
    }

    pub(super) fn remove(&mut self, id: Id, key: &SubnetKey) {
        for (family, net) in key.nets().iter() {
            match family {
                Family::V4 => self.v4.remove(net, id),
                Family::V6 => self.v6.remove(net, id),
            }
        }
    }

    pub(super) fn insert_claim(&mut self, family: Family, claim: u64, age: Age, id: Id) {
        self.claims[family as usize].insert((claim, age.0, age.1, id));
    }

    pub(super) fn remove_claim(&mut self, family: Family, claim: u64, age: Age, id: Id) {
        self.claims[family as usize].remove(&(claim, age.0, age.1, id));
    }

    /// Replaces all claims.
    pub(super) fn set_claims(&mut self, claims: impl Iterator<Item = (Family, u64, Age, Id)>) {
        let mut all = [Vec::new(), Vec::new()];
        for (family, claim, age, id) in claims {
            all[family as usize].push((claim, age.0, age.1, id));
        }
        self.claims = all.map(|claims| claims.into_iter().collect());
    }

    /// Takes less memory: entries that came one by one leave trees of nodes that are half or two thirds full.
    pub(super) fn shrink(&mut self) {
        shrink(&mut self.v4.sorted);
        shrink(&mut self.v6.sorted);
        self.claims.iter_mut().for_each(shrink);
    }

    /// Leases that have exactly this net.
    pub(super) fn exact(&self, net: &IpNet) -> impl Iterator<Item = Id> {
        let (v4, v6) = self.of(net);
        let v4 = v4.map(|nets| nets.exact(net)).into_iter().flatten();
        v4.chain(v6.map(|nets| nets.exact(net)).into_iter().flatten())
    }

    /// Leases that share an address with `net`.
    pub(super) fn overlapping(&self, net: &IpNet) -> impl Iterator<Item = Id> {
        let (v4, v6) = self.of(net);
        let v4 = v4.map(|nets| nets.overlapping(net)).into_iter().flatten();
        v4.chain(v6.map(|nets| nets.overlapping(net)).into_iter().flatten())
    }

    /// The networks of the family of `net`: one of the two.
    fn of(&self, net: &IpNet) -> (Option<&Nets<u32>>, Option<&Nets<[u8; 16]>>) {
        match net {
            IpNet::V4(_) => (Some(&self.v4), None),
            IpNet::V6(_) => (None, Some(&self.v6)),
        }
    }

    /// The next newer lease with this claim.
    pub(super) fn newer(&self, family: Family, claim: u64, age: Age, id: Id) -> Option<Id> {
        use std::ops::Bound::{Excluded, Included};
        let above = (
            Excluded((claim, age.0, age.1, id)),
            Included((claim, u64::MAX, u32::MAX, Id::MAX)),
        );
        let mut newer = self.claims[family as usize].range(above);
        newer.next().map(|(.., id)| *id)
    }

    /// The next older lease with this claim.
    pub(super) fn older(&self, family: Family, claim: u64, age: Age, id: Id) -> Option<Id> {
        let below = (claim, 0, 0, Id::MIN)..(claim, age.0, age.1, id);
        let mut older = self.claims[family as usize].range(below);
        older.next_back().map(|(.., id)| *id)
    }
}

impl<A: Address> Nets<A> {
    fn insert(&mut self, net: &IpNet, id: Id) {
        if self.sorted.insert((start(net), net.prefix_len(), id)) {
            *self.lengths.entry(net.prefix_len()).or_default() += 1;
        }
    }

    fn remove(&mut self, net: &IpNet, id: Id) {
        let len = net.prefix_len();
        if self.sorted.remove(&(start(net), len, id)) {
            match self.lengths.get_mut(&len) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.lengths.remove(&len)),
            }
        }
    }

    fn exact(&self, net: &IpNet) -> impl Iterator<Item = Id> {
        self.starting(start(net), net.prefix_len())
    }

    fn starting(&self, start: A, len: u8) -> impl Iterator<Item = Id> {
        self.sorted
            .range((start, len, Id::MIN)..=(start, len, Id::MAX))
            .map(|(_, _, id)| *id)
    }

    fn overlapping(&self, net: &IpNet) -> impl Iterator<Item = Id> {
        let (family, len) = (Family::of_net(net), net.prefix_len());
        let (first, last) = ends(net);
        // Those that contain it, itself included: one look-up for each length that occurs.
        let around = self.lengths.range(..=len).flat_map(move |(len, _)| {
            let wider = subnet(family, first, *len);
            self.starting(start(&wider), *len)
        });
        let longer =
            (A::of(first), len.saturating_add(1), Id::MIN)..=(A::of(last), u8::MAX, Id::MAX);
        let has_longer = self.lengths.last_key_value();
        let has_longer = has_longer.is_some_and(|(longest, _)| *longest > len);
        let inside = has_longer.then(|| self.sorted.range(longer));
        around.chain(inside.into_iter().flatten().map(|(_, _, id)| *id))
    }
}

fn shrink<T: Ord>(set: &mut BTreeSet<T>) {
    *set = std::mem::take(set).into_iter().collect();
}

/// The first address of a network.
fn start<A: Address>(net: &IpNet) -> A {
    A::of(number(net.network()))
}

/// The accepted leases by public IP.
#[derive(Default)]
pub(super) struct Owners(BTreeSet<(u64, Id)>);

impl Owners {
    pub(super) fn insert(&mut self, ip: &IpAddr, id: Id) {
        self.0.insert((folded(ip), id));
    }

    pub(super) fn remove(&mut self, ip: &IpAddr, id: Id) {
        self.0.remove(&(folded(ip), id));
    }

    /// See [`Index::shrink`].
    pub(super) fn shrink(&mut self) {
        shrink(&mut self.0);
    }

    /// Leases that may have this public IP: to be compared.
    pub(super) fn candidates(&self, ip: &IpAddr) -> impl Iterator<Item = Id> {
        let hash = folded(ip);
        self.0
            .range((hash, Id::MIN)..=(hash, Id::MAX))
            .map(|(_, id)| *id)
    }
}

/// An address in 8 bytes, unequal for nearly all.
fn folded(ip: &IpAddr) -> u64 {
    let n = number(*ip);
    ((n >> 64) as u64).rotate_left(32) ^ n as u64
}
