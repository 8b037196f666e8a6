//! Reading all files: in batches, each handed on while the next one is being read.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU64;
use std::vec::IntoIter;

use model::SubnetKey;
use tokio::task::JoinHandle;

use super::file_id::FileId;
use super::files::{Look, Place};
use super::worker::{Fault, Worker};

/// Files in a batch: some milliseconds of work.
const BATCH: usize = 500;
/// Batches that are read at the same time: opening a file is mostly waiting.
const AT_ONCE: usize = 2;

/// Files as they were found.
pub(super) type Looks = Vec<(SubnetKey, Look)>;

/// A listing that is under way.
#[derive(Debug, Default)]
pub(super) struct Listing {
    names: Option<Remaining>,
    /// Batches that are being read, in order.
    coming: VecDeque<JoinHandle<io::Result<Looks>>>,
}

/// What of the directory is still to be read.
#[derive(Debug)]
struct Remaining {
    keys: IntoIter<SubnetKey>,
    dir: Option<FileId>,
    shows_own: bool,
}

impl Listing {
    /// Reads the names, unless that is done. Returns those that name no subnet. `own`: our own subnet.
    pub(super) async fn read_names(
        &mut self,
        own: Option<SubnetKey>,
        worker: &mut Worker,
    ) -> Result<Vec<String>, Fault> {
        if self.names.is_some() {
            return Ok(Vec::new());
        }
        let names = worker.run(Place::names).await?;
        self.names = Some(Remaining {
            shows_own: own.is_none_or(|own| names.keys.contains(&own)),
            keys: names.keys.into_iter(),
            dir: names.dir,
        });
        Ok(names.foreign)
    }

    /// Reads a batch of files; `None` at the end. `known` returns the state of a file that need not be
    /// read again.
    pub(super) async fn next(
        &mut self,
        known: impl Fn(&SubnetKey) -> Option<NonZeroU64>,
        worker: &mut Worker,
    ) -> Result<Option<Looks>, Fault> {
        let Some(names) = &mut self.names else {
            return Ok(None);
        };
        while self.coming.len() < AT_ONCE && names.keys.len() > 0 {
            let keys = names.keys.by_ref().take(BATCH);
            let keys = keys.map(|key| (key, known(&key))).collect();
            self.coming
                .push_back(worker.begin(move |place| place.look_at_each(keys)));
        }
        match self.coming.pop_front() {
            Some(batch) => worker.finish(batch).await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns the state that the directory had before the names were read.
    pub(super) fn dir(&self) -> Option<FileId> {
        self.names.as_ref()?.dir
    }

    /// Returns whether our own file was among the names, if we have one.
    pub(super) fn shows_own(&self) -> bool {
        self.names.as_ref().is_none_or(|names| names.shows_own)
    }
}
