//! A client of the API server: objects as JSON, one request at a time, as somebody.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::http::{Answer, connect, exchange};
use crate::{Error, Namespace};

type Connection = StreamOwned<ClientConnection, TcpStream>;

/// How a patch is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    /// `application/merge-patch+json`: objects are merged, everything else replaced.
    Merge,
    /// `application/strategic-merge-patch+json`: lists are merged by key, as `kubectl patch` does.
    Strategic,
    /// `application/json-patch+json`: a list of operations.
    Json,
}

/// An answer of the API server, whatever its status.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// The body; text that is no JSON is a JSON string.
    pub body: Value,
}

/// The API server, as seen by one user. Requests are made from the fabric; connections are kept.
pub struct Api {
    place: Namespace,
    server: SocketAddr,
    tls: Arc<ClientConfig>,
    token: String,
    user: String,
    idle: Mutex<Vec<Connection>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({} as {})", self.server, self.user)
    }
}

/// What vouches for the server: the lab's certificate authority, DER.
pub(super) fn trust(ca: Vec<u8>) -> Result<Arc<ClientConfig>, Error> {
    let bad = |e: rustls::Error| Error::Bad(format!("TLS: {e}"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca)).map_err(bad)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(bad)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

impl Api {
    pub(super) fn new(
        place: &Namespace,
        server: SocketAddr,
        tls: &Arc<ClientConfig>,
        user: &str,
        token: &str,
    ) -> Api {
        Api {
            place: place.clone(),
            server,
            tls: tls.clone(),
            token: token.into(),
            user: user.into(),
            idle: Mutex::default(),
        }
    }

    /// The same server, asked by whoever `token` belongs to.
    pub fn with_token(&self, token: &str) -> Api {
        Api::new(&self.place, self.server, &self.tls, "a token", token)
    }

    /// Makes one request; any status is an answer.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Response, Error> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nConnection: keep-alive\r\nAccept: application/json\r\n",
            self.server
        );
        if !self.token.is_empty() {
            request.push_str(&format!("Authorization: Bearer {}\r\n", self.token));
        }
        if !body.is_empty() {
            let length = body.len();
            request.push_str(&format!(
                "Content-Type: {content_type}\r\nContent-Length: {length}\r\n"
            ));
        }
        request.push_str("\r\n");
        request.push_str(&body);
        let answer = self.send(request.as_bytes()).map_err(|source| Error::Io {
            what: format!("{method} https://{}{path}", self.server),
            source,
        })?;
        let body = serde_json::from_slice(&answer.body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&answer.body).into_owned()));
        Ok(Response {
            status: answer.status,
            body,
        })
    }

    /// By a kept connection if there is one; the server may have closed it meanwhile, so then by a new one.
    fn send(&self, request: &[u8]) -> io::Result<Answer> {
        let kept = self.idle().pop();
        if let Some(mut connection) = kept {
            match exchange(&mut connection, request) {
                Ok(answer) => return Ok(self.done(connection, answer)),
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::TimedOut => {
                    return Err(e);
                }
                Err(_) => {}
            }
        }
        let tcp = connect(&self.place, self.server)?;
        let name = ServerName::IpAddress(self.server.ip().into());
        let tls = ClientConnection::new(self.tls.clone(), name).map_err(io::Error::other)?;
        let mut connection = StreamOwned::new(tls, tcp);
        let answer = exchange(&mut connection, request)?;
        Ok(self.done(connection, answer))
    }

    fn done(&self, connection: Connection, answer: Answer) -> Answer {
        if answer.reusable {
            self.idle().push(connection);
        }
        answer
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one request that must succeed; returns the object.
    fn must(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        let response = self.request(method, path, content_type, body)?;
        if (200..300).contains(&response.status) {
            return Ok(response.body);
        }
        let said = response.body["message"].as_str().map(str::to_string);
        Err(Error::Bad(format!(
            "{method} {path} as {}: {} {}",
            self.user,
            response.status,
            said.unwrap_or_else(|| response.body.to_string())
        )))
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// The server does not answer, or refuses: with its message.
    pub fn get(&self, path: &str) -> Result<Value, Error> {
        self.must("GET", path, "", None)
    }

    /// Creates `object` in the collection `path`; returns it as created.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn create(&self, path: &str, object: &Value) -> Result<Value, Error> {
        self.must("POST", path, "application/json", Some(object))
    }

    /// Replaces the object at `path`; returns it as it is now.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn replace(&self, path: &str, object: &Value) -> Result<Value, Error> {
        self.must("PUT", path, "application/json", Some(object))
    }

    /// Patches the object at `path`; returns it as it is now.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn patch(&self, path: &str, kind: Patch, patch: &Value) -> Result<Value, Error> {
        let content_type = match kind {
            Patch::Merge => "application/merge-patch+json",
            Patch::Strategic => "application/strategic-merge-patch+json",
            Patch::Json => "application/json-patch+json",
        };
        self.must("PATCH", path, content_type, Some(patch))
    }

    /// Deletes the object at `path`; one that is not there is no error.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn delete(&self, path: &str) -> Result<(), Error> {
        match self.request("DELETE", path, "", None)? {
            Response { status: 404, .. } => Ok(()),
            Response { status, .. } if (200..300).contains(&status) => Ok(()),
            Response { status, body } => Err(Error::Bad(format!(
                "DELETE {path} as {}: {status} {body}",
                self.user
            ))),
        }
    }
}
