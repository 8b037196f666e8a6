//! Other nodes with this node's address that took another lease at the same moment.
//!
//! Two nodes with one address that start in the same second read the store before either has a
//! lease, and both create one. The store shows both of them both keys, in one order: the node of the
//! younger key asks whether a living node holds the older one and, if so, gives its own key up.
//!
//! Leases are compared only for [`FRESH`] after the own one was taken or created again, and only while
//! the node keeps its address: of two nodes that change theirs, one may publish its new one first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use model::{Dual, SubnetKey};

use super::terms::{Entry, Life, Request, Signature, Time, Value, WriterId, same_node};

/// How long after it was taken a lease is compared with others that have its address.
const FRESH: Duration = Duration::from_secs(600);

/// No more leases are compared: so many have one address only if somebody fills the store with them.
const MOST: usize = 64;

/// Leases other than the own one that may have this node's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Twins<M> {
    /// Until when the own lease is compared with them; `None`: no longer.
    until: Option<Time>,
    known: BTreeMap<SubnetKey, Twin<M>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Twin<M> {
    entry: Entry<M>,
    /// A question was written; no answer by then means that nobody holds it.
    asked: Option<Time>,
    /// A living node holds it.
    answered: bool,
}

impl<M: Clone + PartialEq> Twins<M> {
    /// For a lease that was taken at `now`.
    pub(super) fn new(now: Time) -> Twins<M> {
        Twins {
            until: Some(now + FRESH),
            known: BTreeMap::new(),
        }
    }

    /// Takes in that the own lease was created again.
    pub(super) fn own_recreated(&mut self, now: Time) {
        self.until = Some(now + FRESH);
        for twin in self.known.values_mut() {
            (twin.asked, twin.answered) = (None, false);
        }
    }

    /// Takes in that this node has another address.
    pub(super) fn address_changed(&mut self) {
        self.until = None;
    }

    /// Takes in a lease as the store shows it. `window`: how long an answer is waited for.
    pub(super) fn observe(
        &mut self,
        entry: Entry<M>,
        (writer, window): (WriterId, Duration),
        now: Time,
    ) {
        let Some(twin) = self.known.get_mut(&entry.key) else {
            self.insert(entry, None);
            return;
        };
        if twin.entry.mark == entry.mark {
            return;
        }
        let is_awaited = twin.asked.is_some_and(|until| now < until);
        match entry.signature {
            // Our own question, of which nothing was heard.
            Some(Signature::Claimant(id)) if id == writer => {
                twin.asked.get_or_insert(now + window);
            }
            Some(Signature::Claimant(_)) => {}
            Some(Signature::Holder(_)) => twin.answered = twin.asked.is_some(),
            None if is_awaited => twin.answered = true,
            None => twin.asked = None,
        }
        twin.entry = entry;
    }

    /// Takes in that a question was written: the lease is `entry` now.
    pub(super) fn asked(&mut self, entry: Entry<M>, until: Time) {
        self.insert(entry, Some(until));
    }

    /// Takes in that there is no lease `key`.
    pub(super) fn gone(&mut self, key: &SubnetKey) {
        self.known.remove(key);
    }

    fn insert(&mut self, entry: Entry<M>, asked: Option<Time>) {
        if self.known.len() >= MOST && !self.known.contains_key(&entry.key) {
            return;
        }
        let twin = Twin {
            asked,
            answered: false,
            entry,
        };
        self.known.insert(twin.entry.key, twin);
    }

    /// Returns the leases that are older than `own` and have its node's addresses, `ours`.
    fn older(&self, own: &Entry<M>, ours: &Dual<IpAddr>) -> impl Iterator<Item = &Twin<M>> {
        self.known.values().filter(|twin| {
            let entry = &twin.entry;
            let attrs = entry.attrs.as_ref();
            (entry.seniority, entry.key) < (own.seniority, own.key)
                && attrs.is_some_and(|attrs| same_node(attrs, ours))
                && !entry.is_made_by_hand()
        })
    }

    /// Returns the older lease that a living node holds.
    pub(super) fn holder(&self, own: &Entry<M>, ours: &Dual<IpAddr>) -> Option<SubnetKey> {
        let mut older = self.older(own, ours);
        let holder = older.find(|twin| twin.answered);
        holder.map(|twin| twin.entry.key)
    }

    /// Returns the next question to write.
    pub(super) fn question(
        &self,
        own: &Entry<M>,
        ours: &Dual<IpAddr>,
        writer: WriterId,
        now: Time,
    ) -> Option<Request<M>> {
        self.until.filter(|until| now < *until)?;
        let mut older = self.older(own, ours);
        let twin = older.find(|twin| twin.asked.is_none())?;
        Some(Request::Write {
            key: twin.entry.key,
            value: Value {
                attrs: twin.entry.attrs.clone()?,
                signature: Some(Signature::Claimant(writer)),
            },
            over: Some(twin.entry.mark.clone()),
            reserved: twin.entry.life == Life::Reserved,
        })
    }
}
