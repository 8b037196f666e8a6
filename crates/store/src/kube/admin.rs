//! What a person sees of a cluster's leases. Its network configuration is a ConfigMap's, and changed
//! there.

use super::KubeStore;
use super::body::Encoding;
use super::http::{Ask, Failure};
use super::listing::List;
use super::node::Node;
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
        let ask = Ask::list("/api/v1/nodes?resourceVersion=0", super::follow::LIST);
        let mut body = self.client.send(&ask).await?;
        let mut list = List::new(body.encoding);
        let malformed = |error: super::wire::Malformed| AdminError(error.to_string());
        let mut leases = Vec::new();
        loop {
            while let Some(range) = list.next().map_err(malformed)? {
                let bytes = list.buffer.get(range).unwrap_or_default();
                let node = match body.encoding {
                    Encoding::Protobuf => Node::from_protobuf(bytes, &self.prefix),
                    Encoding::Json => Node::from_json(bytes, &self.prefix),
                };
                let node = node.map_err(malformed)?;
                let subnets = node.subnets(&model::Family::ALL, |_, _| {});
                if let Some(key) = model::SubnetKey::new(subnets) {
                    leases.push(ListedLease {
                        key,
                        attrs: peer::attrs(&node.annotations, &model::Family::ALL, |_, _| {}),
                        // A Node keeps its podCIDR for as long as it is there.
                        reserved: true,
                    });
                }
            }
            if !body.more_soon(&mut list.buffer).await.map_err(AdminError)? {
                break;
            }
        }
        list.finish().map_err(malformed)?;
        leases.sort_by_key(|lease| lease.key);
        Ok(leases)
    }
}
