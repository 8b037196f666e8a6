//! The decisions: which leases stand, given all that the roster knows.

use std::net::IpAddr;

use ipnet::IpNet;

use super::index::Id;
use super::{Note, Reason, Roster, RosterChange, Slot, Verdict, Work, rank};
use crate::{BackendType, Dual, Family, Lease, SubnetKey};

impl Roster {
    /// Decides `work` and all that follows from it. `changed` names the lease that was accepted
    /// before it was replaced, and whether the new one says something else.
    pub(super) fn settle(
        &mut self,
        mut work: Work,
        changed: Option<(Id, bool)>,
    ) -> Vec<RosterChange> {
        let (mut drops, mut again, mut accepts, mut rest) = (vec![], vec![], vec![], vec![]);
        while let Some((_, key, id)) = work.pop_first() {
            let Some(slot) = self.slot(id) else { continue };
            let replaced = changed.filter(|(replaced, _)| *replaced == id);
            let (recorded, known) = (slot.accepted, slot.accepted || replaced.is_some());
            let identities = self.identities_of(&slot.lease);
            let verdict = self.verdict(id, &slot.lease, &identities);
            let stands = matches!(verdict, Verdict::Accept);
            match (known, stands) {
                (true, false) => drops.push(RosterChange::Drop(key)),
                (false, true) => accepts.push(RosterChange::Accept(slot.lease.clone())),
                (true, true) if replaced.is_some_and(|(_, differs)| differs) => {
                    again.push(RosterChange::Accept(slot.lease.clone()));
                }
                _ => {}
            }
            if recorded != stands {
                self.set_accepted(id, stands, &mut rest);
                self.push_younger(id, &identities, &mut work);
            }
            match verdict {
                Verdict::Refuse(reason) if self.refused.get(&id) != Some(&reason) => {
                    self.refused.insert(id, reason.clone());
                    rest.push(RosterChange::Refuse { key, reason });
                }
                Verdict::Refuse(_) => {}
                Verdict::Accept | Verdict::Own => drop(self.refused.remove(&id)),
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

    /// Takes a lease out of its slot and the index; adds to `work` what it stood in the way of.
    pub(super) fn take(&mut self, id: Id, work: &mut Work) -> Option<Slot> {
        let old = self.slot(id)?;
        let (was, identities) = (old.accepted, self.identities_of(&old.lease));
        if was {
            self.push_younger(id, &identities, work);
            self.set_accepted(id, false, &mut Vec::new());
        }
        let mut slot = self.slots.get_mut(id as usize)?.take()?;
        slot.accepted = was;
        self.index.remove(id, &slot.lease.key, &identities);
        Some(slot)
    }

    pub(super) fn find(&self, key: &SubnetKey) -> Option<Id> {
        let (_, net) = key.nets().iter().next()?;
        let mut candidates = self.index.exact(net);
        candidates.find(|id| self.slot(*id).is_some_and(|slot| slot.lease.key == *key))
    }

    pub(super) fn slot(&self, id: Id) -> Option<&Slot> {
        self.slots.get(id as usize)?.as_ref()
    }

    /// What the lease must not share with others, in the families that count.
    pub(super) fn identities_of(&self, lease: &Lease) -> Dual<u64> {
        let identities = (self.identities)(lease);
        Dual::from_fn(|family| {
            identities
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

    fn verdict(&self, id: Id, lease: &Lease, identities: &Dual<u64>) -> Verdict {
        if self.own.as_ref() == Some(&lease.key) {
            return Verdict::Own;
        }
        match self
            .fault(lease)
            .or_else(|| self.rival(id, lease, identities))
        {
            Some(reason) => Verdict::Refuse(reason),
            None => Verdict::Accept,
        }
    }

    /// What is wrong with the lease whatever the other leases are.
    fn fault(&self, lease: &Lease) -> Option<Reason> {
        let theirs = &lease.attrs.backend_type;
        // These two write no type into their leases.
        let nameless = matches!(self.kind, BackendType::Udp | BackendType::Alloc);
        if theirs.as_ref() != Some(&self.kind) && !(nameless && theirs.is_none()) {
            return Some(Reason::OtherBackend {
                theirs: theirs.clone(),
                ours: self.kind.clone(),
            });
        }
        let mut ips = lease.attrs.public_ip.iter();
        if let Some((_, ip)) = ips.find(|(family, ip)| self.own_ip.get(*family) == Some(*ip)) {
            return Some(Reason::OurPublicIp(*ip));
        }
        let mut none = true;
        for (family, network) in self.networks.iter() {
            let Some(net) = lease.key.nets().get(family) else {
                continue;
            };
            none = false;
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
        none.then_some(Reason::OtherFamily)
    }

    /// The older accepted lease that excludes this one.
    fn rival(&self, id: Id, lease: &Lease, identities: &Dual<u64>) -> Option<Reason> {
        let standing = |other: Id| {
            let slot = self.slot(other)?;
            (other != id && slot.accepted && rank(&slot.lease, other) < rank(lease, id))
                .then_some(slot.lease.key)
        };
        for (family, _) in self.networks.iter() {
            let Some(net) = self.common(lease, family) else {
                continue;
            };
            if let Some(other) = self.index.overlapping(net).find_map(standing) {
                return Some(Reason::Overlaps { net: *net, other });
            }
        }
        let mut same = identities
            .iter()
            .flat_map(|(family, identity)| self.index.same(family, *identity));
        same.find_map(standing)
            .map(|other| Reason::SameIdentity { other })
    }

    /// Adds to `work` the younger leases that the lease in slot `id` excludes.
    fn push_younger(&self, id: Id, identities: &Dual<u64>, work: &mut Work) {
        let Some(slot) = self.slot(id) else { return };
        let (lease, own_rank) = (&slot.lease, rank(&slot.lease, id));
        let mut push = |other: Id| {
            let other = self.slot(other).map(|slot| rank(&slot.lease, other));
            work.extend(other.filter(|other| *other > own_rank));
        };
        for (family, _) in self.networks.iter() {
            if let Some(net) = self.common(lease, family) {
                self.index.overlapping(net).for_each(&mut push);
            }
        }
        for (family, identity) in identities.iter() {
            self.index.same(family, *identity).for_each(&mut push);
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
            match accepted {
                true => {
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
                }
                false => {
                    self.owners.remove(ip, id);
                    self.left.push(*ip);
                }
            }
        }
        match accepted {
            true => self.accepted += 1,
            false => self.accepted -= 1,
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
