//! The lease that the node has: kept as desired, or revoked.

use model::{Lease, LeaseAttrs, SubnetKey};

use super::conflict::ConflictPolicy;
use super::sent::Sent;
use super::terms::{
    Action, Answer, Cause, Entry, Event, Life, Look, Notice, Request, Revocation, Signature, Time,
    Value, WriterId, same_node,
};
use super::twins::Twins;
use super::{Next, Policy, Step};

/// Desired against observed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holding<M> {
    key: SubnetKey,
    desired: LeaseAttrs,
    /// `None`: the key is not there.
    observed: Option<Entry<M>>,
    /// The key is to be created without an end.
    reserved: bool,
    /// Changes when the key is created again.
    seniority: u64,
    /// When the key ended, or would have, by the last that is known.
    ends: Option<Time>,
    since: Time,
    /// Values that were sent, and may be what the store shows next.
    sent: Sent<M>,
    /// The fate of a request is unknown: look first.
    uncertain: bool,
    /// The store lost data: an older state of the key is no foreign write.
    lost: bool,
    conflict: ConflictPolicy,
    published: Option<LeaseAttrs>,
    twins: Twins<M>,
    /// A living node with this node's address holds this older lease: the own one is to be deleted.
    yields_to: Option<SubnetKey>,
    /// Another key that lives as long as the own one: a write that was given up arrived late. It is to be deleted,
    /// for nothing else ends it.
    stray: Option<(SubnetKey, M)>,
}

impl<M: Clone + PartialEq> Holding<M> {
    pub(super) fn new(entry: Entry<M>, desired: LeaseAttrs, now: Time) -> Holding<M> {
        let mut holding = Holding {
            key: entry.key,
            desired,
            observed: None,
            reserved: false,
            seniority: 0,
            ends: None,
            since: now,
            sent: Sent::new(),
            uncertain: false,
            lost: false,
            conflict: ConflictPolicy::default(),
            published: entry.attrs.clone(),
            twins: Twins::new(now),
            yields_to: None,
            stray: None,
        };
        holding.set(entry);
        holding
    }

    pub(super) fn observed(&self) -> Option<&Entry<M>> {
        self.observed.as_ref()
    }

    pub(super) fn key(&self) -> SubnetKey {
        self.key
    }

    pub(super) fn next(&self, writer: WriterId, policy: &Policy, now: Time) -> Next<M> {
        if self.uncertain {
            return Next::Do(Request::Look { key: self.key });
        }
        let write = |over| {
            Next::Do(Request::Write {
                key: self.key,
                value: Value {
                    attrs: self.desired.clone(),
                    // Where the subnet is assigned nobody asks who holds it.
                    signature: self.conflict.signature(writer).filter(|_| policy.contended),
                },
                over,
                reserved: self.reserved,
            })
        };
        if let (Some(_), Some(entry)) = (self.yields_to, &self.observed) {
            return Next::Do(Request::Delete {
                key: self.key,
                over: entry.mark.clone(),
            });
        }
        let Some(entry) = &self.observed else {
            // Where the subnet is assigned, the key comes back with its assignment.
            return if policy.contended {
                write(None)
            } else {
                Next::Wait(None)
            };
        };
        let differs = entry.attrs.as_ref() != Some(&self.desired) || entry.life == Life::Foreign;
        let write_at = match self.conflict.due() {
            Some(at) => Some(at),
            None if differs => Some(now),
            // Nobody has asked for a while: the value is to be as other programs write it.
            None => entry
                .signature
                .filter(|_| policy.contended)
                .map(|_| self.conflict.tidy(now)),
        };
        let renew_at = match entry.life {
            Life::Until { renew, .. } => Some(renew),
            Life::Reserved | Life::Foreign => None,
        };
        if write_at.is_some_and(|at| at <= now) {
            write(Some(entry.mark.clone()))
        } else if renew_at.is_some_and(|at| at <= now) {
            Next::Do(Request::Renew)
        } else if let Some((key, mark)) = &self.stray {
            Next::Do(Request::Delete {
                key: *key,
                over: mark.clone(),
            })
        } else if let Some(question) =
            self.twins
                .question(entry, &self.desired.public_ip, writer, now)
        {
            Next::Do(question)
        } else {
            Next::Wait(write_at.into_iter().chain(renew_at).min())
        }
    }

    pub(super) fn on(
        &mut self,
        event: Event<M>,
        request: Option<Request<M>>,
        writer: WriterId,
        policy: &Policy,
        now: Time,
    ) -> Step<M> {
        match event {
            Event::Publish(attrs) | Event::Want(attrs) => {
                if attrs.public_ip != self.desired.public_ip {
                    self.twins.address_changed();
                }
                self.desired = attrs;
                self.conflict.hurry(now);
                Step::Stay(Vec::new())
            }
            Event::Observed(look) => self.look(look, writer, policy, now),
            Event::HistoryLost => {
                self.lost = true;
                self.uncertain = true;
                Step::Stay(Vec::new())
            }
            Event::Reassigned(why) => {
                Step::Over(Action::Revoked(Revocation::Reassigned(self.key, why)))
            }
            Event::Answer(answer) => match request {
                Some(Request::Write { key, .. }) if key != self.key => {
                    self.asked(key, answer, writer, policy, now)
                }
                Some(Request::Delete { key, .. }) if key != self.key => {
                    self.stray = None;
                    match answer {
                        Answer::Differs(Some(entry)) => self.other(entry, writer, policy, now),
                        _ => Step::Stay(vec![Action::Say(Notice::Second(key))]),
                    }
                }
                _ => self.answer(answer, writer, policy, now),
            },
            Event::Failed => {
                match request {
                    // A question to another node: what became of it is seen before it is repeated.
                    Some(Request::Write { key, .. }) if key != self.key => {}
                    Some(Request::Delete { key, .. }) if key != self.key => {}
                    Some(Request::Write { value, over, .. }) => {
                        self.sent.add(value, over);
                        self.uncertain = true;
                    }
                    _ => self.uncertain = true,
                }
                Step::Stay(Vec::new())
            }
            Event::Entry(entry) => self.other(entry, writer, policy, now),
            Event::ListingBegan | Event::Retry | Event::Tick => Step::Stay(Vec::new()),
        }
    }

    /// Takes in a lease that may be that of another node with this node's address.
    fn other(&mut self, entry: Entry<M>, writer: WriterId, policy: &Policy, now: Time) -> Step<M> {
        if entry.key == self.key {
            return Step::Stay(Vec::new());
        }
        let is_own =
            matches!(&entry.attrs, Some(attrs) if same_node(attrs, &self.desired.public_ip));
        if is_own && matches!(entry.life, Life::Until { .. }) {
            self.stray = Some((entry.key, entry.mark));
            return Step::Stay(Vec::new());
        }
        self.twins
            .observe(entry, (writer, policy.answer_window), now);
        let Some(own) = &self.observed else {
            return Step::Stay(Vec::new());
        };
        let Some(other) = self.twins.holder(own, &self.desired.public_ip) else {
            return Step::Stay(Vec::new());
        };
        if own.life == Life::Reserved {
            // Not this node's to delete.
            return self.yielded(other);
        }
        self.yields_to = Some(other);
        Step::Stay(Vec::new())
    }

    /// The answer to a question that was written to the lease `key`.
    fn asked(
        &mut self,
        key: SubnetKey,
        answer: Answer<M>,
        writer: WriterId,
        policy: &Policy,
        now: Time,
    ) -> Step<M> {
        match answer {
            Answer::Differs(Some(entry)) => self.other(entry, writer, policy, now),
            Answer::Written { entry, .. } => {
                self.twins.asked(entry, now + policy.answer_window);
                Step::Stay(vec![Action::Say(Notice::Asking(key))])
            }
            _ => {
                self.twins.gone(&key);
                Step::Stay(Vec::new())
            }
        }
    }

    fn yielded(&self, other: SubnetKey) -> Step<M> {
        Step::Over(Action::Revoked(Revocation::Twin {
            own: self.key,
            other,
            ours: self.desired.public_ip,
        }))
    }

    fn answer(
        &mut self,
        answer: Answer<M>,
        writer: WriterId,
        policy: &Policy,
        now: Time,
    ) -> Step<M> {
        match answer {
            Answer::Written { entry, .. } => {
                self.sent.clear();
                self.lost = false;
                self.conflict.written(now);
                let restored = self.observed.is_none();
                if restored || self.seniority != entry.seniority {
                    self.twins.own_recreated(now);
                }
                self.set(entry);
                let mut actions = self.changed();
                if restored {
                    actions.push(Action::Say(Notice::Restored(self.key)));
                }
                Step::Stay(actions)
            }
            // A key whose subnet overlaps, where the own one was lost.
            Answer::Differs(Some(entry)) if entry.key != self.key => {
                let owner = entry.attrs.map(|attrs| attrs.public_ip).unwrap_or_default();
                Step::Over(Action::Revoked(Revocation::Taken(self.key, owner)))
            }
            Answer::Differs(Some(entry)) => self.look(Look::There(entry), writer, policy, now),
            Answer::Looked { look, .. } => {
                self.uncertain = false;
                self.look(look, writer, policy, now)
            }
            Answer::Renewed(life) => {
                if let Some(entry) = &mut self.observed {
                    entry.life = life;
                }
                self.note_end(life);
                Step::Stay(Vec::new())
            }
            Answer::LifeOver => {
                if let Some(entry) = &mut self.observed {
                    entry.life = Life::Foreign;
                }
                self.uncertain = true;
                Step::Stay(Vec::new())
            }
            Answer::Differs(None) | Answer::Deleted => {
                if let Some(other) = self.yields_to {
                    return self.yielded(other);
                }
                self.uncertain = true;
                Step::Stay(Vec::new())
            }
            Answer::Read { .. } | Answer::Picked(_) => Step::Stay(Vec::new()),
        }
    }

    fn look(&mut self, look: Look<M>, writer: WriterId, policy: &Policy, now: Time) -> Step<M> {
        match look {
            Look::There(entry) => self.seen(entry, writer, policy, now),
            Look::Gone(cause) => {
                if let Some(other) = self.yields_to {
                    return self.yielded(other);
                }
                let ran_out = self.ends.is_some_and(|end| end <= now);
                let on_purpose = cause == Cause::Deleted && !ran_out && !self.lost;
                self.observed = None;
                if on_purpose && policy.contended {
                    return Step::Over(Action::Revoked(Revocation::Deleted(self.key)));
                }
                self.uncertain = false;
                // What comes back there is new, and nobody's foreign write.
                self.lost |= !policy.contended;
                Step::Stay(Vec::new())
            }
        }
    }

    /// The key is there: as known, as we wrote it, or as somebody else did.
    fn seen(&mut self, entry: Entry<M>, writer: WriterId, policy: &Policy, now: Time) -> Step<M> {
        let known = self.observed.as_ref();
        if known.is_some_and(|known| known.mark == entry.mark) && !self.lost {
            self.set(entry);
            return Step::Stay(Vec::new());
        }
        let before = known.map(|known| &known.mark);
        let is_sent = self.sent.may_be(&entry, before);
        let by_us = is_sent
            || matches!(entry.signature,
                Some(Signature::Holder(id) | Signature::Claimant(id)) if id == writer);
        let other = entry.attrs.as_ref().filter(|attrs| {
            let before = self.published.as_ref().map(|attrs| attrs.public_ip);
            !same_node(attrs, &self.desired.public_ip)
                && !before.is_some_and(|before| same_node(attrs, &before))
        });
        if !by_us && policy.contended {
            if let Some(other) = other {
                return Step::Over(Action::Revoked(Revocation::Taken(
                    self.key,
                    other.public_ip,
                )));
            }
            let outranked = match entry.signature {
                Some(Signature::Holder(id)) => now < self.since + policy.young || id < writer,
                _ => false,
            };
            if outranked && !self.lost {
                let ours = self.desired.public_ip;
                return Step::Over(Action::Revoked(Revocation::Outranked(self.key, ours)));
            }
        }
        let mut actions = Vec::new();
        let same = entry.attrs.as_ref() == Some(&self.desired);
        let recreated = self.seniority != entry.seniority;
        if !by_us && !self.lost {
            match entry.signature.filter(|_| policy.contended) {
                Some(Signature::Claimant(_)) => {
                    self.conflict.asked(now);
                    actions.push(Action::Say(Notice::Asked(self.key, self.desired.public_ip)));
                }
                Some(Signature::Holder(_)) => self.conflict.asked(now),
                // Somebody made it a reservation, or gave it back its end: that is for them to say.
                None if same
                    && !recreated
                    && known.is_some_and(|known| reserved(known) != reserved(&entry)) => {}
                None if same && !policy.contended => {}
                None => {
                    if same {
                        self.conflict.asked(now);
                    } else {
                        self.conflict.overwritten(now);
                    }
                    actions.push(Action::Say(Notice::Overwritten(
                        self.key,
                        self.desired.public_ip,
                    )));
                }
            }
        }
        // Another node may have written the same value: the store lost the key and somebody created it
        // again, or the answer to a write was lost, and no etcd lease shows whose it is.
        let in_doubt = if by_us {
            is_sent && reserved(&entry)
        } else {
            self.lost && recreated
        };
        if in_doubt && same && policy.contended {
            self.conflict.asked(now);
        }
        if recreated {
            self.twins.own_recreated(now);
        }
        self.lost = false;
        self.set(entry);
        actions.extend(self.changed());
        Step::Stay(actions)
    }

    fn set(&mut self, entry: Entry<M>) {
        self.note_end(entry.life);
        self.reserved = entry.life == Life::Reserved;
        self.seniority = entry.seniority;
        self.observed = Some(entry);
    }

    fn note_end(&mut self, life: Life) {
        match life {
            Life::Until { ends, .. } => self.ends = Some(ends),
            Life::Reserved => self.ends = None,
            Life::Foreign => {}
        }
    }

    /// Reports the lease if the store now shows what is desired and did not before.
    fn changed(&mut self) -> Vec<Action<M>> {
        let Some(entry) = &self.observed else {
            return Vec::new();
        };
        if entry.attrs.as_ref() != Some(&self.desired) {
            return Vec::new();
        }
        self.published = Some(self.desired.clone());
        vec![Action::Changed(Lease {
            key: self.key,
            attrs: self.desired.clone(),
            seniority: entry.seniority,
        })]
    }
}

fn reserved<M>(entry: &Entry<M>) -> bool {
    entry.life == Life::Reserved
}
