//! Why a server ended a connection: the HTTP/2 client does not report the reason to the calls that end with it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::Uri;

use crate::connect::{ConnectError, Connector, Wire};
use crate::tls::TlsFiles;

/// The end of the last frame that a gRPC server sends to a client that pings more often than it allows.
const TOO_MANY_PINGS: &[u8] = b"too_many_pings";

/// How a connection ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Farewell(Arc<End>);

#[derive(Debug, Default)]
struct End {
    too_many_pings: AtomicBool,
    error: OnceLock<String>,
}

impl Farewell {
    /// Returns whether the server ended the connection because it was pinged too often.
    pub(super) fn too_many_pings(&self) -> bool {
        self.0.too_many_pings.load(Ordering::Relaxed)
    }

    /// Returns what went wrong with the connection itself: a TLS alert, say, about our certificate.
    pub(super) fn error(&self) -> Option<&str> {
        self.0.error.get().map(String::as_str)
    }
}

/// Opens connections whose last bytes are looked at.
#[derive(Clone)]
pub(super) struct AttentiveConnector {
    pub connector: Connector,
    pub farewell: Farewell,
}

impl tower_service::Service<Uri> for AttentiveConnector {
    type Response = TokioIo<Attentive<Wire>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let files = this.connector.files.clone();
            let wire = this.connector.connect().await?.into_inner();
            let attentive = Attentive::new(wire, files, this.farewell);
            Ok(TokioIo::new(attentive))
        })
    }
}

/// A connection that remembers the last bytes that arrived.
pub(super) struct Attentive<S> {
    inner: S,
    /// What the server was shown: it may refuse that after the handshake.
    files: Arc<TlsFiles>,
    tail: Vec<u8>,
    farewell: Farewell,
}

impl<S> Attentive<S> {
    fn new(inner: S, files: Arc<TlsFiles>, farewell: Farewell) -> Attentive<S> {
        Attentive {
            inner,
            files,
            tail: Vec::new(),
            farewell,
        }
    }

    fn arrived(&mut self, bytes: &[u8]) {
        let keep = TOO_MANY_PINGS.len();
        let bytes = &bytes[bytes.len().saturating_sub(keep)..];
        let excess = (self.tail.len() + bytes.len()).saturating_sub(keep);
        self.tail.drain(..excess);
        self.tail.extend_from_slice(bytes);
        if self.tail == TOO_MANY_PINGS {
            self.farewell
                .0
                .too_many_pings
                .store(true, Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Attentive<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read {
            // Later ones follow from the first.
            let text = format!("{error}{}", this.files.hint(error));
            let _ = this.farewell.0.error.set(text);
        }
        this.arrived(&buf.filled()[before..]);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Attentive<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn the_reason_is_seen_however_it_arrives() {
        // A GOAWAY frame: length, type 7, no stream, last stream, ENHANCE_YOUR_CALM, the reason.
        let frame = [
            b"\0\0\x16\x07\0\0\0\0\0\0\0\0\x05\0\0\0\x0b",
            TOO_MANY_PINGS,
        ]
        .concat();
        let files = Arc::new(TlsFiles::system(&[]));
        for cut in 0..=frame.len() {
            for (last, expected) in [(true, true), (false, false)] {
                let farewell = Farewell::default();
                let rest = if last {
                    &frame[cut..]
                } else {
                    &frame[cut..frame.len().max(cut + 1) - 1]
                };
                let both = (&frame[..cut]).chain(rest);
                if !last && cut == frame.len() {
                    continue;
                }
                let mut wire = Attentive::new(both, files.clone(), farewell.clone());
                let mut all = Vec::new();
                wire.read_to_end(&mut all).await.unwrap();
                assert_eq!(farewell.too_many_pings(), expected, "cut at {cut}");
            }
        }
    }
}
