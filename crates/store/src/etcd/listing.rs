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
    /// The first key that there can be.
    start: Bytes,
    /// The last key that was read.
    last: Option<Bytes>,
    /// The page that is arriving has had no key yet.
    is_empty: bool,
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
            start,
            last: None,
            is_empty: true,
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
                    if self.last.as_ref().is_some_and(|last| *last >= kv.key) {
                        client.leave(page.connection()).await;
                        return Err(not_etcd("its keys are out of order", &kv.key));
                    }
                    self.page = Some(page);
                    self.last = Some(kv.key.clone());
                    self.is_empty = false;
                    return Ok(Some(kv));
                }
                // It would be asked for the same again and again.
                None if page.more() && self.is_empty => {
                    client.leave(page.connection()).await;
                    let begin = self.begin();
                    return Err(not_etcd("a page without keys is not the last one", &begin));
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
        self.is_empty = true;
        if *self.connection.get_or_insert(page.connection()) != page.connection() {
            return Err(Failure::Compacted);
        }
        Ok(page)
    }

    /// Returns the first key that there can be behind the last one.
    fn begin(&self) -> Bytes {
        match &self.last {
            None => self.start.clone(),
            Some(last) => [last.as_ref(), &[0]].concat().into(),
        }
    }

    fn request(&self, end: Bytes) -> RangeRequest {
        let key = self.begin();
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

/// What a server answers that cannot be etcd: try another one.
fn not_etcd(problem: &str, key: &[u8]) -> Failure {
    let key = String::from_utf8_lossy(key);
    Failure::Unreachable(format!("not an answer of etcd: {problem}, at {key:?}"))
}
