//! Which keys a store holds: what is in use, and what a new listing shows to be gone.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use model::{Dual, Lease, SubnetKey};

use crate::event_queue::EventQueue;

/// Every key that the store showed, with the version of each that the daemon knows.
#[derive(Debug)]
pub(crate) struct LeaseIndex<V> {
    known: BTreeMap<Packed, Known<V>>,
    round: u16,
    queue: Arc<EventQueue>,
}

#[derive(Debug)]
struct Known<V> {
    version: V,
    /// The listing that showed it last.
    round: u16,
    /// The daemon knows it as a lease; not so for a key with a value that cannot be read, which is
    /// taken all the same.
    reported: bool,
}

/// A [`SubnetKey`] in less than half of its size: there may be tens of thousands, for as long as
/// the daemon runs, and nearly all of them are of IPv4 alone.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Packed {
    /// The address as a number, and the length.
    V4(u32, u8),
    Other(Box<SubnetKey>),
}

impl From<&SubnetKey> for Packed {
    fn from(key: &SubnetKey) -> Packed {
        match key.nets() {
            Dual {
                v4: Some(IpNet::V4(net)),
                v6: None,
            } => Packed::V4(net.addr().to_bits(), net.prefix_len()),
            _ => Packed::Other(Box::new(*key)),
        }
    }
}

impl Packed {
    fn unpack(&self) -> Option<SubnetKey> {
        match self {
            Packed::V4(addr, len) => {
                let net = Ipv4Net::new(Ipv4Addr::from_bits(*addr), *len).ok()?;
                SubnetKey::new(Dual {
                    v4: Some(net.into()),
                    v6: None,
                })
            }
            Packed::Other(key) => Some(**key),
        }
    }
}

impl<V> LeaseIndex<V> {
    pub(crate) fn new(queue: Arc<EventQueue>) -> LeaseIndex<V> {
        LeaseIndex {
            known: BTreeMap::new(),
            round: 0,
            queue,
        }
    }

    /// Begins a listing.
    pub(crate) fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// Forgets the versions that are known: `none` is one that no key has.
    pub(crate) fn forget_versions(&mut self, none: V)
    where
        V: Copy,
    {
        self.known
            .values_mut()
            .for_each(|known| known.version = none);
    }

    /// Returns whether `key` exists as it is known already; if so it need not be read again.
    pub(crate) fn has(&mut self, key: &SubnetKey, unchanged: impl Fn(&V) -> bool) -> bool {
        match self.known.get_mut(&key.into()) {
            Some(known) if unchanged(&known.version) => {
                known.round = self.round;
                true
            }
            _ => false,
        }
    }

    /// Records that `key` exists and that what the daemon knows of it is this version.
    pub(crate) fn refresh(&mut self, key: &SubnetKey, version: V) {
        if let Some(known) = self.known.get_mut(&key.into()) {
            known.version = version;
            known.round = self.round;
        }
    }

    /// Records that `key` exists, with a usable lease or none.
    pub(crate) fn put(&mut self, key: SubnetKey, version: V, lease: Option<Lease>) {
        let reported = lease.is_some();
        let known = Known {
            version,
            round: self.round,
            reported,
        };
        let before = self
            .known
            .insert((&key).into(), known)
            .is_some_and(|old| old.reported);
        if reported || before {
            self.queue.lease(key, lease);
        }
    }

    /// Records that `key` does not exist.
    pub(crate) fn remove(&mut self, key: &SubnetKey) {
        if self
            .known
            .remove(&key.into())
            .is_some_and(|old| old.reported)
        {
            self.queue.lease(*key, None);
        }
    }

    /// Removes what neither the last listing nor anything since has shown.
    pub(crate) fn sweep(&mut self) {
        let (round, queue) = (self.round, &self.queue);
        self.known.retain(|key, known| {
            let stays = known.round == round;
            if let Some(key) = key.unpack().filter(|_| !stays && known.reported) {
                queue.lease(key, None);
            }
            stays
        });
        // Keys that came in order leave a tree of half-empty nodes, which would stay so.
        self.known = std::mem::take(&mut self.known).into_iter().collect();
    }

    /// Returns the subnets that are in use.
    pub(crate) fn taken(&self) -> impl Iterator<Item = SubnetKey> {
        self.known.keys().filter_map(Packed::unpack)
    }

    /// Returns the version of `key` that is known.
    pub(crate) fn version(&self, key: &SubnetKey) -> Option<&V> {
        self.known.get(&key.into()).map(|known| &known.version)
    }

    /// Returns every key with its version.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SubnetKey, &V)> {
        self.known
            .iter()
            .filter_map(|(key, known)| Some((key.unpack()?, &known.version)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::LeaseAttrs;

    fn lease(key: &str) -> Lease {
        let attrs = LeaseAttrs::from_json(br#"{"PublicIP":"10.0.0.1"}"#).unwrap();
        Lease {
            key: key.parse().unwrap(),
            attrs,
            seniority: 1,
        }
    }

    #[tokio::test]
    async fn a_listing_shows_what_is_gone_and_repeats_nothing() {
        let queue = Arc::new(EventQueue::default());
        let mut index = LeaseIndex::new(queue.clone());
        let (a, b, bad) = (
            lease("10.1.1.0-24"),
            lease("10.1.2.0-24"),
            "10.1.3.0-24".parse().unwrap(),
        );
        index.begin();
        index.put(a.key, 1, Some(a.clone()));
        index.put(b.key, 1, Some(b.clone()));
        index.put(bad, 1, None);
        index.sweep();
        queue.flush();
        assert_eq!(
            queue.next_event().await.leases.len(),
            2,
            "a value that cannot be read is not reported"
        );
        assert_eq!(index.taken().count(), 3, "but its subnet is taken");
        index.begin();
        assert!(index.has(&a.key, |version| *version == 1));
        index.sweep();
        queue.flush();
        let events = queue.next_event().await.leases;
        assert_eq!(events.into_iter().collect::<Vec<_>>(), [(b.key, None)]);
    }

    #[test]
    fn keys_unpack_as_they_were() {
        for text in [
            "10.1.2.0-24",
            "10.1.2.0-24&fd00::-64",
            "0.0.0.0-0&fd00::-64",
            "255.255.255.255-32",
        ] {
            let key: SubnetKey = text.parse().unwrap();
            assert_eq!(Packed::from(&key).unpack(), Some(key));
        }
        assert_eq!(size_of::<(Packed, Known<i64>)>(), 32);
    }
}
