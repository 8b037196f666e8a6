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
    nets: [Nets; 2],
    /// Of leases that may be right only, in the order of age.
    claims: [BTreeSet<(u64, u64, u32, Id)>; 2],
}

/// Orders leases with one claim: seniority, then the key in short.
pub(super) type Age = (u64, u32);

/// A network's first address, most significant byte first: smaller in a tuple than a number,
/// which would be aligned to 16 bytes, and in the same order.
type Start = [u8; 16];

/// Networks of one family by their first address: one that contains others comes before them.
#[derive(Default)]
struct Nets {
    sorted: BTreeSet<(Start, u8, Id)>,
    /// How many there are of each length. Mostly one length: that of the configuration.
    lengths: BTreeMap<u8, usize>,
}

impl Index {
    pub(super) fn insert(&mut self, id: Id, key: &SubnetKey) {
        for (family, net) in key.nets().iter() {
            self.nets[family as usize].insert(net, id);
        }
    }

    pub(super) fn remove(&mut self, id: Id, key: &SubnetKey) {
        for (family, net) in key.nets().iter() {
            self.nets[family as usize].remove(net, id);
        }
    }

    pub(super) fn insert_claim(&mut self, family: Family, claim: u64, age: Age, id: Id) {
        self.claims[family as usize].insert((claim, age.0, age.1, id));
    }

    pub(super) fn remove_claim(&mut self, family: Family, claim: u64, age: Age, id: Id) {
        self.claims[family as usize].remove(&(claim, age.0, age.1, id));
    }

    pub(super) fn clear_claims(&mut self) {
        self.claims.iter_mut().for_each(BTreeSet::clear);
    }

    /// Leases that have exactly this net.
    pub(super) fn exact(&self, net: &IpNet) -> impl Iterator<Item = Id> {
        self.nets[Family::of_net(net) as usize].exact(start(net), net.prefix_len())
    }

    /// Leases that share an address with `net`.
    pub(super) fn overlapping(&self, net: &IpNet) -> impl Iterator<Item = Id> {
        self.nets[Family::of_net(net) as usize].overlapping(net)
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

impl Nets {
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

    fn exact(&self, start: Start, len: u8) -> impl Iterator<Item = Id> {
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
            self.exact(start(&wider), *len)
        });
        let longer = (first.to_be_bytes(), len.saturating_add(1), Id::MIN)
            ..=(last.to_be_bytes(), u8::MAX, Id::MAX);
        around.chain(self.sorted.range(longer).map(|(_, _, id)| *id))
    }
}

fn start(net: &IpNet) -> Start {
    ends(net).0.to_be_bytes()
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
