//! Desired against observed, for one kind of kernel object.
//!
//! An object that is as it should be costs its value once: what the kernel holds is stored apart only
//! where it differs. The table knows which keys need work, so that a change costs the change, whatever
//! the table's size.

mod change;
mod entry;
mod slab;
mod slots;

use std::collections::{BTreeMap, HashMap, VecDeque};

pub(crate) use change::Audit;
pub use change::{Change, Claimed, Retry};

use crate::object::{Handle, Kind};
use entry::{DOUBTED, Entry, HELD, HOLD, IN_DELS, IN_PUTS, REFUSED, UNDER_WAY, WANTED, Work};
use slab::{Absent, Slab};

/// Desired and observed objects of one kind.
pub struct Table<K: Kind> {
    entries: Slab<K>,
    /// What the kernel holds in the place of what it should.
    instead: HashMap<u32, K::Value>,
    /// Claims of owners that did not get a key, by position and owner.
    waiting: BTreeMap<(u32, u32), K::Value>,
    refusals: HashMap<u32, Retry>,
    /// Positions of what is not offered for now.
    on_hold: Vec<u32>,
    puts: VecDeque<u32>,
    dels: VecDeque<u32>,
    /// What was handed out last, in order: acknowledgements come in the same order, and are not looked up.
    offered: VecDeque<u32>,
    audit: u16,
    wanted: usize,
    missing: usize,
    strays: usize,
    refused: usize,
    under_way: usize,
}

impl<K: Kind> Default for Table<K> {
    fn default() -> Self {
        Table {
            entries: Slab::default(),
            instead: HashMap::new(),
            waiting: BTreeMap::new(),
            refusals: HashMap::new(),
            on_hold: Vec::new(),
            puts: VecDeque::new(),
            dels: VecDeque::new(),
            offered: VecDeque::new(),
            audit: 0,
            wanted: 0,
            missing: 0,
            strays: 0,
            refused: 0,
            under_way: 0,
        }
    }
}

impl<K: Kind> Table<K> {
    /// The kernel should hold `value` under `key`, because `owner` asks for it. Of two owners of one
    /// key the lower one wins; the other waits until that one gives the key up.
    pub fn want(&mut self, key: K::Key, value: K::Value, owner: u32) -> Claimed {
        let slot = match self.entries.find_or_absent(&key) {
            Ok(slot) => slot,
            Err(absent) => {
                let slot = self.insert(absent, key, value, WANTED, owner);
                self.file(slot);
                return Claimed {
                    slot,
                    won_from: None,
                    lost: false,
                };
            }
        };
        let mut won_from = None;
        if let Some(entry) = self.entry(slot)
            && entry.is(WANTED)
            && entry.owner != owner
        {
            let holder = entry.owner;
            if owner > holder {
                self.waiting.insert((slot, owner), value);
                return Claimed {
                    slot,
                    won_from: None,
                    lost: true,
                };
            }
            let theirs = entry.value.clone();
            self.waiting.insert((slot, holder), theirs);
            won_from = Some(holder);
        }
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.owner = owner;
        }
        self.set_desired(slot, value);
        Claimed {
            slot,
            won_from,
            lost: false,
        }
    }

    /// The owner of the object at `slot` wants it no longer. Returns the owner that waited for the key
    /// and has it now.
    pub fn release(&mut self, slot: u32) -> Option<u32> {
        let next = self.waiting.range((slot, 0)..=(slot, u32::MAX)).next();
        if let Some((&claim, _)) = next {
            let value = self.waiting.remove(&claim)?;
            if let Some(entry) = self.entries.get_mut(slot) {
                entry.owner = claim.1;
            }
            self.set_desired(slot, value);
            return Some(claim.1);
        }
        let instead = self.instead.remove(&slot);
        self.change(slot, |entry| {
            entry.set(WANTED, false);
            if let Some(observed) = instead {
                entry.value = observed;
                entry.set(HELD, true);
            }
            if !entry.is(HELD) && !K::DELETES_ONLY_ITSELF {
                entry.set(DOUBTED, false);
            }
        });
        None
    }

    /// The kernel did as it was asked, and holds `value` under `key`.
    pub fn acknowledge(&mut self, key: K::Key, value: K::Value) {
        // What was handed out in between was refused, held, or begun.
        while let Some(slot) = self.offered.pop_front() {
            if self.entry(slot).is_some_and(|entry| entry.key == key) {
                return self.observe_at(slot, value);
            }
        }
        self.observe(key, value);
    }

    /// The kernel was seen to hold `value` under `key`.
    pub fn observe(&mut self, key: K::Key, value: K::Value) {
        match self.entries.find_or_absent(&key) {
            Ok(slot) => self.observe_at(slot, value),
            Err(absent) => {
                let slot = self.insert(absent, key, value, HELD, 0);
                self.file(slot);
            }
        }
    }

    fn observe_at(&mut self, slot: u32, value: K::Value) {
        let audit = self.audit;
        let mut instead = None;
        self.change(slot, |entry| {
            entry.audit = audit;
            entry.set(DOUBTED, false);
            if !entry.is(WANTED) {
                entry.value = value;
                entry.set(HELD, true);
            } else if K::is_met_by(&entry.value, &value) {
                entry.set(HELD, true);
            } else {
                entry.set(HELD, false);
                instead = Some(value);
            }
        });
        match instead {
            Some(value) => self.instead.insert(slot, value),
            None => self.instead.remove(&slot),
        };
    }

    /// The kernel was seen to hold nothing under `key`.
    pub fn gone(&mut self, key: &K::Key) {
        if let Some(slot) = self.find(key) {
            self.instead.remove(&slot);
            self.change(slot, |entry| {
                entry.set(HELD, false);
                entry.set(DOUBTED, false);
            });
        }
    }

    /// A notification says that the kernel holds `value` under `key`, or nothing. It may be older than
    /// what we wrote since: so it can make work, but never cancels any, whatever is desired next, except
    /// what is under way, which ends with a notification. A redundant write is harmless. Returns whether
    /// there is work.
    pub fn notify(&mut self, key: K::Key, value: Option<K::Value>) -> bool {
        let entry = self.find(&key).and_then(|slot| self.entry(slot));
        let wanted = entry.is_some_and(|entry| entry.is(WANTED));
        if value.is_none() && !wanted && !K::DELETES_ONLY_ITSELF {
            // Another's may be there now, and would be deleted.
            self.gone(&key);
            return false;
        }
        let as_desired = match (&value, entry.filter(|entry| entry.is(WANTED))) {
            (Some(value), Some(desired)) => K::is_met_by(&desired.value, value),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let under_way = entry.is_some_and(|entry| entry.is(UNDER_WAY));
        if entry.and_then(Entry::work).is_none() || !as_desired || under_way {
            match value {
                Some(value) => self.observe(key, value),
                None => self.gone(&key),
            }
        }
        let Some(slot) = self.find(&key) else {
            return false;
        };
        let work = self.entry(slot).and_then(Entry::work).is_some();
        if work {
            self.count(slot, |entry| entry.set(DOUBTED, true));
        }
        work
    }

    /// Begins a full look at the kernel: what [`Table::observe`] does not mention until
    /// [`Table::end_audit`] is not there.
    pub fn begin_audit(&mut self) {
        self.audit = self.audit.wrapping_add(1);
        if self.audit == 0 {
            // The number was used before: no object may seem to have been seen in this look.
            self.audit = 1;
            self.entries.iter_mut().for_each(|entry| entry.audit = 0);
        }
    }

    /// Ends a full look; returns how many objects turned out to be missing or changed.
    pub fn end_audit(&mut self) -> usize {
        let entries = self.entries.iter();
        let unseen: Vec<K::Key> = entries
            .filter(|(slot, entry)| {
                let observed =
                    entry.flags & (HELD | DOUBTED) != 0 || self.instead.contains_key(slot);
                entry.audit != self.audit && observed
            })
            .map(|(_, entry)| entry.key)
            .collect();
        unseen.iter().for_each(|key| self.gone(key));
        if self.under_way > 0 {
            // The one who does it may have lost it: a second request is harmless.
            let entries = self.entries.iter();
            let slots: Vec<u32> = entries
                .filter(|(_, entry)| entry.is(UNDER_WAY))
                .map(|(slot, _)| slot)
                .collect();
            slots.into_iter().for_each(|slot| self.file(slot));
        }
        unseen.len()
    }

    /// Returns what `key` needs now, if anything.
    pub fn change_of(&self, key: &K::Key) -> Option<Change<K::Value>> {
        let slot = self.find(key)?;
        let entry = self.entry(slot)?;
        Some(self.as_change(slot, entry, entry.work()?))
    }

    fn as_change(&self, slot: u32, entry: &Entry<K>, work: Work) -> Change<K::Value> {
        let value = entry.value.clone();
        match (work, self.instead.get(&slot)) {
            (Work::Del, _) => Change::Del(value),
            (Work::Put, Some(old)) if !K::in_place(old, &value) => Change::Recreate {
                old: old.clone(),
                new: value,
            },
            (Work::Put, _) => Change::Put(value),
        }
    }

    /// The kernel refused to do what `key` needs: not offered again until [`Table::retry_refused`],
    /// or until something about it changes.
    pub fn refuse(&mut self, key: &K::Key, refusal: Retry) {
        let Some(slot) = self.find(key) else { return };
        let before = self.refusals.remove(&slot);
        let refusal = match before {
            Some(before) => Retry {
                since: before.since,
                tries: before.tries.saturating_add(1),
                ..refusal
            },
            None => refusal,
        };
        if let Some(entry) = self.entries.get_mut(slot)
            && entry.work().is_some()
        {
            self.refused += usize::from(!entry.is(REFUSED));
            entry.set(REFUSED, true);
            self.under_way -= usize::from(entry.is(UNDER_WAY));
            entry.set(UNDER_WAY, false);
            self.refusals.insert(slot, refusal);
        }
    }

    /// What `key` needs is being done: not offered again until something about it changes. What was
    /// refused before counts as refused until it is done.
    pub fn set_under_way(&mut self, key: &K::Key) {
        let Some(slot) = self.find(key) else { return };
        let was_refused = self.refusals.contains_key(&slot);
        let Some(entry) = self.entries.get_mut(slot) else {
            return;
        };
        if entry.work().is_none() {
            return;
        }
        self.under_way += usize::from(!entry.is(UNDER_WAY));
        entry.set(UNDER_WAY, true);
        // A part of it may be there, also if it fails: not to be left when it is desired no longer.
        entry.set(DOUBTED, true);
        if was_refused {
            self.refused += usize::from(!entry.is(REFUSED));
            entry.set(REFUSED, true);
        }
    }

    /// Does not offer what `key` needs until [`Table::release_held`], whatever changes about it.
    pub fn hold(&mut self, key: &K::Key) {
        let Some(slot) = self.find(key) else { return };
        if let Some(entry) = self.entries.get_mut(slot)
            && !entry.is(HOLD)
        {
            entry.set(HOLD, true);
            self.on_hold.push(slot);
        }
    }

    /// Offers again what was held.
    pub fn release_held(&mut self) {
        for slot in std::mem::take(&mut self.on_hold) {
            if let Some(entry) = self.entries.get_mut(slot)
                && entry.is(HOLD)
            {
                entry.set(HOLD, false);
                if entry.flags & (REFUSED | UNDER_WAY) == 0 {
                    self.file(slot);
                }
            }
        }
    }

    /// Offers again what was refused.
    pub fn retry_refused(&mut self) {
        if self.refused == 0 {
            return;
        }
        let mut slots: Vec<u32> = self.refusals.keys().copied().collect();
        // In the order in which they came to be, whatever the hash.
        slots.sort_unstable();
        slots.into_iter().for_each(|slot| self.file(slot));
    }

    /// Hands out keys to write for which `may` holds, at most `limit`, and what each needs.
    pub fn puts(
        &mut self,
        limit: usize,
        may: impl Fn(&K::Key, &K::Value) -> bool,
        each: impl FnMut(K::Key, Change<K::Value>),
    ) {
        self.offer(Work::Put, limit, may, each);
    }

    /// Hands out keys to delete for which `may` holds, at most `limit`, and what each needs.
    pub fn dels(
        &mut self,
        limit: usize,
        may: impl Fn(&K::Key, &K::Value) -> bool,
        each: impl FnMut(K::Key, Change<K::Value>),
    ) {
        self.offer(Work::Del, limit, may, each);
    }

    fn offer(
        &mut self,
        work: Work,
        limit: usize,
        may: impl Fn(&K::Key, &K::Value) -> bool,
        mut each: impl FnMut(K::Key, Change<K::Value>),
    ) {
        let (flag, mut queue) = match work {
            Work::Put => (IN_PUTS, std::mem::take(&mut self.puts)),
            Work::Del => (IN_DELS, std::mem::take(&mut self.dels)),
        };
        let mut handed_out = 0;
        if work == Work::Put {
            self.offered.clear();
        }
        for _ in 0..queue.len() {
            if handed_out >= limit {
                break;
            }
            let Some(slot) = queue.pop_front() else { break };
            let Some(entry) = self.entries.get_mut(slot) else {
                continue;
            };
            if entry.work() != Some(work) || entry.flags & (REFUSED | UNDER_WAY | HOLD) != 0 {
                entry.set(flag, false);
                self.free_if_dead(slot);
                continue;
            }
            // Stays queued until the outcome is known.
            queue.push_back(slot);
            let Some(entry) = self.entry(slot).filter(|e| may(&e.key, &e.value)) else {
                continue;
            };
            each(entry.key, self.as_change(slot, entry, work));
            if work == Work::Put {
                self.offered.push_back(slot);
            }
            handed_out += 1;
        }
        match work {
            Work::Put => self.puts = queue,
            Work::Del => self.dels = queue,
        }
    }

    /// Returns whether nothing is to do and nothing was refused.
    pub fn in_sync(&self) -> bool {
        self.missing == 0 && self.strays == 0
    }

    /// Returns what is desired under `key`.
    pub fn desired(&self, key: &K::Key) -> Option<&K::Value> {
        let entry = self.find(key).and_then(|slot| self.entry(slot))?;
        entry.is(WANTED).then_some(&entry.value)
    }

    /// Returns whether something is desired under `key` and the kernel holds it.
    pub fn is_as_desired(&self, key: &K::Key) -> bool {
        let entry = self.find(key).and_then(|slot| self.entry(slot));
        entry.is_some_and(|entry| entry.is(WANTED) && entry.work().is_none())
    }

    /// Returns what the kernel was last seen to hold under `key`, desired or not.
    pub fn observed(&self, key: &K::Key) -> Option<&K::Value> {
        let slot = self.find(key)?;
        let entry = self.entry(slot)?;
        let held = entry.is(HELD).then_some(&entry.value);
        held.or_else(|| self.instead.get(&slot))
    }

    /// Returns the owner of what is desired under `key`.
    pub fn owner(&self, key: &K::Key) -> Option<u32> {
        let entry = self.find(key).and_then(|slot| self.entry(slot))?;
        entry.is(WANTED).then_some(entry.owner)
    }

    /// Returns how many objects are desired.
    pub fn desired_len(&self) -> usize {
        self.wanted
    }

    /// Returns what the kernel holds as it should.
    pub fn held(&self) -> impl Iterator<Item = &K::Value> {
        let entries = self.entries.iter().map(|(_, entry)| entry);
        entries
            .filter(|entry| entry.is(WANTED | HELD))
            .map(|entry| &entry.value)
    }

    /// Returns what the kernel holds where it should hold something else.
    pub fn differing(&self) -> impl Iterator<Item = &K::Value> {
        self.instead.values()
    }

    /// Returns key and value of the object at this position.
    pub(crate) fn at(&self, slot: u32) -> Option<(&K::Key, &K::Value)> {
        self.entry(slot).map(|entry| (&entry.key, &entry.value))
    }

    #[inline]
    fn entry(&self, slot: u32) -> Option<&Entry<K>> {
        self.entries.get(slot)
    }

    fn find(&self, key: &K::Key) -> Option<u32> {
        self.entries.find(key)
    }

    fn insert(
        &mut self,
        absent: Absent,
        key: K::Key,
        value: K::Value,
        flags: u16,
        owner: u32,
    ) -> u32 {
        let entry = Entry {
            key,
            value,
            owner,
            next: Handle::NONE,
            audit: self.audit,
            flags: 0,
        };
        let slot = self.entries.insert(absent, entry);
        self.count(slot, |entry| entry.flags = flags);
        slot
    }

    /// Makes `value` what is desired at `slot`.
    fn set_desired(&mut self, slot: u32, value: K::Value) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        if entry.is(WANTED) && entry.value == value {
            return;
        }
        let observed = match entry.is(HELD) {
            true => Some(entry.value.clone()),
            false => self.instead.remove(&slot),
        };
        let held = observed
            .as_ref()
            .is_some_and(|observed| K::is_met_by(&value, observed));
        if let Some(observed) = observed.filter(|_| !held) {
            self.instead.insert(slot, observed);
        }
        self.change(slot, |entry| {
            entry.value = value;
            entry.set(WANTED, true);
            entry.set(HELD, held);
        });
    }

    /// Changes an entry and files it under what it needs then.
    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Entry<K>)) {
        self.count(slot, change);
        self.file(slot);
    }

    /// Changes an entry and keeps the counts right.
    fn count(&mut self, slot: u32, change: impl FnOnce(&mut Entry<K>)) {
        let Some(entry) = self.entries.get_mut(slot) else {
            return;
        };
        let before = (entry.is(WANTED), entry.work());
        change(entry);
        let after = (entry.is(WANTED), entry.work());
        let step = |count: &mut usize, before: bool, after: bool| {
            *count = *count + usize::from(after) - usize::from(before);
        };
        let (put, del) = (Some(Work::Put), Some(Work::Del));
        step(&mut self.wanted, before.0, after.0);
        step(&mut self.missing, before.1 == put, after.1 == put);
        step(&mut self.strays, before.1 == del, after.1 == del);
    }

    /// Queues the entry for what it needs; a refusal no longer keeps it back.
    fn file(&mut self, slot: u32) {
        let Some(entry) = self.entries.get_mut(slot) else {
            return;
        };
        if entry.is(REFUSED) {
            entry.set(REFUSED, false);
            self.refused -= 1;
        }
        if entry.is(UNDER_WAY) {
            entry.set(UNDER_WAY, false);
            self.under_way -= 1;
        }
        match entry.work() {
            Some(Work::Put) if !entry.is(IN_PUTS) => {
                entry.set(IN_PUTS, true);
                self.puts.push_back(slot);
            }
            Some(Work::Del) if !entry.is(IN_DELS) => {
                entry.set(IN_DELS, true);
                self.dels.push_back(slot);
            }
            Some(_) => {}
            None => {
                if !self.refusals.is_empty() {
                    self.refusals.remove(&slot);
                }
                self.free_if_dead(slot);
            }
        }
    }

    /// Removes an entry that is neither desired nor observed nor queued.
    fn free_if_dead(&mut self, slot: u32) {
        let Some(entry) = self.entries.get(slot) else {
            return;
        };
        if entry.flags & (WANTED | HELD | DOUBTED | IN_PUTS | IN_DELS) != 0 {
            return;
        }
        self.entries.remove(slot);
        self.refusals.remove(&slot);
    }
}

#[cfg(test)]
mod tests;
