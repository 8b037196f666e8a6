//! Waiting for a store at the start of the daemon, with log lines.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use model::{Dual, SubnetKey};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::activity::Activity;
use crate::backoff::Backoff;
use crate::retry_log::RetryLog;

/// How long until a missing or bad configuration is read again (contract §3).
const AGAIN: Duration = Duration::from_secs(1);

/// What a store waits for at present, what it can serve only in part, and which subnet is known to be
/// this node's: for callers that must not wait themselves.
#[derive(Clone, Debug, Default)]
pub struct StoreStatus(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    reason: Mutex<Option<String>>,
    degraded: Mutex<Option<String>>,
    assigned: watch::Sender<Assigned>,
    skipped: AtomicUsize,
    activity: Activity,
}

/// Which subnet is this node's, as far as the store has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assigned {
    /// The store has not been read.
    #[default]
    Unknown,
    /// The node has none.
    Nothing,
    /// The node has this one.
    Subnet(SubnetKey),
    /// Another node has this one; whether this node has one is not known.
    AnotherNodes(SubnetKey),
}

impl Assigned {
    /// What a Node's subnets mean. `key` are those that lie in the network; others are no use.
    pub(crate) fn of(subnets: &Dual<IpNet>, key: Option<SubnetKey>) -> Assigned {
        match key.or_else(|| SubnetKey::new(*subnets)) {
            Some(key) => Assigned::Subnet(key),
            None => Assigned::Nothing,
        }
    }

    /// Whether this node is known not to have a subnet that `former` names.
    pub fn excludes(&self, former: &SubnetKey) -> bool {
        match self {
            Assigned::Unknown => false,
            Assigned::Nothing => true,
            Assigned::AnotherNodes(key) => key.overlaps(former),
            Assigned::Subnet(key) => {
                let mut nets = former.nets().iter();
                nets.any(|(family, net)| key.nets().get(family) != Some(net))
            }
        }
    }
}

impl StoreStatus {
    /// Returns what the store waits for, if it waits.
    pub fn get(&self) -> Option<String> {
        lock(&self.0.reason).clone()
    }

    /// Returns what cannot be served although the node works: one family of two.
    pub fn degraded(&self) -> Option<String> {
        lock(&self.0.degraded).clone()
    }

    /// Returns which subnet is this node's, and its changes.
    pub fn assigned(&self) -> watch::Receiver<Assigned> {
        self.0.assigned.subscribe()
    }

    /// Returns how many keys of the store are skipped because they are no leases.
    pub fn skipped_keys(&self) -> usize {
        self.0.skipped.load(Ordering::Relaxed)
    }

    /// Returns what the store was asked and how it answered.
    pub fn activity(&self) -> &Activity {
        &self.0.activity
    }

    pub(crate) fn set_skipped_keys(&self, count: usize) {
        self.0.skipped.store(count, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, reason: Option<String>) {
        *lock(&self.0.reason) = reason;
    }

    pub(crate) fn set_degraded(&self, what: Option<String>) {
        *lock(&self.0.degraded) = what;
    }

    pub(crate) fn assign(&self, assigned: Assigned) {
        self.0.assigned.send_if_modified(|now| {
            let changed = *now != assigned;
            *now = assigned;
            changed
        });
    }
}

fn lock(text: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One wait, with its reasons, from its beginning to its end.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    waiting: RetryLog,
    backoff: Backoff,
    logged: bool,
    status: StoreStatus,
}

impl Retry {
    /// Begins a wait whose reason is shown in `status`.
    pub(crate) fn reporting_to(status: &StoreStatus) -> Retry {
        Retry {
            status: status.clone(),
            ..Retry::default()
        }
    }

    /// Waits a while because of `reason`, which is logged when it is new, and once a minute. While the
    /// store is `unreachable` the waits grow; otherwise each is a second.
    pub(crate) async fn wait(&mut self, reason: &str, unreachable: bool) {
        self.status.set(Some(reason.into()));
        if self.waiting.is_due(reason) {
            warn!("waiting: {reason}");
            self.logged = true;
        }
        if unreachable {
            self.backoff.wait().await;
        } else {
            self.backoff.reset();
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Ends the wait: what was waited for is there.
    pub(crate) fn over(&mut self) {
        self.status.set(None);
        if std::mem::take(&mut self.logged) {
            info!("waiting is over");
        }
    }
}
