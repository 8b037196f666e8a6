//! Reading all leases: in pages of one revision, handed on bit by bit as they arrive.

use bytes::Bytes;
use model::{Lease, LeaseAttrs, SubnetKey};
use tracing::warn;

use super::acquire::Mark;
use super::client::{Client, Failure, Incoming};
use super::follow::Follower;
use super::proto::{KeyValue, RangeRequest};
use crate::claim::{Candidate, same_node, twin};

/// Keys in a page: what etcd gathers for one answer, about two megabytes. 15,000 leases are two.
const PAGE: i64 = 8000;
/// Keys after which the daemon is told, so that its work overlaps with the rest of the listing.
const BATCH: usize = 1000;

/// A place in the store's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// Which etcd this is.
    pub cluster: u64,
    /// What happened up to this revision is known.
    pub revision: i64,
}

/// A listing that is under way.
#[derive(Debug)]
pub(super) struct Listing {
    /// Where to go on: at first the first key, then the last one that was read.
    next: Bytes,
    /// The page that is arriving.
    page: Option<Incoming>,
    /// The first page's place; the others are of the same revision.
    position: Option<Position>,
}

impl Listing {
    pub(super) fn new(start: Bytes) -> Listing {
        Listing {
            next: start,
            page: None,
            position: None,
        }
    }

    /// The next key; `None` at the end. When it fails it may be called again, and goes on behind
    /// the last key.
    pub(super) async fn next(
        &mut self,
        client: &Client,
        end: &Bytes,
    ) -> Result<Option<KeyValue>, Failure> {
        loop {
            let mut page = match self.page.take() {
                Some(page) => page,
                None => client.page(self.request(end.clone())).await?,
            };
            let kv = client.next_key(&mut page).await?;
            if let Some(header) = page.header() {
                let position = Position {
                    cluster: header.cluster_id,
                    revision: header.revision,
                };
                self.position.get_or_insert(position);
            }
            match kv {
                Some(kv) => {
                    self.page = Some(page);
                    self.next = kv.key.clone();
                    return Ok(Some(kv));
                }
                None if page.more() => {}
                None => return Ok(None),
            }
        }
    }

    fn request(&self, end: Bytes) -> RangeRequest {
        let key = match self.position {
            None => self.next.clone(),
            // The first key that there can be behind the last one.
            Some(_) => [self.next.as_ref(), &[0]].concat().into(),
        };
        let revision = self.position.map_or(0, |at| at.revision);
        RangeRequest {
            key,
            range_end: end,
            limit: PAGE,
            revision,
            ..RangeRequest::default()
        }
    }
}

impl Follower {
    /// Starts reading all leases anew; what the new listing does not show is gone at its end.
    pub(super) fn list_anew(&mut self) {
        self.listing = Some(Listing::new(self.keys.subnets().0));
        self.position = None;
        self.own_seen = None;
        self.own_expected = self.holding.is_some();
        self.catalog.begin();
    }

    /// Reads some keys, if there are any left. At the end of all of them the position is set.
    pub(super) async fn read_some(&mut self) -> Result<(), Failure> {
        for _ in 0..BATCH {
            let Some(listing) = &mut self.listing else {
                break;
            };
            match listing.next(&self.client, &self.keys.subnets().1).await {
                Ok(Some(kv)) => {
                    self.read_key(&kv);
                }
                Ok(None) => {
                    self.position = listing.position;
                    self.listing = None;
                    self.end_of_listing();
                }
                // The first page's revision is gone: the pages would not fit together.
                Err(Failure::Compacted) => self.list_anew(),
                Err(failure) => return Err(failure),
            }
        }
        self.feed.flush();
        Ok(())
    }

    /// Takes in one key as it is now. Ones that make no sense are said once, and skipped.
    pub(super) fn read_key(&mut self, kv: &KeyValue) -> Option<SubnetKey> {
        let key = match self.keys.parse(&kv.key) {
            Ok(key) => key,
            Err(name) => {
                if self.complaints.is_new(kv.key.as_ref(), "key") {
                    warn!("etcd: key {name} names no subnet such as 172.30.80.0-24: skipped");
                }
                return None;
            }
        };
        if self.holding.as_ref().is_some_and(|own| own.key == key) {
            self.own_seen = Some(kv.clone());
        }
        if self
            .catalog
            .has(&key, |revision| *revision == kv.mod_revision)
        {
            return Some(key);
        }
        let lease = match LeaseAttrs::from_json(&kv.value) {
            Ok(attrs) => {
                self.complaints.settled(kv.key.as_ref());
                let seniority = u64::try_from(kv.create_revision).unwrap_or(0);
                Some(Lease {
                    key,
                    attrs,
                    seniority,
                })
            }
            Err(error) => {
                if self.complaints.is_new(kv.key.as_ref(), error.to_string()) {
                    warn!("etcd: lease {key}: {error}: skipped");
                }
                None
            }
        };
        if let Some(lease) = lease
            .as_ref()
            .filter(|lease| same_node(&lease.attrs, &self.public_ip))
        {
            self.note_ours(lease, kv);
        }
        self.catalog.saw(key, kv.mod_revision, lease);
        Some(key)
    }

    /// A lease with our public addresses: one to take up again, or, once we have one, a twin.
    fn note_ours(&mut self, lease: &Lease, kv: &KeyValue) {
        let key = lease.key;
        match &self.holding {
            None => {
                self.candidates.retain(|other| other.lease.key != key);
                let mark = Mark {
                    create_revision: kv.create_revision,
                    mod_revision: kv.mod_revision,
                    etcd_lease: kv.lease,
                };
                self.candidates.push(Candidate {
                    lease: lease.clone(),
                    reserved: kv.lease == 0,
                    mark,
                });
            }
            Some(own) if own.key != key => twin(&mut self.complaints, own.key, lease),
            Some(_) => {}
        }
    }
}
