//! The store that the daemon's flags name.

use std::net::IpAddr;

use model::{Dual, Lease, LeaseAttrs, NetConfig};

use crate::{
    AcquireError, Claim, DirectoryStore, EtcdStore, KubeStore, Store, StoreEvent, StoreStatus,
    Trouble, Who,
};

/// One of the stores there are.
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

/// Asks the store that it is.
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

    async fn assigned_ip(&mut self) -> Dual<IpAddr> {
        delegate!(self, store => store.assigned_ip().await)
    }

    async fn network(&mut self, stands: bool) {
        delegate!(self, store => store.network(stands).await);
    }

    async fn network_lost(&mut self) {
        delegate!(self, store => store.network_lost().await);
    }

    async fn report(&mut self, trouble: Trouble) {
        delegate!(self, store => store.report(trouble).await);
    }

    fn status(&self) -> StoreStatus {
        delegate!(self, store => store.status())
    }

    async fn next_event(&mut self) -> StoreEvent {
        delegate!(self, store => store.next_event().await)
    }
}
