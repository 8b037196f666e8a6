//! One connection to one endpoint: TCP, and TLS where the endpoint says `https`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::Uri;

use crate::endpoint::Endpoint;
use crate::tls::{TlsError, TlsFiles};

/// Long enough for a second SYN. Short, because while one is under way that was lost, the server may be
/// back already; and what changed during an outage should be seen within 2 s of its end.
const TCP_TIMEOUT: Duration = Duration::from_millis(1200);
const TLS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Tcp(io::Error),
    #[error("no answer within {TCP_TIMEOUT:?}")]
    TcpTimeout,
    #[error("TLS: {error}{hint}")]
    Tls {
        error: io::Error,
        /// Which flag and file it is about.
        hint: String,
    },
    #[error("TLS: no answer within {} s", TLS_TIMEOUT.as_secs())]
    TlsTimeout,
    #[error(transparent)]
    Files(#[from] TlsError),
    #[error("no name that a certificate could have")]
    Name,
}

/// Opens connections to one endpoint, whatever address it is asked for.
#[derive(Clone)]
pub(crate) struct Connector {
    pub endpoint: Arc<Endpoint>,
    pub files: Arc<TlsFiles>,
    /// The name that its certificate must have, if not the endpoint's host.
    pub server_name: Option<String>,
}

impl Connector {
    /// Connects, and verifies the server where the endpoint says `https`.
    pub(crate) async fn connect(self) -> Result<TokioIo<Wire>, ConnectError> {
        let target = (self.endpoint.host.as_str(), self.endpoint.port);
        let tcp = timeout(TCP_TIMEOUT, TcpStream::connect(target)).await;
        let tcp = tcp
            .map_err(|_| ConnectError::TcpTimeout)?
            .map_err(ConnectError::Tcp)?;
        tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
        if !self.endpoint.tls {
            return Ok(TokioIo::new(Wire::Plain(tcp)));
        }
        let config = self.files.load()?;
        let name = self
            .server_name
            .unwrap_or_else(|| self.endpoint.host.clone());
        let name = ServerName::try_from(name).map_err(|_| ConnectError::Name)?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let tls = timeout(TLS_TIMEOUT, handshake).await;
        let tls = tls
            .map_err(|_| ConnectError::TlsTimeout)?
            .map_err(|error| ConnectError::Tls {
                hint: self.files.hint(&error),
                error,
            })?;
        Ok(TokioIo::new(Wire::Tls(Box::new(tls))))
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// The bytes of a connection.
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Both sides agreed on HTTP/2.
    pub(crate) fn speaks_http2(&self) -> bool {
        match self {
            Wire::Plain(_) => false,
            Wire::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Wire::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Wire::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Wire::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Wire::Plain(tcp) => tcp.is_write_vectored(),
            Wire::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Wire::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Wire::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
