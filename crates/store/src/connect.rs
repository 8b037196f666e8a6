//! One connection to one endpoint: through a proxy where one is set, and TLS where the endpoint says
//! `https`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::Uri;

use crate::endpoint::Endpoint;
use crate::tls::{TlsError, TlsFiles};

mod dial;
mod dialer;
mod proxy;
mod wire;

pub use dialer::{Dialer, Stream};
pub(crate) use proxy::{Proxy, Scheme};
pub use proxy::{ProxyError, ProxyVariables};
pub(crate) use wire::Wire;

const TLS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Dial(#[from] dial::DialError),
    #[error("{0}")]
    Proxy(#[from] ProxyError),
    /// With the flag and the file that it is about.
    #[error("TLS: {0}")]
    Tls(String),
    #[error("TLS: no answer within {} s", TLS_TIMEOUT.as_secs())]
    TlsTimeout,
    #[error(transparent)]
    Files(#[from] TlsError),
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
}

/// Opens connections to one endpoint, whatever address it is asked for.
#[derive(Clone)]
pub(crate) struct Connector {
    pub endpoint: Arc<Endpoint>,
    pub files: Arc<TlsFiles>,
    /// The name that its certificate must have, if not the endpoint's host.
    pub server_name: Option<String>,
    /// What to connect through.
    pub proxy: Option<Proxy>,
    /// What opens connections instead of the system.
    pub dialer: Option<Dialer>,
}

impl Connector {
    /// Connects, and verifies the server where the endpoint says `https`.
    pub(crate) async fn connect(self) -> Result<TokioIo<Wire>, ConnectError> {
        let wire = match (&self.dialer, &self.endpoint.socket, &self.proxy) {
            (Some(dialer), ..) => Wire::Given(dialer.dial(&self.endpoint).await?),
            (None, Some(path), _) => Wire::Unix(dial::dial_socket(path).await?),
            (None, None, Some(proxy)) => proxy.connect(&self.endpoint).await?,
            (None, None, None) => {
                Wire::Plain(dial::dial(&self.endpoint.host, self.endpoint.port).await?)
            }
        };
        if !self.endpoint.tls {
            return Ok(TokioIo::new(wire));
        }
        let config = self.files.load()?;
        let name = self
            .server_name
            .unwrap_or_else(|| self.endpoint.name().to_owned());
        Ok(TokioIo::new(
            encrypt(wire, config, name, &self.files).await?,
        ))
    }
}

/// Performs the TLS handshake; the server must be `name`.
async fn encrypt(
    wire: Wire,
    config: ClientConfig,
    name: String,
    files: &TlsFiles,
) -> Result<Wire, ConnectError> {
    let Ok(server) = ServerName::try_from(name.clone()) else {
        return Err(ConnectError::Name(name));
    };
    let handshake = TlsConnector::from(Arc::new(config)).connect(server, wire);
    match timeout(TLS_TIMEOUT, handshake).await {
        Ok(Ok(tls)) => Ok(Wire::Tls(Box::new(tls))),
        Ok(Err(error)) => Err(ConnectError::Tls(files.explain(&error))),
        Err(_) => Err(ConnectError::TlsTimeout),
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
