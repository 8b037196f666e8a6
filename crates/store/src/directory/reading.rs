//! Reading leases' files, and taking in what they say.

use std::ffi::OsString;
use std::io;
use std::num::NonZeroU64;
use std::time::Duration;

use model::{Lease, SubnetKey};
use tokio::time::Instant;
use tracing::warn;

use super::entry::{self, Entry};
use super::file_id::FileId;
use super::files::{Look, Place, parse_name};
use super::follow::{Fault, Follower, Seen};
use crate::claim::{Candidate, same_node, twin};

/// A file that makes no sense may be half written: so long until it is looked at again.
const HALF_WRITTEN: Duration = Duration::from_millis(500);

impl Follower {
    /// The subnet that a file name says; one that says none is skipped with a line.
    pub(super) fn key_of(&mut self, name: &OsString) -> Option<SubnetKey> {
        let key = parse_name(name);
        if key.is_none() && self.complaints.is_new(name, "name") {
            let dir = self.place.subnets();
            warn!(
                "{}: {name:?} names no subnet such as 172.30.80.0-24: skipped",
                dir.display()
            );
        }
        key
    }

    pub(super) async fn read(&mut self, keys: Vec<SubnetKey>) -> Result<(), Fault> {
        let known = self.with_states(keys);
        let looks = self.files(move |place| look_at_each(place, known)).await?;
        for (key, look) in looks {
            self.take_in(key, look).await?;
        }
        Ok(())
    }

    /// Each key with the state of its file that is known.
    pub(super) fn with_states(&self, keys: Vec<SubnetKey>) -> Vec<(SubnetKey, Option<NonZeroU64>)> {
        let id = |key: &SubnetKey| self.catalog.version(key).and_then(|seen| seen.state);
        keys.into_iter().map(|key| (key, id(&key))).collect()
    }

    /// Takes in one look at a file.
    pub(super) async fn take_in(&mut self, key: SubnetKey, look: Look) -> Result<(), Fault> {
        let own = self.holding.as_ref().is_some_and(|own| own.key == key);
        match look {
            Look::Same => {
                self.catalog.has(&key, |_| true);
            }
            Look::Gone => {
                self.complaints.settled(key);
                self.catalog.gone(&key);
                if own {
                    self.own_deleted().await?;
                }
            }
            Look::Lease(entry, id) => {
                self.complaints.settled(key);
                self.read_lease(key, &entry, id);
                if own {
                    self.own_changed(Some(entry), id).await?;
                }
            }
            Look::Bad(_, Some(id)) | Look::Empty(id) if id.is_young() => {
                self.doubtful.insert(key);
                self.doubts_end.get_or_insert(Instant::now() + HALF_WRITTEN);
                self.catalog.has(&key, |_| true);
            }
            Look::Empty(id) => {
                if self.complaints.is_new(key, "empty") {
                    warn!("{}/{key} is empty: skipped", self.place.subnets().display());
                }
                self.catalog.gone(&key);
                if own {
                    self.own_changed(None, id).await?;
                }
            }
            Look::Bad(reason, id) => {
                if self.complaints.is_new(key, &reason) {
                    warn!(
                        "{}/{key}: {reason}: skipped",
                        self.place.subnets().display()
                    );
                }
                self.catalog.saw(key, Seen::taken(id), None);
                if let Some(id) = id.filter(|_| own) {
                    self.own_changed(None, id).await?;
                }
            }
        }
        Ok(())
    }

    fn read_lease(&mut self, key: SubnetKey, entry: &Entry, id: FileId) {
        let lease = Lease {
            key,
            attrs: entry.attrs.clone(),
            seniority: entry.created.unwrap_or(id.modified_ms()),
        };
        if same_node(&lease.attrs, &self.public_ip) {
            match &self.holding {
                None => {
                    self.candidates.retain(|other| other.lease.key != key);
                    let reserved = entry.expires.is_none();
                    self.candidates.push(Candidate {
                        lease: lease.clone(),
                        reserved,
                        mark: id,
                    });
                }
                Some(own) if own.key != key => twin(&mut self.complaints, own.key, &lease),
                Some(_) => {}
            }
        }
        if entry.expires.is_some_and(|end| end <= entry::now()) {
            self.catalog.gone(&key);
        } else {
            self.catalog
                .saw(key, Seen::lease(id, entry.expires), Some(lease));
        }
    }
}

/// Looks at each file in turn. Files that are gone together with their directory are not gone.
pub(super) fn look_at_each(
    place: &Place,
    keys: Vec<(SubnetKey, Option<NonZeroU64>)>,
) -> io::Result<Vec<(SubnetKey, Look)>> {
    let mut looks = Vec::with_capacity(keys.len());
    for (key, known) in keys {
        looks.push((key, place.look(&key, known)?));
    }
    if looks.iter().any(|(_, look)| matches!(look, Look::Gone)) {
        place.stat().0?;
    }
    Ok(looks)
}
