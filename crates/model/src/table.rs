//! Desired against observed, for any kind of kernel object.
//!
//! One entry a key. An object that is as it should be costs its value once: what the kernel
//! holds is stored only where it differs. The table knows which keys need work, so that a change
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

struct Entry<V> {
    desired: Option<V>,
    observed: Seen<V>,
    audit: u8,
}

enum Seen<V> {
    /// Holds what is desired.
    Same,
    Absent,
    /// Boxed: it is rare, and tens of thousands of entries would carry the room for it.
    Other(Box<V>),
}

/// Desired and observed objects of one kind.
pub struct Table<K: Kind> {
    entries: BTreeMap<K::Key, Entry<K::Value>>,
    /// Desired, and not observed so.
    puts: BTreeSet<K::Key>,
    /// Observed, and not desired.
    dels: BTreeSet<K::Key>,
    /// Need work that the kernel refused; not offered until [`Table::unpark`].
    parked: BTreeSet<K::Key>,
    /// How many entries are desired.
    desired: usize,
    audit: u8,
}

impl<K: Kind> Default for Table<K> {
    fn default() -> Self {
        Table {
            entries: BTreeMap::new(),
            puts: BTreeSet::new(),
            dels: BTreeSet::new(),
            parked: BTreeSet::new(),
            desired: 0,
            audit: 0,
        }
    }
}

impl<K: Kind> Table<K> {
    /// The kernel should hold `value` under `key`.
    pub fn want(&mut self, key: K::Key, value: K::Value) {
        let audit = self.audit;
        let entry = self.entries.entry(key).or_insert(Entry {
            desired: None,
            observed: Seen::Absent,
            audit,
        });
        let differs = match (&entry.observed, &entry.desired) {
            (Seen::Same, Some(old)) if *old != value => Some(Seen::Other(Box::new(old.clone()))),
            (Seen::Other(old), _) if **old == value => Some(Seen::Same),
            _ => None,
        };
        entry.observed = differs.unwrap_or(std::mem::replace(&mut entry.observed, Seen::Absent));
        self.desired += usize::from(entry.desired.replace(value).is_none());
        self.refile(key);
    }

    /// The kernel should hold nothing under `key`.
    pub fn unwant(&mut self, key: K::Key) {
        if let Some(entry) = self.entries.get_mut(&key) {
            let desired = entry.desired.take();
            self.desired -= usize::from(desired.is_some());
            if let (Seen::Same, Some(value)) = (&entry.observed, desired) {
                entry.observed = Seen::Other(Box::new(value));
            }
            self.refile(key);
        }
    }

    /// The kernel was seen to hold `value` under `key`. Returns whether that is news that needs
    /// work.
    pub fn saw(&mut self, key: K::Key, value: K::Value) -> bool {
        let audit = self.audit;
        let entry = self.entries.entry(key).or_insert(Entry {
            desired: None,
            observed: Seen::Absent,
            audit,
        });
        entry.audit = audit;
        entry.observed = match &entry.desired {
            Some(desired) if *desired == value => Seen::Same,
            _ => Seen::Other(Box::new(value)),
        };
        self.refile(key)
    }

    /// The kernel was seen to hold nothing under `key`. Returns whether that is news that needs
    /// work.
    pub fn gone(&mut self, key: K::Key) -> bool {
        match self.entries.get_mut(&key) {
            Some(entry) => {
                entry.observed = Seen::Absent;
                self.refile(key)
            }
            None => false,
        }
    }

    /// A notice says that the kernel holds `value` under `key`, or nothing. It may be older than
    /// what we wrote since: so it can make work, but never cancels any. To do too much harms
    /// nothing. Returns whether there is work.
    pub fn heard(&mut self, key: K::Key, value: Option<K::Value>) -> bool {
        let work = self.change(&key).is_some();
        let desired = self.desired(&key);
        let is_desired = match (&value, desired) {
            (Some(value), Some(desired)) => value == desired,
            (None, None) => true,
            _ => false,
        };
        match value {
            _ if work && is_desired => true,
            Some(value) => self.saw(key, value),
            None => self.gone(key),
        }
    }

    /// Begins a full look at the kernel: what [`Table::saw`] does not mention until
    /// [`Table::end_audit`] is not there.
    pub fn begin_audit(&mut self) {
        self.audit = self.audit.wrapping_add(1);
    }

    /// Ends a full look; returns how many objects turned out to be missing or changed.
    pub fn end_audit(&mut self) -> usize {
        let audit = self.audit;
        let unseen = |e: &Entry<K::Value>| e.audit != audit && !matches!(e.observed, Seen::Absent);
        let unseen = self
            .entries
            .iter()
            .filter(|(_, e)| unseen(e))
            .map(|(k, _)| *k);
        let unseen: Vec<K::Key> = unseen.collect();
        for key in &unseen {
            self.gone(*key);
        }
        unseen.len()
    }

    /// What `key` needs now, if anything.
    pub fn change(&self, key: &K::Key) -> Option<Change<K::Value>> {
        let entry = self.entries.get(key)?;
        match (&entry.desired, &entry.observed) {
            (Some(_), Seen::Same) | (None, Seen::Absent | Seen::Same) => None,
            (Some(new), Seen::Absent) => Some(Change::Put(new.clone())),
            (Some(new), Seen::Other(old)) if K::in_place(old, new) => {
                Some(Change::Put(new.clone()))
            }
            (Some(new), Seen::Other(old)) => Some(Change::Anew {
                old: (**old).clone(),
                new: new.clone(),
            }),
            (None, Seen::Other(old)) => Some(Change::Del((**old).clone())),
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
        self.entries.get(key)?.desired.as_ref()
    }

    /// What the kernel was last seen to hold under `key`.
    pub fn observed(&self, key: &K::Key) -> Option<&K::Value> {
        let entry = self.entries.get(key)?;
        match &entry.observed {
            Seen::Same => entry.desired.as_ref(),
            Seen::Other(value) => Some(value),
            Seen::Absent => None,
        }
    }

    /// How many objects are desired.
    pub fn desired_len(&self) -> usize {
        self.desired
    }

    /// Every key with its desired value.
    pub fn desired_iter(&self) -> impl Iterator<Item = (&K::Key, &K::Value)> {
        self.entries
            .iter()
            .filter_map(|(k, e)| e.desired.as_ref().map(|v| (k, v)))
    }

    /// Files `key` under what it needs; forgets it when it needs nothing and is nothing.
    fn refile(&mut self, key: K::Key) -> bool {
        self.parked.remove(&key);
        let Some(entry) = self.entries.get(&key) else {
            return false;
        };
        let (put, del) = match (&entry.desired, &entry.observed) {
            (Some(_), Seen::Same) => (false, false),
            (Some(_), _) => (true, false),
            (None, Seen::Other(_)) => (false, true),
            (None, _) => {
                self.entries.remove(&key);
                (false, false)
            }
        };
        match put {
            true => self.puts.insert(key),
            false => self.puts.remove(&key),
        };
        match del {
            true => self.dels.insert(key),
            false => self.dels.remove(&key),
        };
        put || del
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    struct Num;
    impl Kind for Num {
        type Key = u8;
        type Value = u8;
        fn in_place(old: &u8, new: &u8) -> bool {
            old % 2 == new % 2
        }
    }

    #[test]
    fn a_change_is_what_separates_desired_from_observed() {
        let mut t = Table::<Num>::default();
        t.want(1, 10);
        assert_eq!(t.change(&1), Some(Change::Put(10)));
        t.put_done(1, 10);
        assert_eq!(t.change(&1), None);
        t.want(1, 12);
        assert_eq!(t.change(&1), Some(Change::Put(12)));
        t.want(1, 11);
        assert_eq!(t.change(&1), Some(Change::Anew { old: 10, new: 11 }));
        t.want(1, 10);
        assert!(t.in_sync(), "back to what the kernel holds");
        t.unwant(1);
        assert_eq!(t.change(&1), Some(Change::Del(10)));
        t.del_done(1);
        assert!(t.in_sync() && t.desired(&1).is_none());
    }

    #[test]
    fn an_audit_finds_what_is_missing_and_what_is_foreign() {
        let mut t = Table::<Num>::default();
        for key in 0..3 {
            t.want(key, key);
            t.put_done(key, key);
        }
        t.begin_audit();
        t.saw(0, 0);
        t.saw(1, 7);
        t.saw(9, 9);
        assert_eq!(t.end_audit(), 1);
        assert_eq!(t.puts().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(t.dels().copied().collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn a_stale_notice_cancels_nothing() {
        let mut t = Table::<Num>::default();
        t.want(1, 10);
        t.put_done(1, 10);
        t.want(1, 12);
        assert!(t.heard(1, Some(12)), "from before we wrote 10");
        assert_eq!(t.change(&1), Some(Change::Put(12)));
        t.put_done(1, 12);
        t.unwant(1);
        assert!(t.heard(1, None), "from before we wrote 12");
        assert_eq!(t.change(&1), Some(Change::Del(12)));
        t.del_done(1);
        assert!(t.heard(1, Some(3)) && t.change(&1) == Some(Change::Del(3)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Want(u8, u8),
        Unwant(u8),
        KernelSet(u8, u8),
        KernelDel(u8),
        Audit,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..6u8, 0..4u8).prop_map(|(k, v)| Step::Want(k, v)),
            (0..6u8).prop_map(Step::Unwant),
            (0..6u8, 0..4u8).prop_map(|(k, v)| Step::KernelSet(k, v)),
            (0..6u8).prop_map(Step::KernelDel),
            Just(Step::Audit),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order, applying the changes makes kernel and desired equal.
        #[test]
        fn converges(steps in proptest::collection::vec(step(), 0..60)) {
            let mut t = Table::<Num>::default();
            let (mut desired, mut kernel) = (BTreeMap::new(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Want(k, v) => { t.want(k, v); desired.insert(k, v); }
                    Step::Unwant(k) => { t.unwant(k); desired.remove(&k); }
                    Step::KernelSet(k, v) => { kernel.insert(k, v); t.saw(k, v); }
                    Step::KernelDel(k) => { kernel.remove(&k); t.gone(k); }
                    Step::Audit => {
                        t.begin_audit();
                        for (k, v) in &kernel { t.saw(*k, *v); }
                        t.end_audit();
                    }
                }
            }
            let dels: Vec<u8> = t.dels().copied().collect();
            let puts: Vec<u8> = t.puts().copied().collect();
            for k in dels.into_iter().chain(puts) {
                match t.change(&k) {
                    Some(Change::Put(v)) => {
                        prop_assert!(kernel.get(&k).is_none_or(|old| Num::in_place(old, &v)));
                        kernel.insert(k, v);
                        t.put_done(k, v);
                    }
                    Some(Change::Del(v)) => { prop_assert_eq!(kernel.remove(&k), Some(v)); t.del_done(k); }
                    Some(Change::Anew { old, new }) => {
                        prop_assert_eq!(kernel.get(&k), Some(&old));
                        kernel.insert(k, new);
                        t.put_done(k, new);
                    }
                    None => prop_assert!(false, "{} filed without a change", k),
                }
            }
            prop_assert!(t.in_sync());
            prop_assert_eq!(t.desired_len(), desired.len());
            prop_assert_eq!(kernel, desired);
        }
    }
}
