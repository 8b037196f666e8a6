//! Reading all leases: in pages of one revision, each handed on before the next one has arrived.

use std::sync::Arc;

use bytes::Bytes;
use model::{Lease, LeaseAttrs, SubnetKey};
use tracing::warn;

use super::acquire::Mark;
use super::client::{Client, Failure};
use super::follow::Follower;
use super::proto::{KeyValue, RangeRequest, RangeResponse, path};
use crate::claim::{Candidate, same_node, twin};
use crate::task::AbortOnDrop;

/// Keys in a page: 15,000 leases are three requests, and a page takes about a megabyte.
const PAGE: i64 = 5200;

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
    /// Where the next page begins.
    next: Bytes,
    /// The page that was already asked for.
    coming: Option<AbortOnDrop<Result<RangeResponse, Failure>>>,
    /// The first page's place; the others are of the same revision.
    position: Option<Position>,
}

impl Listing {
    pub(super) fn new(start: Bytes) -> Listing {
        Listing {
            next: start,
            coming: None,
            position: None,
        }
    }

    fn request(&self, end: Bytes) -> RangeRequest {
        RangeRequest {
            key: self.next.clone(),
            range_end: end,
            limit: PAGE,
            revision: self.position.map_or(0, |at| at.revision),
            ..RangeRequest::default()
        }
    }

    /// The next page, and whether it is the last. The one after it is asked for at once, so that
    /// it travels while this one is worked on. When it fails, it may be called again.
    async fn page(
        &mut self,
        client: &Arc<Client>,
        end: &Bytes,
    ) -> Result<(Vec<KeyValue>, bool), Failure> {
        let page = match &mut self.coming {
            Some(coming) => {
                let page = coming.result().await;
                self.coming = None;
                page.unwrap_or_else(|| Err(Failure::Away("called off".into())))?
            }
            None => client.call(path::RANGE, self.request(end.clone())).await?,
        };
        let header = page.header.unwrap_or_default();
        self.position.get_or_insert(Position {
            cluster: header.cluster_id,
            revision: header.revision,
        });
        let last = page.kvs.last().map(|kv| kv.key.clone());
        let (true, Some(last)) = (page.more, last) else {
            return Ok((page.kvs, true));
        };
        // The first key after `last`. A copy: the page's buffer must not live on.
        self.next = [last.as_ref(), &[0]].concat().into();
        let (client, request) = (client.clone(), self.request(end.clone()));
        self.coming = Some(AbortOnDrop::spawn(async move {
            client.call(path::RANGE, request).await
        }));
        Ok((page.kvs, false))
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

    /// Reads one page, if there is one left. At the end of the last one the position is set.
    pub(super) async fn read_page(&mut self) -> Result<(), Failure> {
        let Some(listing) = &mut self.listing else {
            return Ok(());
        };
        let page = listing.page(&self.client, &self.keys.subnets().1).await;
        let (kvs, last) = match page {
            Err(Failure::Compacted) => {
                // The first page's revision is gone: the pages would not fit together.
                self.list_anew();
                return Ok(());
            }
            page => page?,
        };
        let position = listing.position;
        for kv in &kvs {
            self.read_key(kv);
        }
        if last {
            self.listing = None;
            self.position = position;
            self.end_of_listing();
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
