//! The store that the daemon's flags name.

use model::{Lease, LeaseAttrs, NetConfig};

use crate::admin::{AdminError, Administer, ListedLease, StoredConfig};
use crate::{
    AcquireError, Claim, DirectoryStore, EtcdStore, KubeStore, Store, StoreEvent, StoreStatus, Who,
};

/// One of the stores.
pub enum AnyStore {
    /// Leases in etcd.
    Etcd(EtcdStore),
    /// Leases on Kubernetes' Nodes.
    Kube(Box<KubeStore>),
    /// Leases in a directory.
    Directory(DirectoryStore),
}

impl From<EtcdStore> for AnyStore {
    fn from(store: EtcdStore) -> AnyStore {
        AnyStore::Etcd(store)
    }
}

impl From<KubeStore> for AnyStore {
    fn from(store: KubeStore) -> AnyStore {
        AnyStore::Kube(Box::new(store))
    }
}

impl From<DirectoryStore> for AnyStore {
    fn from(store: DirectoryStore) -> AnyStore {
        AnyStore::Directory(store)
    }
}

impl AnyStore {
    /// Returns the store with its own Node, on which it announces the network and reports troubles; `None` where
    /// the cluster has no such object.
    pub fn node(&mut self) -> Option<&mut KubeStore> {
        match self {
            AnyStore::Kube(store) => Some(store),
            AnyStore::Etcd(_) | AnyStore::Directory(_) => None,
        }
    }
}

/// Calls the store that it is.
macro_rules! delegate {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            AnyStore::Etcd($store) => $call,
            AnyStore::Kube($store) => $call,
            AnyStore::Directory($store) => $call,
        }
    };
}

impl Store for AnyStore {
    async fn config(&mut self) -> NetConfig {
        delegate!(self, store => store.config().await)
    }

    async fn own(&mut self, config: &NetConfig, who: &Who) -> Option<Lease> {
        delegate!(self, store => store.own(config, who).await)
    }

    async fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        delegate!(self, store => store.acquire(config, claim).await)
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        delegate!(self, store => store.publish(attrs).await);
    }

    fn status(&self) -> StoreStatus {
        delegate!(self, store => store.status())
    }

    async fn next_event(&mut self) -> StoreEvent {
        delegate!(self, store => store.next_event().await)
    }
}

impl Administer for AnyStore {
    fn config_place(&self) -> String {
        delegate!(self, store => store.config_place())
    }

    async fn stored_config(&self) -> Result<Option<StoredConfig>, AdminError> {
        delegate!(self, store => store.stored_config().await)
    }

    async fn swap_config(
        &self,
        json: &[u8],
        was: Option<&StoredConfig>,
    ) -> Result<bool, AdminError> {
        delegate!(self, store => store.swap_config(json, was).await)
    }

    async fn leases(&self) -> Result<Vec<ListedLease>, AdminError> {
        delegate!(self, store => store.leases().await)
    }
}
