//! Connections that the program opens itself, instead of the system.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::dial::{DialError, TCP_TIMEOUT};
use crate::endpoint::Endpoint;

/// Bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Opens connections instead of the system, for a program whose stores are not in a network: a simulation.
#[derive(Clone)]
pub struct Dialer(Arc<Dial>);

type Dial = dyn Fn(&str, u16) -> Dialing + Send + Sync;

impl Dialer {
    /// Returns a dialer that connects to a host and a port as `dial` does.
    pub fn new(dial: impl Fn(&str, u16) -> Dialing + Send + Sync + 'static) -> Dialer {
        Dialer(Arc::new(dial))
    }

    pub(super) async fn dial(&self, endpoint: &Endpoint) -> Result<Box<dyn Stream>, DialError> {
        match timeout(TCP_TIMEOUT, (self.0)(&endpoint.host, endpoint.port)).await {
            Ok(connected) => connected.map_err(|error| DialError::One(error.to_string())),
            Err(_) => Err(DialError::One(format!("no answer within {TCP_TIMEOUT:?}"))),
        }
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}
