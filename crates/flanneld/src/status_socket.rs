//! The status socket: a Unix socket beside `subnet.env` that only root can use, on which the daemon reports as JSON
//! ([`crate::report`]). `flannelctl status` and `flannelctl peers` read it.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, info, warn};

use crate::http::{self, Connections, Handler};
use crate::logging::{Level, LogControl};
use crate::metrics;
use crate::socket_peer::is_root_or_own_user;
use crate::status::Status;

/// How long an answer of the daemon's main loop is waited for: it may be writing thousands of objects.
const ANSWER: Duration = Duration::from_secs(3);

/// How often the place is looked at again while another daemon serves there.
const RETRY: Duration = Duration::from_secs(2);

/// A report of more peers than these leaves so much free memory that it is given back at once.
const MANY: usize = 1000;

const JSON: &str = "application/json";

/// Returns where the socket of a daemon with this subnet file is: `flanneld.sock` beside `subnet.env`, and for a
/// subnet file of another name its name with the ending `.sock`.
pub fn path(subnet_file: &Path) -> PathBuf {
    if subnet_file.file_name() == Some("subnet.env".as_ref()) {
        subnet_file.with_file_name("flanneld.sock")
    } else {
        subnet_file.with_extension("sock")
    }
}

/// Serves the socket from a task of its own until the process ends. Must be called on a `LocalSet`. If the socket
/// cannot be made, the daemon works without it; the log says why. `log` changes the log's level. `give_back` is called
/// after a report of very many nodes, whose memory is free again: the C library may keep it.
pub fn serve(path: PathBuf, status: Status, log: LogControl, give_back: fn()) {
    tokio::task::spawn_local(async move {
        let listener = match listen(&path).await {
            Ok(listener) => listener,
            Err(error) => {
                warn!(
                    "{}: no status socket: {error}; flannelctl status and peers will not work",
                    path.display()
                );
                return;
            }
        };
        let mut open = Connections::default();
        let handler = Rc::new(StatusHandler {
            status,
            log,
            give_back,
        });
        loop {
            match listener.accept().await {
                Ok((stream, _)) if is_root_or_own_user(&stream).unwrap_or(false) => {
                    open.serve(stream, &handler);
                }
                Ok(_) => {}
                Err(error) => {
                    debug!(%error, "status socket: accept");
                    open.close_oldest();
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    });
}

/// Binds the socket, as soon as no other daemon serves it.
async fn listen(path: &Path) -> io::Result<UnixListener> {
    while UnixStream::connect(path).await.is_ok() {
        tokio::time::sleep(RETRY).await;
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // Bound under another name, so that nobody can connect before the mode is set.
    let new = path.with_extension(format!("sock.{}", std::process::id()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    Ok(listener)
}

struct StatusHandler {
    status: Status,
    log: LogControl,
    give_back: fn(),
}

impl Handler for StatusHandler {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if let Some(level) = path.strip_prefix("/v1/log-level") {
            return log_level(&self.log, request.method(), level.trim_start_matches('/'));
        }
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match path {
            "/v1/status" => json(&self.status.report()),
            "/v1/metrics" => {
                let status = &self.status;
                status.refresh_peer_states().await;
                http::response(StatusCode::OK, metrics::CONTENT_TYPE, status.metrics())
            }
            "/v1/events" => json(&self.log.events()),
            "/v1/peers" => {
                let report = self.status.peers(ANSWER).await;
                let response = json(&report);
                let many = report.peers.len() > MANY;
                drop(report);
                if many {
                    (self.give_back)();
                }
                response
            }
            _ => plain(
                StatusCode::NOT_FOUND,
                "try /v1/status, /v1/peers, /v1/events, /v1/metrics or /v1/log-level
",
            ),
        }
    }
}

/// Answers with the log's level; `PUT` changes it first.
fn log_level(log: &LogControl, method: &Method, name: &str) -> Response<Full<Bytes>> {
    if method == Method::PUT {
        let level = Level::ALL.into_iter().find(|level| level.name() == name);
        let Some(level) = level else {
            return plain(
                StatusCode::BAD_REQUEST,
                "no such level: expected info, debug or trace\n",
            );
        };
        if level != log.level() {
            info!(
                "the log's level is {} now, until the next start",
                level.name()
            );
        }
        log.set(level);
    } else if method != Method::GET || !name.is_empty() {
        return plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET /v1/log-level, PUT /v1/log-level/LEVEL\n",
        );
    }
    plain(StatusCode::OK, log.level().name())
}

fn plain(code: StatusCode, text: &str) -> Response<Full<Bytes>> {
    http::response(code, "text/plain", text.to_owned())
}

fn json(report: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(report) {
        Ok(text) => http::response(StatusCode::OK, JSON, text),
        Err(error) => http::response(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            error.to_string(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subnet_file_has_its_socket() {
        let of = |file: &str| path(Path::new(file)).display().to_string();
        assert_eq!(of("/run/flannel/subnet.env"), "/run/flannel/flanneld.sock");
        assert_eq!(of("/run/flannel/b.env"), "/run/flannel/b.sock");
    }
}
