//! What our own lease's file holds, and how the own lease's machine sees a file.

use std::sync::Arc;
use std::time::Duration;

use model::{NetConfig, SubnetKey};

use super::entry::Entry;
use super::file_id::FileId;
use super::files::{Look, Place};
use crate::own_lease::{self, Answer, Cause, Life, Signature, Value};
use crate::{Timing, clock};

/// A file as the own lease's machine sees it.
pub(super) type OwnEntry = own_lease::Entry<FileId>;

/// Builds and reads our own file.
pub(super) struct OwnFile {
    place: Arc<Place>,
    config: NetConfig,
    timing: Timing,
}

impl OwnFile {
    pub(super) fn new(place: Arc<Place>, config: NetConfig, timing: Timing) -> OwnFile {
        OwnFile {
            place,
            config,
            timing,
        }
    }

    /// Returns when a lease that is written now ends, in seconds of the epoch.
    fn end_of_new_lease(&self) -> u64 {
        self.place.clock.now() + self.timing.ttl.as_secs()
    }

    /// Returns what a new file holds.
    pub(super) fn new_entry(&self, value: Value, reserved: bool) -> Entry {
        Entry {
            attrs: value.attrs,
            signature: value.signature,
            created: Some(self.place.clock.now_ms()),
            expires: (!reserved).then(|| self.end_of_new_lease()),
        }
    }

    /// Returns what a file holds after `value` was written over the lease in it. `was`: its state.
    pub(super) fn replacement(
        &self,
        value: Value,
        was: FileId,
        reserved: bool,
    ) -> impl FnOnce(Option<Entry>) -> Entry + Send + use<> {
        let (now, end) = (self.place.clock.now_ms(), self.end_of_new_lease());
        move |old| {
            // A question is no renewal: that is the holder's business.
            let question = matches!(value.signature, Some(Signature::Claimant(_)));
            let created = old
                .as_ref()
                .map_or(now, |old| old.created.unwrap_or_else(|| was.modified_ms()));
            Entry {
                attrs: value.attrs,
                signature: value.signature,
                created: Some(created),
                expires: match old {
                    Some(old) if question => old.expires,
                    _ => (!reserved).then_some(end),
                },
            }
        }
    }

    /// Returns the answer to a write that was carried out.
    pub(super) fn written(&self, key: SubnetKey, entry: Entry, id: FileId) -> Answer<FileId> {
        let question = matches!(entry.signature, Some(Signature::Claimant(_)));
        let expires = entry.expires;
        let mut entry = self.entry(key, Some(entry), id, None);
        if !question {
            // From now on we renew it.
            entry.life = self.life(expires);
        }
        Answer::Written { entry, rival: None }
    }

    /// Returns a look at a file as the own lease's machine takes it; `None` if it shows nothing new. `held`:
    /// the own lease. `data_lost`: the directory lost its files.
    pub(super) fn look(
        &self,
        key: SubnetKey,
        look: Look,
        held: Option<&OwnEntry>,
        data_lost: bool,
    ) -> Option<own_lease::Look<FileId>> {
        let (entry, id) = match look {
            Look::Same | Look::Bad(_, None) => return None,
            Look::Gone if data_lost => return Some(own_lease::Look::Gone(Cause::Lost)),
            Look::Gone => return Some(own_lease::Look::Gone(Cause::Deleted)),
            Look::Lease(entry, id) => (Some(entry), id),
            Look::Empty(id) | Look::Bad(_, Some(id)) => (None, id),
        };
        Some(own_lease::Look::There(self.entry(key, entry, id, held)))
    }

    /// Returns a file as the own lease's machine sees it. `entry`: what can be read in it.
    pub(super) fn entry(
        &self,
        key: SubnetKey,
        entry: Option<Entry>,
        id: FileId,
        held: Option<&OwnEntry>,
    ) -> OwnEntry {
        let held = held.filter(|held| held.key == key);
        let life = match (&entry, held) {
            (Some(Entry { expires: None, .. }), _) => Life::Reserved,
            (Some(Entry { expires, .. }), Some(_)) => self.life(*expires),
            // What nobody can read does not say how long it lives.
            (None, Some(held)) => held.life,
            (_, None) => Life::Foreign,
        };
        let created = entry.as_ref().and_then(|entry| entry.created);
        OwnEntry {
            key,
            signature: entry.as_ref().and_then(|entry| entry.signature),
            attrs: entry.map(|entry| entry.attrs),
            life,
            seniority: created.unwrap_or_else(|| id.modified_ms()),
            fits: self.config.fits(&key),
            mark: id,
        }
    }

    fn life(&self, expires: Option<u64>) -> Life {
        let Some(expires) = expires else {
            return Life::Reserved;
        };
        let left = Duration::from_secs(expires.saturating_sub(self.place.clock.now()));
        let ends = clock::now() + left;
        Life::Until {
            ends,
            renew: ends.saturating_sub(self.timing.margin_of(self.timing.ttl)),
        }
    }
}
