//! File work, on threads that may block: the daemon's own thread must not wait for a file system.

use std::io;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::files::Place;
use super::follow::{Fault, Follower};

/// A file system that does not answer for so long is away.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

impl Follower {
    /// Does file work on a thread that may block. One that takes very long is waited for, but the
    /// store is away meanwhile.
    pub(super) async fn files<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Place) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let thread = self.begin(work);
        self.finish(thread).await
    }

    /// Begins file work; its result is for [`Follower::finish`].
    pub(super) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Place) -> io::Result<T> + Send + 'static,
    ) -> JoinHandle<io::Result<T>> {
        let place = self.place.clone();
        spawn_blocking(move || work(&place))
    }

    /// StoreStatus for the end of file work.
    pub(super) async fn finish<T>(
        &mut self,
        mut thread: JoinHandle<io::Result<T>>,
    ) -> Result<T, Fault> {
        loop {
            match timeout(PATIENCE, &mut thread).await {
                Ok(Ok(done)) => return done.map_err(|e| self.fault(&e)),
                Ok(Err(e)) => return Err(Fault(e.to_string())),
                Err(_) => {
                    let root = self.place.root().display();
                    self.reachability
                        .away(&self.queue, &format!("{root} does not answer"));
                }
            }
        }
    }

    pub(super) fn fault(&self, error: &io::Error) -> Fault {
        Fault(format!("{}: {error}", self.place.root().display()))
    }
}
