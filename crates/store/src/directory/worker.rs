//! File work, on threads that may block: the daemon's own thread must not wait for a file system.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::files::Place;
use crate::event_queue::EventQueue;
use crate::reachability::Reachability;

/// A file system that does not answer for so long is unreachable.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The file system failed, or what should be there is not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Fault(pub String);

/// Does file work, and reports whether the file system answers.
pub(super) struct Worker {
    place: Arc<Place>,
    queue: Arc<EventQueue>,
    reachability: Reachability,
}

impl Worker {
    pub(super) fn new(place: Arc<Place>, queue: Arc<EventQueue>) -> Worker {
        Worker {
            place,
            queue,
            reachability: Reachability::new("the store directory"),
        }
    }

    /// Does file work on a thread that may block. Work that takes very long is waited for, but the
    /// store counts as unreachable meanwhile.
    pub(super) async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Place) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let thread = self.begin(work);
        self.finish(thread).await
    }

    /// Begins file work; its result is for [`Worker::finish`].
    pub(super) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Place) -> io::Result<T> + Send + 'static,
    ) -> JoinHandle<io::Result<T>> {
        let place = self.place.clone();
        spawn_blocking(move || work(&place))
    }

    /// Waits for the end of file work.
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
                    self.set_unreachable(&format!("{root} does not answer"));
                }
            }
        }
    }

    /// Returns a file system's error with the place that it is about.
    pub(super) fn fault(&self, error: &io::Error) -> Fault {
        Fault(format!("{}: {error}", self.place.root().display()))
    }

    /// Reports that the directory cannot be read.
    pub(super) fn set_unreachable(&mut self, reason: &str) {
        self.reachability.set_unreachable(&self.queue, reason);
    }

    /// Reports that all of the directory is known.
    pub(super) fn set_reachable(&mut self) {
        let root = self.place.root().display().to_string();
        self.reachability.set_reachable(&self.queue, &root);
    }
}
