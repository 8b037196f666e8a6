//! Connecting through a proxy: the one that the environment names, as Go programs understand it, or one given.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::transport::Uri;
use tower_service::Service;

use super::{ConnectError, Wire, dial, encrypt};
use crate::Secret;
use crate::endpoint::Endpoint;
use crate::tls::TlsFiles;

/// The proxy has to connect, too.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a proxy is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// It is not understood; without the value, which may hold a password.
    #[error(
        "{origin}: not the address of a proxy: expected http://, https:// or socks5://HOST:PORT"
    )]
    Address {
        /// The variable or key that holds it.
        origin: &'static str,
    },
    /// It does not connect us.
    #[error("proxy {proxy} ({origin}): {reason}")]
    Tunnel {
        /// Its address, without user and password.
        proxy: String,
        /// The variable or key that names it.
        origin: &'static str,
        /// What went wrong.
        reason: String,
    },
}

/// A proxy, and what named it.
#[derive(Clone)]
pub(crate) struct Proxy {
    intercept: Intercept,
    kind: Kind,
    /// Where it listens.
    endpoint: Arc<Endpoint>,
    origin: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// HTTP's CONNECT, over TLS where the endpoint says so.
    Http,
    Socks5,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Without user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Http => write!(f, "{}", self.endpoint),
            Kind::Socks5 => write!(f, "socks5://{}", self.endpoint.authority()),
        }
    }
}

/// The variables that name proxies, as they were when they were read.
#[derive(Clone, Debug, Default)]
pub struct ProxyVariables(Vec<(&'static str, Secret)>);

impl ProxyVariables {
    const NAMES: [&'static str; 6] = [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "NO_PROXY",
        "no_proxy",
    ];

    /// Reads the variables that `env` returns.
    pub fn read(env: impl Fn(&str) -> Option<String>) -> ProxyVariables {
        let set = |name| Some((name, Secret::new(env(name)?)));
        ProxyVariables(Self::NAMES.into_iter().filter_map(set).collect())
    }

    /// Returns the value of a variable that is not empty.
    fn get(&self, name: &'static str) -> Option<(&'static str, &str)> {
        let (_, value) = self.0.iter().find(|(known, _)| *known == name)?;
        Some((name, value.reveal())).filter(|(_, value)| !value.is_empty())
    }
}

/// What decides which proxy the environment names for a server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scheme {
    /// `HTTPS_PROXY`: for gRPC whatever the server's own scheme is, as Go's gRPC has it.
    Https,
    /// `HTTP_PROXY`.
    Http,
}

impl Scheme {
    fn variables(self) -> [&'static str; 2] {
        match self {
            Scheme::Https => ["HTTPS_PROXY", "https_proxy"],
            Scheme::Http => ["HTTP_PROXY", "http_proxy"],
        }
    }
}

impl Proxy {
    /// Returns the proxy that the variables name for `endpoint`; none for this machine's own addresses
    /// and for what `NO_PROXY` lists.
    ///
    /// # Errors
    /// The variable holds something else than the address of a proxy.
    pub(crate) fn from_environment(
        endpoint: &Endpoint,
        scheme: Scheme,
        variables: &ProxyVariables,
    ) -> Result<Option<Proxy>, ProxyError> {
        let set = |name| variables.get(name);
        let Some((origin, value)) = scheme.variables().into_iter().find_map(set) else {
            return Ok(None);
        };
        let no_proxy = ["NO_PROXY", "no_proxy"].into_iter().find_map(set);
        let no_proxy = no_proxy.map(|(_, list)| list).unwrap_or_default();
        if endpoint.socket.is_some()
            || is_loopback(endpoint.name())
            || is_listed(endpoint, no_proxy)
        {
            return Ok(None);
        }
        Proxy::new(value, origin).map(Some)
    }

    /// Reads a proxy's address; `origin` is what holds it, for messages.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn new(value: &str, origin: &'static str) -> Result<Proxy, ProxyError> {
        let bad = || ProxyError::Address { origin };
        let value = value.trim();
        // A scheme left out is http, as everywhere.
        let value = match value.split_once("://") {
            Some(_) => value.to_owned(),
            None => format!("http://{value}"),
        };
        // Whatever is asked for goes through it: which servers do has been decided before.
        let matcher = Matcher::builder().all(value.clone()).build();
        let anything = Uri::from_static("https://server.invalid");
        let intercept = matcher.intercept(&anything).ok_or_else(bad)?;
        let (kind, tls, port) = match intercept.uri().scheme_str() {
            Some("http") => (Kind::Http, false, 80),
            Some("https") => (Kind::Http, true, 443),
            Some("socks5" | "socks5h") => (Kind::Socks5, false, 1080),
            _ => return Err(bad()),
        };
        let host = intercept.uri().host().ok_or_else(bad)?;
        let endpoint = Endpoint {
            tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            port: intercept.uri().port_u16().unwrap_or(port),
            socket: None,
        };
        Ok(Proxy {
            intercept,
            kind,
            endpoint: Arc::new(endpoint),
            origin,
        })
    }

    /// Connects to `server` through the proxy.
    pub(super) async fn connect(&self, server: &Endpoint) -> Result<Wire, ConnectError> {
        let failed = |reason: String| ProxyError::Tunnel {
            proxy: self.to_string(),
            origin: self.origin,
            reason,
        };
        let wire = self.reach().await.map_err(|e| failed(e.to_string()))?;
        let uri: Uri = format!("https://{}", server.authority())
            .parse()
            .map_err(|_| failed(format!("{server} cannot be asked for")))?;
        let connected = Connected(Some(wire));
        let to = self.intercept.uri().clone();
        let tunnel = async {
            match self.kind {
                Kind::Http => {
                    let mut tunnel = Tunnel::new(to, connected);
                    if let Some(auth) = self.intercept.basic_auth() {
                        tunnel = tunnel.with_auth(auth.clone());
                    }
                    tunnel.call(uri).await.map_err(|e| e.to_string())
                }
                Kind::Socks5 => {
                    let mut socks = SocksV5::new(to, connected);
                    if let Some((user, password)) = self.intercept.raw_auth() {
                        socks = socks.with_auth(user.into(), password.into());
                    }
                    socks.call(uri).await.map_err(|e| e.to_string())
                }
            }
        };
        match timeout(TUNNEL_TIMEOUT, tunnel).await {
            Ok(Ok(wire)) => Ok(wire.into_inner()),
            Ok(Err(reason)) => Err(failed(format!("{reason} (asked for {server})")).into()),
            Err(_) => {
                let seconds = TUNNEL_TIMEOUT.as_secs();
                Err(failed(format!("no connection to {server} within {seconds} s")).into())
            }
        }
    }

    /// Connects to the proxy itself.
    async fn reach(&self) -> Result<Wire, ConnectError> {
        let wire = Wire::Plain(dial::dial(&self.endpoint.host, self.endpoint.port).await?);
        if !self.endpoint.tls {
            return Ok(wire);
        }
        let files = TlsFiles::system(&["http/1.1"]);
        let config = files.load()?;
        encrypt(wire, config, self.endpoint.host.clone(), &files).await
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Returns whether `NO_PROXY` lists the server: names with what is below them, addresses, networks, `*`; each
/// but the last with a port or without.
fn is_listed(server: &Endpoint, list: &str) -> bool {
    let with_port = format!(":{}", server.port);
    let entries = list.split(',').map(str::trim);
    let plain: Vec<&str> = entries
        // `[::1]:443` and `name:443`, but not the last group of an IPv6 address.
        .map(|entry| match entry.strip_suffix(&with_port) {
            Some(host) if host.ends_with(']') || !host.contains(':') => host,
            _ => entry,
        })
        .map(|entry| entry.trim_matches(['[', ']']))
        .map(|entry| entry.strip_prefix("*.").map_or(entry, |_| &entry[1..]))
        .collect();
    let matcher = Matcher::builder()
        .all("http://proxy.invalid")
        .no(plain.join(","))
        .build();
    let uri = format!("https://{}", server.authority()).parse::<Uri>();
    uri.is_ok_and(|uri| matcher.intercept(&uri).is_none())
}

/// Hands a connection that is there already to hyper-util's tunnels.
struct Connected(Option<Wire>);

impl Service<Uri> for Connected {
    type Response = TokioIo<Wire>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let wire = self.0.take();
        let gone = || std::io::Error::other("the connection to the proxy was used before");
        Box::pin(async move { Ok(TokioIo::new(wire.ok_or_else(gone)?)) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text).unwrap()
    }

    fn chosen(server: &str, scheme: Scheme, env: &[(&str, &str)]) -> Option<String> {
        let env = |name: &str| {
            let found = env.iter().find(|(key, _)| *key == name)?;
            Some(found.1.to_owned())
        };
        let variables = ProxyVariables::read(env);
        let proxy = Proxy::from_environment(&endpoint(server), scheme, &variables).unwrap();
        proxy.map(|proxy| proxy.to_string())
    }

    #[test]
    fn the_environment_is_read_as_go_reads_it() {
        let both = [("HTTPS_PROXY", "u:pw@p:3128"), ("http_proxy", "http://q")];
        let p = Some("http://p:3128".to_owned());
        assert_eq!(chosen("https://api:6443", Scheme::Https, &both), p);
        assert_eq!(chosen("http://etcd:2379", Scheme::Https, &both), p);
        let q = Some("http://q:80".to_owned());
        assert_eq!(chosen("http://api:6443", Scheme::Http, &both), q);
        for local in [
            "http://localhost:1",
            "http://127.0.0.9:1",
            "https://[::1]:1",
        ] {
            assert_eq!(chosen(local, Scheme::Https, &both), None, "{local}");
        }
        assert_eq!(chosen("http://a:1", Scheme::Https, &[]), None);
        assert_eq!(
            chosen("http://a:1", Scheme::Https, &[("HTTPS_PROXY", "")]),
            None
        );
        for (proxy, want) in [
            ("socks5://s", "socks5://s:1080"),
            ("https://u:p@t/", "https://t:443"),
            ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
        ] {
            let proxy = chosen("http://a:1", Scheme::Https, &[("https_proxy", proxy)]);
            assert_eq!(proxy.as_deref(), Some(want));
        }
    }

    #[test]
    fn no_proxy_names_hosts_domains_networks_and_ports() {
        for (server, list, direct) in [
            ("http://etcd.example:2379", "example", true),
            ("http://etcd.example:2379", ".example", true),
            ("http://etcd.example:2379", "*.example", true),
            ("http://etcd.example:2379", "xample", false),
            ("http://etcd.example:2379", "a, etcd.example:2379", true),
            ("http://etcd.example:2379", "etcd.example:1", false),
            ("https://10.1.2.3:6443", "10.0.0.0/8", true),
            ("https://10.1.2.3:6443", "10.1.2.3", true),
            ("https://10.1.2.3:6443", "10.1.2.4,192.168.0.0/16", false),
            ("https://[fd00::2379]:2379", "fd00::/8", true),
            ("https://[fd00::2379]:2379", "fd00::2379", true),
            ("https://a:1", "*", true),
        ] {
            let env = [("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", list)];
            let proxy = chosen(server, Scheme::Https, &env);
            assert_eq!(proxy.is_none(), direct, "{server} {list}");
        }
    }

    #[test]
    fn a_bad_proxy_is_named_without_its_password() {
        for value in ["ftp://u:secret@a", "http://", "http://u:secret@", ":::"] {
            let error = Proxy::new(value, "HTTPS_PROXY")
                .err()
                .map(|e| e.to_string());
            let error = error.unwrap_or_else(|| panic!("{value} was taken"));
            assert!(
                error.contains("HTTPS_PROXY") && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_with_the_password() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 403 No\r\n\r\n"] {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tcp.read_u8().await.unwrap());
                }
                tcp.write_all(answer.as_bytes()).await.unwrap();
                asked.push(String::from_utf8(head).unwrap());
                // The client speaks first, as in TLS and HTTP/2.
                if let Ok(byte) = tcp.read_u8().await {
                    tcp.write_all(&[byte; 5]).await.unwrap();
                }
            }
            asked
        });
        let proxy = Proxy::new(&format!("http://u:pw@127.0.0.1:{port}"), "HTTPS_PROXY").unwrap();
        let server = endpoint("https://api.example:6443");
        let mut wire = proxy.connect(&server).await.unwrap();
        wire.write_all(b"x").await.unwrap();
        let mut answer = [0; 5];
        wire.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"xxxxx");
        let refused = proxy.connect(&server).await.err().unwrap().to_string();
        assert!(
            refused.contains(&format!("http://127.0.0.1:{port} (HTTPS_PROXY)")),
            "{refused}"
        );
        assert!(
            refused.contains("api.example:6443") && !refused.contains("pw"),
            "{refused}"
        );
        let asked = serve.await.unwrap();
        assert!(
            asked[0].starts_with("CONNECT api.example:6443 HTTP/1.1\r\n"),
            "{asked:?}"
        );
        assert!(asked[0].contains("Basic dTpwdw=="), "{asked:?}");
    }
}
