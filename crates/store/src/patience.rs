//! Waiting for a store at the start of the daemon: until it is there, and saying so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::complaints::Waiting;

/// How long until a missing or bad configuration is looked at again (contract §3).
const AGAIN: Duration = Duration::from_secs(1);

/// What a store waits for at present: for whoever asks why the node is not ready.
#[derive(Clone, Debug, Default)]
pub struct Waits(Arc<Mutex<Option<String>>>);

impl Waits {
    /// The reason, if there is something to wait for.
    pub fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set(&self, reason: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// One wait, from its first reason to its end.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    waiting: Waiting,
    backoff: Backoff,
    said: bool,
    waits: Waits,
}

impl Patience {
    /// One that others can ask for its reason.
    pub(crate) fn telling(waits: &Waits) -> Patience {
        Patience {
            waits: waits.clone(),
            ..Patience::default()
        }
    }

    /// Waits a while because of `reason`, saying it when it is new, and once a minute. When the store
    /// does not answer (`away`) the wait grows; else it is a second.
    pub(crate) async fn wait(&mut self, reason: &str, away: bool) {
        self.waits.set(Some(reason.into()));
        if self.waiting.is_due(reason) {
            warn!("waiting: {reason}");
            self.said = true;
        }
        if away {
            self.backoff.wait().await;
        } else {
            self.backoff.reset();
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What was waited for is there.
    pub(crate) fn over(&mut self) {
        self.waits.set(None);
        if std::mem::take(&mut self.said) {
            info!("waiting is over");
        }
    }
}
