//! Desired against observed, for any kind of kernel object.
//!
//! An object that is as it should be costs its value once: what the kernel holds is stored only
//! where it differs. The table knows which keys need work, so that a change
//! costs the change, whatever the table's size.

use std::collections::{BTreeMap, BTreeSet};

/// A kind of kernel object.
pub trait Kind {
    /// Names the object.
    type Key: Copy + Ord;
    /// What it holds.
    type Value: Clone + PartialEq;

    /// Whether an object that holds `old` can be changed to `new` where it stands; otherwise it
    /// is deleted and made anew.
    fn in_place(_old: &Self::Value, _new: &Self::Value) -> bool {
        true
    }
}

/// What one key needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<V> {
    /// Write this.
    Put(V),
    /// Delete the object, which holds this.
    Del(V),
    /// Delete what holds `old`, then write `new`.
    Anew {
        /// What stands there.
        old: V,
        /// What should.
        new: V,
    },
}

/// An object that should be there.
struct Desired<V> {
    value: V,
    /// The kernel holds it so.
    held: bool,
    /// The last full look that showed it.
    audit: u8,
}

/// What the kernel holds and should not, or holds in the place of what it should.
struct Other<V> {
    value: V,
    /// The last full look that showed it.
    audit: u8,
}

/// Desired and observed objects of one kind.
pub struct Table<K: Kind> {
    desired: BTreeMap<K::Key, Desired<K::Value>>,
    others: BTreeMap<K::Key, Other<K::Value>>,
    /// Desired, and not held.
    puts: BTreeSet<K::Key>,
    /// Held, and not desired.
    dels: BTreeSet<K::Key>,
    /// Need work that the kernel refused; not offered until [`Table::unpark`].
    parked: BTreeSet<K::Key>,
    audit: u8,
    /// The size at which `desired` is packed next.
    pack_at: usize,
}

/// Tables smaller than this are not worth packing.
const PACK_FROM: usize = 1024;

impl<K: Kind> Default for Table<K> {
    fn default() -> Self {
        Table {
            desired: BTreeMap::new(),
            others: BTreeMap::new(),
            puts: BTreeSet::new(),
            dels: BTreeSet::new(),
            parked: BTreeSet::new(),
            audit: 0,
            pack_at: PACK_FROM,
        }
    }
}

impl<K: Kind> Table<K> {
    /// The kernel should hold `value` under `key`.
    pub fn want(&mut self, key: K::Key, value: K::Value) {
        let audit = self.audit;
        let held = match self.desired.get_mut(&key) {
            Some(old) if old.value == value => return,
            Some(old) if old.held => {
                let value = std::mem::replace(&mut old.value, value);
                old.held = false;
                self.others.insert(
                    key,
                    Other {
                        value,
                        audit: old.audit,
                    },
                );
                return self.refile(key);
            }
            _ => self
                .others
                .get(&key)
                .is_some_and(|other| other.value == value),
        };
        let audit = match held {
            true => self.others.remove(&key).map_or(audit, |other| other.audit),
            false => audit,
        };
        self.desired.insert(key, Desired { value, held, audit });
        self.refile(key);
        if self.desired.len() >= self.pack_at {
            self.pack();
        }
    }

    /// The kernel should hold nothing under `key`.
    pub fn unwant(&mut self, key: K::Key) {
        if let Some(old) = self.desired.remove(&key) {
            if old.held {
                let (value, audit) = (old.value, old.audit);
                self.others.insert(key, Other { value, audit });
            }
            self.refile(key);
        }
    }

    /// The kernel was seen to hold `value` under `key`.
    pub fn saw(&mut self, key: K::Key, value: K::Value) {
        let audit = self.audit;
        match self.desired.get_mut(&key) {
            Some(desired) if desired.value == value => {
                (desired.held, desired.audit) = (true, audit);
                self.others.remove(&key);
            }
            desired => {
                desired.into_iter().for_each(|desired| desired.held = false);
                self.others.insert(key, Other { value, audit });
            }
        }
        self.refile(key);
    }

    /// The kernel was seen to hold nothing under `key`.
    pub fn gone(&mut self, key: K::Key) {
        if let Some(desired) = self.desired.get_mut(&key) {
            desired.held = false;
        }
        self.others.remove(&key);
        self.refile(key);
    }

    /// A notice says that the kernel holds `value` under `key`, or nothing. It may be older than
    /// what we wrote since: so it can make work, but never cancels any. To do too much harms
    /// nothing. Returns whether there is work.
    pub fn heard(&mut self, key: K::Key, value: Option<K::Value>) -> bool {
        let is_desired = match (&value, self.desired(&key)) {
            (Some(value), Some(desired)) => value == desired,
            (None, None) => true,
            _ => false,
        };
        if self.change(&key).is_none() || !is_desired {
            match value {
                Some(value) => self.saw(key, value),
                None => self.gone(key),
            }
        }
        self.change(&key).is_some()
    }

    /// Begins a full look at the kernel: what [`Table::saw`] does not mention until
    /// [`Table::end_audit`] is not there.
    pub fn begin_audit(&mut self) {
        self.audit = self.audit.wrapping_add(1);
    }

    /// Ends a full look; returns how many objects turned out to be missing or changed.
    pub fn end_audit(&mut self) -> usize {
        let audit = self.audit;
        let missing = self
            .desired
            .iter()
            .filter(|(_, d)| d.held && d.audit != audit);
        let vanished = self.others.iter().filter(|(_, o)| o.audit != audit);
        let missing = missing.map(|(key, _)| *key);
        let unseen: Vec<K::Key> = missing.chain(vanished.map(|(key, _)| *key)).collect();
        for key in &unseen {
            self.gone(*key);
        }
        unseen.len()
    }

    /// What `key` needs now, if anything.
    pub fn change(&self, key: &K::Key) -> Option<Change<K::Value>> {
        match (self.desired.get(key), self.others.get(key)) {
            (Some(desired), _) if desired.held => None,
            (Some(new), None) => Some(Change::Put(new.value.clone())),
            (Some(new), Some(old)) => {
                let (old, new) = (old.value.clone(), new.value.clone());
                match K::in_place(&old, &new) {
                    true => Some(Change::Put(new)),
                    false => Some(Change::Anew { old, new }),
                }
            }
            (None, Some(old)) => Some(Change::Del(old.value.clone())),
            (None, None) => None,
        }
    }

    /// The kernel acknowledged that it now holds `value` under `key`.
    pub fn put_done(&mut self, key: K::Key, value: K::Value) {
        self.saw(key, value);
    }

    /// The kernel acknowledged that nothing stands under `key` any more.
    pub fn del_done(&mut self, key: K::Key) {
        self.gone(key);
    }

    /// The kernel refused to do what `key` needs: not offered again until [`Table::unpark`], or
    /// until something about it changes.
    pub fn park(&mut self, key: K::Key) {
        self.puts.remove(&key);
        self.dels.remove(&key);
        self.parked.insert(key);
    }

    /// Offers again what was parked.
    pub fn unpark(&mut self) {
        for key in std::mem::take(&mut self.parked) {
            self.refile(key);
        }
    }

    /// How many keys are parked.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Keys to write, in order.
    pub fn puts(&self) -> impl Iterator<Item = &K::Key> {
        self.puts.iter()
    }

    /// Keys to delete, in order.
    pub fn dels(&self) -> impl Iterator<Item = &K::Key> {
        self.dels.iter()
    }

    /// Nothing to do, and nothing that the kernel refused.
    pub fn in_sync(&self) -> bool {
        self.puts.is_empty() && self.dels.is_empty() && self.parked.is_empty()
    }

    /// What is desired under `key`.
    pub fn desired(&self, key: &K::Key) -> Option<&K::Value> {
        self.desired.get(key).map(|desired| &desired.value)
    }

    /// How many objects are desired.
    pub fn desired_len(&self) -> usize {
        self.desired.len()
    }

    /// Files `key` under what it needs.
    fn refile(&mut self, key: K::Key) {
        self.parked.remove(&key);
        let (put, del) = match self.desired.get(&key) {
            Some(desired) => (!desired.held, false),
            None => (false, self.others.contains_key(&key)),
        };
        match put {
            true => self.puts.insert(key),
            false => self.puts.remove(&key),
        };
        match del {
            true => self.dels.insert(key),
            false => self.dels.remove(&key),
        };
    }

    /// A tree that grows at its end keeps its nodes half empty; merging it with its own last entry
    /// writes them anew, and full. At each doubling, so that it costs no more than the growing.
    fn pack(&mut self) {
        let last = self.desired.pop_last();
        self.desired.append(&mut last.into_iter().collect());
        self.pack_at = self.desired.len() * 2;
    }
}

#[cfg(test)]
mod tests;
