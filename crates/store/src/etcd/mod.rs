//! Leases in etcd, over its v3 gRPC interface.
//!
//! | module | does |
//! |---|---|
//! | [`settings`] | endpoints, prefix, log-in: what flags say |
//! | [`link`], [`client`], [`call`] | a connection, failover, one call |
//! | [`proto`], [`keyspace`], [`txn`] | what is said over it |
//! | [`page`], [`listing`] | all leases, as they arrive |
//! | [`own_key`], [`etcd_lease`] | what the requests of [`crate::own_lease`] mean in etcd |
//! | [`history`] | whether etcd still tells the history that is known |
//! | [`follow`] | everybody's leases, for as long as the daemon runs |
//! | [`admin`] | looking and writing by hand |
//!
//! A start needs one request for the configuration, one per page of leases, one or two for the
//! lease and one for the watch; nothing is ever asked per peer.

mod admin;
mod call;
mod client;
mod connection;
mod etcd_lease;
mod follow;
mod history;
mod keyspace;
mod listing;
mod own_key;
mod page;
mod proto;
mod settings;
mod txn;

use std::sync::Arc;

use model::{Lease, LeaseAttrs, NetConfig};
use tokio::sync::watch;

pub use settings::{EtcdSettings, Secret, SettingsError};

use crate::event_queue::EventQueue;
use crate::retry::{Retry, StoreStatus};
use crate::task::AbortOnDrop;
use crate::{AcquireError, Claim, Store, StoreEvent, Timing, Who};
use client::{Client, Failure};
use follow::Follower;
use keyspace::Keyspace;

/// Leases in etcd.
pub struct EtcdStore {
    client: Arc<Client>,
    keys: Keyspace,
    timing: Timing,
    queue: Arc<EventQueue>,
    desired: watch::Sender<Option<LeaseAttrs>>,
    status: StoreStatus,
    /// At rest, driven by this store's own calls; until it runs as a task.
    follower: Option<Box<Follower>>,
    task: Option<AbortOnDrop>,
}

impl EtcdStore {
    /// A store for these settings. Nothing is sent yet.
    ///
    /// # Errors
    /// Settings that no waiting mends: endpoints, prefix, certificates, log-in.
    pub fn new(settings: EtcdSettings) -> Result<EtcdStore, SettingsError> {
        let keys = Keyspace::new(settings.parse_prefix()?);
        let timing = settings.timing;
        let client = Arc::new(Client::new(settings)?);
        let (queue, desired) = (Arc::new(EventQueue::default()), watch::Sender::new(None));
        Ok(EtcdStore {
            client,
            keys,
            timing,
            queue,
            desired,
            status: StoreStatus::default(),
            follower: None,
            task: None,
        })
    }

    /// The follower at rest, looking for the lease of `who`.
    fn follower(&mut self, config: &NetConfig, who: &Who) -> &mut Follower {
        self.task = None;
        self.follower = self
            .follower
            .take()
            .filter(|follower| follower.is_for(config, who));
        self.follower.get_or_insert_with(|| {
            Box::new(Follower::new(
                self.client.clone(),
                self.keys.clone(),
                self.timing,
                self.queue.clone(),
                self.desired.subscribe(),
                (config.clone(), who.clone(), self.status.clone()),
            ))
        })
    }

    async fn read_config(&self) -> Result<NetConfig, NoConfig> {
        let key = self.keys.config();
        let Some(kv) = self.config_key().await? else {
            return Err(NoConfig::Missing(key));
        };
        let json = String::from_utf8_lossy(&kv.value);
        NetConfig::from_json(&json).map_err(|e| NoConfig::Bad(key, e.to_string()))
    }
}

impl Store for EtcdStore {
    async fn config(&mut self) -> NetConfig {
        let mut retry = Retry::reporting_to(&self.status);
        loop {
            let no_config = match self.read_config().await {
                Ok(config) => {
                    retry.over();
                    return config;
                }
                Err(no_config) => no_config,
            };
            let away = matches!(no_config, NoConfig::Etcd(Failure::Away(_)));
            retry.wait(&no_config.to_string(), away).await;
        }
    }

    async fn own(&mut self, config: &NetConfig, who: &Who) -> Option<Lease> {
        self.follower(config, who).find_own().await
    }

    async fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        self.desired.send_replace(None);
        // Devices are as `own` was told.
        let known = self.follower.as_ref().map(|follower| follower.who());
        let devices = known.map(|who| who.devices.clone()).unwrap_or_default();
        let who = Who {
            public_ip: claim.attrs.public_ip,
            previous: claim.previous,
            devices,
        };
        let follower = self.follower(config, &who);
        follower.acquire(claim.attrs.clone()).await
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        self.desired.send_replace(Some(attrs));
    }

    fn status(&self) -> StoreStatus {
        self.status.clone()
    }

    async fn next_event(&mut self) -> StoreEvent {
        if self.task.is_none()
            && let Some(follower) = self.follower.take()
        {
            self.task = Some(AbortOnDrop::spawn(follower.run()));
        }
        self.queue.next_event().await
    }
}

/// Why there is no configuration yet.
#[derive(Debug, thiserror::Error)]
enum NoConfig {
    #[error(transparent)]
    Etcd(#[from] Failure),
    #[error("etcd has no key {0}: write the network configuration there")]
    Missing(String),
    #[error("etcd key {0}: {1}")]
    Bad(String, String),
}
