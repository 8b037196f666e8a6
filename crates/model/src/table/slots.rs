//! What a table does for its owner's lists and for the state as a whole, without their knowing its kind.

use std::fmt;

use super::entry::{DOUBTED, HELD, KEPT};
use super::{Audit, Retry, Table};
use crate::object::{Handle, Kind, Slots};

/// An object as the command that creates it.
struct Shown<'a, K: Kind>(&'a K::Key, &'a K::Value);

impl<K: Kind> fmt::Display for Shown<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        K::put(f, self.0, self.1)
    }
}

impl<K: Kind> Slots for Table<K> {
    fn release(&mut self, slot: u32) -> Option<u32> {
        Table::release(self, slot)
    }

    fn stop_waiting(&mut self, owner: u32) {
        if !self.waiting.is_empty() {
            self.waiting.retain(|(_, waits), _| *waits != owner);
        }
    }

    fn set_next(&mut self, slot: u32, next: Handle) {
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.next = next;
        }
    }

    fn next(&self, slot: u32) -> Handle {
        self.entry(slot).map_or(Handle::NONE, |entry| entry.next)
    }

    fn set_kept(&mut self, slot: u32, kept: bool) -> bool {
        let Some(entry) = self.entries.get_mut(slot) else {
            return false;
        };
        let before = entry.is(KEPT);
        entry.set(KEPT, kept);
        before
    }

    fn is_held(&self, slot: u32) -> bool {
        self.entry(slot)
            .is_some_and(|entry| entry.is(HELD) && !entry.is(DOUBTED))
    }

    fn refusal(&self, slot: u32) -> Option<&Retry> {
        self.refusals.get(&slot)
    }

    fn retry_refused(&mut self) {
        Table::retry_refused(self);
    }

    fn release_held(&mut self) {
        Table::release_held(self);
    }

    fn audit(&mut self, audit: Audit) -> usize {
        match audit {
            Audit::Begin => {
                self.begin_audit();
                0
            }
            Audit::End => self.end_audit(),
        }
    }

    fn refused_len(&self) -> usize {
        self.refused
    }

    fn missing_len(&self) -> usize {
        self.missing
    }

    fn stray_len(&self) -> usize {
        self.strays
    }

    fn contested(&self) -> Vec<(u32, u32, String)> {
        let waiting = self.waiting.keys();
        let known = waiting.filter_map(|(slot, loser)| {
            let entry = self.entry(*slot)?;
            let object = Shown::<K>(&entry.key, &entry.value).to_string();
            Some((entry.owner, *loser, object))
        });
        known.collect()
    }
}
