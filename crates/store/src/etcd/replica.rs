//! What is known of etcd's keys: which leases there are, up to where in which history, and what an etcd
//! that lost data no longer shows.

use std::sync::Arc;
use std::time::Duration;

use model::{Lease, LeaseAttrs, SubnetKey};
use tokio::time::Instant;
use tracing::warn;

use super::history::History;
use super::keyspace::Keyspace;
use super::proto::{Header, KeyValue};
use crate::event_queue::EventQueue;
use crate::lease_index::LeaseIndex;
use crate::skip_log::SkipLog;

/// No network's leases change so often while a connection is down: an etcd that is so far ahead was restored with
/// `--bump-revision`.
const BUMPED: i64 = 500_000;

/// A local copy of etcd's keys, without their values.
pub(super) struct Replica {
    keys: Keyspace,
    index: LeaseIndex<i64>,
    skipped: SkipLog,
    history: History,
    /// The revision that was known before the present listing.
    before: i64,
    /// etcd went back in time, or is another one: what is missing there was lost, not deleted.
    data_lost: bool,
    /// How long leases are kept that etcd has lost: their owners are about to publish them again.
    grace: Duration,
    /// When the leases that etcd has lost count as gone.
    sweep_at: Option<Instant>,
}

impl Replica {
    pub(super) fn new(
        keys: Keyspace,
        queue: Arc<EventQueue>,
        skipped: SkipLog,
        grace: Duration,
    ) -> Replica {
        Replica {
            keys,
            index: LeaseIndex::new(queue),
            skipped,
            history: History::default(),
            before: 0,
            data_lost: false,
            grace,
            sweep_at: None,
        }
    }

    /// Returns the history that is known.
    pub(super) fn history(&self) -> &History {
        &self.history
    }

    /// Returns the history, for what a watch reports.
    pub(super) fn history_mut(&mut self) -> &mut History {
        &mut self.history
    }

    /// Returns how many leases there are.
    pub(super) fn len(&self) -> usize {
        self.index.iter().count()
    }

    /// Returns the subnets that are in use.
    pub(super) fn taken(&self) -> Vec<SubnetKey> {
        self.index.taken().collect()
    }

    /// Begins a listing; what it does not show is gone at its end.
    pub(super) fn begin_listing(&mut self) {
        self.before = self.before.max(self.history.revision());
        self.history = History::default();
        self.index.begin();
        self.skipped.begin_listing();
        // Versions of two histories may be equal by chance.
        self.index.forget_versions(0);
    }

    /// Takes in where in its history etcd answers the present listing.
    pub(super) fn listing_is_of(&mut self, header: &Header) {
        if self.history == History::default() {
            self.history.begin(header);
        }
    }

    /// Ends a listing. Returns by how far etcd's revision is implausibly ahead of what was known: it may
    /// have been restored with a raised revision.
    pub(super) fn end_listing(&mut self) -> bool {
        self.history.reach(0);
        self.skipped.end_listing();
        let before = std::mem::take(&mut self.before);
        self.history.revision().saturating_sub(before) > BUMPED
    }

    /// Removes what the listing did not show. What an etcd that lost data does not show is not gone yet: its
    /// owner is about to notice, and to publish it again.
    pub(super) fn remove_unlisted(&mut self) {
        if self.data_lost {
            self.sweep_at = Some(Instant::now() + self.grace);
            warn!(
                "etcd has lost data; leases that are missing now are kept for {} s more",
                self.grace.as_secs()
            );
        } else if self.sweep_at.is_none() {
            self.index.sweep();
        }
    }

    /// Records that etcd has lost data. Returns whether that is new.
    pub(super) fn set_data_lost(&mut self, lost: bool) -> bool {
        let new = lost != self.data_lost;
        self.data_lost = lost;
        new
    }

    /// Returns when [`Replica::timer_expired`] is due.
    pub(super) fn timer(&self) -> Option<Instant> {
        let timers = [self.sweep_at, self.skipped.timer()];
        timers.into_iter().flatten().min()
    }

    /// Removes what has been missing for long enough, and logs what is due.
    pub(super) fn timer_expired(&mut self) {
        let now = Instant::now();
        if self.sweep_at.take_if(|at| *at <= now).is_some() {
            self.index.sweep();
        }
        self.skipped.flush();
    }

    /// Returns the subnet that a key names. One that names none is logged once, and skipped.
    pub(super) fn subnet(&mut self, kv: &KeyValue) -> Option<SubnetKey> {
        match self.keys.parse(&kv.key) {
            Ok(key) => Some(key),
            Err(name) => {
                self.skipped.skip(kv.key.as_ref(), "key", || {
                    format!("etcd: key {name} names no subnet such as 172.30.80.0-24: skipped")
                });
                None
            }
        }
    }

    /// Returns whether `key` is known as it is in `kv`.
    pub(super) fn is_known(&mut self, key: &SubnetKey, kv: &KeyValue) -> bool {
        self.index.has(key, |revision| *revision == kv.mod_revision)
    }

    /// Returns the lease in a value. A value that makes no sense is logged once.
    pub(super) fn lease(&mut self, key: SubnetKey, kv: &KeyValue) -> Option<Lease> {
        match LeaseAttrs::from_json(&kv.value) {
            Ok(attrs) => {
                self.skipped.is_well(kv.key.as_ref());
                let seniority = u64::try_from(kv.create_revision).unwrap_or(0);
                Some(Lease {
                    key,
                    attrs,
                    seniority,
                })
            }
            Err(error) => {
                let error = error.to_string();
                self.skipped.skip(kv.key.as_ref(), &error, || {
                    format!("etcd: lease {key}: {error}: skipped")
                });
                None
            }
        }
    }

    /// Records a key as it is at `revision`, with its lease if it has a usable one.
    pub(super) fn put(&mut self, key: SubnetKey, revision: i64, lease: Option<Lease>) {
        self.index.put(key, revision, lease);
    }

    /// Records that `key` is in use, whatever its value, which is still to be read.
    pub(super) fn put_unread(&mut self, key: SubnetKey) {
        if self.index.version(&key).is_none() {
            // No key has this revision.
            self.index.put(key, 0, None);
        }
    }

    /// Records that `key` is not there any more.
    pub(super) fn remove(&mut self, key: &SubnetKey) {
        self.index.remove(key);
    }

    /// Logs which keys are new that are no leases.
    pub(super) fn log_skipped(&mut self) {
        self.skipped.flush();
    }

    /// Forgets what was wrong with the key of `kv`, which was deleted.
    pub(super) fn forget_fault(&mut self, kv: &KeyValue) {
        self.skipped.is_well(kv.key.as_ref());
    }
}
