//! The node's own lease: a pure state machine that every store drives in the same way.
//!
//! The machine compares what the node wants to have published with what the store shows, and asks
//! for one request at a time until both agree. It does no I/O, knows no store and reads no clock.
//!
//! # How a store drives it
//!
//! [`driver`] does all of this for a store that can carry out a [`Request`]:
//!
//! 1. Create it with [`OwnLease::new`] (the store gives out subnets) or [`OwnLease::assigned`]
//!    (somebody else assigns the subnet, as Kubernetes does).
//! 2. Carry out every [`Action`] that [`OwnLease::on`] returns, in order. [`Action::Do`] is a
//!    [`Request`]; the next one comes only after [`Event::Answer`]. Report an error, a time-out or
//!    a lost connection as [`Event::Failed`], whether or not the request may have been carried
//!    out: the machine finds out by looking. After a failure it waits for [`Event::Retry`]: send
//!    it when the store answers again, or after a back-off.
//! 3. While all keys are being read, send [`Event::Entry`] for each one that
//!    [`Who::likeness`] recognises.
//! 4. When the own key is seen to change, or to be gone, send [`Event::Observed`]. Do not send
//!    states that are older than the last one that was sent or answered. When the store has lost
//!    data or is another one, send [`Event::HistoryLost`] first.
//!    Where the subnet is assigned, send [`Event::Reassigned`] when another one is.
//! 5. Send [`Event::Tick`] at the last [`Action::WakeAt`], and [`Event::Publish`] when the node
//!    wants to have something else published.
//!
//! # Living nodes with one address
//!
//! A node recognises its lease of an earlier run by its public address or its device's MAC, and
//! another machine may have the same. A lease is adopted at once only if it has the node's address and
//! the previous `subnet.env` names the same subnet, or one of the node's devices has the MAC, and the
//! value bears no [`Signature`]. Otherwise the newcomer first writes
//! the value that it found, signed as [`Signature::Claimant`], and waits for
//! [`Policy::answer_window`], or [`Policy::prompt_window`]. A living holder answers each such write with its own value, signed
//! as [`Signature::Holder`]; then the newcomer takes no lease. If two holders meet, the one that
//! started earlier stays. Two that start at the same moment and both create a lease see each other's
//! key; the node of the younger key asks in the same way, and gives its key up if it is answered.
//!
//! | module | holds |
//! |---|---|
//! | [`terms`] | events, actions and the values in them |
//! | [`acquisition`] | from the first look to a lease: adopt, ask, discard, create |
//! | [`holding`] | the lease that the node has: kept as desired, or revoked |
//! | [`twins`] | other nodes with this node's address that took a subnet at the same moment |
//! | [`conflict`] | when and how to answer writes of others |
//! | [`sent`] | values that were sent and whose fate is not known |
//! | [`notice`] | the log lines |
//! | [`driver`] | the machine at work on a store |

mod acquisition;
mod conflict;
pub(crate) mod driver;
mod holding;
mod notice;
mod sent;
mod terms;
#[cfg(test)]
mod tests;
mod twins;

use std::time::Duration;

use acquisition::Acquisition;
pub(crate) use conflict::ConflictPolicy;
use holding::Holding;
pub(crate) use terms::addresses;
pub use terms::{
    Action, Answer, Cause, Entry, Event, Life, Likeness, Look, Notice, Request, Revocation,
    Signature, Time, Value, Who, WriterId, same_node,
};

/// What differs between stores.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// How long a newcomer waits for a living holder's answer.
    pub answer_window: Duration,
    /// The same where this program wrote the lease: a holder answers at once then. One that answers later
    /// still wins.
    pub prompt_window: Duration,
    /// How long after it took a lease a node still gives way to any other holder.
    pub young: Duration,
    /// Another node may become the owner, and a deleted lease is revoked. Not so where somebody
    /// else assigns the subnet: then the machine always writes what is desired.
    pub contended: bool,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            answer_window: Duration::from_secs(3),
            prompt_window: Duration::from_millis(500),
            young: Duration::from_secs(5),
            contended: true,
        }
    }
}

/// The life of the node's own lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnLease<M> {
    policy: Policy,
    writer: WriterId,
    stage: Stage<M>,
    /// The request that the store is working on.
    current: Option<Request<M>>,
    /// A request failed, and [`Event::Retry`] has not come yet.
    blocked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage<M> {
    Acquiring(Box<Acquisition<M>>),
    Held(Box<Holding<M>>),
    /// The lease was revoked, or none can be had.
    Over,
}

/// What a stage wants next.
enum Next<M> {
    Do(Request<M>),
    Wait(Option<Time>),
}

/// What follows from an event in a stage.
enum Step<M> {
    Stay(Vec<Action<M>>),
    Acquired(Box<Holding<M>>, Vec<Action<M>>),
    Over(Action<M>),
}

impl<M: Clone + PartialEq> OwnLease<M> {
    /// A node that looks for a lease of its own. `writer` identifies this run of the daemon and
    /// orders runs by age.
    pub fn new(who: Who, writer: WriterId, policy: Policy) -> OwnLease<M> {
        OwnLease {
            policy,
            writer,
            stage: Stage::Acquiring(Box::new(Acquisition::new(who))),
            current: None,
            blocked: false,
        }
    }

    /// A node whose subnet is assigned: `entry` is what the store shows for it, `desired` what it
    /// should show.
    pub fn assigned(
        entry: Entry<M>,
        desired: model::LeaseAttrs,
        writer: WriterId,
        policy: Policy,
        now: Time,
    ) -> OwnLease<M> {
        OwnLease {
            policy,
            writer,
            stage: Stage::Held(Box::new(Holding::new(entry, desired, now))),
            current: None,
            blocked: false,
        }
    }

    /// Handles an event; returns what is to be done.
    pub fn on(&mut self, event: Event<M>, now: Time) -> Vec<Action<M>> {
        match &event {
            Event::Retry => self.blocked = false,
            Event::Failed => self.blocked = true,
            _ => {}
        }
        let request = match &event {
            Event::Answer(_) | Event::Failed => self.current.take(),
            _ => None,
        };
        let step = match &mut self.stage {
            Stage::Acquiring(acquisition) => {
                acquisition.on(event, request, self.writer, &self.policy, now)
            }
            Stage::Held(holding) => holding.on(event, request, self.writer, &self.policy, now),
            Stage::Over => Step::Stay(Vec::new()),
        };
        let mut actions = match step {
            Step::Stay(actions) => actions,
            Step::Acquired(holding, actions) => {
                self.stage = Stage::Held(holding);
                actions
            }
            Step::Over(action) => {
                self.stage = Stage::Over;
                vec![action]
            }
        };
        if self.current.is_none() && !self.blocked {
            match self.next(now) {
                Next::Do(request) => {
                    self.current = Some(request.clone());
                    actions.push(Action::Do(request));
                }
                Next::Wait(Some(at)) => actions.push(Action::WakeAt(at)),
                Next::Wait(None) => {}
            }
        }
        actions
    }

    fn next(&self, now: Time) -> Next<M> {
        match &self.stage {
            Stage::Acquiring(acquisition) => acquisition.next(self.writer, now),
            Stage::Held(holding) => holding.next(self.writer, &self.policy, now),
            Stage::Over => Next::Wait(None),
        }
    }

    /// The lease that the store holds for this node already: the one that would be adopted.
    pub fn found(&self) -> Option<&Entry<M>> {
        match &self.stage {
            Stage::Acquiring(acquisition) => acquisition.best(),
            Stage::Held(holding) => holding.observed(),
            Stage::Over => None,
        }
    }

    /// The own lease as the store last showed it, once it is held.
    pub fn held(&self) -> Option<&Entry<M>> {
        match &self.stage {
            Stage::Held(holding) => holding.observed(),
            _ => None,
        }
    }

    /// The subnet that this node holds, whether or not the store shows it at present.
    pub fn key(&self) -> Option<model::SubnetKey> {
        match &self.stage {
            Stage::Held(holding) => Some(holding.key()),
            _ => None,
        }
    }

    /// The node has no lease and will get none.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }
}
