//! The task that keeps our Node as it should be, and tells of troubles.

use std::sync::Arc;
use std::time::Duration;

use model::Family;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::annotations::Prefix;
use super::events::{Events, Trouble};
use super::http::{Client, Failure};
use super::own::{self, DesiredNode, Own};
use crate::backoff::Backoff;
use crate::retry_log::RetryLog;
use crate::tenure::{Reaction, Tenure};

/// When the API server says no, it is asked again after about so long.
const AGAIN: Duration = Duration::from_secs(20);
/// How often what others write over ours is looked at, once we have answered.
const ENDURE: Duration = Duration::from_secs(60);

/// What is known of our Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// What it says; `None`: there is none, or nothing is known yet.
    pub own: Option<Box<Own>>,
    /// Counts how often the Node was gone, or the API server went back in time: versions are compared
    /// within one epoch only. States in between may never be seen, the epoch always is.
    pub epoch: u64,
}

pub(super) struct Keeper {
    pub client: Arc<Client>,
    pub name: Arc<str>,
    pub prefix: Prefix,
    pub families: Vec<Family>,
    pub wish: watch::Receiver<DesiredNode>,
    pub seen: watch::Receiver<Seen>,
    pub troubles: mpsc::Receiver<Trouble>,
    pub events: Events,
    /// What the Node said as we wished, by our last write or because it did already.
    pub written: Option<Written>,
    /// [`Seen::epoch`] that `written` belongs to.
    pub epoch: u64,
    pub tenure: Tenure,
    pub backoff: Backoff,
    pub waiting: RetryLog,
}

/// A state of the Node that was as wished.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub uid: String,
    /// What is older than this is from before.
    pub version: u64,
    pub wish: DesiredNode,
}

impl Keeper {
    pub(super) async fn run(mut self) {
        loop {
            let again = self.settle().await;
            tokio::select! {
                Ok(()) = self.wish.changed() => {}
                Ok(()) = self.seen.changed() => {}
                Some(trouble) = self.troubles.recv() => self.events.post(trouble).await,
                () = until(again) => {}
            }
        }
    }

    /// Writes what differs. Returns when to look again although nothing changes.
    async fn settle(&mut self) -> Option<Instant> {
        let wish = self.wish.borrow_and_update().clone();
        let seen = self.seen.borrow_and_update().clone();
        if seen.epoch != self.epoch {
            self.epoch = seen.epoch;
            if let Some(written) = &mut self.written {
                written.version = 0;
            }
        }
        let own = seen.own?;
        let before = self
            .written
            .clone()
            .filter(|written| written.uid == own.uid);
        if before
            .as_ref()
            .is_some_and(|written| own.version < written.version)
        {
            return None;
        }
        let first = before
            .as_ref()
            .is_none_or(|written| written.wish.network != wish.network);
        let patch = own::difference(&own, &wish, &self.families, &self.prefix, first);
        let Some(patch) = patch else {
            self.written = Some(Written {
                uid: own.uid,
                version: own.version,
                wish,
            });
            return None;
        };
        if before.is_some_and(|written| written.wish == wish) {
            match self.tenure.foreign_write() {
                Reaction::Endure => return Some(Instant::now() + ENDURE),
                Reaction::Answer => warn!(
                    "somebody else changed what this node publishes on Node {}: writing it again: {patch}",
                    self.name
                ),
            }
        } else if self
            .written
            .as_ref()
            .is_some_and(|written| written.uid != own.uid)
        {
            info!("Node {} was made anew: publishing on it again", self.name);
        }
        debug!("Node {}: {patch}", self.name);
        let wait = match own::patch(&self.client, &self.name, &patch).await {
            Ok(version) => {
                self.backoff.reset();
                self.written = Some(Written {
                    uid: own.uid,
                    version,
                    wish,
                });
                return None;
            }
            // The watch is about to tell.
            Err(Failure::NotFound(_)) => return None,
            Err(Failure::Busy(wait, _)) => wait,
            Err(failure) if failure.is_away() => self.backoff.next(),
            Err(failure) => {
                let text = failure.to_string();
                if self.waiting.is_due(&text) {
                    warn!("cannot publish on Node {}: {text}; trying again", self.name);
                }
                AGAIN.mul_f64(0.5 + fastrand::f64())
            }
        };
        Some(Instant::now() + wait)
    }
}

/// Sleeps until then; for ever if there is no such time.
pub(super) async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
