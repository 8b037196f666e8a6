//! Waiting for a store at the start of the daemon: until it is there, and saying so.

use std::time::Duration;

use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::complaints::Waiting;

/// How long until a missing or bad configuration is looked at again (contract §3).
const AGAIN: Duration = Duration::from_secs(1);

/// One wait, from its first reason to its end.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    waiting: Waiting,
    backoff: Backoff,
    said: bool,
}

impl Patience {
    /// Waits a while because of `reason`, saying it when it is new, and once a minute. When the store
    /// does not answer (`away`) the wait grows; else it is a second.
    pub(crate) async fn wait(&mut self, reason: &str, away: bool) {
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
        if std::mem::take(&mut self.said) {
            info!("waiting is over");
        }
    }
}
