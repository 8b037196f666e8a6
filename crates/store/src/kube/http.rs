//! Requests to the API server, over one connection: HTTP/2 where it is offered, with pings, so that
//! a server that is dead is noticed; else HTTP/1.1, one connection a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::http::response::Parts;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::info;

use super::access::{Access, Target};
use super::access_error::AccessError;
use super::body::Body;
use super::failure::{Failure, innermost};
use super::status;
use crate::activity::Activity;
use crate::tls::TlsFiles;

/// Until an answer begins.
const CALL: Duration = Duration::from_secs(15);
/// The same for a list: API servers before 1.33 encode all of it before they send the first byte, and a
/// busy one queues it for up to a minute. Aborting it would waste that work, and again at the next try.
const LIST_CALL: Duration = Duration::from_secs(90);
/// How often these times are doubled when the server does not keep them: once for each try in vain.
const MOST_DOUBLINGS: u32 = 2;
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const WINDOW: u32 = 256 << 10;
/// The user agent.
const AGENT: &str = concat!("flanneld/", env!("CARGO_PKG_VERSION"), " (flannel-rs)");

/// One request.
pub(super) struct Ask<'a> {
    pub method: Method,
    /// Path and query, as of the server's root.
    pub path: &'a str,
    pub accept: &'static str,
    /// Content type and body.
    pub body: Option<(&'static str, Bytes)>,
    /// How long until its answer begins.
    pub retry: Duration,
}

impl<'a> Ask<'a> {
    pub(super) fn get(path: &'a str, accept: &'static str) -> Ask<'a> {
        Ask {
            method: Method::GET,
            path,
            accept,
            body: None,
            retry: CALL,
        }
    }

    /// Returns what is asked for, as Kubernetes calls it.
    fn verb(&self) -> &'static str {
        if self.method == Method::GET {
            let (path, query) = self.path.split_once('?').unwrap_or((self.path, ""));
            if query.contains("watch=true") {
                "watch"
            } else if path.ends_with("/nodes") {
                "list"
            } else {
                "get"
            }
        } else if self.method == Method::PATCH {
            "patch"
        } else if self.method == Method::POST {
            "create"
        } else {
            "update"
        }
    }

    /// How long its answer may take to begin after so many in a row were late.
    fn patience(&self, late: u32) -> Duration {
        self.retry * 2_u32.pow(late.min(MOST_DOUBLINGS))
    }

    /// A list of all Nodes.
    pub(super) fn list(path: &'a str, accept: &'static str) -> Ask<'a> {
        Ask {
            retry: LIST_CALL,
            ..Ask::get(path, accept)
        }
    }

    /// A request with a body of this content type.
    pub(super) fn with_body(
        method: Method,
        path: &'a str,
        accept: &'static str,
        body: (&'static str, Bytes),
    ) -> Ask<'a> {
        Ask {
            method,
            body: Some(body),
            ..Ask::get(path, accept)
        }
    }
}

/// The API server. One for a daemon: its tasks share the connection.
pub(super) struct Client {
    access: Access,
    activity: Activity,
    connection: Mutex<Option<Connection>>,
    /// How many answers in a row did not begin in time.
    late: AtomicU32,
    /// [`Target::identity`] of the last request.
    identity: AtomicU64,
}

/// An HTTP/2 connection.
#[derive(Clone)]
struct Connection {
    identity: u64,
    sender: http2::SendRequest<Full<Bytes>>,
}

impl Client {
    /// Opens nothing yet.
    pub(super) fn new(access: Access, activity: Activity) -> Client {
        // One that cannot be used is reported when it is connected through.
        if let Ok(Some(proxy)) = access.proxy() {
            info!("the API server is reached through the proxy {proxy}");
        }
        Client {
            access,
            activity,
            connection: Mutex::default(),
            late: AtomicU32::new(0),
            identity: AtomicU64::new(0),
        }
    }

    /// Returns what the API server was asked and how it answered.
    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The server's address, for messages.
    pub(super) fn place(&self) -> String {
        self.access.place()
    }

    /// Closes the connection: the next request opens another one.
    pub(super) async fn hang_up(&self) {
        self.connection.lock().await.take();
    }

    /// Whether server, certificates or proxy have changed since the last request.
    pub(super) fn has_moved(&self) -> bool {
        let target = self.access.target_so_far();
        target.is_some_and(|target| target.identity != self.identity.load(Ordering::Relaxed))
    }

    /// Sends a request; returns when a successful answer begins.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Body, Failure> {
        // Not part of the time that the server has: it may run a program.
        let target = self.access.target().await.map_err(|e| self.problem(&e))?;
        self.activity.set_files(&target.connector.files);
        // A server that works slowly must not be asked again and again without ever being heard.
        let late = self.late.load(Ordering::Relaxed);
        let patience = ask.patience(late);
        let answer = timeout(patience, self.try_send(&target, ask)).await;
        match &answer {
            Ok(Ok(answer)) => self
                .activity
                .ended(ask.verb(), answer.status().as_str(), true),
            Ok(Err(_)) | Err(_) => self.activity.ended(ask.verb(), "none", false),
        }
        let answer = match answer {
            Ok(answer) => {
                self.late.store(0, Ordering::Relaxed);
                answer?
            }
            Err(_) => {
                self.hang_up().await;
                self.late.store(late.saturating_add(1), Ordering::Relaxed);
                let seconds = patience.as_secs();
                return Err(self.away(&format!("no answer within {seconds} s")));
            }
        };
        let (head, body) = answer.into_parts();
        let body = Body::new(&head, body);
        if head.status.is_success() {
            return Ok(body);
        }
        let failure = status::failure(&head, body, &self.place()).await;
        if matches!(failure, Failure::Unauthorized(_)) {
            self.access.refused().await;
        }
        Err(failure)
    }

    async fn try_send(
        &self,
        target: &Target,
        ask: &Ask<'_>,
    ) -> Result<Response<Incoming>, Failure> {
        let before = self.identity.swap(target.identity, Ordering::Relaxed);
        if before != target.identity && before != 0 {
            info!(
                "the API server or the certificates for it have changed: connecting to {}",
                self.place()
            );
        }
        // An open connection may just have ended without a fault of the server: try another one.
        let connection = self.connection.lock().await.clone();
        let usable = connection.filter(|connection| {
            connection.identity == target.identity && !connection.sender.is_closed()
        });
        if let Some(mut connection) = usable {
            let request = request(target, ask, false)?;
            match connection.sender.send_request(request).await {
                Ok(answer) => return Ok(answer),
                Err(_) => self.hang_up().await,
            }
        }
        let wire = target.connector.clone().connect().await;
        let wire = wire.map_err(|e| self.away(&e.to_string()))?;
        if !wire.inner().speaks_http2() {
            let (mut sender, connection) = http1::handshake(wire)
                .await
                .map_err(|e| self.away(&innermost(&e)))?;
            tokio::spawn(connection);
            let answer = sender.send_request(request(target, ask, true)?).await;
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
        let (mut sender, connection) = handshake.await.map_err(|e| self.away(&innermost(&e)))?;
        tokio::spawn(connection);
        *self.connection.lock().await = Some(Connection {
            identity: target.identity,
            sender: sender.clone(),
        });
        let answer = sender.send_request(request(target, ask, false)?).await;
        answer.map_err(|e| self.away(&innermost(&e)))
    }

    /// Asks the server to switch to another protocol on a connection of its own; `headers` name it. Returns the
    /// headers of the answer and the connection.
    pub(super) async fn upgrade(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
    ) -> Result<(Parts, Upgraded), Failure> {
        let target = self.access.target().await.map_err(|e| self.problem(&e))?;
        let mut connector = target.connector.clone();
        connector.files = Arc::new(TlsFiles {
            protocols: &["http/1.1"],
            ..(*connector.files).clone()
        });
        let ask = Ask::with_body(method, path, "*/*", ("text/plain", Bytes::new()));
        let mut request = request(&target, &ask, true)?;
        for (name, value) in headers {
            let value = HeaderValue::try_from(value)
                .map_err(|_| Failure::Refused(format!("{name}: {value:?} is no header")))?;
            request.headers_mut().insert(*name, value);
        }
        request.headers_mut().remove(ACCEPT_ENCODING);
        let switch = async {
            let wire = connector.connect().await;
            let wire = wire.map_err(|e| self.away(&e.to_string()))?;
            let (mut sender, connection) = http1::handshake(wire)
                .await
                .map_err(|e| self.away(&innermost(&e)))?;
            tokio::spawn(connection.with_upgrades());
            let answer = sender.send_request(request).await;
            answer.map_err(|e| self.away(&innermost(&e)))
        };
        let seconds = CALL.as_secs();
        let answer = timeout(CALL, switch).await;
        let answer = answer.map_err(|_| self.away(&format!("no answer within {seconds} s")))??;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (head, body) = answer.into_parts();
            let body = Body::new(&head, body);
            let failure = status::failure(&head, body, &self.place()).await;
            if matches!(failure, Failure::Unauthorized(_)) {
                self.access.refused().await;
            }
            return Err(failure);
        }
        let (head, body) = answer.into_parts();
        let switched = Response::from_parts(head.clone(), body);
        let upgraded = hyper::upgrade::on(switched).await;
        Ok((head, upgraded.map_err(|e| self.away(&innermost(&e)))?))
    }

    fn away(&self, reason: &str) -> Failure {
        Failure::Away(format!("{}: {reason}", self.place()))
    }

    fn problem(&self, error: &AccessError) -> Failure {
        Failure::Away(error.to_string())
    }
}

fn request(target: &Target, ask: &Ask<'_>, http1: bool) -> Result<Request<Full<Bytes>>, Failure> {
    let origin = &target.origin;
    // The first line of HTTP/1.1 has the path alone, HTTP/2 needs the whole address.
    let uri = if http1 {
        format!("{}{}", origin.base, ask.path)
    } else {
        format!("{}{}{}", origin.address, origin.base, ask.path)
    };
    let mut request = Request::builder()
        .method(ask.method.clone())
        .uri(uri)
        .header(ACCEPT, ask.accept)
        .header(ACCEPT_ENCODING, "gzip")
        .header("user-agent", AGENT);
    if http1 {
        request = request.header(HOST, &origin.authority);
    }
    if let Some(token) = &target.token {
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
            .map_err(|_| Failure::Refused("the token holds what no header may".into()))?;
        bearer.set_sensitive(true);
        request = request.header(AUTHORIZATION, bearer);
    }
    for (name, value) in &target.impersonate {
        request = request.header(name, value);
    }
    let mut body = Bytes::new();
    if let Some((kind, content)) = &ask.body {
        request = request.header(CONTENT_TYPE, *kind);
        body = content.clone();
    }
    request
        .body(Full::new(body))
        .map_err(|error| Failure::Refused(format!("the request cannot be made: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_server_is_given_more_time_and_not_all_time() {
        let seconds = |late| Ask::get("/", "x").patience(late).as_secs();
        assert_eq!([0, 1, 2, 3, u32::MAX].map(seconds), [15, 30, 60, 60, 60]);
    }
}
