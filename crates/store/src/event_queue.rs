//! Events on their way from the task that follows a store to the daemon. A later state of a lease replaces an earlier
//! one, so there are never more than leases, and adding to them never blocks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{Lease, NetConfig, SubnetKey};
use tokio::sync::Notify;

use crate::{LeaseStates, StoreEvent};

/// The events that the daemon has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    leases: LeaseStates,
    complete: bool,
    revoked: Option<String>,
    config: Option<Result<NetConfig, String>>,
    /// Something has changed since the last event.
    fresh: bool,
}

impl EventQueue {
    /// Reports the state of a lease; `None`: it is gone.
    pub(crate) fn lease(&self, key: SubnetKey, state: Option<Lease>) {
        let mut pending = self.lock();
        pending.leases.set(key, state);
        pending.fresh = true;
    }

    /// Reports whether all leases that exist have been reported.
    pub(crate) fn set_complete(&self, complete: bool) {
        let mut pending = self.lock();
        if pending.complete != complete {
            pending.complete = complete;
            pending.fresh = true;
        }
    }

    /// Reports that our own lease is lost.
    pub(crate) fn revoke(&self, reason: String) {
        let mut pending = self.lock();
        pending.revoked = Some(reason);
        pending.fresh = true;
    }

    /// Reports the network configuration, or why it cannot be used, and wakes the daemon.
    pub(crate) fn config(&self, config: Result<NetConfig, String>) {
        let mut pending = self.lock();
        pending.config = Some(config);
        pending.fresh = true;
        drop(pending);
        self.wake.notify_one();
    }

    /// Wakes the daemon if there is something: called once a batch rather than once a lease.
    pub(crate) fn flush(&self) {
        if self.lock().fresh {
            self.wake.notify_one();
        }
    }

    /// Waits for an event. Cancel-safe: it is taken and returned in one step.
    pub(crate) async fn next_event(&self) -> StoreEvent {
        loop {
            self.wake.notified().await;
            let mut pending = self.lock();
            if pending.fresh {
                pending.fresh = false;
                return StoreEvent {
                    leases: std::mem::take(&mut pending.leases),
                    complete: pending.complete,
                    revoked: pending.revoked.clone(),
                    config: pending.config.take(),
                };
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
