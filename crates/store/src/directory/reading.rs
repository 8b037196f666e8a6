//! Reading leases' files, and taking in what they say.

use std::ffi::OsString;
use std::io;
use std::num::NonZeroU64;
use std::time::Duration;

use model::{Lease, SubnetKey};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::entry::Entry;
use super::file_id::FileId;
use super::files::{Look, Place, parse_name};
use super::follow::{Fault, Follower, Seen};
use crate::own_lease::{Event, addresses};

/// A file that makes no sense may be half written: so long until it is looked at again.
const HALF_WRITTEN: Duration = Duration::from_millis(500);

impl Follower {
    /// The subnet that a file name says; one that says none is skipped with a line.
    pub(super) fn key_of(&mut self, name: &OsString) -> Option<SubnetKey> {
        let key = parse_name(name);
        if key.is_none() && self.fault_log.is_new(name, "name") {
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
        let id = |key: &SubnetKey| {
            // Until we have a lease, any may be ours: the machine is to see it.
            self.own.key()?;
            self.catalog.version(key).and_then(|seen| seen.state)
        };
        keys.into_iter().map(|key| (key, id(&key))).collect()
    }

    /// Takes in one look at a file.
    pub(super) async fn take_in(&mut self, key: SubnetKey, look: Look) -> Result<(), Fault> {
        if self.own.key() != Some(key) {
            self.take_in_other(key, look);
            return Ok(());
        }
        // We may have written it since it was looked at.
        let mut now = self
            .files(move |place| look_at_each(place, vec![(key, None)]))
            .await?;
        if let Some((_, look)) = now.pop() {
            self.observe_own(key, look);
        }
        Ok(())
    }

    fn take_in_other(&mut self, key: SubnetKey, look: Look) {
        match look {
            Look::Same => {
                self.catalog.has(&key, |_| true);
            }
            Look::Gone => {
                self.fault_log.settled(key);
                self.catalog.gone(&key);
            }
            Look::Lease(entry, id) => {
                self.fault_log.settled(key);
                self.read_lease(key, &entry, id);
            }
            Look::Bad(_, Some(id)) | Look::Empty(id) if id.is_young(self.place.clock.now()) => {
                self.look_again_at(key);
                self.catalog.has(&key, |_| true);
            }
            Look::Empty(_) => {
                self.complain(key, "an empty file");
                self.catalog.gone(&key);
            }
            Look::Bad(reason, id) => {
                self.complain(key, &reason);
                self.catalog.saw(key, Seen::taken(id), None);
            }
        }
    }

    /// Hands on what our own file shows now.
    fn observe_own(&mut self, key: SubnetKey, look: Look) {
        match &look {
            Look::Bad(_, Some(id)) | Look::Empty(id) if id.is_young(self.place.clock.now()) => {
                self.look_again_at(key);
                return;
            }
            Look::Bad(reason, _) => self.complain(key, reason),
            Look::Gone => self.catalog.gone(&key),
            Look::Same | Look::Empty(_) | Look::Lease(..) => {
                self.catalog.has(&key, |_| true);
                self.fault_log.settled(key);
            }
        }
        if let Some(look) = self.as_seen(key, look) {
            self.tell(Event::Observed(look));
        }
    }

    fn look_again_at(&mut self, key: SubnetKey) {
        self.doubtful.insert(key);
        self.doubts_end.get_or_insert(Instant::now() + HALF_WRITTEN);
    }

    fn complain(&mut self, key: SubnetKey, reason: &str) {
        if self.fault_log.is_new(key, reason) {
            let dir = self.place.subnets();
            warn!("{}/{key}: {reason}: skipped", dir.display());
        }
    }

    fn read_lease(&mut self, key: SubnetKey, entry: &Entry, id: FileId) {
        let lease = Lease {
            key,
            attrs: entry.attrs.clone(),
            seniority: entry.created.unwrap_or(id.modified_ms()),
        };
        if self.who.likeness(&lease.attrs).is_some() {
            match self.own.key() {
                None => {
                    let entry = self.entry(key, Some(entry.clone()), id);
                    self.tell(Event::Entry(entry));
                }
                Some(own) => self.complain_of_twin(own, &lease),
            }
        }
        let now = self.place.clock.now();
        if entry.expires.is_some_and(|end| end <= now) {
            self.catalog.gone(&key);
        } else {
            let unsettled = Seen::unsettled(id, entry);
            let known = self.catalog.version(&key).and_then(|seen| seen.state);
            let seen = if id.is_young(now) {
                unsettled
            } else {
                Seen::lease(id, entry.expires)
            };
            if known == unsettled.state {
                self.catalog.refresh(&key, seen);
            } else {
                self.catalog.saw(key, seen, Some(lease));
            }
        }
    }

    /// Logs that a lease beside our own one carries our public addresses or device. The daemon's roster
    /// refuses such a lease and says why: one line is enough.
    fn complain_of_twin(&mut self, own: SubnetKey, other: &Lease) {
        if self
            .fault_log
            .is_new(("twin", other.key), other.attrs.public_ip)
        {
            debug!(
                "lease {} is published with our public address or device ({}), ours is {own}: two nodes with one \
                 address, or a left-over that will expire",
                other.key,
                addresses(&other.attrs.public_ip)
            );
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
