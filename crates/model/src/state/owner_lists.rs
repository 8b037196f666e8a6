//! Which objects each owner wants: one linked list for each, whose links are in the tables.

use crate::object::{Handle, Tables};

/// The first object of each owner, by the owner's number.
#[derive(Default)]
pub(super) struct OwnerLists(Vec<Handle>);

impl OwnerLists {
    /// Returns the owner's objects.
    pub(super) fn get(&self, owner: u32, tables: &mut Tables) -> Vec<Handle> {
        collect(self.first(owner), tables)
    }

    /// Takes the owner's list out: its objects, in any order.
    pub(super) fn take(&mut self, owner: u32, tables: &mut Tables) -> Vec<Handle> {
        let first = self.0.get_mut(owner as usize);
        let first = first.map_or(Handle::NONE, |first| std::mem::replace(first, Handle::NONE));
        collect(first, tables)
    }

    /// Makes the list that begins at `first` the owner's.
    pub(super) fn put(&mut self, owner: u32, first: Handle) {
        let at = owner as usize;
        if first != Handle::NONE && self.0.len() <= at {
            self.0.resize(at + 1, Handle::NONE);
        }
        if let Some(place) = self.0.get_mut(at) {
            *place = first;
        }
    }

    /// Adds one object to the owner's list.
    pub(super) fn link(&mut self, owner: u32, handle: Handle, tables: &mut Tables) {
        let first = self.first(owner);
        tables.with(handle, |table, slot| table.set_next(slot, first));
        self.put(owner, handle);
    }

    /// Takes one object out of the owner's list.
    pub(super) fn unlink(&mut self, owner: u32, handle: Handle, tables: &mut Tables) {
        let list = self.take(owner, tables);
        let mut first = Handle::NONE;
        for kept in list.into_iter().filter(|kept| *kept != handle) {
            let next = std::mem::replace(&mut first, kept);
            tables.with(kept, |table, slot| table.set_next(slot, next));
        }
        self.put(owner, first);
    }

    /// Takes the mark from the owner's objects that [`crate::object::Slots::set_kept`] set.
    pub(super) fn unmark(&self, owner: u32, tables: &mut Tables) {
        let mut at = self.first(owner);
        while at != Handle::NONE {
            at = tables.with(at, |table, slot| {
                table.set_kept(slot, false);
                table.next(slot)
            });
        }
    }

    fn first(&self, owner: u32) -> Handle {
        self.0.get(owner as usize).copied().unwrap_or(Handle::NONE)
    }
}

fn collect(first: Handle, tables: &mut Tables) -> Vec<Handle> {
    let mut at = first;
    let mut list = Vec::new();
    while at != Handle::NONE {
        list.push(at);
        at = tables.with(at, |table, slot| table.next(slot));
    }
    list
}
