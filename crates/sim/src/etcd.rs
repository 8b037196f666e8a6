//! An etcd as far as the leases of one network go.

use std::collections::BTreeMap;
use std::time::Duration;

use model::SubnetKey;
use store::own_lease::{Time, Value};

/// How long an etcd lease lives that is not renewed.
pub const TTL: Duration = Duration::from_secs(60);

/// Identifies an etcd lease.
pub type LeaseId = u32;

/// A state of a key, as etcd shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The revision at which the key was created.
    pub created: u32,
    /// The revision at which it was written last.
    pub changed: u32,
    /// The etcd lease that it hangs on; `None`: it does not expire.
    pub hangs_on: Option<LeaseId>,
}

/// A key's value and state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    /// The value.
    pub value: Value,
    /// The state.
    pub mark: Mark,
}

/// Keys, etcd leases and a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Etcd {
    keys: BTreeMap<SubnetKey, Stored>,
    lives: BTreeMap<LeaseId, Time>,
    revision: u32,
    history: u32,
}

impl Etcd {
    /// Returns the keys and their states.
    pub fn keys(&self) -> &BTreeMap<SubnetKey, Stored> {
        &self.keys
    }

    /// Returns when each etcd lease ends.
    pub fn lives(&self) -> &BTreeMap<LeaseId, Time> {
        &self.lives
    }

    /// Returns how often the data were restored. A client learns of it by comparing revisions; here it is told.
    pub fn history(&self) -> u32 {
        self.history
    }

    /// Grants or renews the etcd lease `id` at `now`; returns its end.
    pub fn grant(&mut self, id: LeaseId, now: Time) -> Time {
        self.lives.insert(id, now + TTL);
        now + TTL
    }

    /// Writes `value` if the key is in the state `over`.
    ///
    /// # Errors
    /// It is in another state: which.
    pub fn put(
        &mut self,
        key: SubnetKey,
        value: Value,
        hangs_on: Option<LeaseId>,
        over: Option<Mark>,
    ) -> Result<Stored, Option<Box<Stored>>> {
        let there = self.keys.get(&key);
        // As the transaction compares: the revision of the last write alone.
        if there.map(|there| there.mark.changed) != over.map(|over| over.changed) {
            return Err(there.cloned().map(Box::new));
        }
        self.revision += 1;
        let mark = Mark {
            created: there.map_or(self.revision, |there| there.mark.created),
            changed: self.revision,
            hangs_on,
        };
        let stored = Stored { value, mark };
        self.keys.insert(key, stored.clone());
        Ok(stored)
    }

    /// Deletes a key if it is in the state `over`, or does not exist.
    ///
    /// # Errors
    /// It is in another state: which.
    pub fn delete(&mut self, key: &SubnetKey, over: Mark) -> Result<(), Box<Stored>> {
        match self.keys.get(key) {
            Some(there) if there.mark.changed != over.changed => Err(Box::new(there.clone())),
            Some(_) => {
                self.remove(key);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Deletes a key, as an administrator does.
    pub fn remove(&mut self, key: &SubnetKey) {
        self.revision += u32::from(self.keys.remove(key).is_some());
    }

    /// Ends the etcd leases whose time is over, and deletes what hangs on them.
    pub fn expire(&mut self, now: Time) {
        let lives = &mut self.lives;
        lives.retain(|_, end| *end > now);
        let before = self.keys.len();
        self.keys.retain(|_, stored| {
            stored
                .mark
                .hangs_on
                .is_none_or(|id| lives.contains_key(&id))
        });
        self.revision += u32::from(self.keys.len() < before);
    }

    /// Goes back to a backup. `ahead`: by how much the revision is raised, as `etcdutl --bump-revision` does.
    pub fn restore(&mut self, backup: &Etcd, ahead: u32, now: Time) {
        let history = self.history + 1;
        *self = backup.clone();
        self.history = history;
        self.revision += ahead;
        // etcd gives every lease its whole life again.
        self.lives.values_mut().for_each(|end| *end = now + TTL);
    }
}
