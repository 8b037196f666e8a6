//! From the task that follows a store to the daemon that acts on it: one map, in which a later
//! state of a lease takes the place of an earlier one. It cannot overflow, and nobody waits in it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{Lease, SubnetKey};
use tokio::sync::Notify;

use crate::StoreEvent;

/// StoreEvent that nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    leases: BTreeMap<SubnetKey, Option<Lease>>,
    complete: bool,
    revoked: Option<String>,
    /// There is something to tell.
    fresh: bool,
}

impl EventQueue {
    /// A lease is so now, or is gone.
    pub(crate) fn lease(&self, key: SubnetKey, state: Option<Lease>) {
        let mut pending = self.lock();
        pending.leases.insert(key, state);
        pending.fresh = true;
    }

    /// Whether what was told is all there is.
    pub(crate) fn set_complete(&self, complete: bool) {
        let mut pending = self.lock();
        if pending.complete != complete {
            pending.complete = complete;
            pending.fresh = true;
        }
    }

    /// Our own lease is lost.
    pub(crate) fn revoke(&self, reason: String) {
        let mut pending = self.lock();
        pending.revoked = Some(reason);
        pending.fresh = true;
    }

    /// Lets the daemon see what was filed: once a batch rather than once a lease.
    pub(crate) fn flush(&self) {
        if self.lock().fresh {
            self.wake.notify_one();
        }
    }

    /// StoreStatus for news. Cancel-safe: news is taken and returned in one step.
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
                };
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
