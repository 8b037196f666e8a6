//! The API server's address: of a flag or a kubeconfig, in the forms that a request needs.

use std::sync::Arc;

use super::access_error::AccessError;
use crate::endpoint::Endpoint;

/// The server's address in the forms that a request needs.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// `https://HOST:PORT`.
    pub address: String,
    /// `HOST:PORT`.
    pub authority: String,
    /// The path that precedes those of the API; mostly empty.
    pub base: String,
}

/// A server to connect to.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub endpoint: Arc<Endpoint>,
    pub origin: Origin,
}

impl Server {
    /// Parses the address `url` that is given in `place`. Without a scheme it is `https` if anything of TLS
    /// is given (`tls`), as in Go's client.
    pub(super) fn parse(place: &str, url: &str, tls: bool) -> Result<Server, AccessError> {
        let bad = |problem| AccessError::Url {
            origin: place.into(),
            url: url.into(),
            problem,
        };
        let usual = if tls { "https" } else { "http" };
        let (scheme, rest) = url.split_once("://").unwrap_or((usual, url));
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if path.contains(['?', '#']) {
            return Err(bad("a query or fragment after the path"));
        }
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
            && !authority.ends_with(']');
        let default_port = if has_port {
            ""
        } else if scheme.eq_ignore_ascii_case("http") {
            ":80"
        } else {
            ":443"
        };
        let endpoint = Endpoint::parse(&format!("{scheme}://{authority}{default_port}"));
        let endpoint = endpoint.map_err(bad)?;
        Ok(Server {
            origin: Origin {
                address: endpoint.to_string(),
                authority: endpoint.authority(),
                base: path.trim_end_matches('/').into(),
            },
            endpoint: Arc::new(endpoint),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str, tls: bool) -> Result<String, String> {
        let server = Server::parse("-kube-api-url", url, tls);
        let origin = server.map_err(|e| e.to_string())?.origin;
        Ok(format!("{}{}", origin.address, origin.base))
    }

    #[test]
    fn an_address_may_leave_out_its_port_and_have_a_path() {
        for (url, want) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
            ("https://api.example/", "https://api.example:443"),
            ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
            ("https://[fd00::1]:6443/", "https://[fd00::1]:6443"),
            ("https://[fd00::1]", "https://[fd00::1]:443"),
            ("10.0.0.1:6443", "http://10.0.0.1:6443"),
            ("api.example", "http://api.example:80"),
            (
                "https://rancher/k8s/clusters/c-1/",
                "https://rancher:443/k8s/clusters/c-1",
            ),
        ] {
            assert_eq!(place(url, false).unwrap(), want);
        }
        assert_eq!(
            place("10.0.0.1:6443", true).unwrap(),
            "https://10.0.0.1:6443"
        );
        for url in ["ftp://a", "https://", "https://a:0", "https://a/?x", ""] {
            let error = place(url, false).unwrap_err();
            assert!(
                error.contains("-kube-api-url") && error.contains(url),
                "{error}"
            );
        }
    }
}
