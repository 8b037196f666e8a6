//! Reading all leases: in pages of one revision, handed on bit by bit as they arrive.

use bytes::Bytes;

use super::client::{Client, Incoming};
use super::failure::Failure;
use super::history::History;
use super::proto::{Header, KeyValue, RangeRequest};

/// Keys in a page: what etcd gathers for one answer, about two megabytes. 15,000 leases are two.
const PAGE: i64 = 8000;

/// A listing that is under way.
#[derive(Debug)]
pub(super) struct Listing {
    /// Where to go on: at first the first key, then the last one that was read.
    next: Bytes,
    /// The page that is arriving.
    page: Option<Incoming>,
    /// What the first page said; the others are of the same revision.
    header: Option<Header>,
    /// The connection that the first page came over.
    connection: Option<u64>,
}

impl Listing {
    pub(super) fn new(start: Bytes) -> Listing {
        Listing {
            next: start,
            page: None,
            header: None,
            connection: None,
        }
    }

    /// The next key; `None` at the end.
    ///
    /// # Errors
    /// Begin again with a new listing. [`Failure::Compacted`]: do so at once. Pages over two connections may be
    /// of two histories, if etcd was restored meanwhile, and are never put together.
    pub(super) async fn next(
        &mut self,
        client: &Client,
        end: &Bytes,
    ) -> Result<Option<KeyValue>, Failure> {
        loop {
            let mut page = match self.page.take() {
                Some(page) => page,
                None => self.open(client, end).await?,
            };
            let kv = client.next_key(&mut page).await?;
            if let Some(header) = page.header() {
                let first = self.header.get_or_insert_with(|| header.clone());
                if header.cluster_id != first.cluster_id || header.raft_term < first.raft_term {
                    return Err(Failure::Compacted);
                }
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

    async fn open(&mut self, client: &Client, end: &Bytes) -> Result<Incoming, Failure> {
        let page = match client.page(self.request(end.clone())).await {
            Err(failure) if self.header.is_some() && History::is_ahead_of(&failure) => {
                return Err(Failure::Compacted);
            }
            page => page?,
        };
        if *self.connection.get_or_insert(page.connection()) != page.connection() {
            return Err(Failure::Compacted);
        }
        Ok(page)
    }

    fn request(&self, end: Bytes) -> RangeRequest {
        let key = match self.header {
            None => self.next.clone(),
            // The first key that there can be behind the last one.
            Some(_) => [self.next.as_ref(), &[0]].concat().into(),
        };
        let revision = self.header.as_ref().map_or(0, |header| header.revision);
        RangeRequest {
            key,
            range_end: end,
            limit: PAGE,
            revision,
            ..RangeRequest::default()
        }
    }

    /// Where in its history etcd answers; known when there is a key, and at the end.
    pub(super) fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// See [`Client::leave`].
    pub(super) fn connection(&self) -> Option<u64> {
        self.connection
    }
}
