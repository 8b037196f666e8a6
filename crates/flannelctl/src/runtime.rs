//! The commands are plain functions; what waits for a store or the kernel does so here.

use std::future::Future;

/// Waits for `work`, on a runtime of its own. A file system that hangs keeps nothing behind.
///
/// # Errors
/// Those of `work`; or the system gives no runtime.
pub(crate) fn wait_for<T, E>(work: impl Future<Output = Result<T, E>>) -> anyhow::Result<T>
where
    anyhow::Error: From<E>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done?)
}
