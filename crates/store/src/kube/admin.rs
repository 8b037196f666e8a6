//! The cluster's leases and configuration for a person. The configuration is in a ConfigMap and is changed
//! there.

use std::path::Path;

use model::{Family, SubnetKey};

use super::failure::Failure;
use super::node::Node;
use super::nodes_client::{Freshness, NodesClient};
use super::peer;
use crate::admin::{AdminError, ListedLease, StoredConfig};

impl From<Failure> for AdminError {
    fn from(failure: Failure) -> AdminError {
        AdminError(failure.to_string())
    }
}

/// Reads the configuration's file; `None` if there is none.
pub(super) fn stored_config(file: &Path) -> Result<Option<StoredConfig>, AdminError> {
    match std::fs::read(file) {
        Ok(json) => Ok(Some(StoredConfig { json, revision: 0 })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(AdminError(format!("file {}: {error}", file.display()))),
    }
}

/// Returns why the configuration cannot be written.
pub(super) fn not_here() -> AdminError {
    AdminError(
        "in Kubernetes the network configuration is net-conf.json in ConfigMap kube-flannel-cfg: change it with \
         `kubectl -n kube-flannel edit configmap kube-flannel-cfg`, then restart the DaemonSet"
            .into(),
    )
}

/// Returns the leases of all Nodes, by subnet.
pub(super) async fn leases(nodes: &NodesClient) -> Result<Vec<ListedLease>, AdminError> {
    let mut leases = Vec::new();
    let mut take = |node: &Node<'_>| {
        let subnets = node.subnets(&Family::ALL, |_, _| {});
        if let Some(key) = SubnetKey::new(subnets) {
            leases.push(ListedLease {
                key,
                attrs: peer::attrs(&node.annotations, &Family::ALL, |_, _| {}),
                // A Node keeps its podCIDR for as long as it exists.
                reserved: true,
            });
        }
    };
    let mut list = nodes.list(Freshness::Any).await?;
    while list.read(&mut take).await? {}
    list.finish()?;
    leases.sort_by_key(|lease| lease.key);
    Ok(leases)
}
