//! Leases in etcd, over its v3 gRPC interface.
//!
//! | module | does |
//! |---|---|
//! | [`settings`] | endpoints, prefix, log-in, as given by flags |
//! | [`failure`], [`farewell`], [`connection`], [`failover`], [`client`] | what a failure means, why a connection ended, one connection, the next endpoint, calls |
//! | [`proto`], [`keyspace`], [`txn`] | the protocol |
//! | [`page`], [`listing`] | all leases, as they arrive |
//! | [`own_key`], [`etcd_lease`] | what the requests of [`crate::own_lease`] mean in etcd |
//! | [`history`], [`replica`] | what is known of etcd, and whether etcd still has that history |
//! | [`leases`] | everybody's leases read, the own one looked after |
//! | [`follow`], [`config_key`] | everybody's leases and the configuration, for as long as the daemon runs |
//! | [`admin`] | the administrator's access |
//!
//! A start needs one request for the configuration, one per page of leases, one or two for the
//! lease and one for each of two watches; nothing is ever asked per peer.

mod admin;
mod client;
mod config_key;
mod connection;
mod etcd_lease;
mod failover;
mod failure;
mod farewell;
mod follow;
mod history;
mod keyspace;
mod leases;
mod listing;
mod own_key;
mod page;
pub mod proto;
mod replica;
mod settings;
mod txn;

use std::sync::Arc;

use model::{Lease, LeaseAttrs, NetConfig};

pub use settings::{EtcdSettings, SettingsError};

use crate::retry::{Retry, StoreStatus};
use crate::store_task::{Resting, StoreTask};
use crate::task::AbortOnDrop;
use crate::{AcquireError, Claim, Store, StoreEvent, Timing, Who};
use client::Client;
use failure::Failure;
use keyspace::Keyspace;
use leases::Leases;

/// Leases in etcd.
pub struct EtcdStore {
    client: Arc<Client>,
    keys: Keyspace,
    timing: Timing,
    work: StoreTask<Leases>,
    /// The revision at which the configuration was last read.
    config_read_at: i64,
    following_config: Option<AbortOnDrop>,
}

impl EtcdStore {
    /// Creates a store for these settings. Nothing is sent yet.
    ///
    /// # Errors
    /// Settings that waiting does not fix: endpoints, prefix, certificates, log-in.
    pub fn new(settings: EtcdSettings) -> Result<EtcdStore, SettingsError> {
        let keys = Keyspace::new(settings.parse_prefix()?);
        let timing = settings.timing;
        let work = StoreTask::new();
        let activity = work.status().activity().clone();
        let client = Arc::new(Client::new(settings, activity)?);
        Ok(EtcdStore {
            client,
            keys,
            timing,
            work,
            config_read_at: 0,
            following_config: None,
        })
    }

    fn search(&mut self, config: &NetConfig, who: &Who) -> &mut Resting<Leases> {
        self.work.search(config, who, |queue, status| {
            Leases::new(
                self.client.clone(),
                self.keys.clone(),
                self.timing,
                queue.clone(),
                status.clone(),
                (config.clone(), who.clone()),
            )
        })
    }

    async fn read_config(&mut self) -> Result<NetConfig, NoConfig> {
        let (found, revision) = config_key::read(&self.client, &self.keys).await?;
        self.config_read_at = revision;
        config_key::parse(&self.keys, found.as_ref())
    }
}

impl Store for EtcdStore {
    async fn config(&mut self) -> NetConfig {
        let mut retry = Retry::reporting_to(self.work.status());
        loop {
            let no_config = match self.read_config().await {
                Ok(config) => {
                    retry.over();
                    return config;
                }
                Err(no_config) => no_config,
            };
            let unreachable = matches!(no_config, NoConfig::Etcd(Failure::Unreachable(_)));
            retry.wait(&no_config.to_string(), unreachable).await;
        }
    }

    async fn own(&mut self, config: &NetConfig, who: &Who) -> Option<Lease> {
        self.search(config, who).find().await
    }

    async fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        self.work.publish(None);
        let who = self.work.claimant(claim);
        let search = self.search(config, &who);
        search.acquire(claim.attrs.clone()).await
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        self.work.publish(Some(attrs));
    }

    fn status(&self) -> StoreStatus {
        self.work.status().clone()
    }

    async fn next_event(&mut self) -> StoreEvent {
        self.following_config.get_or_insert_with(|| {
            let queue = self.work.queue().clone();
            AbortOnDrop::spawn(config_key::follow(
                self.client.clone(),
                self.keys.clone(),
                self.config_read_at,
                queue,
            ))
        });
        self.work.next_event().await
    }
}

/// Why there is no configuration yet.
#[derive(Debug, thiserror::Error)]
enum NoConfig {
    #[error(transparent)]
    Etcd(#[from] Failure),
    #[error(
        "etcd has no key {0}: write the network configuration there with \"etcdctl put\" \
         (what \"etcdctl set\" wrote, etcd's v2 API, is not seen)"
    )]
    Missing(String),
    #[error("etcd key {0}: {1}")]
    Bad(String, String),
}
