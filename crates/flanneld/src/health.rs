//! The health server: `/healthz` (the process lives), `/readyz` (the node's network works),
//! `/metrics`.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tracing::{debug, info};

use crate::status::Status;

/// A client that says nothing is not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections served at once; more wait.
const CONNECTIONS: usize = 64;

/// The port of a daemon that has just been killed may be held a moment longer, by a program that
/// it was about to start.
const PREDECESSOR: Duration = Duration::from_secs(1);

async fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let began = Instant::now();
    loop {
        match TcpListener::bind(addr).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && began.elapsed() < PREDECESSOR => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
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
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    tokio::task::spawn_local(async move {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "health server: accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let status = status.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(|request| {
                    let response = answer(&request, &status);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    debug!(%error, "health server: connection");
                }
                drop(place);
            });
        }
    });
    Ok(())
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
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = code;
    let text = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}
