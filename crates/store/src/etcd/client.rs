//! Calls to etcd: each tries every endpoint once before it fails.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::connection::{Connection, count, streaming, unary, within};
use super::failover::{CALL, Failover};
use super::failure::{Failure, Remedy, describe, is_about_login, remedy};
use super::page::Page;
use super::proto::{self, path};
use super::settings::{EtcdSettings, SettingsError};
use crate::activity::Activity;
use crate::endpoint::Endpoint;

/// A page of the listing may have to wait while thousands of nodes list at once.
const LISTING: Duration = Duration::from_secs(30);

/// A page takes no longer than this as a whole: a server that sends a key now and then is as good as silent.
/// The listing then goes on behind the last key.
const WHOLE_PAGE: Duration = Duration::from_secs(120);

/// Calls to one etcd.
pub(super) struct Client {
    failover: Failover,
}

impl Client {
    /// Checks the settings; opens nothing yet.
    pub(super) fn new(settings: EtcdSettings, activity: Activity) -> Result<Client, SettingsError> {
        Ok(Client {
            failover: Failover::new(settings, activity)?,
        })
    }

    /// Returns what etcd was asked and how it answered.
    pub(super) fn activity(&self) -> &Activity {
        self.failover.activity()
    }

    /// Ends connection `number`, if it is still the one in use; the next endpoint is tried next.
    pub(super) async fn leave(&self, number: u64) {
        self.failover.leave(number).await;
    }

    /// One request, one answer. Tries every endpoint once before it fails with
    /// [`Failure::Unreachable`]. A transaction may have been carried out although it fails so.
    pub(super) async fn call<Q, A>(&self, path: &'static str, query: Q) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let deadline = if path == path::RANGE { LISTING } else { CALL };
        let mut tries = self.failover.tries();
        loop {
            let connection = self.failover.connection(&mut tries).await?;
            let answer = unary(
                &connection.channel,
                path,
                query.clone(),
                connection.token.clone(),
            );
            let answer = within(deadline, answer).await;
            count(self.activity(), path, &answer);
            match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => {
                    self.failover
                        .failed(&mut tries, &connection, &status)
                        .await?
                }
            }
        }
    }

    /// Begins to read a page of keys.
    pub(super) async fn page(&self, query: proto::RangeRequest) -> Result<Incoming, Failure> {
        let mut tries = self.failover.tries();
        loop {
            let connection = self.failover.connection(&mut tries).await?;
            let page = within(LISTING, Page::open(&connection, &query)).await;
            count(self.activity(), path::RANGE, &page);
            match page {
                Ok(page) => {
                    let deadline = Instant::now() + WHOLE_PAGE;
                    return Ok(Incoming {
                        page,
                        connection,
                        deadline,
                    });
                }
                Err(status) => {
                    self.failover
                        .failed(&mut tries, &connection, &status)
                        .await?
                }
            }
        }
    }

    /// The next key of a page; `None` at its end. A page that failed is not to be used again.
    pub(super) async fn next_key(
        &self,
        incoming: &mut Incoming,
    ) -> Result<Option<proto::KeyValue>, Failure> {
        // Most have arrived together with the one before: no clock is needed for those.
        let next = match incoming.page.arrived() {
            Ok(None) => {
                let left = incoming.deadline.saturating_duration_since(Instant::now());
                within(CALL.min(left), incoming.page.next()).await
            }
            next => next,
        };
        match next {
            Ok(kv) => Ok(kv),
            Err(status) => Err(self.ended(&incoming.connection, &status).await),
        }
    }

    /// Renews one etcd lease; returns the TTL that it was granted, in seconds.
    pub(super) async fn keep_alive(&self, id: i64) -> Result<i64, Failure> {
        let mut tries = self.failover.tries();
        loop {
            let connection = self.failover.connection(&mut tries).await?;
            // The request's side stays open until the answer is there: a grpc-proxy takes its end for the end of
            // the call, and answers "context canceled".
            let (ask, asked) = mpsc::channel(1);
            let answer = async {
                let _: Result<(), _> = ask.send(proto::LeaseId { id }).await;
                let asked = ReceiverStream::new(asked);
                let mut stream = streaming(&connection, path::LEASE_KEEP_ALIVE, asked).await?;
                stream
                    .message()
                    .await?
                    .ok_or_else(|| Status::unavailable("etcd ended the stream"))
            };
            let answer: Result<proto::LeaseResponse, Status> = within(CALL, answer).await;
            // An open stream would have the proxy keep the lease alive for ever.
            drop(ask);
            count(self.activity(), path::LEASE_KEEP_ALIVE, &answer);
            match answer {
                Ok(answer) if answer.ttl > 0 => return Ok(answer.ttl),
                Ok(_) => return Err(Failure::NoLease),
                Err(status) => {
                    self.failover
                        .failed(&mut tries, &connection, &status)
                        .await?
                }
            }
        }
    }

    /// Starts a watch.
    pub(super) async fn watch(&self, create: proto::WatchCreate) -> Result<Watch, Failure> {
        let mut tries = self.failover.tries();
        loop {
            let connection = self.failover.connection(&mut tries).await?;
            let query = proto::WatchRequest {
                create: Some(create.clone()),
            };
            // The request's side stays open as long as the watch is wanted: before, its end would end the watch;
            // after that, nothing else would.
            let (ask, asked) = mpsc::channel(1);
            let _: Result<(), _> = ask.send(query).await;
            let asked = ReceiverStream::new(asked);
            let stream = within(CALL, streaming(&connection, path::WATCH, asked)).await;
            count(self.activity(), path::WATCH, &stream);
            match stream {
                Ok(stream) => {
                    return Ok(Watch {
                        stream,
                        connection,
                        _ask: ask,
                    });
                }
                Err(status) => {
                    self.failover
                        .failed(&mut tries, &connection, &status)
                        .await?
                }
            }
        }
    }

    /// The next answer of a watch. Cancel-safe. A watch that failed is not to be used again.
    pub(super) async fn next(&self, watch: &mut Watch) -> Result<proto::WatchResponse, Failure> {
        let status = match watch.stream.message().await {
            // Not about the watch, but about who asks for it.
            Ok(Some(answer)) if answer.canceled && is_about_login(&answer.cancel_reason) => {
                Status::unauthenticated(answer.cancel_reason)
            }
            Ok(Some(answer)) => {
                self.activity().heard();
                return Ok(answer);
            }
            Ok(None) => Status::unavailable("etcd ended the watch"),
            Err(status) => status,
        };
        Err(self.ended(&watch.connection, &status).await)
    }

    /// What the end of an answer means that had begun well.
    async fn ended(&self, connection: &Connection, status: &Status) -> Failure {
        match remedy(status) {
            Remedy::None(failure) => return failure,
            Remedy::LogIn => self.failover.forget_token(connection.number).await,
            Remedy::TryElsewhere => self.leave(connection.number).await,
        }
        Failure::Unreachable(describe(&connection.endpoint, &connection.farewell, status))
    }
}

/// A running watch.
pub(super) struct Watch {
    stream: Streaming<proto::WatchResponse>,
    connection: Connection,
    /// While it is there, the request's side is open.
    _ask: mpsc::Sender<proto::WatchRequest>,
}

impl Watch {
    /// The connection that it runs on.
    pub(super) fn connection(&self) -> u64 {
        self.connection.number
    }

    /// Who answers it.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.connection.endpoint
    }
}

/// A page of keys on its way.
#[derive(Debug)]
pub(super) struct Incoming {
    page: Page,
    connection: Connection,
    deadline: Instant,
}

impl Incoming {
    /// The connection that it arrives on.
    pub(super) fn connection(&self) -> u64 {
        self.connection.number
    }

    /// See [`Page::header`].
    pub(super) fn header(&self) -> Option<&proto::Header> {
        self.page.header()
    }

    /// See [`Page::more`].
    pub(super) fn more(&self) -> bool {
        self.page.more()
    }
}
