//! The log lines of the own lease's life.

use tracing::{debug, info, warn};

use super::terms::Notice;

impl Notice {
    /// Writes the notice to the log.
    pub(crate) fn log(&self) {
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
            Notice::Overwritten(key) => warn!(
                "somebody else wrote our lease {key}: another node with our public address, or a person; writing it \
                 again"
            ),
            Notice::Asked(key) => debug!(
                "lease {key}: another node with our public address or device asks for it; answering"
            ),
            Notice::Restored(key) => {
                info!("lease {key} had been lost in the store and is published again");
            }
        }
    }
}
