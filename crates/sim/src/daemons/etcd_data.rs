//! What a simulated etcd cluster holds: keys with their history, leases, a revision.

use std::collections::BTreeMap;
use std::time::Duration;

use store::etcd::proto::{
    Compare, CompareTo, Event, Header, KeyValue, RangeRequest, RangeResponse, Request, Response,
    ResponseOp, Target, TxnRequest, TxnResponse,
};

/// The kind of an event that deletes a key.
const DELETE: i32 = 1;

/// Why etcd refuses a request: its own text, and the code of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: u8,
    /// The text.
    pub text: &'static str,
}

const COMPACTED: Refusal = Refusal {
    code: 11,
    text: "etcdserver: mvcc: required revision has been compacted",
};
const FUTURE: Refusal = Refusal {
    code: 11,
    text: "etcdserver: mvcc: required revision is a future revision",
};
const NO_LEASE: Refusal = Refusal {
    code: 5,
    text: "etcdserver: requested lease not found",
};
const LEASE_EXISTS: Refusal = Refusal {
    code: 9,
    text: "etcdserver: lease already exists",
};

/// An etcd lease.
#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: i64,
    ends: Duration,
}

/// Keys, etcd leases and their history.
#[derive(Clone, Debug)]
pub struct EtcdData {
    cluster: u64,
    term: u64,
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    leases: BTreeMap<i64, Lease>,
    /// Every change since the beginning, compacted ones included: the state at any revision follows from it.
    history: Vec<Event>,
}

impl Default for EtcdData {
    fn default() -> EtcdData {
        EtcdData {
            cluster: 0x5eed,
            term: 2,
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            history: Vec::new(),
        }
    }
}

impl EtcdData {
    /// Returns what every answer begins with.
    pub fn header(&self) -> Header {
        Header {
            cluster_id: self.cluster,
            raft_term: self.term,
            revision: self.revision,
        }
    }

    /// Returns the keys.
    pub fn keys(&self) -> impl Iterator<Item = &KeyValue> {
        self.keys.values()
    }

    /// Returns a key.
    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    /// Returns the oldest revision that a watch can begin at.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Returns the changes of keys from `key` up to `range_end` since `revision`, it included.
    pub fn since(&self, revision: i64, key: &[u8], range_end: &[u8]) -> Vec<Event> {
        let of = |event: &&Event| {
            event
                .kv
                .as_ref()
                .is_some_and(|kv| kv.mod_revision >= revision && is_inside(&kv.key, key, range_end))
        };
        self.history.iter().filter(of).cloned().collect()
    }

    /// Answers a question.
    ///
    /// # Errors
    /// Its revision is compacted, or yet to come.
    pub fn range(&self, query: &RangeRequest) -> Result<RangeResponse, Refusal> {
        let past;
        let keys = match query.revision {
            0 => &self.keys,
            revision if revision > self.revision => return Err(FUTURE),
            revision if revision < self.compacted => return Err(COMPACTED),
            revision if revision == self.revision => &self.keys,
            revision => {
                past = self.at(revision);
                &past
            }
        };
        let inside = keys
            .values()
            .filter(|kv| is_inside(&kv.key, &query.key, &query.range_end));
        let found: Vec<KeyValue> = inside
            .clone()
            .filter(|kv| kv.create_revision >= query.min_create_revision)
            .cloned()
            .collect();
        let count = i64::try_from(inside.count()).unwrap_or(0);
        let limit = usize::try_from(query.limit).unwrap_or(0);
        let more = limit > 0 && found.len() > limit;
        let mut kvs = if query.count_only { Vec::new() } else { found };
        if more {
            kvs.truncate(limit);
        }
        if query.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        Ok(RangeResponse {
            header: Some(self.header()),
            kvs,
            more,
            count,
        })
    }

    fn at(&self, revision: i64) -> BTreeMap<Vec<u8>, KeyValue> {
        let mut keys = BTreeMap::new();
        for event in &self.history {
            let Some(kv) = &event.kv else { continue };
            if kv.mod_revision > revision {
                break;
            }
            if event.kind == DELETE {
                keys.remove(kv.key.as_ref());
            } else {
                keys.insert(kv.key.to_vec(), kv.clone());
            }
        }
        keys
    }

    /// Carries out a transaction.
    ///
    /// # Errors
    /// A key is to hang on an etcd lease that does not exist, or a question's revision is not there.
    pub fn transact(&mut self, txn: &TxnRequest) -> Result<TxnResponse, Refusal> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded {
            &txn.success
        } else {
            &txn.failure
        };
        let requests = ops.iter().filter_map(|op| op.request.as_ref());
        for request in requests.clone() {
            match request {
                Request::Put(put) if put.lease != 0 && !self.leases.contains_key(&put.lease) => {
                    return Err(NO_LEASE);
                }
                Request::Range(range) => drop(self.range(range)?),
                Request::Put(_) | Request::Delete(_) => {}
            }
        }
        let changes = requests.clone().any(|request| match request {
            Request::Put(_) => true,
            Request::Delete(delete) => self.keys.contains_key(delete.key.as_ref()),
            Request::Range(_) => false,
        });
        self.revision += i64::from(changes);
        let mut responses = Vec::new();
        for request in requests {
            let response = match request {
                Request::Range(range) => Response::Range(self.range(range)?),
                Request::Put(put) => {
                    self.write(&put.key, &put.value, put.lease);
                    Response::Put(Default::default())
                }
                Request::Delete(delete) => {
                    self.remove(&delete.key);
                    Response::Delete(Default::default())
                }
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        Ok(TxnResponse {
            header: Some(self.header()),
            succeeded,
            responses,
        })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let target = Target::try_from(compare.target).unwrap_or(Target::Version);
        let is_so = |kv: Option<&KeyValue>| {
            let (created, changed) = kv.map_or((0, 0), |kv| (kv.create_revision, kv.mod_revision));
            match (target, &compare.to) {
                (Target::Create, Some(CompareTo::CreateRevision(to))) => created == *to,
                (Target::Mod, Some(CompareTo::ModRevision(to))) => changed == *to,
                _ => false,
            }
        };
        if compare.range_end.is_empty() {
            return is_so(self.keys.get(compare.key.as_ref()));
        }
        // Of a range etcd compares the keys that exist.
        let mut inside = self
            .keys
            .values()
            .filter(|kv| is_inside(&kv.key, &compare.key, &compare.range_end));
        inside.all(|kv| is_so(Some(kv)))
    }

    fn write(&mut self, key: &[u8], value: &[u8], lease: i64) {
        let before = self.keys.get(key);
        let kv = KeyValue {
            key: key.to_vec().into(),
            create_revision: before.map_or(self.revision, |before| before.create_revision),
            mod_revision: self.revision,
            value: value.to_vec().into(),
            lease,
        };
        self.keys.insert(key.to_vec(), kv.clone());
        self.history.push(Event {
            kind: 0,
            kv: Some(kv),
        });
    }

    fn remove(&mut self, key: &[u8]) {
        if self.keys.remove(key).is_some() {
            self.history.push(Event {
                kind: DELETE,
                kv: Some(KeyValue {
                    key: key.to_vec().into(),
                    mod_revision: self.revision,
                    ..KeyValue::default()
                }),
            });
        }
    }

    /// Writes a key as an administrator does: it keeps no etcd lease.
    pub fn put(&mut self, key: &str, value: &str) {
        self.revision += 1;
        self.write(key.as_bytes(), value.as_bytes(), 0);
    }

    /// Changes a key's value and leaves its etcd lease.
    pub fn rewrite(&mut self, key: &[u8], value: &str) {
        if let Some(lease) = self.keys.get(key).map(|kv| kv.lease) {
            self.revision += 1;
            self.write(key, value.as_bytes(), lease);
        }
    }

    /// Deletes a key as an administrator does.
    pub fn delete(&mut self, key: &[u8]) {
        if self.keys.contains_key(key) {
            self.revision += 1;
            self.remove(key);
        }
    }

    /// Grants an etcd lease.
    ///
    /// # Errors
    /// There is one with this identity.
    pub fn grant(&mut self, id: i64, ttl: i64, now: Duration) -> Result<i64, Refusal> {
        if self.leases.contains_key(&id) {
            return Err(LEASE_EXISTS);
        }
        let ends = now + seconds(ttl);
        self.leases.insert(id, Lease { ttl, ends });
        Ok(ttl)
    }

    /// Renews an etcd lease; returns its life in seconds, 0 if there is none.
    pub fn keep_alive(&mut self, id: i64, now: Duration) -> i64 {
        self.leases.get_mut(&id).map_or(0, |lease| {
            lease.ends = now + seconds(lease.ttl);
            lease.ttl
        })
    }

    /// Ends an etcd lease, and deletes what hangs on it.
    pub fn revoke(&mut self, id: i64) {
        if self.leases.remove(&id).is_some() {
            let hang = self.keys.values().filter(|kv| kv.lease == id);
            let hang: Vec<Vec<u8>> = hang.map(|kv| kv.key.to_vec()).collect();
            self.revision += i64::from(!hang.is_empty());
            hang.iter().for_each(|key| self.remove(key));
        }
    }

    /// Ends the etcd leases whose time is over. Returns whether there was one.
    pub fn expire(&mut self, now: Duration) -> bool {
        let over = self.leases.iter().filter(|(_, lease)| lease.ends <= now);
        let over: Vec<i64> = over.map(|(id, _)| *id).collect();
        over.iter().for_each(|id| self.revoke(*id));
        !over.is_empty()
    }

    /// Forgets the history before the present revision.
    pub fn compact(&mut self) {
        self.compacted = self.revision;
    }

    /// Goes back to `backup`. `ahead`: by how much the revision is raised, as `etcdutl --bump-revision` does.
    pub fn restore(&mut self, backup: &EtcdData, ahead: i64, now: Duration) {
        *self = backup.clone();
        self.revision += ahead;
        if ahead > 0 {
            self.compacted = self.revision;
        }
        for lease in self.leases.values_mut() {
            lease.ends = now + seconds(lease.ttl);
        }
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

fn is_inside(key: &[u8], start: &[u8], range_end: &[u8]) -> bool {
    if range_end.is_empty() {
        key == start
    } else {
        key >= start && key < range_end
    }
}
