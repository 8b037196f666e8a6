//! One address of a store's server.

use std::fmt;
use std::path::PathBuf;

/// Where a server listens, and whether it speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub tls: bool,
    /// Name or address, IPv6 without brackets and with its zone.
    pub host: String,
    pub port: u16,
    /// The Unix socket that it listens on instead.
    pub socket: Option<PathBuf>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(socket) = &self.socket {
            let scheme = if self.tls { "unixs" } else { "unix" };
            return write!(f, "{scheme}://{}", socket.display());
        }
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl Endpoint {
    /// A Unix socket. Its certificate, if it has one, is for the file's name, as Go's client expects.
    pub(crate) fn at_socket(path: &str, tls: bool) -> Endpoint {
        let name = path.rsplit('/').next().unwrap_or_default();
        Endpoint {
            tls,
            host: name.to_owned(),
            port: 0,
            socket: Some(path.into()),
        }
    }

    /// `HOST:PORT`, an IPv6 address in brackets.
    pub(crate) fn authority(&self) -> String {
        if self.socket.is_some() {
            return "localhost".to_owned();
        }
        let host = self.name();
        if host.contains(':') {
            format!("[{host}]:{}", self.port)
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// Returns the host, without the zone that a link-local address may have: what a certificate names.
    pub(crate) fn name(&self) -> &str {
        self.host.split('%').next().unwrap_or_default()
    }

    /// Reads `http://HOST:PORT` or `https://HOST:PORT`; without a scheme it is `http`. What is wrong
    /// with it otherwise.
    pub(crate) fn parse(text: &str) -> Result<Endpoint, &'static str> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err("a scheme that is neither http nor https"),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('/') {
            return Err("a path after the port");
        }
        if authority.contains('@') {
            return Err("a user name is not part of an address");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or("a [ without ]")?;
                let (address, zone) = host.split_once('%').unwrap_or((host, ""));
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err("no IPv6 address between [ and ]");
                }
                // In a URL the zone's % is written %25.
                let zone = zone
                    .strip_prefix("25")
                    .filter(|z| !z.is_empty())
                    .unwrap_or(zone);
                let host = match zone {
                    "" => address.to_owned(),
                    zone => format!("{address}%{zone}"),
                };
                (host, port.strip_prefix(':').ok_or("no port")?)
            }
            None => {
                let (host, port) = authority.rsplit_once(':').ok_or("no port")?;
                (host.to_owned(), port)
            }
        };
        if host.contains(':') && !authority.starts_with('[') {
            return Err("an IPv6 address needs [ and ]");
        }
        if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err("no host name");
        }
        match port.parse() {
            Ok(port) if port > 0 => Ok(Endpoint {
                tls,
                host,
                port,
                socket: None,
            }),
            _ => Err("no port from 1 to 65535"),
        }
    }
}
