//! What is wrong with the way to the API server.

use std::path::PathBuf;

use crate::connect::ProxyError;
use crate::tls::TlsError;

/// Settings that no waiting fixes.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// An address that cannot be parsed.
    #[error("{origin}: {url:?}: {problem}; expected https://HOST:PORT")]
    Url {
        /// The flag or file that holds it.
        origin: String,
        /// As given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Not in a pod, and nothing else is given.
    #[error(
        "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod; give -kubeconfig-file or -kube-api-url"
    )]
    NoPod,
    /// A person's command finds no kubeconfig.
    #[error(
        "there is no kubeconfig: name one with --kubeconfig or KUBECONFIG, or put it at ~/.kube/config"
    )]
    NoKubeconfig,
    /// A kubeconfig that cannot be used.
    #[error("{origin} {path}: {problem}", path = path.display())]
    Kubeconfig {
        /// What names the file: `-kubeconfig-file`, `KUBECONFIG` and so on.
        origin: &'static str,
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
    /// The kubeconfig's program prints no credential.
    #[error("{0}")]
    Exec(String),
    /// A proxy that cannot be used.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// A certificate, key or authority that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}
