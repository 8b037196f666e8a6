//! What is known of the directory: which leases there are, which files may be half written, and what a
//! directory that lost its files no longer shows.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use model::{Lease, SubnetKey};
use tokio::time::Instant;
use tracing::info;

use super::entry::Entry;
use super::file_id::FileId;
use super::files::{Look, Place, parse_name};
use crate::event_queue::EventQueue;
use crate::lease_index::LeaseIndex;
use crate::skip_log::SkipLog;

/// A file that makes no sense may be half written: so long until it is looked at again.
const HALF_WRITTEN: Duration = Duration::from_millis(500);

/// What is remembered of a key's file.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// [`FileId::digest`] of its state when it was read.
    state: Option<NonZeroU64>,
    /// Seconds of the epoch; `None`: never.
    expires: Option<NonZeroU64>,
}

impl Seen {
    /// A lease that was read.
    fn lease(id: FileId, expires: Option<u64>) -> Seen {
        // A lease that ended when the epoch began might as well have ended a second later.
        Seen {
            state: Some(id.digest()),
            expires: expires.map(|end| NonZeroU64::MIN.saturating_add(end.saturating_sub(1))),
        }
    }

    /// A lease that was read so soon after it was written that a later write may leave the same times: it
    /// is read once more, and nothing is new if it says the same.
    fn unsettled(id: FileId, entry: &Entry) -> Seen {
        let mut hasher = DefaultHasher::new();
        (id.unsettled(), entry.render()).hash(&mut hasher);
        Seen {
            state: NonZeroU64::new(hasher.finish()),
            ..Seen::lease(id, entry.expires)
        }
    }

    /// Something that is no lease, or was not read.
    fn taken(id: Option<FileId>) -> Seen {
        Seen {
            state: id.map(|id| id.digest()),
            expires: None,
        }
    }
}

/// A local copy of the directory, without the files' contents.
pub(super) struct Replica {
    place: Arc<Place>,
    index: LeaseIndex<Seen>,
    skipped: SkipLog,
    /// Files that may be half written, and when to look at them again.
    doubtful: BTreeSet<SubnetKey>,
    doubts_end: Option<Instant>,
    /// The directory lost its files: what is missing was not given up by its owner.
    data_lost: bool,
    /// How long leases are kept that the directory has lost.
    grace: Duration,
    /// When they count as gone.
    sweep_at: Option<Instant>,
}

impl Replica {
    pub(super) fn new(
        place: Arc<Place>,
        queue: Arc<EventQueue>,
        skipped: SkipLog,
        grace: Duration,
    ) -> Replica {
        Replica {
            place,
            index: LeaseIndex::new(queue),
            skipped,
            doubtful: BTreeSet::new(),
            doubts_end: None,
            data_lost: false,
            grace,
            sweep_at: None,
        }
    }

    /// Begins a listing; what it does not show is gone at its end.
    pub(super) fn begin_listing(&mut self) {
        self.index.begin();
        self.skipped.begin_listing();
    }

    /// Ends a listing: what was not shown is gone. Unless the files were lost: then their owners are
    /// about to publish them again.
    pub(super) fn end_listing(&mut self) {
        self.skipped.end_listing();
        if self.data_lost {
            self.sweep_at = Some(Instant::now() + self.grace);
        } else if self.sweep_at.is_none() {
            self.index.sweep();
        }
    }

    /// Records whether the directory lost its files.
    pub(super) fn set_data_lost(&mut self, lost: bool) {
        self.data_lost = lost;
    }

    pub(super) fn is_data_lost(&self) -> bool {
        self.data_lost
    }

    /// Returns the subnets that are in use.
    pub(super) fn taken(&self) -> Vec<SubnetKey> {
        self.index.taken().collect()
    }

    /// Returns the subnet that a file is named after. A name that is none is logged once, and skipped.
    pub(super) fn subnet(&mut self, name: &OsString) -> Option<SubnetKey> {
        let key = parse_name(name);
        if key.is_none() {
            let dir = self.place.subnets();
            self.skipped.skip(name, "name", || {
                format!(
                    "{}: {name:?} names no subnet such as 172.30.80.0-24: skipped",
                    dir.display()
                )
            });
        }
        key
    }

    /// Returns the state of the file of `key` that is known.
    pub(super) fn state(&self, key: &SubnetKey) -> Option<NonZeroU64> {
        self.index.version(key).and_then(|seen| seen.state)
    }

    /// Takes in one look at a file that is not ours.
    pub(super) fn take_in(&mut self, key: SubnetKey, look: Look) {
        match look {
            Look::Same => {
                self.index.has(&key, |_| true);
                self.skipped.unchanged(key);
            }
            Look::Gone => {
                self.skipped.is_well(key);
                self.index.remove(&key);
            }
            Look::Lease(entry, id) => {
                self.skipped.is_well(key);
                self.take_in_lease(key, &entry, id);
            }
            Look::Bad(_, Some(id)) | Look::Empty(id) if self.is_young(&id) => {
                self.look_again_at(key);
                self.index.has(&key, |_| true);
                self.skipped.unchanged(key);
            }
            Look::Empty(_) => {
                self.skip(key, "an empty file");
                self.index.remove(&key);
            }
            Look::Bad(reason, id) => {
                self.skip(key, &reason);
                self.index.put(key, Seen::taken(id), None);
            }
        }
    }

    fn take_in_lease(&mut self, key: SubnetKey, entry: &Entry, id: FileId) {
        let now = self.place.clock.now();
        if entry.expires.is_some_and(|end| end <= now) {
            self.index.remove(&key);
            return;
        }
        let unsettled = Seen::unsettled(id, entry);
        let seen = if id.is_young(now) {
            unsettled
        } else {
            Seen::lease(id, entry.expires)
        };
        if self.state(&key) == unsettled.state {
            self.index.refresh(&key, seen);
        } else {
            let lease = Lease {
                key,
                attrs: entry.attrs.clone(),
                seniority: entry.created.unwrap_or(id.modified_ms()),
            };
            self.index.put(key, seen, Some(lease));
        }
    }

    /// Takes in a look at our own file. Returns whether it shows something to act on: a file that may be
    /// half written is looked at again.
    pub(super) fn take_in_own(&mut self, key: SubnetKey, look: &Look) -> bool {
        match look {
            Look::Bad(_, Some(id)) | Look::Empty(id) if self.is_young(id) => {
                self.look_again_at(key);
                return false;
            }
            Look::Bad(reason, _) => self.skip(key, reason),
            Look::Gone => self.index.remove(&key),
            Look::Same | Look::Empty(_) | Look::Lease(..) => {
                self.index.has(&key, |_| true);
                self.skipped.is_well(key);
            }
        }
        true
    }

    /// Records our own lease as we wrote it.
    pub(super) fn put_own(&mut self, lease: Lease, id: FileId) {
        self.index
            .put(lease.key, Seen::taken(Some(id)), Some(lease));
    }

    /// Records that `key` is in use, whatever its value, which is still to be read.
    pub(super) fn put_unread(&mut self, key: SubnetKey) {
        if self.index.version(&key).is_none() {
            self.index.put(key, Seen::taken(None), None);
        }
    }

    /// Records that the file of `key` is not there any more.
    pub(super) fn remove(&mut self, key: &SubnetKey) {
        self.index.remove(key);
    }

    fn is_young(&self, id: &FileId) -> bool {
        id.is_young(self.place.clock.now())
    }

    fn look_again_at(&mut self, key: SubnetKey) {
        self.doubtful.insert(key);
        self.doubts_end.get_or_insert(Instant::now() + HALF_WRITTEN);
    }

    /// Returns when something is due: a second look at files, a line in the log.
    pub(super) fn timer(&self) -> Option<Instant> {
        let timers = [self.doubts_end, self.skipped.timer()];
        timers.into_iter().flatten().min()
    }

    /// Logs which files are new that are no leases.
    pub(super) fn log_skipped(&mut self) {
        self.skipped.flush();
    }

    /// Returns the files to look at again now.
    pub(super) fn take_doubtful(&mut self) -> Vec<SubnetKey> {
        if self
            .doubts_end
            .take_if(|end| *end <= Instant::now())
            .is_none()
        {
            return Vec::new();
        }
        std::mem::take(&mut self.doubtful).into_iter().collect()
    }

    /// Removes the leases that have ended, but `own`, and what has been missing for long enough.
    pub(super) fn expire(&mut self, own: Option<SubnetKey>) {
        let now = self.place.clock.now();
        let over = self
            .index
            .iter()
            .filter(|(key, seen)| {
                Some(*key) != own && seen.expires.is_some_and(|end| end.get() <= now)
            })
            .map(|(key, _)| key);
        for key in over.collect::<Vec<_>>() {
            info!("lease {key}: not renewed by its owner: expired");
            self.index.remove(&key);
        }
        if self.sweep_at.take_if(|at| *at <= Instant::now()).is_some() {
            self.index.sweep();
        }
    }

    fn skip(&mut self, key: SubnetKey, reason: &str) {
        let file = self.place.subnets().join(key.to_string());
        self.skipped.skip(key, reason, || {
            format!("{}: {reason}: skipped", file.display())
        });
    }
}
