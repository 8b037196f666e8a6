//! Where the API server is, and who we are to it: `-kube-api-url`, `-kubeconfig-file`, or what every
//! pod is given.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::kubeconfig::{self, Kubeconfig};
use crate::connect::{Connector, Proxy, ProxyError, Scheme};
use crate::endpoint::Endpoint;
use crate::etcd::Secret;
use crate::tls::{Names, Pem, TlsError, TlsFiles};

/// What a pod is given.
const POD_CREDENTIALS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const NAMES: Names = Names {
    key: "client-key",
    cert: "client-certificate",
    ca: "certificate-authority",
};
const PROTOCOLS: &[&str] = &["h2", "http/1.1"];

/// Settings that no waiting mends.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// An address that is none.
    #[error("{origin}: {url:?}: {problem}; expected https://HOST:PORT")]
    Url {
        /// The flag or file that holds it.
        origin: String,
        /// As given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Not in a pod, and nothing else given.
    #[error(
        "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod; give -kubeconfig-file or -kube-api-url"
    )]
    NoPod,
    /// A kubeconfig that cannot be used.
    #[error("-kubeconfig-file {path}: {problem}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A token that cannot be read.
    #[error("token file {path}: {error}", path = path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// A proxy that the environment names and that is none.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// A certificate, key or authority that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The server's address in the two forms that a request needs.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// `https://HOST:PORT`.
    pub address: String,
    /// `HOST:PORT`.
    pub authority: String,
    /// The path below which the API lies; mostly empty.
    pub base: String,
}

/// Everything that reaches the API server.
#[derive(Debug)]
pub(super) struct Access {
    /// Read again at every connect, since what it holds may be renewed.
    kubeconfig: Option<PathBuf>,
    url: String,
    now: Known,
}

#[derive(Debug)]
struct Known {
    endpoint: Arc<Endpoint>,
    origin: Origin,
    files: TlsFiles,
    server_name: Option<String>,
    token: Option<Token>,
}

/// What we say who we are.
#[derive(Clone, Debug)]
pub(super) enum Token {
    Text(Secret),
    /// Read again for each request: it is renewed every hour or so.
    File(PathBuf),
}

impl Access {
    /// As the flags say; both empty: as a pod.
    pub(super) fn new(
        url: &str,
        kubeconfig: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Access, AccessError> {
        let now = match (url, kubeconfig) {
            ("", None) => in_cluster(env)?,
            (url, None) => known("-kube-api-url", url, TlsFiles::none(), None, None)?,
            (url, Some(path)) => from_kubeconfig(url, path)?,
        };
        if now.endpoint.tls {
            now.files.load()?;
        }
        Ok(Access {
            kubeconfig: kubeconfig.map(Path::to_owned),
            url: url.into(),
            now,
        })
    }

    /// The server's address, for messages.
    pub(super) fn place(&self) -> String {
        format!("{}{}", self.now.origin.address, self.now.origin.base)
    }

    pub(super) fn origin(&self) -> Origin {
        self.now.origin.clone()
    }

    /// Opens a connection with what the files hold now.
    pub(super) fn connector(&self) -> Result<Connector, AccessError> {
        let (files, server_name) = match &self.kubeconfig {
            Some(path) => {
                let fresh = from_kubeconfig(&self.url, path)?;
                (fresh.files, fresh.server_name)
            }
            None => (self.now.files.clone(), self.now.server_name.clone()),
        };
        Ok(Connector {
            endpoint: self.now.endpoint.clone(),
            files: Arc::new(files),
            server_name,
            proxy: self.proxy()?,
        })
    }

    /// The proxy that the environment names for the server.
    pub(super) fn proxy(&self) -> Result<Option<Proxy>, ProxyError> {
        let scheme = if self.now.endpoint.tls {
            Scheme::Https
        } else {
            Scheme::Http
        };
        Proxy::from_environment(&self.now.endpoint, scheme, |name| std::env::var(name).ok())
    }

    /// The token as it is now.
    pub(super) fn token(&self) -> Result<Option<Secret>, AccessError> {
        let token = match &self.kubeconfig {
            Some(path) => from_kubeconfig(&self.url, path)?.token,
            None => self.now.token.clone(),
        };
        match token {
            None => Ok(None),
            Some(Token::Text(secret)) => Ok(Some(secret)),
            Some(Token::File(path)) => match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some(Secret::new(text.trim()))),
                Err(error) => Err(AccessError::Token { path, error }),
            },
        }
    }
}

impl TlsFiles {
    fn none() -> TlsFiles {
        TlsFiles {
            key: None,
            cert: None,
            ca: None,
            names: &NAMES,
            protocols: PROTOCOLS,
        }
    }
}

fn in_cluster(env: impl Fn(&str) -> Option<String>) -> Result<Known, AccessError> {
    let set = |name| env(name).filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (
        set("KUBERNETES_SERVICE_HOST"),
        set("KUBERNETES_SERVICE_PORT"),
    ) else {
        return Err(AccessError::NoPod);
    };
    let url = match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    };
    let dir = Path::new(POD_CREDENTIALS);
    let files = TlsFiles {
        ca: Some(Pem::File(dir.join("ca.crt"))),
        ..TlsFiles::none()
    };
    let token = Token::File(dir.join("token"));
    known("KUBERNETES_SERVICE_HOST", &url, files, None, Some(token))
}

fn from_kubeconfig(url: &str, path: &Path) -> Result<Known, AccessError> {
    let problem = |problem: String| AccessError::Kubeconfig {
        path: path.into(),
        problem,
    };
    let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
    let Kubeconfig {
        server,
        ca,
        cert,
        key,
        token,
        server_name,
    } = kubeconfig::parse(&text, path).map_err(problem)?;
    let files = TlsFiles {
        ca,
        cert,
        key,
        ..TlsFiles::none()
    };
    let (origin, url) = match url {
        "" => (
            format!("-kubeconfig-file {}: server", path.display()),
            server,
        ),
        url => ("-kube-api-url".to_owned(), url.to_owned()),
    };
    known(&origin, &url, files, server_name, token)
}

fn known(
    origin: &str,
    url: &str,
    files: TlsFiles,
    server_name: Option<String>,
    token: Option<Token>,
) -> Result<Known, AccessError> {
    let bad = |problem| AccessError::Url {
        origin: origin.into(),
        url: url.into(),
        problem,
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("no scheme"))?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if path.contains(['?', '#']) {
        return Err(bad("a query or fragment after the path"));
    }
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let default_port = match scheme {
        _ if has_port => "",
        "http" => ":80",
        _ => ":443",
    };
    let endpoint =
        Endpoint::parse(&format!("{scheme}://{authority}{default_port}")).map_err(bad)?;
    Ok(Known {
        origin: Origin {
            address: endpoint.to_string(),
            authority: endpoint.authority(),
            base: path.trim_end_matches('/').into(),
        },
        endpoint: Arc::new(endpoint),
        files,
        server_name,
        token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<String, String> {
        let known = known("-kube-api-url", url, TlsFiles::none(), None, None);
        let known = known.map_err(|e| e.to_string())?;
        Ok(format!("{}{}", known.origin.address, known.origin.base))
    }

    #[test]
    fn an_address_may_leave_out_its_port_and_have_a_path() {
        for (url, want) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
            ("https://api.example/", "https://api.example:443"),
            ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
            ("https://[fd00::1]:6443/", "https://[fd00::1]:6443"),
            ("https://[fd00::1]", "https://[fd00::1]:443"),
            (
                "https://rancher/k8s/clusters/c-1/",
                "https://rancher:443/k8s/clusters/c-1",
            ),
        ] {
            assert_eq!(place(url).unwrap(), want);
        }
        for url in [
            "10.0.0.1:6443",
            "ftp://a",
            "https://",
            "https://a:0",
            "https://a/?x",
        ] {
            let error = place(url).unwrap_err();
            assert!(
                error.contains("-kube-api-url") && error.contains(url),
                "{error}"
            );
        }
    }

    #[test]
    fn outside_a_pod_something_must_be_given() {
        let error = Access::new("", None, |_| None).unwrap_err().to_string();
        assert!(error.contains("-kubeconfig-file"), "{error}");
    }
}
