//! HTTP servers of the daemon: bounded in connections, memory and time, whoever the clients are.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tracing::debug;

/// How long one exchange may take, from the connection's start to the last byte of the answer.
const EXCHANGE: Duration = Duration::from_secs(5);

/// Connections open at once. One more closes the oldest: a well-behaved client is answered long before its
/// turn comes, and a client that holds connections open keeps nobody else out.
const CONNECTIONS: usize = 256;

/// Bytes of a request's head, hyper's smallest limit. With [`CONNECTIONS`] it bounds the memory.
const HEAD: usize = 8192;

/// What answers requests.
pub(crate) trait Handler: 'static {
    /// Answers one request.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Full<Bytes>>>;
}

/// The connections that are being served, oldest first.
#[derive(Default)]
pub(crate) struct Connections(VecDeque<AbortHandle>);

impl Connections {
    /// Serves one request on `stream`, in a task on the current `LocalSet`.
    pub(crate) fn serve<H: Handler>(
        &mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        handler: &Rc<H>,
    ) {
        if self.0.len() >= CONNECTIONS {
            self.0.retain(|connection| !connection.is_finished());
        }
        if self.0.len() >= CONNECTIONS {
            self.close_oldest();
        }
        let task = tokio::task::spawn_local(exchange(stream, Rc::clone(handler)));
        self.0.push_back(task.abort_handle());
    }

    /// Closes the connection that has been open longest.
    pub(crate) fn close_oldest(&mut self) {
        if let Some(oldest) = self.0.pop_front() {
            oldest.abort();
        }
    }
}

/// Returns a response with its code and type.
pub(crate) fn response(
    code: StatusCode,
    kind: &'static str,
    body: String,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = code;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// One request and its answer. There is no second one on a connection.
async fn exchange<H: Handler>(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    handler: Rc<H>,
) {
    let service = service_fn(|request| {
        let handler = Rc::clone(&handler);
        async move { Ok::<_, Infallible>(handler.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(EXCHANGE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "http: connection"),
        Err(_) => debug!("http: a client was too slow"),
    }
}
