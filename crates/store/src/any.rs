//! The store that the daemon's flags name.

use std::net::IpAddr;

use model::{Dual, Lease, LeaseAttrs, NetConfig};

use crate::{AcquireError, Claim, DirectoryStore, EtcdStore, News, Store};

/// One of the stores there are.
pub enum AnyStore {
    /// Leases in etcd.
    Etcd(EtcdStore),
    /// Leases in a directory.
    Directory(DirectoryStore),
}

impl From<EtcdStore> for AnyStore {
    fn from(store: EtcdStore) -> AnyStore {
        AnyStore::Etcd(store)
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
            AnyStore::Directory($store) => $call,
        }
    };
}

impl Store for AnyStore {
    async fn config(&mut self) -> NetConfig {
        delegate!(self, store => store.config().await)
    }

    async fn own(&mut self, public_ip: &Dual<IpAddr>) -> Option<Lease> {
        delegate!(self, store => store.own(public_ip).await)
    }

    async fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        delegate!(self, store => store.acquire(config, claim).await)
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        delegate!(self, store => store.publish(attrs).await);
    }

    async fn news(&mut self) -> News {
        delegate!(self, store => store.news().await)
    }
}
