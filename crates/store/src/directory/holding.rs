//! Our own lease: taken, renewed, published, defended, and given up when it is no longer ours.

use std::time::Duration;

use model::{Lease, LeaseAttrs, SubnetKey};
use tokio::time::Instant;
use tracing::info;

use super::entry::{Entry, now, now_ms};
use super::file_id::FileId;
use super::files::{Blocker, Changed};
use super::follow::{Fault, Follower, Seen};
use crate::claim::{Candidate, Ground, same_node};
use crate::tenure::{self, Reaction, Tenure};

/// The lease that this daemon holds.
#[derive(Debug)]
pub(super) struct Holding {
    pub key: SubnetKey,
    pub entry: Entry,
    /// The state of our own last write: any other one is somebody else's.
    pub id: FileId,
    pub tenure: Tenure,
}

impl Ground for Follower {
    type Fault = Fault;
    type Mark = FileId;

    fn candidates(&mut self) -> &mut Vec<Candidate<FileId>> {
        &mut self.candidates
    }

    fn taken(&self) -> Vec<SubnetKey> {
        self.catalog.taken().collect()
    }

    fn all_read(&self) -> bool {
        self.listing.is_none() && self.listed.is_some()
    }

    fn read_again(&mut self) {
        self.list_anew();
    }

    async fn read_more(&mut self) -> Result<(), Fault> {
        match self.listing {
            Some(_) => self.read_batch().await,
            None => self.join().await,
        }
    }

    async fn adopt(
        &mut self,
        old: &Candidate<FileId>,
        attrs: &LeaseAttrs,
    ) -> Result<Option<Lease>, Fault> {
        let key = old.lease.key;
        let entry = Entry {
            attrs: attrs.clone(),
            created: Some(old.lease.seniority),
            expires: (!old.reserved).then(|| self.end_of_new_lease()),
        };
        let (new, was) = (entry.clone(), old.mark);
        match self
            .files(move |place| place.replace(&key, &new, was))
            .await?
        {
            Changed::Done(id) => Ok(Some(self.hold(Holding {
                key,
                entry,
                id,
                tenure: Tenure::adopted(),
            }))),
            Changed::Differs(_) => Ok(None),
        }
    }

    async fn discard(&mut self, old: &Candidate<FileId>) -> Result<(), Fault> {
        let (key, was) = (old.lease.key, old.mark);
        self.files(move |place| place.remove(&key, was)).await?;
        self.catalog.gone(&key);
        Ok(())
    }

    async fn create(&mut self, key: SubnetKey, attrs: &LeaseAttrs) -> Result<Option<Lease>, Fault> {
        let entry = Entry {
            attrs: attrs.clone(),
            created: Some(now_ms()),
            expires: Some(self.end_of_new_lease()),
        };
        let new = entry.clone();
        match self.files(move |place| place.create(&key, &new)).await? {
            Changed::Done(id) => Ok(Some(self.hold(Holding {
                key,
                entry,
                id,
                tenure: Tenure::created(),
            }))),
            Changed::Differs(blocker) => {
                let taken = match blocker {
                    Blocker::File => key,
                    Blocker::Overlap(other) => other,
                };
                self.catalog.saw(taken, Seen::taken(None), None);
                Ok(None)
            }
        }
    }

    async fn none_created(&mut self) {}
}

impl Follower {
    fn end_of_new_lease(&self) -> u64 {
        now() + self.timing.ttl.as_secs()
    }

    /// From now on this is ours.
    fn hold(&mut self, holding: Holding) -> Lease {
        let lease = Lease {
            key: holding.key,
            attrs: holding.entry.attrs.clone(),
            seniority: holding.entry.created.unwrap_or(0),
        };
        let seen = Seen::lease(holding.id, holding.entry.expires);
        self.catalog.saw(holding.key, seen, Some(lease.clone()));
        self.feed.flush();
        self.candidates.clear();
        // Nobody waits for the disk.
        let key = holding.key;
        drop(self.begin(move |place| place.sync(&key)));
        self.holding = Some(holding);
        lease
    }

    /// When our lease is to be renewed, in seconds of the epoch.
    fn renewal(&self) -> Option<u64> {
        let end = self.holding.as_ref()?.entry.expires?;
        Some(end.saturating_sub(self.timing.margin_of(self.timing.ttl).as_secs()))
    }

    /// The same by our own clock. That one stops while the machine sleeps; each poll asks the other.
    pub(super) fn next_chore(&self) -> Option<Instant> {
        let left = self.renewal()?.saturating_sub(now());
        Some(
            Instant::now()
                + Duration::from_secs(left)
                + Duration::from_millis(fastrand::u64(10..500)),
        )
    }

    /// Publishes what is to be published, and renews what is due.
    pub(super) async fn do_chores(&mut self) -> Result<(), Fault> {
        self.wish.mark_unchanged();
        let Some(own) = &self.holding else {
            return Ok(());
        };
        let changed = self
            .wish
            .borrow()
            .as_ref()
            .is_some_and(|attrs| *attrs != own.entry.attrs);
        let due = self.renewal().is_some_and(|at| now() >= at);
        match changed || due {
            true => self.write().await,
            false => Ok(()),
        }
    }

    /// Writes our file anew, with what we are to publish and a new end, if nobody else has written
    /// it since we did. If somebody has, it is read.
    async fn write(&mut self) -> Result<(), Fault> {
        let Some(own) = &self.holding else {
            return Ok(());
        };
        let wished = self.wish.borrow().clone();
        let entry = Entry {
            attrs: wished.unwrap_or_else(|| own.entry.attrs.clone()),
            created: own.entry.created,
            expires: own.entry.expires.map(|_| self.end_of_new_lease()),
        };
        let (key, new, was) = (own.key, entry.clone(), own.id);
        let changed = self
            .files(move |place| place.replace(&key, &new, was))
            .await?;
        let Some(own) = self.holding.take() else {
            return Ok(());
        };
        match changed {
            Changed::Done(id) => {
                self.public_ip = entry.attrs.public_ip;
                self.hold(Holding { entry, id, ..own });
                Ok(())
            }
            Changed::Differs(_) => {
                self.holding = Some(own);
                Box::pin(self.read(vec![key])).await
            }
        }
    }

    /// Our file is in the state `id`: written by us, or by somebody else? `None`: it makes no sense.
    pub(super) async fn own_changed(
        &mut self,
        entry: Option<Entry>,
        id: FileId,
    ) -> Result<(), Fault> {
        let Some(own) = &mut self.holding else {
            return Ok(());
        };
        if own.id == id {
            return Ok(());
        }
        own.id = id;
        let (key, ours) = (own.key, own.entry.attrs.public_ip);
        let theirs = entry.as_ref().map(|entry| &entry.attrs);
        if let Some(theirs) = theirs.filter(|theirs| !same_node(theirs, &ours)) {
            self.give_up(tenure::taken_by(&key, &theirs.public_ip));
            return Ok(());
        }
        match own.tenure.foreign_write() {
            Reaction::Yield => self.give_up(tenure::outranked(&key, &ours)),
            Reaction::Endure => {}
            Reaction::Answer => {
                tenure::say_answer(&key, &ours);
                if entry.is_some_and(|entry| entry.expires.is_none()) {
                    // Made a reservation under our feet, which is for its maker to say.
                    own.entry.expires = None;
                }
                self.write().await?;
            }
        }
        Ok(())
    }

    /// Our file is gone. Removed under us it is revoked. If its time had run out, or it went with
    /// all the others, it is made again.
    pub(super) async fn own_deleted(&mut self) -> Result<(), Fault> {
        let Some(own) = &mut self.holding else {
            return Ok(());
        };
        let ran_out = own.entry.expires.is_some_and(|end| now() >= end);
        let dir = self.place.subnets();
        let gone_with_all = self.lost || !dir.exists();
        if !ran_out && !gone_with_all {
            let key = own.key;
            self.give_up(format!("{key} was removed from {}", dir.display()));
            return Ok(());
        }
        if !self.lost && gone_with_all {
            // The end of the directory is about to be noticed.
            return Ok(());
        }
        let (key, attrs, reserved) = (
            own.key,
            own.entry.attrs.clone(),
            own.entry.expires.is_none(),
        );
        let entry = Entry {
            attrs,
            created: Some(now_ms()),
            expires: (!reserved).then(|| self.end_of_new_lease()),
        };
        let new = entry.clone();
        match self.files(move |place| place.create(&key, &new)).await? {
            Changed::Done(id) => {
                info!("lease {key} had been lost and is published again");
                self.hold(Holding {
                    key,
                    entry,
                    id,
                    tenure: Tenure::created(),
                });
            }
            Changed::Differs(_) => {
                self.give_up(format!(
                    "{key} ran out while the store directory was away, and is somebody else's now"
                ));
            }
        }
        Ok(())
    }

    fn give_up(&mut self, reason: String) {
        self.holding = None;
        self.feed.revoke(reason);
        self.feed.flush();
    }
}
