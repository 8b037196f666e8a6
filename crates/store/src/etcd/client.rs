//! Calls to etcd over one connection at a time: when an endpoint fails, the next one is used.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_stream::StreamExt;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint as Transport, Uri};
use tonic::{Status, Streaming};
use tracing::warn;

use super::call::{Verdict, describe, innermost, streaming, unary, verdict, within};
use super::connect::Connector;
use super::page::Page;
use super::proto::{self, path};
use super::settings::{Endpoint, EtcdSettings, SettingsError};
use super::tls::TlsFiles;

/// etcd gives up on a request after about 7 s; a server that is dead is noticed sooner, by pings.
const CALL: Duration = Duration::from_secs(10);
/// A page of the listing may have to wait while thousands of nodes list at once.
const LISTING: Duration = Duration::from_secs(30);
/// etcd drops clients that ping more often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(7);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// No endpoint answers: wait, and try again.
    #[error("{0}")]
    Away(String),
    /// The revision asked for is gone: list again.
    #[error("the revision was compacted away")]
    Compacted,
    /// There is no such etcd lease.
    #[error("the etcd lease does not exist")]
    NoLease,
    /// etcd says no; trying elsewhere does not help.
    #[error("etcd refuses: {0}")]
    Refused(String),
}

/// The one connection to etcd, made when it is first needed.
pub(super) struct Client {
    settings: EtcdSettings,
    endpoints: Vec<Arc<Endpoint>>,
    files: Arc<TlsFiles>,
    link: Mutex<Link>,
}

/// What the connection is at present.
#[derive(Default)]
struct Link {
    /// Index of the endpoint in use.
    active: usize,
    /// Counts connections, so that a late failure of an old one does not end the new one.
    number: u64,
    channel: Option<Channel>,
    token: Option<MetadataValue<Ascii>>,
    logged_in: bool,
}

/// A connection ready for a call.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub channel: Channel,
    pub token: Option<MetadataValue<Ascii>>,
    number: u64,
    endpoint: Arc<Endpoint>,
    fresh: bool,
}

/// What is left to be tried for one call.
struct Tries {
    /// Endpoints.
    left: usize,
    log_in_again: bool,
}

impl Client {
    /// Checks the settings; opens nothing yet.
    pub(super) fn new(settings: EtcdSettings) -> Result<Client, SettingsError> {
        let endpoints: Vec<_> = settings
            .parse_endpoints()?
            .into_iter()
            .map(Arc::new)
            .collect();
        let files = TlsFiles {
            keyfile: settings.keyfile.clone(),
            certfile: settings.certfile.clone(),
            cafile: settings.cafile.clone(),
        };
        if endpoints.iter().any(|e| e.tls) {
            files.load()?;
        }
        if let Some(plain) = endpoints.iter().find(|e| !e.tls).filter(|_| files.any()) {
            warn!(
                "-etcd-endpoints: {plain} is not https: certificates are not used, traffic to it is readable"
            );
        }
        settings.login()?;
        Ok(Client {
            settings,
            endpoints,
            files: Arc::new(files),
            link: Mutex::default(),
        })
    }

    /// One request, one answer. Tries every endpoint once before it fails with
    /// [`Failure::Away`]. A transaction may have been carried out although it fails so.
    pub(super) async fn call<Q, A>(&self, path: &'static str, query: Q) -> Result<A, Failure>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let deadline = if path == path::RANGE { LISTING } else { CALL };
        let mut tries = self.tries();
        loop {
            let line = self.line(&mut tries).await?;
            let answer = unary(&line, path, query.clone(), line.token.clone());
            match within(deadline, answer).await {
                Ok(answer) => return Ok(answer),
                Err(status) => self.failed(&mut tries, &line, &status).await?,
            }
        }
    }

    /// Begins to read a page of keys.
    pub(super) async fn page(&self, query: proto::RangeRequest) -> Result<Incoming, Failure> {
        let mut tries = self.tries();
        loop {
            let line = self.line(&mut tries).await?;
            match within(LISTING, Page::open(&line, &query)).await {
                Ok(page) => return Ok(Incoming { page, line }),
                Err(status) => self.failed(&mut tries, &line, &status).await?,
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
            Ok(None) => within(CALL, incoming.page.next()).await,
            next => next,
        };
        match next {
            Ok(kv) => Ok(kv),
            Err(status) => Err(self.ended(&incoming.line, &status).await),
        }
    }

    /// Renews one etcd lease; returns the TTL that it was granted, in seconds.
    pub(super) async fn keep_alive(&self, id: i64) -> Result<i64, Failure> {
        let mut tries = self.tries();
        loop {
            let line = self.line(&mut tries).await?;
            let query = tokio_stream::once(proto::LeaseId { id });
            let answer = async {
                let mut stream = streaming(&line, path::LEASE_KEEP_ALIVE, query).await?;
                stream
                    .message()
                    .await?
                    .ok_or_else(|| Status::unavailable("etcd ended the stream"))
            };
            let answer: Result<proto::LeaseResponse, Status> = within(CALL, answer).await;
            match answer {
                Ok(answer) if answer.ttl > 0 => return Ok(answer.ttl),
                Ok(_) => return Err(Failure::NoLease),
                Err(status) => self.failed(&mut tries, &line, &status).await?,
            }
        }
    }

    /// Starts a watch.
    pub(super) async fn watch(&self, create: proto::WatchCreate) -> Result<Watch, Failure> {
        let mut tries = self.tries();
        loop {
            let line = self.line(&mut tries).await?;
            let query = proto::WatchRequest {
                create: Some(create.clone()),
            };
            // The request's side stays open: its end would tell etcd that we are done.
            let query = tokio_stream::once(query).chain(tokio_stream::pending());
            match within(CALL, streaming(&line, path::WATCH, query)).await {
                Ok(stream) => return Ok(Watch { stream, line }),
                Err(status) => self.failed(&mut tries, &line, &status).await?,
            }
        }
    }

    /// The next answer of a watch. Cancel-safe. A watch that failed is not to be used again.
    pub(super) async fn next(&self, watch: &mut Watch) -> Result<proto::WatchResponse, Failure> {
        let status = match watch.stream.message().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => Status::unavailable("etcd ended the watch"),
            Err(status) => status,
        };
        Err(self.ended(&watch.line, &status).await)
    }

    /// What the end of an answer means that had begun well.
    async fn ended(&self, line: &Line, status: &Status) -> Failure {
        match verdict(status) {
            Verdict::No(failure) => return failure,
            Verdict::LogIn => self.forget_token(line.number).await,
            Verdict::Elsewhere => self.leave(line.number).await,
        }
        Failure::Away(describe(&line.endpoint, status))
    }

    fn tries(&self) -> Tries {
        Tries {
            left: self.endpoints.len(),
            log_in_again: true,
        }
    }

    /// A call over `line` failed: returns if it is to be tried again.
    async fn failed(&self, tries: &mut Tries, line: &Line, status: &Status) -> Result<(), Failure> {
        match verdict(status) {
            Verdict::No(failure) => Err(failure),
            Verdict::LogIn if tries.log_in_again => {
                tries.log_in_again = false;
                self.forget_token(line.number).await;
                Ok(())
            }
            Verdict::LogIn => Err(Failure::Refused(status.message().into())),
            Verdict::Elsewhere => {
                self.leave(line.number).await;
                // A connection that had stood for a while may have ended without anything being
                // wrong with its endpoint: that is no try.
                tries.left -= usize::from(line.fresh);
                match tries.left {
                    0 => Err(Failure::Away(describe(&line.endpoint, status))),
                    _ => Ok(()),
                }
            }
        }
    }

    /// The connection in use, or a new one to the endpoint whose turn it is.
    async fn line(&self, tries: &mut Tries) -> Result<Line, Failure> {
        loop {
            match self.try_line().await {
                Err(Failure::Away(reason)) => {
                    tries.left -= 1;
                    if tries.left == 0 {
                        return Err(Failure::Away(reason));
                    }
                }
                line => return line,
            }
        }
    }

    async fn try_line(&self) -> Result<Line, Failure> {
        let mut link = self.link.lock().await;
        let endpoint = self.endpoints[link.active % self.endpoints.len()].clone();
        let (channel, fresh) = match &link.channel {
            Some(channel) => (channel.clone(), false),
            None => match self.connect(&endpoint).await {
                Ok(channel) => {
                    link.number += 1;
                    link.logged_in = false;
                    link.channel = Some(channel.clone());
                    (channel, true)
                }
                Err(reason) => {
                    link.active += 1;
                    return Err(Failure::Away(format!("{endpoint}: {reason}")));
                }
            },
        };
        let mut line = Line {
            channel,
            token: None,
            number: link.number,
            endpoint,
            fresh,
        };
        if !link.logged_in {
            match self.log_in(&line).await {
                Ok(token) => (link.token, link.logged_in) = (token, true),
                Err(failure) => {
                    link.channel = None;
                    if matches!(failure, Failure::Away(_)) {
                        link.active += 1;
                    }
                    return Err(failure);
                }
            }
        }
        line.token = link.token.clone();
        Ok(line)
    }

    async fn connect(&self, endpoint: &Arc<Endpoint>) -> Result<Channel, String> {
        let scheme = if endpoint.tls { "https" } else { "http" };
        let uri = format!("{scheme}://{}", endpoint.authority());
        // The transport must not see "https": TLS is the connector's business.
        let transport = format!("http://{}", endpoint.authority());
        let transport = Transport::from_shared(transport).map_err(|e| innermost(&e))?;
        let origin: Uri = uri.parse().map_err(|_| "no usable address".to_string())?;
        let connector = Connector {
            endpoint: endpoint.clone(),
            files: self.files.clone(),
        };
        transport
            .origin(origin)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(512 << 10)
            .initial_connection_window_size(1 << 20)
            .connect_with_connector(connector)
            .await
            .map_err(|e| innermost(&e))
    }

    /// Gets a token, where the settings name a user. An etcd that knows no users needs none.
    async fn log_in(&self, line: &Line) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let login = self
            .settings
            .login()
            .map_err(|e| Failure::Refused(e.to_string()))?;
        let Some((name, password)) = login else {
            return Ok(None);
        };
        let query = proto::AuthenticateRequest {
            name: name.clone(),
            password: password.reveal().into(),
        };
        let answer = unary(line, path::AUTHENTICATE, query, None);
        let answer: Result<proto::AuthenticateResponse, Status> = within(CALL, answer).await;
        match answer {
            Ok(answer) => match answer.token.parse() {
                Ok(token) => Ok(Some(token)),
                Err(_) => Err(Failure::Refused("its token cannot be sent back".into())),
            },
            Err(status) if status.message().contains("authentication is not enabled") => Ok(None),
            Err(status) => match verdict(&status) {
                Verdict::Elsewhere => Err(Failure::Away(describe(&line.endpoint, &status))),
                _ => Err(Failure::Refused(format!(
                    "user {name:?}: {}",
                    status.message()
                ))),
            },
        }
    }

    /// Ends connection `number`, if it is still the one in use; the next endpoint is tried next.
    pub(super) async fn leave(&self, number: u64) {
        let mut link = self.link.lock().await;
        if link.number == number && link.channel.take().is_some() {
            link.active += 1;
        }
    }

    async fn forget_token(&self, number: u64) {
        let mut link = self.link.lock().await;
        if link.number == number {
            link.logged_in = false;
        }
    }
}

/// A running watch.
pub(super) struct Watch {
    stream: Streaming<proto::WatchResponse>,
    line: Line,
}

impl Watch {
    /// The connection that it runs on.
    pub(super) fn connection(&self) -> u64 {
        self.line.number
    }

    /// Who answers it.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.line.endpoint
    }
}

/// A page of keys on its way.
#[derive(Debug)]
pub(super) struct Incoming {
    page: Page,
    line: Line,
}

impl Incoming {
    /// See [`Page::header`].
    pub(super) fn header(&self) -> Option<&proto::Header> {
        self.page.header()
    }

    /// See [`Page::more`].
    pub(super) fn more(&self) -> bool {
        self.page.more()
    }
}
