//! A task that does not outlive whoever needs it.

use std::future::Future;

use tokio::task::JoinHandle;

/// A running task; dropping this ends it.
#[derive(Debug)]
pub(crate) struct AbortOnDrop<T = ()>(JoinHandle<T>);

impl<T: Send + 'static> AbortOnDrop<T> {
    /// Starts `task`.
    pub(crate) fn spawn(task: impl Future<Output = T> + Send + 'static) -> AbortOnDrop<T> {
        AbortOnDrop(tokio::spawn(task))
    }

    /// Waits for its result; `None` if it did not come to an end. Cancel-safe.
    pub(crate) async fn result(&mut self) -> Option<T> {
        (&mut self.0).await.ok()
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
