//! Which of the leases that the store shows may be used.
//!
//! Anybody who may write to the store can write nonsense there. A lease is *refused* when it cannot be
//! right for itself (outside the network, overlapping our own subnet, …), or when it claims what another
//! lease has. Of leases with overlapping subnets the oldest is used. Of leases with one claim (a MAC)
//! the newest is used: its owner has taken another subnet or address, and the older ones are what it left
//! behind. When the one that is used goes, the next one takes its place: what is accepted depends on what
//! the store holds and not on the order in which it was read.

mod decide;
mod index;
mod reason;

pub use reason::{Note, Reason};

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{BackendType, Dual, IfName, Lease, LeaseAttrs, NetConfig, SubnetKey};
use index::{Id, Index, Owners};

/// What a lease's data claim for its owner alone, by family: of vxlan the MAC, as a number. No two peers may
/// have a claim in common. A claim of more than 64 bits (a public key) is reduced with a hash whose key is
/// secret, so that nobody can choose one that collides with another node's.
pub type Claims = Dual<u64>;

/// Reads the claims of a lease; what cannot be read claims nothing.
type ReadClaims = Box<dyn Fn(&LeaseAttrs) -> Claims>;

/// All leases of the network, our own included, and which of them are used as peers.
///
/// Taking in or removing a lease costs the logarithm of their number, and as much again for each lease
/// that it excludes.
pub struct Roster {
    networks: Dual<IpNet>,
    /// The backends in use, newest first.
    kinds: Vec<BackendType>,
    claims: ReadClaims,
    own: Option<SubnetKey>,
    own_ip: Dual<IpAddr>,
    underlay: Vec<IpNet>,
    connected: BTreeMap<IpNet, IfName>,

    slots: Vec<Option<Slot>>,
    vacant: Vec<Id>,
    /// The lease that was looked up or put last, to be looked at first.
    found: Cell<Id>,
    index: Index,
    accepted: usize,
    refused: BTreeMap<Id, Reason>,
    owners: Owners,
    /// Public IPs that were reported for having several leases.
    shared: BTreeSet<IpAddr>,
    /// Those of them that lost one since.
    left: Vec<IpAddr>,
    /// Lengths of subnets that were reported for not being ours.
    lengths: BTreeSet<u8>,
}

struct Slot {
    lease: Lease,
    accepted: bool,
}

/// What a change of the leases means for the peers. To be applied in the order given, in which a peer that
/// gives something up comes before the one that takes it over.
#[derive(Clone, Debug, PartialEq)]
pub enum RosterChange {
    /// No longer a peer.
    Drop(SubnetKey),
    /// A peer, new or changed: replaces what was there for its key.
    Accept(Lease),
    /// A lease that is not used: reported once, and again when the reason changes.
    Refuse {
        /// The lease.
        key: SubnetKey,
        /// Why not.
        reason: Reason,
    },
    /// Something to look at: reported once, until it has ended.
    Note(Note),
}

/// What is to be decided again, oldest first: a decision depends on older leases only.
#[derive(Default)]
struct Work {
    /// All leases: 4 bytes each, where a set of ranks has 70.
    all: VecDeque<Id>,
    some: BTreeSet<Rank>,
}

/// A lease's place in the order of age.
type Rank = (u64, SubnetKey, Id);

/// What was found about a lease that is put, for its decision: reading its data takes longest.
struct Found {
    id: Id,
    fault: Option<Reason>,
    claims: Claims,
}

enum Decision {
    Accept {
        /// No other lease shares an address with it.
        alone: bool,
    },
    Own,
    Refuse(Reason),
}

impl Roster {
    /// Returns a roster without leases. `claims` reads what no two peers may have in common.
    pub fn new(
        config: &NetConfig,
        kind: BackendType,
        claims: impl Fn(&LeaseAttrs) -> Claims + 'static,
    ) -> Roster {
        Roster {
            networks: config.pools.map(|_, pool| pool.network),
            kinds: vec![kind],
            claims: Box::new(claims),
            own: None,
            own_ip: Dual::default(),
            underlay: Vec::new(),
            connected: BTreeMap::new(),
            slots: Vec::new(),
            vacant: Vec::new(),
            found: Cell::new(0),
            index: Index::default(),
            accepted: 0,
            refused: BTreeMap::new(),
            owners: Owners::default(),
            shared: BTreeSet::new(),
            left: Vec::new(),
            lengths: BTreeSet::new(),
        }
    }

    /// Sets which networks there are, which backends are in use, newest first, and how their claims are read.
    /// Looks at every lease again.
    pub fn set_network(
        &mut self,
        networks: Dual<IpNet>,
        kinds: Vec<BackendType>,
        claims: impl Fn(&LeaseAttrs) -> Claims + 'static,
    ) -> Vec<RosterChange> {
        (self.networks, self.kinds, self.claims) = (networks, kinds, Box::new(claims));
        self.decide_all()
    }

    /// Sets which lease is ours, and the address that other nodes send to. Looks at every lease again.
    pub fn set_own(&mut self, key: SubnetKey, public_ip: Dual<IpAddr>) -> Vec<RosterChange> {
        if (self.own, self.own_ip) == (Some(key), public_ip) {
            return Vec::new();
        }
        (self.own, self.own_ip) = (Some(key), public_ip);
        self.decide_all()
    }

    /// What this node must reach past the tunnel ([`crate::Host::underlay`]): a lease that contains
    /// one of it is refused. Looks at every lease again.
    pub fn set_underlay(&mut self, underlay: Vec<IpNet>) -> Vec<RosterChange> {
        if self.underlay == underlay {
            return Vec::new();
        }
        self.underlay = underlay;
        self.decide_all()
    }

    /// Sets the networks to which the kernel has routes of its own, and through which interface: a lease
    /// of one of them is refused, since its route would take the place of the kernel's. Looks at every
    /// lease again.
    pub fn set_connected(&mut self, connected: BTreeMap<IpNet, IfName>) -> Vec<RosterChange> {
        if self.connected == connected {
            return Vec::new();
        }
        self.connected = connected;
        self.decide_all()
    }

    fn decide_all(&mut self) -> Vec<RosterChange> {
        self.index_claims_again();
        let mut all: Vec<Id> = self.ids().filter(|id| self.slot(*id).is_some()).collect();
        all.sort_unstable_by_key(|id| self.rank_of(*id));
        let work = Work {
            all: all.into(),
            some: BTreeSet::new(),
        };
        self.decide(work, None, None)
    }

    /// Adds a lease, or changes it.
    pub fn put(&mut self, lease: Lease) -> Vec<RosterChange> {
        let mut work = Work::default();
        let (id, before) = match self.find(&lease.key) {
            Some(id) if self.slot(id).is_some_and(|slot| slot.lease == lease) => return Vec::new(),
            Some(id) => {
                let old = self.take(id, &mut work);
                (
                    id,
                    old.filter(|old| old.accepted).map(|old| old.lease.attrs),
                )
            }
            None => (self.vacant.pop().unwrap_or(self.slots.len() as Id), None),
        };
        let changed = before.map(|before| (id, before != lease.attrs));
        work.some.insert(rank(&lease, id));
        self.index.insert(id, &lease.key);
        let found = self.add_claims(id, &lease, &mut work);
        let slot = Some(Slot {
            lease,
            accepted: false,
        });
        match self.slots.get_mut(id as usize) {
            Some(place) => *place = slot,
            None => self.slots.push(slot),
        }
        self.found.set(id);
        self.decide(work, changed, Some(found))
    }

    /// Takes less memory, at the cost of a look at every lease. Worth it after many were put.
    pub fn shrink(&mut self) {
        self.index.shrink();
        self.owners.shrink();
    }

    /// Removes a lease.
    pub fn remove(&mut self, key: &SubnetKey) -> Vec<RosterChange> {
        let mut work = Work::default();
        let Some(id) = self.find(key) else {
            return Vec::new();
        };
        let old = self.take(id, &mut work);
        self.vacant.push(id);
        self.refused.remove(&id);
        let dropped = old
            .filter(|old| old.accepted)
            .map(|old| RosterChange::Drop(old.lease.key));
        let mut changes: Vec<RosterChange> = dropped.into_iter().collect();
        changes.extend(self.decide(work, None, None));
        changes
    }

    /// Returns a number for the lease under `key`, the same as long as the store holds the lease.
    pub fn id(&self, key: &SubnetKey) -> Option<u32> {
        self.find(key)
    }

    /// Returns the key of the lease with this number; see [`Roster::id`].
    pub fn key_of(&self, id: u32) -> Option<SubnetKey> {
        self.slot(id).map(|slot| slot.lease.key)
    }

    /// The lease under `key`, accepted or not, our own included.
    pub fn lease(&self, key: &SubnetKey) -> Option<&Lease> {
        self.find(key)
            .and_then(|id| self.slot(id))
            .map(|slot| &slot.lease)
    }

    /// The peer under `key`.
    pub fn accepted(&self, key: &SubnetKey) -> Option<&Lease> {
        let slot = self.find(key).and_then(|id| self.slot(id));
        slot.filter(|slot| slot.accepted).map(|slot| &slot.lease)
    }

    /// Returns all numbers that a lease may have; see [`Roster::id`].
    pub fn ids(&self) -> std::ops::Range<u32> {
        0..self.slots.len() as Id
    }

    /// Returns the peer with this number; see [`Roster::id`].
    pub fn accepted_at(&self, id: u32) -> Option<&Lease> {
        let slot = self.slot(id).filter(|slot| slot.accepted);
        slot.map(|slot| &slot.lease)
    }

    /// Every peer, in no order.
    pub fn all_accepted(&self) -> impl Iterator<Item = &Lease> {
        self.slots
            .iter()
            .flatten()
            .filter(|slot| slot.accepted)
            .map(|slot| &slot.lease)
    }

    /// Every lease, used or not, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Lease> {
        self.slots.iter().flatten().map(|slot| &slot.lease)
    }

    /// How many peers there are.
    pub fn accepted_len(&self) -> usize {
        self.accepted
    }

    /// Every lease that is not used, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&SubnetKey, &Reason)> {
        self.refused
            .iter()
            .filter_map(|(id, reason)| Some((&self.slot(*id)?.lease.key, reason)))
    }

    /// How many leases are not used.
    pub fn refused_len(&self) -> usize {
        self.refused.len()
    }

    /// How many leases are not used, by [`Reason::label`].
    pub fn refused_by_label(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for reason in self.refused.values() {
            *counts.entry(reason.label()).or_default() += 1;
        }
        counts
    }
}

/// Its place in the order of age; of equally old leases the lower key counts as older.
fn rank(lease: &Lease, id: Id) -> Rank {
    (lease.seniority, lease.key, id)
}
