//! The decisions: which leases are accepted, given all that the roster knows.

use std::net::IpAddr;

use ipnet::IpNet;

use super::index::{Age, Id};
use super::{Claims, Decision, Found, Note, Rank, Reason, Roster, RosterChange, Slot, Work, rank};
use crate::range::number;
use crate::{BackendType, Dual, Family, Lease, SubnetKey};

/// The order of leases with one claim. The key decides where the seniority does not.
fn age(lease: &Lease) -> Age {
    let nets = lease.key.nets().iter();
    let folded = nets.fold(0_u32, |sum, (_, net)| {
        let number = number(net.network());
        let high = (number >> 64) as u64 ^ number as u64;
        let one = (high >> 32) as u32 ^ high as u32 ^ u32::from(net.prefix_len());
        sum.rotate_left(16) ^ one
    });
    (lease.seniority, folded)
}

impl Roster {
    /// Decides `work` and all that follows from it. `changed` names the lease that was accepted
    /// before it was replaced, and whether the new one says something else; `found` is what is known of the one
    /// that was put.
    pub(super) fn decide(
        &mut self,
        mut work: Work,
        changed: Option<(Id, bool)>,
        found: Option<Found>,
    ) -> Vec<RosterChange> {
        let (mut drops, mut again, mut accepts, mut rest) = (vec![], vec![], vec![], vec![]);
        let mut notes = vec![];
        while let Some(id) = self.pop_first(&mut work) {
            let Some(slot) = self.slot(id) else { continue };
            let key = slot.lease.key;
            let replaced = changed.filter(|(replaced, _)| *replaced == id);
            let (recorded, known) = (slot.accepted, slot.accepted || replaced.is_some());
            let found = found.as_ref().filter(|found| found.id == id);
            let decision = self.decision(id, &slot.lease, found);
            let accepted = matches!(decision, Decision::Accept { .. });
            let alone = matches!(decision, Decision::Accept { alone: true });
            match (known, accepted) {
                (true, false) => drops.push(RosterChange::Drop(key)),
                (false, true) => {
                    accepts.push(RosterChange::Accept(slot.lease.clone()));
                    notes.extend(self.other_length(&slot.lease));
                }
                (true, true) if replaced.is_some_and(|(_, differs)| differs) => {
                    again.push(RosterChange::Accept(slot.lease.clone()));
                }
                _ => {}
            }
            if recorded != accepted {
                self.set_accepted(id, accepted, &mut rest);
                if !alone {
                    self.push_younger(id, &mut work);
                }
            }
            match decision {
                Decision::Refuse(reason) if self.refused.get(&id) != Some(&reason) => {
                    self.refused.insert(id, reason.clone());
                    rest.push(RosterChange::Refuse { key, reason });
                }
                Decision::Refuse(_) => {}
                Decision::Accept { .. } | Decision::Own => drop(self.refused.remove(&id)),
            }
        }
        for (length, note) in notes {
            if self.lengths.insert(length) {
                rest.push(RosterChange::Note(note));
            }
        }
        for ip in std::mem::take(&mut self.left) {
            if self
                .owners
                .candidates(&ip)
                .filter(|id| self.has_ip(*id, &ip))
                .count()
                < 2
            {
                self.shared.remove(&ip);
            }
        }
        // What is given up comes before what is taken over.
        drops
            .into_iter()
            .chain(again)
            .chain(accepts)
            .chain(rest)
            .collect()
    }

    /// Takes the oldest lease out of `work`.
    fn pop_first(&self, work: &mut Work) -> Option<Id> {
        let of_all = work.all.front().copied();
        let of_some = work.some.first().map(|(.., id)| *id);
        let id = match (of_all, of_some) {
            (Some(a), Some(b)) if self.rank_of(a) <= self.rank_of(b) => a,
            (Some(id), None) | (_, Some(id)) => id,
            (None, None) => return None,
        };
        if of_all == Some(id) {
            work.all.pop_front();
        }
        if of_some == Some(id) {
            work.some.pop_first();
        }
        Some(id)
    }

    /// Returns the rank of the lease with this number.
    pub(super) fn rank_of(&self, id: Id) -> Option<Rank> {
        self.slot(id).map(|slot| rank(&slot.lease, id))
    }

    /// Takes a lease out of its slot and the index; adds to `work` the leases that it excluded.
    pub(super) fn take(&mut self, id: Id, work: &mut Work) -> Option<Slot> {
        let was = self.slot(id)?.accepted;
        if was {
            self.push_younger(id, work);
            self.set_accepted(id, false, &mut Vec::new());
        }
        let mut slot = self.slots.get_mut(id as usize)?.take()?;
        slot.accepted = was;
        self.index.remove(id, &slot.lease.key);
        let (claims, age) = (self.claims_of(&slot.lease), age(&slot.lease));
        for (family, claim) in claims.iter() {
            self.index.remove_claim(family, *claim, age, id);
            let older = self.index.older(family, *claim, age, id);
            work.some.extend(older.and_then(|id| self.rank_of(id)));
        }
        Some(slot)
    }

    pub(super) fn find(&self, key: &SubnetKey) -> Option<Id> {
        let has_key = |id: &Id| self.slot(*id).is_some_and(|slot| slot.lease.key == *key);
        // The same lease is asked for several times in a row.
        let found = Some(self.found.get()).filter(has_key).or_else(|| {
            let (_, net) = key.nets().iter().next()?;
            self.index.exact(net).find(has_key)
        })?;
        self.found.set(found);
        Some(found)
    }

    #[inline]
    pub(super) fn slot(&self, id: Id) -> Option<&Slot> {
        self.slots.get(id as usize)?.as_ref()
    }

    /// What the lease must not share with others, in the families that count.
    pub(super) fn claims_of(&self, lease: &Lease) -> Claims {
        let claims = (self.claims)(&lease.attrs);
        Dual::from_fn(|family| {
            claims
                .get(family)
                .copied()
                .filter(|_| self.common(lease, family).is_some())
        })
    }

    /// The lease's subnet of a family that we run.
    fn common<'a>(&self, lease: &'a Lease, family: Family) -> Option<&'a IpNet> {
        lease
            .key
            .nets()
            .get(family)
            .filter(|_| self.networks.get(family).is_some())
    }

    /// Enters the claims of a lease that may be right, and adds to `work` the leases whose acceptance
    /// depends on it.
    pub(super) fn add_claims(&mut self, id: Id, lease: &Lease, work: &mut Work) -> Found {
        let mut found = Found {
            id,
            fault: self.fault(lease),
            claims: Claims::default(),
        };
        if found.fault.is_some() {
            return found;
        }
        found.claims = self.claims_of(lease);
        let (claims, age) = (found.claims, age(lease));
        for (family, claim) in claims.iter() {
            self.index.insert_claim(family, *claim, age, id);
            let older = self.index.older(family, *claim, age, id);
            work.some.extend(older.and_then(|id| self.rank_of(id)));
        }
        found
    }

    /// Enters all claims again: which leases may be right has changed.
    pub(super) fn index_claims_again(&mut self) {
        let mut index = std::mem::take(&mut self.index);
        let sound = self.ids().filter_map(|id| {
            let lease = &self.slot(id)?.lease;
            self.fault(lease).is_none().then_some((id, lease))
        });
        index.set_claims(sound.flat_map(|(id, lease)| {
            let claims = self.claims_of(lease);
            Family::ALL.into_iter().filter_map(move |family| {
                let claim = claims.get(family)?;
                Some((family, *claim, age(lease), id))
            })
        }));
        self.index = index;
    }

    /// What is worth a note about the length of an accepted lease's subnet.
    fn other_length(&self, lease: &Lease) -> Option<(u8, Note)> {
        let own = self.own.as_ref()?;
        self.networks.iter().find_map(|(family, _)| {
            let ours = own.nets().get(family)?.prefix_len();
            let theirs = lease.key.nets().get(family)?.prefix_len();
            let note = Note::OtherLength {
                key: lease.key,
                theirs,
                ours,
            };
            (ours != theirs).then_some((theirs, note))
        })
    }

    fn decision(&self, id: Id, lease: &Lease, found: Option<&Found>) -> Decision {
        if self.own.as_ref() == Some(&lease.key) {
            return Decision::Own;
        }
        let fault = match found {
            Some(found) => found.fault.clone(),
            None => self.fault(lease),
        };
        if let Some(reason) = fault {
            return Decision::Refuse(reason);
        }
        let claims = found.map(|found| found.claims);
        let claims = claims.unwrap_or_else(|| self.claims_of(lease));
        match self.rival(id, lease, claims) {
            Ok(alone) => Decision::Accept { alone },
            Err(reason) => Decision::Refuse(reason),
        }
    }

    /// What is wrong with the lease whatever the other leases are.
    fn fault(&self, lease: &Lease) -> Option<Reason> {
        let in_use = |kind: &BackendType| lease.attrs.offers_type(kind);
        if let Some(ours) = self.kinds.first()
            && !self.kinds.iter().any(in_use)
        {
            return Some(Reason::OtherBackend {
                theirs: lease.attrs.backend_type.clone(),
                ours: ours.clone(),
            });
        }
        let mut ips = lease.attrs.public_ip.iter();
        if let Some((_, ip)) = ips.find(|(family, ip)| self.own_ip.get(*family) == Some(*ip)) {
            return Some(Reason::OurPublicIp(*ip));
        }
        if let Some(reason) = self.impossible_ip(lease) {
            return Some(reason);
        }
        let mut none = true;
        for (family, network) in self.networks.iter() {
            let Some(net) = lease.key.nets().get(family) else {
                continue;
            };
            none = false;
            if let IpNet::V6(v6) = net
                && v6.network().to_ipv4_mapped().is_some()
                && v6.prefix_len() >= 96
            {
                return Some(Reason::MappedSubnet(*net));
            }
            if !network.contains(net) {
                return Some(Reason::Outside {
                    net: *net,
                    network: *network,
                });
            }
            let own = self.own.as_ref().and_then(|own| own.nets().get(family));
            if let Some(own) = own.filter(|own| own.contains(net) || net.contains(*own)) {
                return Some(Reason::OverlapsOwn {
                    net: *net,
                    own: *own,
                });
            }
        }
        if none {
            return Some(Reason::OtherFamily);
        }
        let nets = self
            .networks
            .iter()
            .filter_map(|(family, _)| lease.key.nets().get(family));
        nets.into_iter().find_map(|net| {
            if let Some(needed) = self.underlay.iter().find(|needed| net.contains(*needed)) {
                return Some(Reason::CoversUnderlay {
                    net: *net,
                    needed: *needed,
                });
            }
            let dev = self.connected.get(net)?;
            Some(Reason::Connected {
                net: *net,
                dev: *dev,
            })
        })
    }

    /// A public IP that can be no node's, given this node's own network.
    fn impossible_ip(&self, lease: &Lease) -> Option<Reason> {
        let underlay = || self.underlay.iter();
        lease.attrs.public_ip.iter().find_map(|(family, ip)| {
            let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.is_link_local());
            let on_link_local = || underlay().any(|net| link_local(&net.network()));
            let ends_of_link = |net: &IpNet| {
                let hosts = net.max_prefix_len() - net.prefix_len();
                let first = net.network() == *ip && family == Family::V4;
                let last = net.broadcast() == *ip && family == Family::V4;
                hosts > 1 && (first || last)
            };
            let what = if self
                .common(lease, family)
                .is_some_and(|net| net.contains(ip))
            {
                "in its own subnet, behind the tunnel"
            } else if link_local(ip) && !on_link_local() {
                "link-local, and this node has no such address"
            } else if underlay().any(ends_of_link) {
                "the broadcast or network address of this node's link"
            } else {
                return None;
            };
            Some(Reason::ImpossibleIp { ip: *ip, what })
        })
    }

    /// Looks for a lease that excludes this one: an older accepted one with its addresses, or a newer one with
    /// its claim. Returns whether no other lease at all has its addresses.
    fn rival(&self, id: Id, lease: &Lease, claims: Claims) -> Result<bool, Reason> {
        for (family, claim) in claims.iter() {
            let newer = self.index.newer(family, *claim, age(lease), id);
            if let Some(newer) = newer.and_then(|id| self.slot(id)) {
                let other = newer.lease.key;
                return Err(Reason::SameClaim { other });
            }
        }
        let mut alone = true;
        let mut accepted_older = |other: Id| {
            if other == id {
                return None;
            }
            alone = false;
            let slot = self.slot(other)?;
            (slot.accepted && rank(&slot.lease, other) < rank(lease, id)).then_some(slot.lease.key)
        };
        for (family, _) in self.networks.iter() {
            let Some(net) = self.common(lease, family) else {
                continue;
            };
            if let Some(other) = self.index.overlapping(net).find_map(&mut accepted_older) {
                return Err(Reason::Overlaps { net: *net, other });
            }
        }
        Ok(alone)
    }

    /// Adds to `work` the younger leases whose subnets overlap that of the lease in slot `id`.
    fn push_younger(&self, id: Id, work: &mut Work) {
        let Some(slot) = self.slot(id) else { return };
        let (lease, own_rank) = (&slot.lease, rank(&slot.lease, id));
        let mut push = |other: Id| {
            let other = self.rank_of(other);
            work.some.extend(other.filter(|other| *other > own_rank));
        };
        for (family, _) in self.networks.iter() {
            if let Some(net) = self.common(lease, family) {
                self.index.overlapping(net).for_each(&mut push);
            }
        }
    }

    /// Records that a lease is, or is no longer, a peer; notes public IPs that become shared.
    fn set_accepted(&mut self, id: Id, accepted: bool, changes: &mut Vec<RosterChange>) {
        let Some(slot) = self.slots.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        slot.accepted = accepted;
        let (key, ips) = (slot.lease.key, slot.lease.attrs.public_ip);
        for (_, ip) in ips.iter() {
            if accepted {
                let other = self.owner(ip);
                self.owners.insert(ip, id);
                if let Some(other) = other.filter(|_| self.shared.insert(*ip)) {
                    let note = Note::SharedPublicIp {
                        ip: *ip,
                        a: other,
                        b: key,
                    };
                    changes.push(RosterChange::Note(note));
                }
            } else {
                self.owners.remove(ip, id);
                self.left.push(*ip);
            }
        }
        if accepted {
            self.accepted += 1;
        } else {
            self.accepted -= 1;
        }
    }

    /// An accepted lease with this public IP.
    fn owner(&self, ip: &IpAddr) -> Option<SubnetKey> {
        let id = self.owners.candidates(ip).find(|id| self.has_ip(*id, ip))?;
        self.slot(id).map(|slot| slot.lease.key)
    }

    fn has_ip(&self, id: Id, ip: &IpAddr) -> bool {
        let slot = self.slot(id);
        slot.is_some_and(|slot| slot.lease.attrs.public_ip.iter().any(|(_, own)| own == ip))
    }
}
