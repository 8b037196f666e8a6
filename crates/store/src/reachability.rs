//! Whether the store is there: one line when it goes, one when it is back.

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::event_queue::EventQueue;

/// The store's reachability.
#[derive(Debug)]
pub(crate) struct Reachability {
    name: &'static str,
    away_since: Option<Instant>,
}

impl Reachability {
    /// `name` is what the store is called in messages.
    pub(crate) fn new(name: &'static str) -> Reachability {
        Reachability {
            name,
            away_since: None,
        }
    }

    /// It is not there: what is missing is not gone.
    pub(crate) fn away(&mut self, queue: &EventQueue, reason: &str) {
        queue.set_complete(false);
        queue.flush();
        if self.away_since.is_none() {
            self.away_since = Some(Instant::now());
            warn!(
                "{} is away: {reason}; going on with what is known",
                self.name
            );
        } else {
            debug!("{} is still away: {reason}", self.name);
        }
    }

    /// It is there, and all of it is known.
    pub(crate) fn back(&mut self, queue: &EventQueue, place: &str) {
        if let Some(since) = self.away_since.take() {
            info!(
                "{} is back after {:.1} s: {place}",
                self.name,
                since.elapsed().as_secs_f64()
            );
        }
        queue.set_complete(true);
        queue.flush();
    }
}
