//! The log lines of the own lease's life.

use tracing::{info, warn};

use super::terms::{Notice, addresses};
use crate::retry_log::RetryLog;

impl Notice {
    /// Writes the notice to the log; what others do again and again is said once a minute.
    pub(crate) fn log(&self, said: &mut RetryLog) {
        match self {
            Notice::Adopted { key, reserved } => {
                let kind = if *reserved { "reservation" } else { "lease" };
                info!("{kind} {key}: ours from before, taken up again");
            }
            Notice::Asking(key) => info!(
                "lease {key} carries our public address or device: waiting a moment for an answer of a living node \
                 that holds it"
            ),
            Notice::Created(key) => info!("lease {key}: new"),
            Notice::Discarded(key) => warn!(
                "lease {key}: ours from before, but not one that the configuration allows: deleted"
            ),
            Notice::Second(key) => warn!(
                "lease {key}: a second one of this node, from a request that reached the store late: deleted"
            ),
            Notice::Overwritten(key, ours) => {
                let text = format!(
                    "somebody else wrote our lease {key}: another node with our public address {}, or a person; \
                     writing it again",
                    addresses(ours)
                );
                if said.is_due(&text) {
                    warn!("{text}");
                }
            }
            Notice::Asked(key, ours) => {
                let text = format!(
                    "another node with our public address {} or our device's MAC asks for our lease {key}: answering; \
                     give one of the two another address (--public-ip)",
                    addresses(ours)
                );
                if said.is_due(&text) {
                    warn!("{text}");
                }
            }
            Notice::Restored(key) => {
                info!("lease {key} had been lost in the store and is published again");
            }
        }
    }
}
