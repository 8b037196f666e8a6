//! The cluster's leases for a person. The network configuration is in a ConfigMap and is changed there.

use model::{Family, SubnetKey};

use super::KubeStore;
use super::failure::Failure;
use super::node::Node;
use super::nodes_client::Freshness;
use super::peer;
use crate::admin::{AdminError, Administer, ListedLease, StoredConfig};

impl From<Failure> for AdminError {
    fn from(failure: Failure) -> AdminError {
        AdminError(failure.to_string())
    }
}

impl Administer for KubeStore {
    fn config_place(&self) -> String {
        format!("file {}", self.settings.net_config.display())
    }

    async fn stored_config(&self) -> Result<Option<StoredConfig>, AdminError> {
        match std::fs::read(&self.settings.net_config) {
            Ok(json) => Ok(Some(StoredConfig { json, revision: 0 })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(AdminError(format!("{}: {error}", self.config_place()))),
        }
    }

    async fn swap_config(&self, _: &[u8], _: Option<&StoredConfig>) -> Result<bool, AdminError> {
        Err(AdminError(
            "in Kubernetes the network configuration is net-conf.json in ConfigMap kube-flannel-cfg: change it with \
             `kubectl -n kube-flannel edit configmap kube-flannel-cfg`, then restart the DaemonSet"
                .into(),
        ))
    }

    async fn leases(&self) -> Result<Vec<ListedLease>, AdminError> {
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
        let mut list = self.nodes.list(Freshness::Any).await?;
        while list.read(&mut take).await? {}
        list.finish()?;
        leases.sort_by_key(|lease| lease.key);
        Ok(leases)
    }
}
