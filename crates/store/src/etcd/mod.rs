//! Leases in etcd, over its v3 gRPC interface.
//!
//! | module | does |
//! |---|---|
//! | [`settings`] | endpoints, prefix, log-in: what flags say |
//! | [`link`], [`client`], [`call`] | a connection, failover, one call |
//! | [`proto`], [`keyspace`], [`txn`] | what is said over it |
//! | [`page`], [`listing`] | all leases, as they arrive |
//! | [`acquire`], [`holding`], [`defence`] | our own lease: taken, kept, defended, lost |
//! | [`follow`] | everybody's leases, for as long as the daemon runs |
//! | [`admin`] | looking and writing by hand |
//!
//! A start needs one request for the configuration, one per page of leases, one or two for the
//! lease and one for the watch; nothing is ever asked per peer.

mod acquire;
mod admin;
mod call;
mod client;
mod defence;
mod follow;
mod holding;
mod keyspace;
mod link;
mod listing;
mod page;
mod proto;
mod settings;
mod txn;

use std::net::IpAddr;
use std::sync::Arc;

use model::{Dual, Lease, LeaseAttrs, NetConfig};
use tokio::sync::watch;

pub use settings::{EtcdSettings, Secret, SettingsError};

use crate::claim;
use crate::feed::Feed;
use crate::patience::Patience;
use crate::task::AbortOnDrop;
use crate::{AcquireError, Claim, News, Store, Timing};
use client::{Client, Failure};
use follow::Follower;
use keyspace::Keyspace;

/// Leases in etcd.
pub struct EtcdStore {
    client: Arc<Client>,
    keys: Keyspace,
    timing: Timing,
    feed: Arc<Feed>,
    wish: watch::Sender<Option<LeaseAttrs>>,
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
        let (feed, wish) = (Arc::new(Feed::default()), watch::Sender::new(None));
        Ok(EtcdStore {
            client,
            keys,
            timing,
            feed,
            wish,
            follower: None,
            task: None,
        })
    }

    /// The follower at rest, looking for leases of ours by `public_ip`.
    fn follower(&mut self, public_ip: &Dual<IpAddr>) -> &mut Follower {
        self.task = None;
        self.follower = self
            .follower
            .take()
            .filter(|follower| follower.public_ip == *public_ip);
        self.follower.get_or_insert_with(|| {
            let (client, keys, feed) = (self.client.clone(), self.keys.clone(), self.feed.clone());
            let mut follower =
                Follower::new(client, keys, self.timing, feed, self.wish.subscribe());
            follower.public_ip = *public_ip;
            Box::new(follower)
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
        let mut patience = Patience::default();
        loop {
            let no_config = match self.read_config().await {
                Ok(config) => {
                    patience.over();
                    return config;
                }
                Err(no_config) => no_config,
            };
            patience
                .wait(
                    &no_config.to_string(),
                    matches!(no_config, NoConfig::Etcd(Failure::Away(_))),
                )
                .await;
        }
    }

    async fn own(&mut self, public_ip: &Dual<IpAddr>) -> Option<Lease> {
        claim::own_at_last(self.follower(public_ip)).await
    }

    async fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        self.wish.send_replace(None);
        claim::acquire_at_last(self.follower(&claim.attrs.public_ip), config, claim).await
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        self.wish.send_replace(Some(attrs));
    }

    async fn news(&mut self) -> News {
        if self.task.is_none() {
            let public_ip = self.follower.as_ref().map(|follower| follower.public_ip);
            self.follower(&public_ip.unwrap_or_default());
            if let Some(follower) = self.follower.take() {
                self.task = Some(AbortOnDrop::spawn(follower.run()));
            }
        }
        self.feed.news().await
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
