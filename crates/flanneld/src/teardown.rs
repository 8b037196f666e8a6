//! Taking the network down (`-teardown-on-stop`): everything that the daemon put on this node is
//! taken away again. Without the flag a stop leaves the data path in place.

use std::io::ErrorKind;
use std::path::Path;

use dataplane::{Kernel, Scope};
use tracing::{info, warn};

use crate::reconcile::Reconciler;

/// Removes every object of `scope` from the kernel. Returns how many could not be removed.
pub(crate) async fn clear_kernel(scope: Scope, plain_routes: bool) -> usize {
    let kernel = match Kernel::open(plain_routes) {
        Ok(kernel) => kernel,
        Err(error) => {
            warn!("the kernel is not asked to remove anything: {error}");
            return 1;
        }
    };
    let mut reconciler = Reconciler::new(kernel, scope);
    reconciler.set_may_delete(true);
    let pass = reconciler.pass().await;
    info!(removed = pass.deleted, "routes and devices are removed");
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
