//! What flags and environment say about Kubernetes.

use std::path::PathBuf;

use super::access_error::AccessError;
use crate::Timing;

/// How to reach the API server, and which Node is ours. Names in errors are those of the daemon's
/// flags.
#[derive(Clone, Debug, Default)]
pub struct KubeSettings {
    /// `-kube-api-url`; empty: the kubeconfig's.
    pub api_url: String,
    /// `-kubeconfig-file`; neither: the pod's credentials.
    pub kubeconfig: Option<PathBuf>,
    /// `-kube-annotation-prefix`.
    pub annotation_prefix: String,
    /// `-net-config-path`.
    pub net_config: PathBuf,
    /// `-set-node-network-unavailable`.
    pub set_network_condition: bool,
    /// How the daemon learns which Node is its own.
    pub node: NodeName,
    /// How long Nodes that an API server has lost are kept.
    pub timing: Timing,
}

/// How the daemon learns which Node is its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodeName {
    /// By neither way.
    #[default]
    Unknown,
    /// `NODE_NAME`.
    Given(String),
    /// `POD_NAME` and `POD_NAMESPACE`: the pod says where it runs.
    OfPod {
        /// `POD_NAMESPACE`.
        namespace: String,
        /// `POD_NAME`.
        name: String,
    },
}

impl NodeName {
    /// Reads the environment.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> NodeName {
        let set = |name| env(name).filter(|value| !value.is_empty());
        match (set("NODE_NAME"), set("POD_NAMESPACE"), set("POD_NAME")) {
            (Some(node), _, _) => NodeName::Given(node),
            (None, Some(namespace), Some(name)) => NodeName::OfPod { namespace, name },
            _ => NodeName::Unknown,
        }
    }

    /// Checks that a Node or pod can have the name.
    pub(super) fn check(&self) -> Result<(), KubeSettingsError> {
        let check = |variable, name: &String| {
            if is_name(name) {
                Ok(())
            } else {
                let name = name.clone();
                Err(KubeSettingsError::Name { variable, name })
            }
        };
        match self {
            NodeName::Given(node) => check("NODE_NAME", node),
            NodeName::OfPod { namespace, name } => {
                check("POD_NAMESPACE", namespace)?;
                check("POD_NAME", name)
            }
            NodeName::Unknown => Err(KubeSettingsError::NoNode),
        }
    }
}

/// Settings that no waiting fixes.
#[derive(Debug, thiserror::Error)]
pub enum KubeSettingsError {
    /// The API server cannot be reached with these settings.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A prefix that an annotation cannot have.
    #[error("-kube-annotation-prefix {0:?}: {1}")]
    Prefix(String, &'static str),
    /// Nothing says which Node this is.
    #[error(
        "which Node is this? NODE_NAME is not set, nor are POD_NAME and POD_NAMESPACE: set NODE_NAME (in a pod from the field spec.nodeName)"
    )]
    NoNode,
    /// A name that a Node or pod cannot have.
    #[error("{variable} is {name:?}, which is no name of an object")]
    Name {
        /// The environment variable.
        variable: &'static str,
        /// What it holds.
        name: String,
    },
}

/// Whether a name can be part of a path of the API: what names of Nodes, pods and namespaces consist of.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !name.is_empty() && name.len() <= 253 && name.chars().all(plain) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_name_comes_first_and_a_pod_needs_both() {
        let of = |pairs: &[(&str, &str)]| {
            NodeName::from_env(|name| {
                let found = pairs.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(
            of(&[
                ("NODE_NAME", "n1"),
                ("POD_NAME", "p"),
                ("POD_NAMESPACE", "s")
            ]),
            NodeName::Given("n1".into())
        );
        assert_eq!(
            of(&[("NODE_NAME", ""), ("POD_NAME", "p"), ("POD_NAMESPACE", "s")]),
            NodeName::OfPod {
                namespace: "s".into(),
                name: "p".into()
            }
        );
        assert_eq!(of(&[("POD_NAME", "p")]), NodeName::Unknown);
    }

    #[test]
    fn a_name_is_no_path() {
        assert!(is_name("ip-10-0-0-1.ec2.internal"));
        for name in ["", ".", "..", "a/b", "a?b", "a b", "%2e", "ä"] {
            assert!(!is_name(name), "{name:?} was taken");
        }
    }
}
