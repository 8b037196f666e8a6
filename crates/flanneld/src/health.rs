//! The health server: `/healthz` (the process lives), `/readyz` (the node's network works),
//! `/metrics`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpSocket};
use tracing::{debug, info};

use crate::http::{self, Connections, Handler};
use crate::metrics;
use crate::status::Status;

/// Connections accepted in a row before those accepted are served. Much smaller than
/// the number of open connections, so that none is closed before its request was looked at.
const BATCH: usize = 16;

/// Connections that the kernel keeps for us between two rounds; it lowers this to its own limit.
const BACKLOG: u32 = 4096;

/// How long a failed accept, as without a free file descriptor, is waited for.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// The port of a daemon that has just been killed may be held a moment longer, by a program that
/// it was about to start.
const PREDECESSOR: Duration = Duration::from_secs(1);

async fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let began = Instant::now();
    loop {
        match bind(addr) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && began.elapsed() < PREDECESSOR => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Listens, and answers from a task of its own on the current thread until the process ends. Must
/// be called on a `LocalSet`.
///
/// # Errors
/// The address cannot be had: names the flags and the address.
pub async fn serve(addr: SocketAddr, status: Status) -> anyhow::Result<()> {
    let listener = listen(addr).await.with_context(|| {
        format!(
            "-healthz-ip {} -healthz-port {}: cannot listen there",
            addr.ip(),
            addr.port()
        )
    })?;
    info!("health server on http://{addr}");
    tokio::task::spawn_local(async move {
        let mut open = Connections::default();
        let status = Rc::new(status);
        loop {
            for _ in 0..BATCH {
                match listener.accept().await {
                    Ok((stream, _)) => open.serve(stream, &status),
                    Err(error) => {
                        debug!(%error, "health server: accept");
                        open.close_oldest();
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
            // Lets the other tasks run, and looks which sockets have something to read.
            tokio::task::yield_now().await;
        }
    });
    Ok(())
}

impl Handler for Status {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/metrics" {
            self.refresh_peer_states().await;
        }
        answer(&request, self)
    }
}

fn answer(request: &Request<Incoming>, status: &Status) -> Response<Full<Bytes>> {
    let (code, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => {
            (StatusCode::OK, "flanneld is running".to_owned())
        }
        (&Method::GET | &Method::HEAD, "/readyz") => match status.problems() {
            problems if problems.is_empty() => match status.degraded() {
                Some(what) => (StatusCode::OK, format!("ready, but {what}")),
                None => (StatusCode::OK, "ready".to_owned()),
            },
            problems => (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n")),
        },
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, status.metrics()),
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            "try /healthz, /readyz or /metrics".to_owned(),
        ),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET".to_owned()),
    };
    http::response(code, metrics::CONTENT_TYPE, body)
}
