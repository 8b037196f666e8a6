//! A node as far as its own lease goes: the machine, and between it and etcd what the daemon's store does.
//!
//! A request takes effect in [`Agent::arrive`] and its answer reaches the machine in [`Agent::answered`]: anything may
//! happen between the two, or instead of them. [`Agent::lose`] lets the request fail; a request that was not carried
//! out by then may still arrive late: [`Late`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::{LeaseAttrs, SubnetKey};
use store::own_lease::{
    Action, Answer, Cause, Entry, Event, Life, Look, OwnLease, Policy, Request, Signature, Time,
    Value, Who, WriterId,
};

use crate::etcd::{Etcd, LeaseId, Mark, Stored};

/// How long before its end an etcd lease is renewed.
const MARGIN: Duration = Duration::from_secs(30);

/// A write or deletion of a node that no longer waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Late {
    request: Request<Mark>,
    life: LeaseId,
}

/// The request of a node, and what became of it so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    request: Request<Mark>,
    /// What etcd answered; `None`: the request has not arrived.
    answer: Option<Reply>,
}

/// What etcd answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Reply {
    Answer(Box<Answer<Mark>>),
    /// A listing.
    Keys(Vec<(SubnetKey, Stored)>),
}

/// What makes a node this one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// How it recognises its lease.
    pub who: Who,
    /// What it publishes.
    pub attrs: LeaseAttrs,
    /// The subnets that it may take, the favourite first.
    pub pool: Vec<SubnetKey>,
}

/// One run of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    identity: Arc<Identity>,
    machine: OwnLease<Mark>,
    previous: Option<SubnetKey>,
    pending: Option<Pending>,
    blocked: bool,
    wake: Option<Time>,
    granted: Option<SubnetKey>,
    ended: Option<String>,
    /// The etcd lease of this run, and when it ends; 0: none yet.
    life: LeaseId,
    ends: Time,
    next_life: LeaseId,
    /// The keys as last seen.
    seen: BTreeMap<SubnetKey, Mark>,
    history: u32,
}

impl Agent {
    /// Starts a daemon. `run` counts the runs of all nodes: lower is older. `previous`: what the last run left in
    /// `subnet.env`.
    pub fn start(
        identity: &Arc<Identity>,
        previous: Option<SubnetKey>,
        run: u32,
        etcd: &Etcd,
        now: Time,
    ) -> Agent {
        let who = Who {
            previous,
            ..identity.who.clone()
        };
        let mut agent = Agent {
            identity: identity.clone(),
            machine: OwnLease::new(who, WriterId(u64::from(run)), Policy::default()),
            previous,
            pending: None,
            blocked: false,
            wake: None,
            granted: None,
            ended: None,
            life: 0,
            ends: Time::ZERO,
            next_life: run << 8 | 1,
            seen: BTreeMap::new(),
            history: etcd.history(),
        };
        agent.observe(Event::Want(identity.attrs.clone()), now);
        agent
    }

    /// Returns the subnet that the daemon uses.
    pub fn granted(&self) -> Option<SubnetKey> {
        self.granted
    }

    /// Returns why the daemon ended, if it did.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// Returns whether a request is on its way to etcd.
    pub fn is_asking(&self) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|sent| sent.answer.is_none())
    }

    /// Returns whether an answer is on its way to the node.
    pub fn is_answered(&self) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|sent| sent.answer.is_some())
    }

    /// Returns whether a failed request waits to be retried.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Returns when the machine is to be woken.
    pub fn wake(&self) -> Option<Time> {
        self.wake
    }

    /// Has something else published.
    pub fn publish(&mut self, attrs: LeaseAttrs, now: Time) {
        self.observe(Event::Publish(attrs), now);
    }

    fn observe(&mut self, event: Event<Mark>, now: Time) {
        self.wake = None;
        for action in self.machine.on(event, now) {
            match action {
                // It takes no time: what is free is known from the listing.
                Action::Do(Request::Pick { .. }) => {
                    let picked = Answer::Picked(self.pick());
                    self.observe(Event::Answer(picked), now);
                }
                Action::Do(request) => {
                    self.pending = Some(Pending {
                        request,
                        answer: None,
                    });
                }
                Action::Acquired(lease) => {
                    self.granted = Some(lease.key);
                    self.previous = Some(lease.key);
                }
                Action::Full(why) => self.ended = Some(why),
                Action::Revoked(why) => {
                    self.granted = None;
                    self.ended = Some(why.to_string());
                }
                Action::WakeAt(at) => self.wake = Some(at),
                Action::Changed(_) | Action::Say(_) => {}
            }
        }
        if self.ended.is_some() {
            (self.pending, self.wake, self.blocked) = (None, None, false);
        }
    }

    /// Lets the request take effect in etcd.
    pub fn arrive(&mut self, etcd: &mut Etcd, now: Time) {
        let Some(sent) = self.pending.as_ref().filter(|sent| sent.answer.is_none()) else {
            return;
        };
        let request = sent.request.clone();
        let answer = match request {
            Request::Read { .. } => {
                let keys = etcd.keys().iter();
                let keys = keys.map(|(key, stored)| (*key, stored.clone()));
                self.reply(Reply::Keys(keys.collect()));
                return;
            }
            Request::Pick { .. } => return,
            Request::Look { key } => Answer::Looked {
                look: self.look(etcd, &key),
                rival: None,
            },
            Request::Renew => match self.renew(etcd, now) {
                Some(life) => Answer::Renewed(life),
                None => Answer::LifeOver,
            },
            Request::Write {
                key,
                value,
                over,
                reserved,
            } => self.write(etcd, key, value, over, reserved, now),
            Request::Delete { key, over } => match etcd.delete(&key, over) {
                Ok(()) => Answer::Deleted,
                Err(there) => Answer::Differs(Some(self.entry(key, &there))),
            },
        };
        self.reply(Reply::Answer(Box::new(answer)));
    }

    fn reply(&mut self, reply: Reply) {
        if let Some(sent) = &mut self.pending {
            sent.answer = Some(reply);
        }
    }

    /// Passes the answer on to the machine.
    pub fn answered(&mut self, etcd: &Etcd, now: Time) {
        let Some(sent) = self.pending.take_if(|sent| sent.answer.is_some()) else {
            return;
        };
        let Some(reply) = sent.answer else { return };
        match reply {
            Reply::Keys(keys) => {
                self.listed(keys, now);
                self.observe(Event::Answer(Answer::Read { all: true }), now);
            }
            Reply::Answer(answer) => {
                self.explain(&answer, etcd, now);
                self.remember(&sent.request, &answer);
                self.observe(Event::Answer(*answer), now);
            }
        }
    }

    /// Lets the request fail, carried out or not. Returns what may still arrive.
    pub fn lose(&mut self, etcd: &mut Etcd, now: Time) -> Option<Late> {
        let sent = self.pending.take()?;
        let late = self.late(&sent, etcd, now);
        self.blocked = true;
        self.observe(Event::Failed, now);
        late
    }

    /// Kills the daemon. Returns what its `subnet.env` names, and what may still arrive.
    pub fn kill(mut self, etcd: &mut Etcd, now: Time) -> (Option<SubnetKey>, Option<Late>) {
        let sent = self.pending.take();
        let late = sent.and_then(|sent| self.late(&sent, etcd, now));
        (self.previous, late)
    }

    fn late(&mut self, sent: &Pending, etcd: &mut Etcd, now: Time) -> Option<Late> {
        if sent.answer.is_some() {
            return None;
        }
        match &sent.request {
            Request::Write {
                value,
                over,
                reserved,
                ..
            } => {
                let question = matches!(value.signature, Some(Signature::Claimant(_)));
                if !question && !reserved {
                    // The etcd lease was granted by a request of its own.
                    self.ensure(etcd, over.and_then(|mark| mark.hangs_on), now);
                }
            }
            Request::Delete { .. } => {}
            _ => return None,
        }
        Some(Late {
            request: sent.request.clone(),
            life: self.life,
        })
    }

    /// Retries what failed: etcd can be reached again.
    pub fn retry(&mut self, etcd: &Etcd, now: Time) {
        self.blocked = false;
        self.reconnect(etcd, now);
        self.observe(Event::Retry, now);
    }

    /// Does the next thing that this node has to do at `now`. Returns whether there was one.
    pub fn step(&mut self, etcd: &mut Etcd, now: Time) -> bool {
        if self.is_asking() {
            self.arrive(etcd, now);
        } else if self.is_answered() {
            self.answered(etcd, now);
        } else if self.is_blocked() {
            self.retry(etcd, now);
        } else if self.has_news(etcd) {
            self.watch(etcd, now);
        } else if self.wake().is_some_and(|at| at <= now) {
            self.tick(now);
        } else {
            return false;
        }
        true
    }

    /// Takes in that time has passed.
    pub fn tick(&mut self, now: Time) {
        self.observe(Event::Tick, now);
    }

    /// Returns whether a watch has something to show.
    pub fn has_news(&self, etcd: &Etcd) -> bool {
        let follows =
            self.ended.is_none() && self.pending.is_none() && self.machine.key().is_some();
        follows
            && (self.history != etcd.history()
                || self.seen.len() != etcd.keys().len()
                || etcd
                    .keys()
                    .iter()
                    .any(|(key, stored)| self.seen.get(key) != Some(&stored.mark)))
    }

    /// Takes in what a watch shows: the last state of everything that has changed.
    pub fn watch(&mut self, etcd: &Etcd, now: Time) {
        if self.reconnect(etcd, now) {
            return;
        }
        let changed: Vec<_> = etcd
            .keys()
            .iter()
            .filter(|(key, stored)| self.seen.get(key) != Some(&stored.mark))
            .map(|(key, stored)| (*key, stored.clone()))
            .collect();
        for (key, stored) in changed {
            let newer = self
                .held_mark()
                .is_none_or(|held| held.changed < stored.mark.changed);
            self.seen.insert(key, stored.mark);
            let entry = self.entry(key, &stored);
            if self.machine.key() != Some(key) {
                self.other(entry, now);
            } else if newer {
                self.observe(Event::Observed(Look::There(entry)), now);
            }
        }
        let gone: Vec<SubnetKey> = self
            .seen
            .keys()
            .filter(|key| !etcd.keys().contains_key(key))
            .copied()
            .collect();
        for key in gone {
            self.seen.remove(&key);
            if self.machine.key() == Some(key) {
                self.observe(Event::Observed(Look::Gone(Cause::Deleted)), now);
            }
        }
    }

    /// Lists all keys if etcd has another history. Returns whether it has.
    fn reconnect(&mut self, etcd: &Etcd, now: Time) -> bool {
        if self.history == etcd.history() || self.machine.key().is_none() {
            return false;
        }
        self.history = etcd.history();
        self.observe(Event::HistoryLost, now);
        let keys = etcd
            .keys()
            .iter()
            .map(|(key, stored)| (*key, stored.clone()));
        self.listed(keys.collect(), now);
        if let Some(own) = self.machine.key() {
            let look = self.look(etcd, &own);
            self.observe(Event::Observed(look), now);
        }
        true
    }

    fn listed(&mut self, keys: Vec<(SubnetKey, Stored)>, now: Time) {
        self.observe(Event::ListingBegan, now);
        self.seen.clear();
        for (key, stored) in keys {
            self.seen.insert(key, stored.mark);
            if self.machine.key() != Some(key) {
                let entry = self.entry(key, &stored);
                self.other(entry, now);
            }
        }
    }

    fn other(&mut self, entry: Entry<Mark>, now: Time) {
        let who = &self.identity.who;
        if entry
            .attrs
            .as_ref()
            .is_some_and(|attrs| who.likeness(attrs).is_some())
        {
            self.observe(Event::Entry(entry), now);
        }
    }

    /// An answer that shows the own key missing or older than it was makes the daemon compare histories.
    fn explain(&mut self, answer: &Answer<Mark>, etcd: &Etcd, now: Time) {
        let Some(own) = self.machine.key() else {
            return;
        };
        let held = self.held_mark();
        let is_older = |entry: &Entry<Mark>| {
            entry.key == own && held.is_some_and(|held| entry.mark.changed < held.changed)
        };
        let in_doubt = match answer {
            Answer::Looked { look, .. } => match look {
                Look::There(entry) => is_older(entry),
                Look::Gone(cause) => *cause == Cause::Deleted,
            },
            Answer::Differs(Some(entry)) => is_older(entry),
            _ => false,
        };
        if in_doubt && self.history != etcd.history() {
            self.observe(Event::HistoryLost, now);
        }
    }

    fn remember(&mut self, request: &Request<Mark>, answer: &Answer<Mark>) {
        match (answer, request) {
            (Answer::Written { entry, .. } | Answer::Differs(Some(entry)), _) => {
                self.seen.insert(entry.key, entry.mark);
            }
            (
                Answer::Looked {
                    look: Look::There(entry),
                    ..
                },
                _,
            ) => {
                self.seen.insert(entry.key, entry.mark);
            }
            (Answer::Deleted, Request::Delete { key, .. }) => {
                self.seen.remove(key);
            }
            _ => {}
        }
    }

    fn held_mark(&self) -> Option<Mark> {
        self.machine.held().map(|held| held.mark)
    }

    fn pick(&self) -> Result<SubnetKey, String> {
        let free = |key: &&SubnetKey| !self.seen.contains_key(key);
        self.previous
            .iter()
            .find(free)
            .or_else(|| self.identity.pool.iter().find(free))
            .copied()
            .ok_or_else(|| "no free subnet".into())
    }

    fn write(
        &mut self,
        etcd: &mut Etcd,
        key: SubnetKey,
        value: Value,
        over: Option<Mark>,
        reserved: bool,
        now: Time,
    ) -> Answer<Mark> {
        let old = over.and_then(|mark| mark.hangs_on);
        let hangs_on = if reserved {
            None
        } else if matches!(value.signature, Some(Signature::Claimant(_))) {
            old
        } else {
            Some(self.ensure(etcd, old, now))
        };
        if hangs_on.is_some_and(|id| !etcd.lives().contains_key(&id)) {
            // The lease has just ended, and with it the key.
            return Answer::Differs(None);
        }
        match etcd.put(key, value.clone(), hangs_on, over) {
            Ok(stored) => Answer::Written {
                entry: self.entry(key, &stored),
                rival: None,
            },
            // An attempt of a moment ago whose answer was lost.
            Err(Some(there)) if there.value == value && there.mark.hangs_on == hangs_on => {
                Answer::Written {
                    entry: self.entry(key, &there),
                    rival: None,
                }
            }
            Err(there) => Answer::Differs(there.map(|there| self.entry(key, &there))),
        }
    }

    fn ensure(&mut self, etcd: &mut Etcd, old: Option<LeaseId>, now: Time) -> LeaseId {
        if self.life != 0 && etcd.lives().contains_key(&self.life) {
            return self.life;
        }
        let known = self.life != 0;
        self.life = match old.filter(|id| !known && etcd.lives().contains_key(id)) {
            Some(old) => old,
            None => {
                self.next_life += 1;
                self.next_life - 1
            }
        };
        self.ends = etcd.grant(self.life, now);
        self.life
    }

    fn renew(&mut self, etcd: &mut Etcd, now: Time) -> Option<Life> {
        if !etcd.lives().contains_key(&self.life) {
            self.life = 0;
            return None;
        }
        self.ends = etcd.grant(self.life, now);
        Some(self.life_of(Some(self.life)))
    }

    fn look(&mut self, etcd: &Etcd, key: &SubnetKey) -> Look<Mark> {
        match etcd.keys().get(key) {
            Some(stored) => Look::There(self.entry(*key, stored)),
            None if self.life != 0 && !etcd.lives().contains_key(&self.life) => {
                self.life = 0;
                Look::Gone(Cause::Lost)
            }
            None if self.life == 0 && self.history != etcd.history() => Look::Gone(Cause::Lost),
            None => Look::Gone(Cause::Deleted),
        }
    }

    fn life_of(&self, hangs_on: Option<LeaseId>) -> Life {
        match hangs_on {
            None => Life::Reserved,
            Some(id) if id == self.life => Life::Until {
                ends: self.ends,
                renew: self.ends.saturating_sub(MARGIN),
            },
            Some(_) => Life::Foreign,
        }
    }

    fn entry(&self, key: SubnetKey, stored: &Stored) -> Entry<Mark> {
        Entry {
            key,
            attrs: Some(stored.value.attrs.clone()),
            signature: stored.value.signature,
            life: self.life_of(stored.mark.hangs_on),
            seniority: u64::from(stored.mark.created),
            fits: true,
            mark: stored.mark,
        }
    }
}

impl Late {
    /// Lets the request take effect, long after its sender gave up.
    pub fn arrive(self, etcd: &mut Etcd) {
        match self.request {
            Request::Write {
                key,
                value,
                over,
                reserved,
            } => {
                let question = matches!(value.signature, Some(Signature::Claimant(_)));
                let hangs_on = if reserved {
                    None
                } else if question {
                    over.and_then(|mark| mark.hangs_on)
                } else {
                    Some(self.life)
                };
                // Without its etcd lease nothing is written.
                if hangs_on.is_none_or(|id| etcd.lives().contains_key(&id)) {
                    let _refused = etcd.put(key, value, hangs_on, over);
                }
            }
            Request::Delete { key, over } => {
                let _refused = etcd.delete(&key, over);
            }
            Request::Read { .. } | Request::Pick { .. } | Request::Look { .. } | Request::Renew => {
            }
        }
    }
}
