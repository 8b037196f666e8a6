//! Leases that changed, on their way to the daemon.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::iter::Flatten;
use std::vec::IntoIter;

use model::{Lease, SubnetKey};

/// Entries in a part: as many as the daemon takes in at once. Then the part's memory, some 200 kB, is given back.
const PART: usize = 1000;

type State = (SubnetKey, Option<Lease>);

/// The last state of each lease that changed: `None` if it is gone. Parts are in the order in which they began to change.
///
/// While a node looks for a subnet it reads all leases, and none is taken yet. In a map their text would be spread
/// among the map's nodes, and 6 MB of small holes would stay behind at 15,000 leases.
#[derive(Debug, Default)]
pub struct LeaseStates {
    parts: Vec<Vec<State>>,
    places: HashMap<SubnetKey, u32>,
}

impl LeaseStates {
    /// Sets the state of a lease; it takes the place of an earlier one.
    pub(crate) fn set(&mut self, key: SubnetKey, state: Option<Lease>) {
        let end = self.places.len();
        match self.places.entry(key) {
            Entry::Occupied(place) => {
                let at = *place.get() as usize;
                let part = self.parts.get_mut(at / PART);
                if let Some(entry) = part.and_then(|part| part.get_mut(at % PART)) {
                    entry.1 = state;
                }
            }
            Entry::Vacant(place) => {
                place.insert(end as u32);
                match self.parts.last_mut() {
                    Some(part) if part.len() < PART => part.push((key, state)),
                    Some(_) => {
                        let mut part = Vec::with_capacity(PART);
                        part.push((key, state));
                        self.parts.push(part);
                    }
                    // Mostly one lease changes.
                    None => self.parts.push(vec![(key, state)]),
                }
            }
        }
    }

    /// Returns the state of a lease, if it changed.
    pub fn get(&self, key: &SubnetKey) -> Option<&Option<Lease>> {
        let at = *self.places.get(key)? as usize;
        let entry = self.parts.get(at / PART)?.get(at % PART)?;
        Some(&entry.1)
    }

    /// Returns how many leases changed.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns whether no lease changed.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

impl IntoIterator for LeaseStates {
    type Item = State;
    type IntoIter = Flatten<IntoIter<Vec<State>>>;

    /// Gives back each part's memory when its leases have been taken. Within a part in the order of the keys, however a
    /// store lists them: a subnet before those that lie in it.
    fn into_iter(mut self) -> Self::IntoIter {
        for part in &mut self.parts {
            part.sort_unstable_by_key(|(key, _)| *key);
        }
        self.parts.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnet::Ipv4Net;
    use model::LeaseAttrs;

    use super::*;

    fn key(n: u32) -> SubnetKey {
        Ipv4Net::new(Ipv4Addr::from_bits(10 << 24 | n << 8), 24)
            .unwrap()
            .into()
    }

    fn lease(n: u32, seniority: u64) -> Lease {
        Lease {
            key: key(n),
            attrs: LeaseAttrs::default(),
            seniority,
        }
    }

    #[test]
    fn a_later_state_takes_the_place_of_an_earlier_one() {
        let mut states = LeaseStates::default();
        let count = 2 * PART as u32 + 7;
        (0..count).for_each(|n| states.set(key(n), Some(lease(n, 1))));
        for n in [3, PART as u32, count - 1] {
            states.set(key(n), Some(lease(n, 2)));
            assert_eq!(states.get(&key(n)), Some(&Some(lease(n, 2))));
        }
        states.set(key(5), None);
        assert_eq!(states.get(&key(5)), Some(&None));
        assert_eq!(states.get(&key(count)), None);
        assert_eq!((states.len(), states.is_empty()), (count as usize, false));
        let all: Vec<State> = states.into_iter().collect();
        let mut unordered = LeaseStates::default();
        for n in [3, 1, 2] {
            unordered.set(key(n), None);
        }
        let keys = unordered.into_iter().map(|(key, _)| key);
        assert!(keys.eq([1, 2, 3].map(key)));
        assert!(all.iter().map(|(key, _)| *key).eq((0..count).map(key)));
        let changed = all.iter().filter(|(_, state)| *state == Some(lease(0, 1)));
        assert_eq!(changed.count(), 1);
        let newer = all
            .iter()
            .flat_map(|(_, state)| state)
            .filter(|lease| lease.seniority == 2);
        assert_eq!(newer.count(), 3);
    }
}
