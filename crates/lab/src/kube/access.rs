//! Who may come in: static tokens, the kubeconfig files that hold them, and the role of flanneld.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;

use crate::Error;
use crate::error::Doing;

/// Somebody that the API server knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The cluster's administrator, who may do anything.
    Admin,
    /// flanneld as it runs in the cluster: the service account `flannel` of the namespace
    /// `kube-flannel`, with the role that the manifest gives it.
    Flannel,
    /// The kubelet of the node of this name, `n1` to `n250`.
    Kubelet(String),
}

impl Who {
    /// Its kubeconfig file is called so.
    pub(super) fn file(&self) -> String {
        match self {
            Who::Admin => "admin.conf".into(),
            Who::Flannel => "flannel.conf".into(),
            Who::Kubelet(node) => format!("{node}.conf"),
        }
    }

    /// Its user name, as the API server's audit log has it.
    pub fn user(&self) -> String {
        match self {
            Who::Admin => "admin".into(),
            Who::Flannel => "system:serviceaccount:kube-flannel:flannel".into(),
            Who::Kubelet(node) => format!("system:node:{node}"),
        }
    }

    fn groups(&self) -> &'static str {
        match self {
            Who::Admin => "system:masters",
            Who::Flannel => "system:serviceaccounts,system:serviceaccounts:kube-flannel",
            Who::Kubelet(_) => "system:nodes",
        }
    }

    /// Its bearer token. Nothing secret: the server is out of everybody's reach.
    pub(super) fn token(&self) -> String {
        format!("lab-{}", self.user().replace(':', "-"))
    }
}

/// Everybody, in the order of the token file.
fn everybody() -> impl Iterator<Item = Who> {
    let nodes = (1..=crate::fabric::MAX_NODES).map(|n| Who::Kubelet(format!("n{n}")));
    [Who::Admin, Who::Flannel].into_iter().chain(nodes)
}

/// Writes `tokens.csv` and a kubeconfig file for everybody.
pub(super) fn write(dir: &Path, server: SocketAddr, ca_pem: &str) -> Result<(), Error> {
    let mut tokens = String::new();
    for who in everybody() {
        let (token, user) = (who.token(), who.user());
        tokens.push_str(&format!("{token},{user},{user},\"{}\"\n", who.groups()));
        let text = kubeconfig(server, ca_pem, &token);
        put(dir, &who.file(), &text)?;
    }
    put(dir, "tokens.csv", &tokens)
}

/// A kubeconfig file for the bearer of `token`.
pub(super) fn kubeconfig(server: SocketAddr, ca_pem: &str, token: &str) -> String {
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority-data": ca,
        }}],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    });
    format!("{config:#}\n")
}

fn put(dir: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = dir.join(name);
    fs::write(&path, text).doing(|| path.display().to_string())
}
