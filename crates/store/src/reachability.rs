//! Whether the store can be reached: one log line when that ends, one when it begins again.

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::event_queue::EventQueue;

/// The store's reachability.
#[derive(Debug)]
pub(crate) struct Reachability {
    name: &'static str,
    unreachable_since: Option<Instant>,
}

impl Reachability {
    /// Creates the state of a store that messages call `name`.
    pub(crate) fn new(name: &'static str) -> Reachability {
        Reachability {
            name,
            unreachable_since: None,
        }
    }

    /// Reports that the store cannot be reached: leases that it does not show are kept.
    pub(crate) fn set_unreachable(&mut self, queue: &EventQueue, reason: &str) {
        queue.set_complete(false);
        queue.flush();
        if self.unreachable_since.is_none() {
            self.unreachable_since = Some(Instant::now());
            warn!(
                "{} is unreachable: {reason}; going on with what is known",
                self.name
            );
        } else {
            debug!("{} is still unreachable: {reason}", self.name);
        }
    }

    /// Reports that the store can be reached and that all of it is known.
    pub(crate) fn set_reachable(&mut self, queue: &EventQueue, place: &str) {
        if let Some(since) = self.unreachable_since.take() {
            info!(
                "{} is reachable again after {:.1} s: {place}",
                self.name,
                since.elapsed().as_secs_f64()
            );
        }
        queue.set_complete(true);
        queue.flush();
    }
}
