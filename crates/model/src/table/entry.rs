//! One object of a table: what is desired, what was observed, and what it needs.

use crate::object::{Handle, Kind};

/// The object is desired, and `value` says how.
pub(super) const WANTED: u16 = 1;
/// The kernel holds `value`.
pub(super) const HELD: u16 = 1 << 1;
/// The queue of objects to write names it.
pub(super) const IN_PUTS: u16 = 1 << 2;
/// The queue of objects to delete names it.
pub(super) const IN_DELS: u16 = 1 << 3;
/// The kernel refused what it needs; not offered until [`super::Table::retry_refused`].
pub(super) const REFUSED: u16 = 1 << 4;
/// What it needs is being done; not offered until something about it changes.
pub(super) const UNDER_WAY: u16 = 1 << 6;
/// While an owner's list is replaced: the new list names it.
pub(super) const KEPT: u16 = 1 << 5;
/// Not offered until [`super::Table::release_held`]: somebody else keeps undoing it.
pub(super) const HOLD: u16 = 1 << 7;
/// A notification contradicted what was known. It may be older than our own last write, so the kernel
/// may hold either: whatever is desired next must be written, and what is not, deleted.
pub(super) const DOUBTED: u16 = 1 << 8;

/// One object, desired or observed or both. Neither: it only waits to leave the queues.
pub(super) struct Entry<K: Kind> {
    pub(super) key: K::Key,
    /// What is desired; of an object that is not, what was observed.
    pub(super) value: K::Value,
    pub(super) owner: u32,
    /// The owner's next object.
    pub(super) next: Handle,
    /// The last full look that showed it.
    pub(super) audit: u16,
    pub(super) flags: u16,
}

impl<K: Kind> Entry<K> {
    /// Returns whether all of these flags are set.
    #[inline]
    pub(super) fn is(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// Sets a flag or clears it.
    #[inline]
    pub(super) fn set(&mut self, flag: u16, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    /// Returns what is to be done about it, if anything.
    #[inline]
    pub(super) fn work(&self) -> Option<Work> {
        let doubted = self.is(DOUBTED);
        match (self.is(WANTED), self.is(HELD)) {
            (true, true) if doubted => Some(Work::Put),
            (false, false) if doubted => Some(Work::Del),
            (true, false) => Some(Work::Put),
            (false, true) => Some(Work::Del),
            (true, true) | (false, false) => None,
        }
    }
}

/// What an entry needs.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Work {
    Put,
    Del,
}
