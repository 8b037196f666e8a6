//! The work on a store, from a daemon's first call to its end: at first done within those calls, one
//! after the other, then by a task.

use std::future::Future;
use std::sync::Arc;

use model::{Lease, LeaseAttrs, NetConfig};
use tokio::sync::watch;

use crate::event_queue::EventQueue;
use crate::own_lease::driver::{Driver, Execute};
use crate::own_lease::{OwnLease, Policy, Who};
use crate::retry::StoreStatus;
use crate::task::AbortOnDrop;
use crate::{AcquireError, Claim, StoreEvent, clock};

/// A store whose leases can be followed.
pub(crate) trait Follow: Execute + Send + Sized + 'static {
    /// Follows the store for ever: keeps `own`, publishes what is `desired`, and reports everybody's
    /// leases.
    fn follow(
        self,
        own: Driver<Self::Mark>,
        desired: watch::Receiver<Option<LeaseAttrs>>,
        status: StoreStatus,
    ) -> impl Future<Output = ()> + Send;
}

/// The work, and how the daemon reaches it.
pub(crate) struct StoreTask<S: Follow> {
    queue: Arc<EventQueue>,
    desired: watch::Sender<Option<LeaseAttrs>>,
    status: StoreStatus,
    /// Not running as a task yet.
    resting: Option<Box<Resting<S>>>,
    task: Option<AbortOnDrop>,
}

/// A store's work between two calls.
pub(crate) struct Resting<S: Follow> {
    config: NetConfig,
    who: Who,
    own: Driver<S::Mark>,
    store: S,
}

impl<S: Follow> StoreTask<S> {
    pub(crate) fn new() -> StoreTask<S> {
        StoreTask {
            queue: Arc::default(),
            desired: watch::Sender::new(None),
            status: StoreStatus::default(),
            resting: None,
            task: None,
        }
    }

    /// Returns what others can ask while a call waits.
    pub(crate) fn status(&self) -> &StoreStatus {
        &self.status
    }

    /// Returns where events are put for the daemon.
    pub(crate) fn queue(&self) -> &Arc<EventQueue> {
        &self.queue
    }

    /// Returns the search for the lease of `who` under `config`. What was read for the same search is
    /// kept; otherwise `open` begins one.
    pub(crate) fn search(
        &mut self,
        config: &NetConfig,
        who: &Who,
        open: impl FnOnce(&Arc<EventQueue>, &StoreStatus) -> S,
    ) -> &mut Resting<S> {
        self.task = None;
        let kept = self.resting.take().filter(|resting| {
            let lease = resting.own.lease();
            resting.config == *config
                && resting.who == *who
                && lease.key().is_none()
                && !lease.is_over()
        });
        self.resting.insert(kept.unwrap_or_else(|| {
            let lease = OwnLease::new(who.clone(), clock::writer_id(), Policy::default());
            Box::new(Resting {
                config: config.clone(),
                who: who.clone(),
                own: Driver::new(lease, self.queue.clone(), self.status.clone()),
                store: open(&self.queue, &self.status),
            })
        }))
    }

    /// Returns who asks for a lease with `claim`. The devices are those of the last search.
    pub(crate) fn claimant(&self, claim: &Claim) -> Who {
        let known = self.resting.as_ref().map(|resting| resting.who.clone());
        Who {
            public_ip: claim.attrs.public_ip,
            previous: claim.previous,
            ..known.unwrap_or_default()
        }
    }

    /// Has `attrs` published; `None` cancels what was to be published for an earlier lease.
    pub(crate) fn publish(&mut self, attrs: Option<LeaseAttrs>) {
        self.desired.send_replace(attrs);
    }

    /// Waits for events; the first call starts the task. Cancel-safe.
    pub(crate) async fn next_event(&mut self) -> StoreEvent {
        if let Some(Resting { own, store, .. }) = self.resting.take().map(|resting| *resting) {
            let following = store.follow(own, self.desired.subscribe(), self.status.clone());
            self.task = Some(AbortOnDrop::spawn(following));
        }
        self.queue.next_event().await
    }
}

impl<S: Follow> Resting<S> {
    /// See [`crate::Store::own`].
    pub(crate) async fn find(&mut self) -> Option<Lease> {
        self.own.find(&mut self.store).await
    }

    /// See [`crate::Store::acquire`].
    pub(crate) async fn acquire(&mut self, attrs: LeaseAttrs) -> Result<Lease, AcquireError> {
        self.own.acquire(&mut self.store, attrs).await
    }
}
