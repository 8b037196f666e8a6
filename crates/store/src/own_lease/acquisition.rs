//! From the first look at the store to a lease: adopt, ask, discard, create.

use std::collections::BTreeMap;
use std::time::Duration;

use model::{Lease, LeaseAttrs, SubnetKey};

use super::holding::Holding;
use super::sent::Sent;
use super::terms::{
    Action, Answer, Entry, Event, Life, Likeness, Look, Notice, Request, Revocation, Signature,
    Time, Value, Who, WriterId,
};
use super::{Next, Policy, Step};

/// After so many lost races all keys are read again.
const RACES_A_LISTING: u32 = 3;

/// What is known on the way to a lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Acquisition<M> {
    who: Who,
    /// `None`: the node only looks for its lease so far.
    wanted: Option<LeaseAttrs>,
    candidates: BTreeMap<SubnetKey, Entry<M>>,
    all_read: bool,
    /// What was read is too old: read from the beginning.
    anew: bool,
    /// A question was written under this key; no answer by then means that nobody lives there.
    asking: Option<(SubnetKey, Time)>,
    /// This key is to be created. It stays so until it is ours or somebody else's: an attempt
    /// whose answer was lost may take effect late.
    creating: Option<SubnetKey>,
    /// A created key that overlaps an older one.
    undo: Option<(SubnetKey, M)>,
    lost: u32,
    sent: Sent<M>,
    /// The fate of a request for this key is unknown: look first.
    uncertain: Option<SubnetKey>,
    /// Keys of living nodes that look like this one.
    living: Vec<SubnetKey>,
    /// The pool looked full in a listing that is not the latest possible.
    full_once: bool,
    over: bool,
}

impl<M: Clone + PartialEq> Acquisition<M> {
    pub(super) fn new(who: Who) -> Acquisition<M> {
        Acquisition {
            who,
            wanted: None,
            candidates: BTreeMap::new(),
            all_read: false,
            anew: true,
            asking: None,
            creating: None,
            undo: None,
            lost: 0,
            sent: Sent::new(),
            uncertain: None,
            living: Vec::new(),
            full_once: false,
            over: false,
        }
    }

    /// The lease to use again: one that fits and that a person reserved for the node's address; the one
    /// that it had, whose address may be another node's by now; one by address rather than by device, the
    /// previous subnet's, the oldest.
    pub(super) fn best(&self) -> Option<&Entry<M>> {
        let rank = |entry: &&Entry<M>| {
            let likeness = self.likeness(entry);
            let is_previous = Some(entry.key) == self.who.previous;
            let reserved = likeness == Some(Likeness::Address) && entry.is_made_by_hand();
            let attrs = entry.attrs.as_ref();
            let had = is_previous && attrs.is_some_and(|attrs| self.who.names_device(attrs));
            (!reserved, !had, likeness, !is_previous, entry.seniority)
        };
        let fitting = self.candidates.values().filter(|entry| entry.fits);
        fitting.min_by_key(rank)
    }

    fn likeness(&self, entry: &Entry<M>) -> Option<Likeness> {
        self.who.likeness(entry.attrs.as_ref()?)
    }

    /// Whether this machine itself had the lease before, so that nobody need be asked: the address is its
    /// own, and so is the subnet that it had, or a device that it has. A device alone proves nothing: a clone
    /// of a running machine has the same, and another address.
    fn is_proven(&self, entry: &Entry<M>) -> bool {
        let ours = |attrs: &LeaseAttrs| {
            Some(entry.key) == self.who.previous || self.who.names_device(attrs)
        };
        entry.signature.is_none()
            && self.likeness(entry) == Some(Likeness::Address)
            && entry.attrs.as_ref().is_some_and(ours)
            || entry.is_made_by_hand()
    }

    pub(super) fn next(&self, writer: WriterId, now: Time) -> Next<M> {
        let (Some(wanted), false) = (&self.wanted, self.over) else {
            return Next::Wait(None);
        };
        if let Some(key) = self.uncertain {
            return Next::Do(Request::Look { key });
        }
        if let Some((key, mark)) = &self.undo {
            return Next::Do(Request::Delete {
                key: *key,
                over: mark.clone(),
            });
        }
        let adopt = |entry: &Entry<M>, attrs: &LeaseAttrs, signature| {
            Next::Do(Request::Write {
                key: entry.key,
                value: Value {
                    attrs: attrs.clone(),
                    signature,
                },
                over: Some(entry.mark.clone()),
                reserved: entry.life == Life::Reserved,
            })
        };
        if let Some((key, until)) = self.asking {
            if now < until {
                return Next::Wait(Some(until));
            }
            if let Some(entry) = self.candidates.get(&key) {
                return adopt(entry, wanted, None);
            }
        }
        if let Some(key) = self.creating {
            return Next::Do(Request::Write {
                key,
                value: Value {
                    attrs: wanted.clone(),
                    signature: None,
                },
                over: None,
                reserved: false,
            });
        }
        if let Some(best) = self.best() {
            return match &best.attrs {
                Some(theirs) if !self.is_proven(best) => {
                    adopt(best, theirs, Some(Signature::Claimant(writer)))
                }
                _ => adopt(best, wanted, None),
            };
        }
        if !self.all_read {
            return Next::Do(Request::Read { anew: self.anew });
        }
        let unfit = self
            .candidates
            .values()
            .find(|entry| self.likeness(entry) == Some(Likeness::Address));
        if let Some(entry) = unfit {
            return Next::Do(Request::Delete {
                key: entry.key,
                over: entry.mark.clone(),
            });
        }
        Next::Do(Request::Pick { lost: self.lost })
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
            Event::ListingBegan => {
                self.anew = false;
                self.all_read = false;
                let asking = self.asking.map(|(key, _)| key);
                self.candidates.retain(|key, _| Some(*key) == asking);
            }
            Event::Entry(entry) => self.entry(entry),
            Event::Want(attrs) | Event::Publish(attrs) => {
                self.wanted = Some(attrs);
                if std::mem::take(&mut self.over) {
                    self.read_again();
                    self.full_once = false;
                }
            }
            // Another history: whatever was read of the old one does not count.
            Event::HistoryLost => {
                self.read_again();
                self.asking = None;
                self.candidates.clear();
            }
            Event::Answer(answer) => return self.answer(answer, request, writer, policy, now),
            Event::Failed => self.failed(request),
            Event::Observed(_) | Event::Reassigned(_) | Event::Retry | Event::Tick => {}
        }
        Step::Stay(Vec::new())
    }

    fn entry(&mut self, entry: Entry<M>) {
        if self.likeness(&entry).is_some() && !self.living.contains(&entry.key) {
            self.candidates.insert(entry.key, entry);
        } else {
            self.candidates.remove(&entry.key);
        }
    }

    fn read_again(&mut self) {
        self.all_read = false;
        self.anew = true;
    }

    fn failed(&mut self, request: Option<Request<M>>) {
        match request {
            Some(Request::Write {
                key, value, over, ..
            }) => {
                self.sent.add(value, over);
                self.uncertain = Some(key);
            }
            Some(Request::Delete { key, .. }) => self.uncertain = Some(key),
            Some(
                Request::Look { .. } | Request::Renew | Request::Read { .. } | Request::Pick { .. },
            )
            | None => {}
        }
    }

    fn answer(
        &mut self,
        answer: Answer<M>,
        request: Option<Request<M>>,
        writer: WriterId,
        policy: &Policy,
        now: Time,
    ) -> Step<M> {
        match (answer, request) {
            (Answer::Read { all }, _) => self.all_read = all,
            (Answer::Picked(Ok(key)), _) => {
                self.full_once = false;
                self.creating = Some(key);
            }
            (Answer::Picked(Err(why)), _) => {
                if self.lost == 0 || self.full_once {
                    self.over = true;
                    return Step::Stay(vec![Action::Full(why)]);
                }
                // It has been changing: some of what was lost may be free again.
                self.full_once = true;
                self.read_again();
            }
            (Answer::Written { entry, rival }, Some(Request::Write { value, .. })) => {
                return self.written(entry, rival, &value, policy, now);
            }
            (Answer::Differs(found), Some(Request::Write { key, .. })) => {
                let look = found.map(Look::There);
                return self.differs(key, look, None, writer, policy, now);
            }
            (Answer::Looked { look, rival }, _) => {
                if let Some(key) = self.uncertain.take() {
                    return self.differs(key, Some(look), rival, writer, policy, now);
                }
            }
            (Answer::Deleted | Answer::Differs(None), Some(Request::Delete { key, .. })) => {
                return Step::Stay(self.deleted(&key));
            }
            // It has changed: what it is depends on the new value.
            (Answer::Differs(Some(entry)), Some(Request::Delete { key, .. })) => {
                if self.undo.take_if(|(undo, _)| *undo == key).is_some() {
                    self.race_lost();
                } else {
                    self.entry(entry);
                }
            }
            _ => {}
        }
        Step::Stay(Vec::new())
    }

    fn deleted(&mut self, key: &SubnetKey) -> Vec<Action<M>> {
        if self.undo.take_if(|(undo, _)| undo == key).is_some() {
            self.race_lost();
            return Vec::new();
        }
        match self.candidates.remove(key) {
            Some(entry) => vec![Action::Say(Notice::Discarded(entry.key))],
            None => Vec::new(),
        }
    }

    fn race_lost(&mut self) {
        self.creating = None;
        self.lost += 1;
        if self.lost.is_multiple_of(RACES_A_LISTING) {
            self.read_again();
        }
    }

    fn written(
        &mut self,
        entry: Entry<M>,
        rival: Option<SubnetKey>,
        value: &Value,
        policy: &Policy,
        now: Time,
    ) -> Step<M> {
        let key = entry.key;
        if value.signature.is_some() {
            self.asking = Some((key, now + self.window(&entry, policy)));
            self.candidates.insert(key, entry);
            return Step::Stay(vec![Action::Say(Notice::Asking(key))]);
        }
        if rival.is_some() {
            self.undo = Some((key, entry.mark));
            return Step::Stay(Vec::new());
        }
        self.acquired(entry, now)
    }

    /// `key` is not as it was to be written over, or was looked at.
    fn differs(
        &mut self,
        key: SubnetKey,
        look: Option<Look<M>>,
        rival: Option<SubnetKey>,
        writer: WriterId,
        policy: &Policy,
        now: Time,
    ) -> Step<M> {
        let Some(Look::There(entry)) = look else {
            // Not there. What was to be created still is.
            self.asking.take_if(|(asked, _)| *asked == key);
            if self.undo.take_if(|(undo, _)| *undo == key).is_some() {
                self.race_lost();
            }
            self.candidates.remove(&key);
            return Step::Stay(Vec::new());
        };
        if self.undo.as_ref().is_some_and(|(undo, _)| *undo == key) {
            // The deletion of our own key did not take place, or somebody else took it since.
            if self.sent.has_value(&entry) || self.is_wanted(&entry) {
                self.undo = Some((key, entry.mark));
            } else {
                self.undo = None;
                self.race_lost();
            }
            return Step::Stay(Vec::new());
        }
        // Where a key was to be created, one that overlaps may exist.
        let before = self.candidates.get(&key).map(|before| &before.mark);
        let ours =
            entry.key == key && self.sent.may_be(&entry, before) && entry.signature.is_none();
        if self.creating == Some(key) {
            if !ours {
                self.entry(entry);
                self.race_lost();
                return Step::Stay(Vec::new());
            }
            if rival.is_some() {
                self.undo = Some((key, entry.mark));
                return Step::Stay(Vec::new());
            }
            return self.acquired(entry, now);
        }
        // Another node may want the same value; the etcd lease shows whose it is.
        if ours && self.is_wanted(&entry) && matches!(entry.life, Life::Until { .. }) {
            return self.acquired(entry, now);
        }
        let mut actions = Vec::new();
        let own_question = entry.signature == Some(Signature::Claimant(writer));
        match self.asking {
            Some((asked, _)) if asked == key && own_question => {
                self.candidates.insert(key, entry);
            }
            Some((asked, _)) if asked == key => return self.answered(entry, writer),
            _ if own_question => {
                self.asking = Some((key, now + self.window(&entry, policy)));
                self.candidates.insert(key, entry);
                actions.push(Action::Say(Notice::Asking(key)));
            }
            _ => self.entry(entry),
        }
        Step::Stay(actions)
    }

    /// Somebody wrote where we asked.
    fn answered(&mut self, entry: Entry<M>, writer: WriterId) -> Step<M> {
        self.asking = None;
        let key = entry.key;
        match (self.likeness(&entry), entry.signature) {
            // Another newcomer: the older one goes on.
            (Some(_), Some(Signature::Claimant(id))) if id > writer => {
                self.entry(entry);
            }
            (Some(Likeness::Address), _) => {
                let ours = self.who.public_ip;
                return Step::Over(Action::Revoked(Revocation::Outranked(key, ours)));
            }
            // A clone of this machine with another address: its lease is its own.
            _ => {
                self.candidates.remove(&key);
                self.living.push(key);
            }
        }
        Step::Stay(Vec::new())
    }

    /// How long an answer to a question about `entry` is waited for.
    fn window(&self, entry: &Entry<M>, policy: &Policy) -> Duration {
        let made = |attrs: &LeaseAttrs| self.who.is_made(attrs);
        if entry.attrs.as_ref().is_some_and(made) {
            policy.prompt_window
        } else {
            policy.answer_window
        }
    }

    fn is_wanted(&self, entry: &Entry<M>) -> bool {
        entry.attrs == self.wanted
    }

    fn acquired(&mut self, entry: Entry<M>, now: Time) -> Step<M> {
        let Some(wanted) = self.wanted.clone() else {
            return Step::Stay(Vec::new());
        };
        let key = entry.key;
        let notice = if self.creating == Some(key) {
            Notice::Created(key)
        } else {
            Notice::Adopted {
                key,
                reserved: entry.life == Life::Reserved,
            }
        };
        let lease = Lease {
            key,
            attrs: wanted.clone(),
            seniority: entry.seniority,
        };
        let holding = Box::new(Holding::new(entry, wanted, now));
        Step::Acquired(holding, vec![Action::Say(notice), Action::Acquired(lease)])
    }
}
