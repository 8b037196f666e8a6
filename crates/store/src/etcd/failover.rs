//! One connection at a time, logged in, to the next endpoint when one fails.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint as Transport, Uri};
use tracing::{info, warn};

use super::connection::{Connection, count, unary, within};
use super::failure::{Failure, Remedy, describe, innermost, remedy};
use super::farewell::{AttentiveConnector, Farewell};
use super::proto::{self, path};
use super::settings::{EtcdSettings, SettingsError};
use crate::activity::Activity;
use crate::connect::{Connector, Proxy, ProxyError, Scheme};
use crate::endpoint::Endpoint;
use crate::tls::{Names, Pem, TlsFiles};

/// etcd gives up on a request after about 7 s; a server that is dead is noticed sooner, by pings.
pub(super) const CALL: Duration = Duration::from_secs(10);
/// The flags that name the files.
const NAMES: Names = Names {
    key: "-etcd-keyfile",
    cert: "-etcd-certfile",
    ca: "-etcd-cafile",
};

/// A connection that fails this soon after it was opened says something about its endpoint.
const FRESH: Duration = Duration::from_secs(5);

/// etcd drops clients that ping more often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(7);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// The `etcd grpc-proxy` of etcd 3.4 drops clients that ping more often than every 5 minutes.
const PING_SELDOM: Duration = Duration::from_secs(310);

/// The endpoints of one etcd, and the connection to one of them, made when it is first needed.
pub(super) struct Failover {
    settings: EtcdSettings,
    endpoints: Vec<Arc<Endpoint>>,
    files: Arc<TlsFiles>,
    activity: Activity,
    state: Mutex<State>,
}

/// The present connection.
#[derive(Default)]
struct State {
    /// Index of the endpoint in use.
    active: usize,
    /// Counts connections, so that a late failure of an old one does not end the new one.
    number: u64,
    /// When it was opened.
    opened: Option<Instant>,
    channel: Option<Channel>,
    farewell: Farewell,
    /// Endpoints that ended a connection because of its pings.
    ping_seldom: BTreeSet<usize>,
    token: Option<MetadataValue<Ascii>>,
    logged_in: bool,
}

/// What is left to be tried for one call.
pub(super) struct Tries {
    /// Endpoints.
    left: usize,
    log_in_again: bool,
    /// A connection was given up before.
    again: bool,
}

impl Failover {
    /// Checks the settings; opens nothing yet.
    pub(super) fn new(
        settings: EtcdSettings,
        activity: Activity,
    ) -> Result<Failover, SettingsError> {
        let endpoints: Vec<_> = settings
            .parse_endpoints()?
            .into_iter()
            .map(Arc::new)
            .collect();
        let files = TlsFiles {
            key: settings.keyfile.clone().map(Pem::File),
            cert: settings.certfile.clone().map(Pem::File),
            ca: settings.cafile.clone().map(Pem::File),
            names: &NAMES,
            protocols: &["h2"],
            insecure: false,
        };
        if endpoints.iter().any(|e| e.tls) {
            files.check()?;
            activity.set_files(&files);
        }
        if let Some(plain) = endpoints.iter().find(|e| !e.tls).filter(|_| files.any()) {
            warn!(
                "-etcd-endpoints: {plain} is not https: certificates are not used, traffic to it is readable"
            );
        }
        settings.login()?;
        let failover = Failover {
            settings,
            endpoints,
            files: Arc::new(files),
            activity,
            state: Mutex::default(),
        };
        for endpoint in &failover.endpoints {
            if let Some(proxy) = failover.proxy(endpoint)? {
                info!("etcd {endpoint} is reached through the proxy {proxy}");
            }
        }
        Ok(failover)
    }

    /// The proxy that the variables name for an endpoint, as for every gRPC client in Go.
    fn proxy(&self, endpoint: &Endpoint) -> Result<Option<Proxy>, ProxyError> {
        Proxy::from_environment(endpoint, Scheme::Https, &self.settings.proxies)
    }

    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    pub(super) fn tries(&self) -> Tries {
        Tries {
            left: self.endpoints.len(),
            log_in_again: true,
            again: false,
        }
    }

    /// A call over `connection` failed: returns if it is to be tried again.
    pub(super) async fn failed(
        &self,
        tries: &mut Tries,
        connection: &Connection,
        status: &Status,
    ) -> Result<(), Failure> {
        match remedy(status) {
            Remedy::None(failure) => Err(failure),
            Remedy::LogIn if tries.log_in_again => {
                tries.log_in_again = false;
                self.forget_token(connection.number).await;
                Ok(())
            }
            // Logging in did not help here: another member may know better.
            Remedy::LogIn | Remedy::TryElsewhere => {
                self.leave(connection.number).await;
                // A connection that lasted for a while may have ended without anything being
                // wrong with its endpoint: that is no try.
                tries.left = tries
                    .left
                    .saturating_sub(usize::from(connection.fresh || tries.again));
                tries.again = true;
                if tries.left > 0 {
                    return Ok(());
                }
                let reason = describe(&connection.endpoint, &connection.farewell, status);
                Err(Failure::Unreachable(reason))
            }
        }
    }

    /// The connection in use, or a new one to the endpoint whose turn it is.
    pub(super) async fn connection(&self, tries: &mut Tries) -> Result<Connection, Failure> {
        loop {
            match self.try_connect().await {
                Err(Failure::Unreachable(reason)) => {
                    tries.left -= 1;
                    if tries.left == 0 {
                        return Err(Failure::Unreachable(reason));
                    }
                }
                connection => return connection,
            }
        }
    }

    async fn try_connect(&self) -> Result<Connection, Failure> {
        let mut state = self.state.lock().await;
        let index = state.active % self.endpoints.len();
        let endpoint = self.endpoints[index].clone();
        let ping_every = if state.ping_seldom.contains(&index) {
            PING_SELDOM
        } else {
            PING_EVERY
        };
        let channel = match &state.channel {
            Some(channel) => channel.clone(),
            None => match self.connect(&endpoint, ping_every).await {
                Ok((channel, farewell)) => {
                    state.farewell = farewell;
                    state.number += 1;
                    state.logged_in = false;
                    state.opened = Some(Instant::now());
                    state.channel = Some(channel.clone());
                    channel
                }
                Err(reason) => {
                    self.activity.ended("Connect", "Unavailable", false);
                    state.active += 1;
                    return Err(Failure::Unreachable(format!("{endpoint}: {reason}")));
                }
            },
        };
        let mut connection = Connection {
            channel,
            token: None,
            number: state.number,
            endpoint,
            farewell: state.farewell.clone(),
            // Whichever of the calls that share it opened it.
            fresh: state.opened.is_some_and(|at| at.elapsed() < FRESH),
        };
        if !state.logged_in {
            match self.log_in(&connection).await {
                Ok(token) => (state.token, state.logged_in) = (token, true),
                Err(failure) => {
                    state.channel = None;
                    if matches!(failure, Failure::Unreachable(_)) {
                        state.active += 1;
                    }
                    return Err(failure);
                }
            }
        }
        connection.token = state.token.clone();
        Ok(connection)
    }

    async fn connect(
        &self,
        endpoint: &Arc<Endpoint>,
        ping_every: Duration,
    ) -> Result<(Channel, Farewell), String> {
        let scheme = if endpoint.tls { "https" } else { "http" };
        let uri = format!("{scheme}://{}", endpoint.authority());
        // The transport must not see "https": TLS is the connector's business.
        let transport = format!("http://{}", endpoint.authority());
        let transport = Transport::from_shared(transport).map_err(|e| innermost(&e))?;
        let origin: Uri = uri.parse().map_err(|_| "no usable address".to_string())?;
        let connector = Connector {
            endpoint: endpoint.clone(),
            files: self.files.clone(),
            server_name: None,
            proxy: self.proxy(endpoint).map_err(|e| e.to_string())?,
            dialer: self.settings.dialer.clone(),
        };
        let farewell = Farewell::default();
        let connector = AttentiveConnector {
            connector,
            farewell: farewell.clone(),
        };
        let channel = transport
            .origin(origin)
            .http2_keep_alive_interval(ping_every)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(128 << 10)
            .initial_connection_window_size(256 << 10)
            .connect_with_connector(connector)
            .await
            .map_err(|e| innermost(&e))?;
        Ok((channel, farewell))
    }

    /// Gets a token, where the settings name a user. An etcd that knows no users needs none.
    async fn log_in(
        &self,
        connection: &Connection,
    ) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let login = self
            .settings
            .login()
            .map_err(|e| Failure::Refused(e.to_string()))?;
        let Some((name, password)) = login else {
            return Ok(None);
        };
        let query = proto::AuthenticateRequest {
            name: name.clone(),
            password: password.reveal().into(),
        };
        let answer = unary(&connection.channel, path::AUTHENTICATE, query, None);
        let answer: Result<proto::AuthenticateResponse, Status> = within(CALL, answer).await;
        count(&self.activity, path::AUTHENTICATE, &answer);
        match answer {
            Ok(answer) => match answer.token.parse() {
                Ok(token) => Ok(Some(token)),
                Err(_) => Err(Failure::Refused("its token cannot be sent back".into())),
            },
            Err(status) if status.message().contains("authentication is not enabled") => Ok(None),
            Err(status) => match remedy(&status) {
                Remedy::TryElsewhere => Err(Failure::Unreachable(describe(
                    &connection.endpoint,
                    &connection.farewell,
                    &status,
                ))),
                _ => Err(Failure::Refused(format!(
                    "user {name:?}: {}",
                    status.message()
                ))),
            },
        }
    }

    /// Ends connection `number`, if it is still the one in use; the next endpoint is tried next.
    pub(super) async fn leave(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.number == number && state.channel.take().is_some() {
            if state.farewell.too_many_pings() {
                let index = state.active % self.endpoints.len();
                state.ping_seldom.insert(index);
            }
            state.active += 1;
        }
    }

    pub(super) async fn forget_token(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.number == number {
            state.logged_in = false;
        }
    }
}
