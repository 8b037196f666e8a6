//! Requests to the API server, over one connection: HTTP/2 where it is offered, with pings, so that
//! a server that is dead is noticed; else HTTP/1.1, one connection a request.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::info;

use super::access::{Access, AccessError};
use super::body::Body;
use super::status;

/// Until an answer begins. A list of thousands of Nodes is encoded bit by bit: it begins soon, too.
const CALL: Duration = Duration::from_secs(15);
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const WINDOW: u32 = 256 << 10;
/// How we introduce ourselves.
const AGENT: &str = concat!("flanneld/", env!("CARGO_PKG_VERSION"), " (flannel-rs)");

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It cannot be reached, or cannot answer now.
    #[error("{0}")]
    Away(String),
    /// It asks to be left alone for a while.
    #[error("the API server is busy: {1}")]
    Busy(Duration, String),
    /// What happened since is no longer known there: list again.
    #[error("the resource version is too old: {0}")]
    Expired(String),
    /// It knows more than the API server does: list without asking for that version.
    #[error("the resource version is not known: {0}")]
    Ahead(String),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// It is there already, or has changed.
    #[error("{0}")]
    Conflict(String),
    /// Another no.
    #[error("the API server refuses: {0}")]
    Refused(String),
}

impl Failure {
    /// Waiting for the server mends it, rather than somebody's work.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Failure::Away(_) | Failure::Busy(..))
    }
}

/// One request.
pub(super) struct Ask<'a> {
    pub method: Method,
    /// Path and query, as of the server's root.
    pub path: &'a str,
    pub accept: &'static str,
    /// Content type and body.
    pub body: Option<(&'static str, Bytes)>,
}

impl<'a> Ask<'a> {
    pub(super) fn get(path: &'a str, accept: &'static str) -> Ask<'a> {
        Ask {
            method: Method::GET,
            path,
            accept,
            body: None,
        }
    }
}

/// The API server. One for a daemon: its tasks share the connection.
pub(super) struct Client {
    access: Access,
    line: Mutex<Option<http2::SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// Opens nothing yet.
    pub(super) fn new(access: Access) -> Client {
        // One that cannot be used is reported when it is connected through.
        if let Ok(Some(proxy)) = access.proxy() {
            info!("the API server is reached through the proxy {proxy}");
        }
        Client {
            access,
            line: Mutex::default(),
        }
    }

    /// The server's address, for messages.
    pub(super) fn place(&self) -> String {
        self.access.place()
    }

    /// Ends the connection: the next request makes another one.
    pub(super) async fn hang_up(&self) {
        self.line.lock().await.take();
    }

    /// Sends a request; returns when its answer begins, and says that it is well.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Body, Failure> {
        let answer = match timeout(CALL, self.try_send(ask)).await {
            Ok(answer) => answer?,
            Err(_) => {
                self.hang_up().await;
                return Err(self.away(&format!("no answer within {} s", CALL.as_secs())));
            }
        };
        let (head, body) = answer.into_parts();
        let body = Body::new(&head, body);
        match head.status.is_success() {
            true => Ok(body),
            false => Err(status::failure(&head, body, &self.place()).await),
        }
    }

    async fn try_send(&self, ask: &Ask<'_>) -> Result<Response<Incoming>, Failure> {
        // A connection that stood may have ended just now without anything being wrong: once more.
        let line = self.line.lock().await.clone();
        if let Some(mut line) = line.filter(|line| !line.is_closed()) {
            let request = self.request(ask, false)?;
            match line.send_request(request).await {
                Ok(answer) => return Ok(answer),
                Err(_) => self.hang_up().await,
            }
        }
        let connector = self.access.connector().map_err(|e| self.problem(&e))?;
        let wire = connector.connect().await;
        let wire = wire.map_err(|e| self.away(&e.to_string()))?;
        if !wire.inner().speaks_http2() {
            let (mut line, connection) = http1::handshake(wire)
                .await
                .map_err(|e| self.away(&innermost(&e)))?;
            tokio::spawn(connection);
            let answer = line.send_request(self.request(ask, true)?).await;
            return answer.map_err(|e| self.away(&innermost(&e)));
        }
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 2)
            .handshake(wire);
        let (mut line, connection) = handshake.await.map_err(|e| self.away(&innermost(&e)))?;
        tokio::spawn(connection);
        *self.line.lock().await = Some(line.clone());
        let answer = line.send_request(self.request(ask, false)?).await;
        answer.map_err(|e| self.away(&innermost(&e)))
    }

    fn request(&self, ask: &Ask<'_>, http1: bool) -> Result<Request<Full<Bytes>>, Failure> {
        let origin = self.access.origin();
        // HTTP/1.1 has the path in its first line, HTTP/2 wants to know the whole address.
        let uri = match http1 {
            true => format!("{}{}", origin.base, ask.path),
            false => format!("{}{}{}", origin.address, origin.base, ask.path),
        };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(uri)
            .header(ACCEPT, ask.accept)
            .header(ACCEPT_ENCODING, "gzip")
            .header("user-agent", AGENT);
        if http1 {
            request = request.header(HOST, origin.authority);
        }
        if let Some(token) = self.access.token().map_err(|e| self.problem(&e))? {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
                .map_err(|_| Failure::Refused("the token holds what no header may".into()))?;
            bearer.set_sensitive(true);
            request = request.header(AUTHORIZATION, bearer);
        }
        let mut body = Bytes::new();
        if let Some((kind, content)) = &ask.body {
            request = request.header(CONTENT_TYPE, *kind);
            body = content.clone();
        }
        request
            .body(Full::new(body))
            .map_err(|e| Failure::Refused(e.to_string()))
    }

    fn away(&self, reason: &str) -> Failure {
        Failure::Away(format!("{}: {reason}", self.place()))
    }

    fn problem(&self, error: &AccessError) -> Failure {
        Failure::Away(error.to_string())
    }
}

/// The cause that the wrappers wrap.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
