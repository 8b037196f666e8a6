//! Whether the store is there: one line when it goes, one when it is back.

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::feed::Feed;

/// The store's presence.
#[derive(Debug)]
pub(crate) struct Presence {
    name: &'static str,
    away_since: Option<Instant>,
}

impl Presence {
    /// `name` is what the store is called in messages.
    pub(crate) fn new(name: &'static str) -> Presence {
        Presence {
            name,
            away_since: None,
        }
    }

    /// It is not there: what is missing is not gone.
    pub(crate) fn away(&mut self, feed: &Feed, reason: &str) {
        feed.set_complete(false);
        feed.flush();
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
    pub(crate) fn back(&mut self, feed: &Feed, place: &str) {
        if let Some(since) = self.away_since.take() {
            info!(
                "{} is back after {:.1} s: {place}",
                self.name,
                since.elapsed().as_secs_f64()
            );
        }
        feed.set_complete(true);
        feed.flush();
    }
}
