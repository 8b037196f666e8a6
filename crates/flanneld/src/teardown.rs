//! Taking the network down (`-teardown-on-stop`): everything that the daemon put on this node is
//! taken away again. Without the flag a stop leaves the data path in place.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use dataplane::Scope;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::options::Options;
use crate::reconcile::Reconciler;

/// How long the commands that remove peers may take in all.
const COMMANDS: Duration = Duration::from_secs(60);

/// Removes every object of `scope` from the kernel. Returns how many could not be removed.
/// The commands and connections that go are waited for.
pub(crate) async fn clear_kernel(scope: Scope, options: &Options) -> usize {
    let kernel = match options.machine.open_kernel(options) {
        Ok(kernel) => kernel,
        Err(error) => {
            warn!("the kernel is not asked to remove anything: {error}");
            return 1;
        }
    };
    let mut reconciler = Reconciler::new(kernel, scope);
    reconciler.set_may_delete(true);
    let mut pass = reconciler.pass().await;
    info!(removed = pass.deleted, "routes and devices are removed");
    let deadline = Instant::now() + COMMANDS;
    while pass.refused == 0 && !reconciler.in_sync() {
        if Instant::now() >= deadline {
            warn!("commands that remove peers still run, and are killed");
            return 1;
        }
        let due = deadline.min(reconciler.due());
        if let Ok(event) = tokio::time::timeout_at(due, reconciler.event()).await {
            reconciler.note(event);
        }
        pass = reconciler.pass().await;
    }
    reconciler.refused_len()
}

/// Removes a file of ours; that it is not there is as good.
pub(crate) fn remove_file(flag: &str, path: &Path) {
    let shown = path.display();
    match std::fs::remove_file(path) {
        Ok(()) => info!("removed {shown}"),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => warn!("{flag} {shown}: cannot remove it: {error}"),
    }
}
