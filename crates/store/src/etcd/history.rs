//! Which history of etcd is known, up to where, and whether etcd still has the same one.
//!
//! An etcd that was restored from a backup has the same cluster identity and may have any revision. But in the one
//! history, the keys at a past revision never change: their number at the known position and the key that was changed last
//! before it are compared after every interruption. Both are cheap for etcd, whatever the number of keys.

use bytes::Bytes;

use super::failure::{FUTURE_REVISION, Failure};
use super::proto::{
    Header, KeyValue, RangeRequest, Request, RequestOp, Response, TxnRequest, TxnResponse,
};

/// A place in a history, and what was there.
#[derive(Clone, Debug, Default, PartialEq)]
struct Position {
    revision: i64,
    /// How many keys there were.
    population: i64,
    newest: Option<Newest>,
}

/// The key that was changed last.
#[derive(Clone, Debug, PartialEq)]
struct Newest {
    /// A copy: it is not to keep the whole answer in memory.
    key: Vec<u8>,
    mod_revision: i64,
    etcd_lease: i64,
}

/// The known history.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    /// 0 from a proxy, which then says nothing.
    cluster: u64,
    term: u64,
    /// Complete up to its revision.
    known: Position,
    /// What has arrived of a batch that is not complete.
    staged: Position,
    /// The revision of this program's last own write. The watch may be about to show it.
    own_write: i64,
}

impl History {
    /// A listing of the state at `header` begins.
    pub(super) fn begin(&mut self, header: &Header) {
        *self = History {
            cluster: header.cluster_id,
            term: header.raft_term,
            ..History::default()
        };
        self.staged.revision = header.revision;
    }

    /// A listing shows a key.
    pub(super) fn listed(&mut self, kv: &KeyValue) {
        self.staged.population += 1;
        self.changed(kv);
    }

    /// This program wrote, and etcd's answer had this revision.
    pub(super) fn wrote(&mut self, revision: i64) {
        self.own_write = self.own_write.max(revision);
    }

    /// A watch shows a key that was written.
    pub(super) fn put(&mut self, kv: &KeyValue) {
        if kv.mod_revision > self.known.revision {
            self.staged.population += i64::from(kv.create_revision == kv.mod_revision);
            self.changed(kv);
        }
    }

    /// A watch shows a key that was deleted.
    pub(super) fn deleted(&mut self, kv: &KeyValue) {
        if kv.mod_revision > self.known.revision {
            self.staged.population -= 1;
            self.staged.newest.take_if(|newest| newest.key == kv.key);
        }
    }

    fn changed(&mut self, kv: &KeyValue) {
        let newest = self.staged.newest.as_ref();
        if newest.is_none_or(|newest| newest.mod_revision < kv.mod_revision) {
            // In a listing nearly every key is newer than all before it.
            let former = self.staged.newest.take();
            let mut key = former.map(|newest| newest.key).unwrap_or_default();
            key.clear();
            key.extend_from_slice(&kv.key);
            self.staged.newest = Some(Newest {
                key,
                mod_revision: kv.mod_revision,
                etcd_lease: kv.lease,
            });
        }
    }

    /// What was staged is complete up to `revision`.
    pub(super) fn reach(&mut self, revision: i64) {
        self.staged.revision = self.staged.revision.max(revision);
        self.known = self.staged.clone();
    }

    /// Forgets what was staged: a new watch will show it again.
    pub(super) fn rewind(&mut self) {
        self.staged = self.known.clone();
    }

    pub(super) fn revision(&self) -> i64 {
        self.known.revision
    }

    /// Whether an answer can come from the etcd that is known.
    pub(super) fn is_same_cluster(&self, header: &Header) -> bool {
        self.cluster == 0 || header.cluster_id == 0 || header.cluster_id == self.cluster
    }

    /// The questions whose answers show whether the history is still the same. `(start, end)` is the range of all keys.
    pub(super) fn question(&self, (key, range_end): (Bytes, Bytes)) -> TxnRequest {
        let revision = self.known.revision;
        let mut ranges = vec![RangeRequest {
            key,
            range_end,
            revision,
            count_only: true,
            ..RangeRequest::default()
        }];
        ranges.extend(self.known.newest.as_ref().map(|newest| RangeRequest {
            key: newest.key.clone().into(),
            revision,
            ..RangeRequest::default()
        }));
        let ops = ranges.into_iter().map(|range| RequestOp {
            request: Some(Request::Range(range)),
        });
        TxnRequest {
            success: ops.collect(),
            ..TxnRequest::default()
        }
    }

    /// Why the history is another one, if the answers to [`History::question`] show that.
    pub(super) fn break_in(&self, answer: &TxnResponse) -> Option<&'static str> {
        let header = answer.header.clone().unwrap_or_default();
        if !self.is_same_cluster(&header) {
            return Some("it is another cluster than before");
        }
        if header.revision < self.known.revision.max(self.own_write)
            || (header.raft_term != 0 && header.raft_term < self.term)
        {
            return Some("it has lost what it knew");
        }
        let mut ranges = answer.responses.iter().filter_map(|op| match &op.response {
            Some(Response::Range(range)) => Some(range),
            _ => None,
        });
        let population = ranges.next().map_or(0, |range| range.count);
        let newest = ranges.next().and_then(|range| range.kvs.first());
        let newest = newest.map(|kv| (kv.mod_revision, kv.lease));
        let known = self.known.newest.as_ref();
        let known = known.map(|newest| (newest.mod_revision, newest.etcd_lease));
        (population != self.known.population || newest != known)
            .then_some("it has another history than before")
    }

    /// Whether a failure says that etcd has not come as far as this history.
    pub(super) fn is_ahead_of(failure: &Failure) -> bool {
        matches!(failure, Failure::Refused(why) if why.contains(FUTURE_REVISION))
    }
}
