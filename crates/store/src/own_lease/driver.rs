//! Drives an [`OwnLease`] on a store: carries out what it asks for, passes on the answers, retries,
//! logs, and keeps its timers.
//!
//! A store implements [`Execute`] on the value that does its work and keeps a [`Driver`] alongside:
//!
//! 1. At a start, [`Driver::find`] and [`Driver::acquire`] run the machine until there is a lease.
//! 2. Afterwards the store's own loop reports events with [`Driver::observe`] and
//!    [`Driver::publish`], calls [`Driver::work`] in each round, waits until [`Driver::timer`] at the
//!    latest, and then calls [`Driver::timer_expired`]. After it has reconnected it calls
//!    [`Driver::retry`].

use std::collections::VecDeque;
use std::fmt::Display;
use std::future::{Future, ready};
use std::sync::Arc;
use std::time::Duration;

use model::{Lease, LeaseAttrs};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::{Action, Answer, Event, Life, Notice, OwnLease, Request, Revocation, Time};
use crate::event_queue::EventQueue;
use crate::retry::{Assigned, Retry, StoreStatus};
use crate::retry_log::RetryLog;
use crate::{AcquireError, clock};

/// What a store does for the node's own lease.
pub(crate) trait Execute {
    /// What identifies one state of a key: see [`super::Entry::mark`].
    type Mark: Clone + PartialEq + Send + Sync;
    /// Why a request failed.
    type Error: Display + Send;

    /// Carries out one request. Reading keys leads to events for `own`: see [`OwnLease`].
    ///
    /// # Errors
    /// The request failed, or its answer was lost: whether it was carried out is not known.
    fn execute(
        &mut self,
        request: Request<Self::Mark>,
        own: &mut Driver<Self::Mark>,
    ) -> impl Future<Output = Result<Answer<Self::Mark>, Self::Error>> + Send;

    /// Passes the own lease on to the daemon, as the store shows it now.
    fn record(&mut self, lease: Lease, mark: Self::Mark);

    /// Returns how long to wait before a request that failed with `error` is retried; `None` if the
    /// store has to be reached again first.
    fn retry_after(&self, error: &Self::Error) -> Option<Duration>;

    /// Writes a notice to the log, in the words of the store.
    fn say(&self, notice: &Notice, log: &mut RetryLog) {
        notice.log(log);
    }

    /// Gives back what was prepared for a lease: there is no free subnet.
    fn release(&mut self) -> impl Future<Output = ()> + Send {
        ready(())
    }
}

/// How an acquisition ended.
type Acquired = Result<Lease, AcquireError>;

/// An own lease, what it asked for, and when it wants to be asked again.
#[derive(Debug)]
pub(crate) struct Driver<M> {
    lease: OwnLease<M>,
    pending: VecDeque<Action<M>>,
    /// When the machine wants [`Event::Tick`].
    wake: Option<Time>,
    /// When a refused request may be retried.
    retry_at: Option<Instant>,
    queue: Arc<EventQueue>,
    status: StoreStatus,
    log: RetryLog,
}

impl<M: Clone + PartialEq + Send + Sync> Driver<M> {
    /// Creates a driver for `lease`. It reports a lost lease through `queue`, and through `status` what it
    /// waits for and which subnet is this node's.
    pub(crate) fn new(
        lease: OwnLease<M>,
        queue: Arc<EventQueue>,
        status: StoreStatus,
    ) -> Driver<M> {
        Driver {
            lease,
            pending: VecDeque::new(),
            wake: None,
            retry_at: None,
            queue,
            status,
            log: RetryLog::default(),
        }
    }

    /// Returns the state of the own lease.
    pub(crate) fn lease(&self) -> &OwnLease<M> {
        &self.lease
    }

    /// Passes an event to the machine, and queues what it asks for.
    pub(crate) fn observe(&mut self, event: Event<M>) {
        self.wake = None;
        for action in self.lease.on(event, clock::now()) {
            match action {
                Action::WakeAt(at) => self.wake = Some(at),
                action => self.pending.push_back(action),
            }
        }
        let ends = match self.lease.held().map(|entry| entry.life) {
            Some(Life::Until { ends, .. }) => Some(ends),
            Some(Life::Reserved | Life::Foreign) | None => None,
        };
        self.status.activity().set_lease_end(ends);
    }

    /// Has `desired` published. Returns whether that changes the public address.
    pub(crate) fn publish(&mut self, desired: LeaseAttrs) -> bool {
        let held = self.lease.held().and_then(|entry| entry.attrs.as_ref());
        let moved = held.is_some_and(|held| held.public_ip != desired.public_ip);
        self.observe(Event::Publish(desired));
        moved
    }

    /// Retries what failed: the store is reached again.
    pub(crate) fn retry(&mut self) {
        self.retry_at = None;
        self.observe(Event::Retry);
    }

    /// Returns the lease that the store holds for this node already, or `None` if there is none.
    /// Reads only as far as it takes to find one; waits while the store cannot be read.
    pub(crate) async fn find<S: Execute<Mark = M>>(&mut self, store: &mut S) -> Option<Lease> {
        let mut retry = Retry::reporting_to(&self.status);
        loop {
            if let Some(entry) = self.lease.found() {
                retry.over();
                return Some(Lease {
                    key: entry.key,
                    attrs: entry.attrs.clone()?,
                    seniority: entry.seniority,
                });
            }
            match store.execute(Request::Read { anew: false }, self).await {
                Ok(Answer::Read { all: true }) if self.lease.found().is_none() => {
                    retry.over();
                    return None;
                }
                Ok(_) => {}
                Err(error) => retry.wait(&error.to_string(), true).await,
            }
        }
    }

    /// Takes a subnet and publishes `attrs` under it; waits while the store does not answer.
    pub(crate) async fn acquire<S: Execute<Mark = M>>(
        &mut self,
        store: &mut S,
        attrs: LeaseAttrs,
    ) -> Acquired {
        let mut retry = Retry::reporting_to(&self.status);
        self.observe(Event::Want(attrs));
        loop {
            match self.carry_out(store).await {
                Ok(Some(acquired)) => {
                    retry.over();
                    return acquired;
                }
                Ok(None) => match self.wake {
                    Some(at) => {
                        sleep_until(clock::timer(at)).await;
                        self.observe(Event::Tick);
                    }
                    // The machine always has something to do, or to wait for.
                    None => self.observe(Event::Retry),
                },
                Err(error) => {
                    retry.wait(&error.to_string(), true).await;
                    self.observe(Event::Retry);
                }
            }
        }
    }

    /// Carries out what the machine asked for. A request that the store refuses is retried later.
    ///
    /// # Errors
    /// The store cannot be reached; call [`Driver::retry`] when it can.
    pub(crate) async fn work<S: Execute<Mark = M>>(
        &mut self,
        store: &mut S,
    ) -> Result<(), S::Error> {
        let Err(error) = self.carry_out(store).await else {
            return Ok(());
        };
        let Some(pause) = store.retry_after(&error) else {
            return Err(error);
        };
        let text = error.to_string();
        if self.log.is_due(&text) {
            warn!("this node's lease cannot be written: {text}; retrying");
        }
        self.retry_at = Some(Instant::now() + pause.mul_f64(0.5 + fastrand::f64()));
        Ok(())
    }

    /// Returns when to call [`Driver::timer_expired`]; `None`: not before the next event.
    pub(crate) fn timer(&self) -> Option<Instant> {
        let wake = self.wake.map(clock::timer);
        [wake, self.retry_at].into_iter().flatten().min()
    }

    /// Takes in that time has passed. A call before [`Driver::timer`] is harmless.
    pub(crate) fn timer_expired(&mut self) {
        let due = self.retry_at.take_if(|at| *at <= Instant::now());
        self.observe(if due.is_some() {
            Event::Retry
        } else {
            Event::Tick
        });
    }

    /// Works off the queue of actions. Returns how an acquisition ended, if one did.
    async fn carry_out<S: Execute<Mark = M>>(
        &mut self,
        store: &mut S,
    ) -> Result<Option<Acquired>, S::Error> {
        while let Some(action) = self.pending.pop_front() {
            match action {
                Action::Do(request) => match store.execute(request, self).await {
                    Ok(answer) => self.observe(Event::Answer(answer)),
                    Err(error) => {
                        self.observe(Event::Failed);
                        return Err(error);
                    }
                },
                Action::Acquired(lease) => {
                    self.status.assign(Assigned::Subnet(lease.key));
                    self.record(store, lease.clone());
                    return Ok(Some(Ok(lease)));
                }
                Action::Changed(lease) => self.record(store, lease),
                Action::Full(why) => {
                    store.release().await;
                    return Ok(Some(Err(AcquireError::Full(why))));
                }
                Action::Revoked(reason) => {
                    if let Revocation::Taken(key, _)
                    | Revocation::Outranked(key, _)
                    | Revocation::Twin { own: key, .. } = &reason
                    {
                        self.status.assign(Assigned::AnotherNodes(*key));
                    }
                    self.queue.revoke(reason.to_string());
                    self.queue.flush();
                    return Ok(Some(Err(AcquireError::Held(reason.to_string()))));
                }
                Action::Say(notice) => store.say(&notice, &mut self.log),
                Action::WakeAt(_) => {}
            }
        }
        Ok(None)
    }

    fn record<S: Execute<Mark = M>>(&self, store: &mut S, lease: Lease) {
        if let Some(held) = self.lease.held() {
            store.record(lease, held.mark.clone());
        }
    }
}
