//! The entries of a table, by position and by key.
//!
//! Entries live in a vector and are found by a hash index of 4-byte positions: half the memory of a
//! map that holds them, and a position is a name for an object that fits into its owner's list.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::entry::Entry;
use crate::object::Kind;

/// Entries with stable positions.
pub(super) struct Slab<K: Kind> {
    entries: Vec<Option<Entry<K>>>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    vacant: Vec<u32>,
}

/// That a key is not there, and its hash.
pub(super) struct Absent(u64);

impl<K: Kind> Default for Slab<K> {
    fn default() -> Self {
        Slab {
            entries: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            vacant: Vec::new(),
        }
    }
}

impl<K: Kind> Slab<K> {
    /// Returns the entry at `slot`.
    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<&Entry<K>> {
        self.entries.get(slot as usize)?.as_ref()
    }

    /// Returns the entry at `slot`, to be changed.
    #[inline]
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry<K>> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    /// Returns the position of `key`.
    pub(super) fn find(&self, key: &K::Key) -> Option<u32> {
        self.find_or_absent(key).ok()
    }

    /// Returns the position of `key`, or what is needed to insert it.
    #[inline]
    pub(super) fn find_or_absent(&self, key: &K::Key) -> Result<u32, Absent> {
        let hash = self.hasher.hash_one(key);
        let same = |slot: &u32| self.get(*slot).is_some_and(|entry| entry.key == *key);
        self.index.find(hash, same).copied().ok_or(Absent(hash))
    }

    /// Returns every entry with its position.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Entry<K>)> {
        let slots = (0..).zip(&self.entries);
        slots.filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)))
    }

    /// Returns every entry, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry<K>> {
        self.entries.iter_mut().flatten()
    }

    /// Adds an entry whose key was not found; returns its position.
    pub(super) fn insert(&mut self, Absent(hash): Absent, entry: Entry<K>) -> u32 {
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.entries[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() as u32 - 1
            }
        };
        let (entries, hasher) = (&self.entries, &self.hasher);
        let rehash = |slot: &u32| {
            let entry = entries.get(*slot as usize).and_then(Option::as_ref);
            entry.map_or(0, |entry| hasher.hash_one(entry.key))
        };
        self.index.insert_unique(hash, slot, rehash);
        slot
    }

    /// Removes the entry at `slot`.
    pub(super) fn remove(&mut self, slot: u32) {
        let Some(entry) = self.get(slot) else { return };
        let hash = self.hasher.hash_one(entry.key);
        if let Ok(found) = self.index.find_entry(hash, |at| *at == slot) {
            found.remove();
        }
        self.entries[slot as usize] = None;
        self.vacant.push(slot);
    }
}
