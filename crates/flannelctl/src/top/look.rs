//! One look at the node: what its daemon reports, and the devices' counters.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use flanneld::report::{EventsReport, NodeReport, PeersReport};

use super::rates::{self, Counters};
use crate::status_socket;

/// What was found.
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) node: NodeReport,
    pub(super) peers: PeersReport,
    pub(super) events: EventsReport,
    pub(super) counters: Counters,
}

impl Look {
    /// Asks the daemon.
    ///
    /// # Errors
    /// It does not answer; the message says what to do.
    pub(super) fn take(socket: &Path) -> Result<Look> {
        Ok(Look {
            node: status_socket::get(socket, "/v1/status")?,
            peers: status_socket::get(socket, "/v1/peers")?,
            // An older daemon has none.
            events: status_socket::get(socket, "/v1/events").unwrap_or_default(),
            counters: rates::read(),
            at: Instant::now(),
        })
    }
}
