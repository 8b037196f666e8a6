//! Leases in Kubernetes: a Node's podCIDRs are its subnets, its annotations say how it is reached.
//!
//! | module | does |
//! |---|---|
//! | [`yaml`], [`credential`], [`kubeconfig`], [`exec`] | a kubeconfig, and the program that it names |
//! | [`settings`], [`server`], [`access`], [`access_error`] | where the API server is, and the credentials for it |
//! | [`http`], [`body`], [`failure`], [`status`] | a request, its answer inflated as it arrives, a refusal |
//! | [`wire`], [`node`], [`listing`], [`frames`] | Nodes in protobuf or JSON, read in place |
//! | [`annotations`], [`peer`] | a Node as a lease |
//! | [`own`], [`served`], [`own_client`] | our own Node: what it says and should say, its subnets, requests about it |
//! | [`search`] | which Node is ours, and the wait for its subnets |
//! | [`publisher`], [`condition`], [`keeper`] | our own Node, kept as it should be |
//! | [`nodes_client`], [`history`], [`node_index`], [`own_sight`], [`follow`] | everybody's Nodes, for as long as the daemon runs |
//! | [`events`] | troubles, reported as events |
//! | [`admin`] | the leases, for a person who asks |
//! | [`api`], [`pod_exec`] | any object, and a program in a pod, for a person's command |
//!
//! Modules use those in rows above them, never the other way round. A start needs one request for our
//! Node, one or two to write to it, one list and one watch, all over one connection; nothing is ever asked
//! per peer.

mod access;
mod access_error;
mod admin;
mod annotations;
mod api;
mod body;
mod condition;
mod credential;
mod events;
mod exec;
mod failure;
mod follow;
mod frames;
mod history;
mod http;
mod keeper;
mod kubeconfig;
mod listing;
mod node;
mod node_index;
mod nodes_client;
mod own;
mod own_client;
mod own_sight;
mod peer;
mod pod_exec;
mod publisher;
mod search;
mod served;
mod server;
mod settings;
mod status;
mod wire;
mod yaml;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use model::{Dual, Lease, LeaseAttrs, NetConfig, SubnetKey};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

pub use access_error::AccessError;
pub use api::{KubeApi, KubeApiError};
pub use events::Trouble;
pub use pod_exec::{PodExec, PodOutput};
pub use settings::{KubeSettings, KubeSettingsError, NodeName};

use crate::admin::{AdminError, Administer, ListedLease, StoredConfig};
use crate::config_file;
use crate::event_queue::EventQueue;
use crate::retry::{Retry, StoreStatus};
use crate::task::AbortOnDrop;
use crate::{AcquireError, Claim, Store, StoreEvent, Who};
use access::Access;
use annotations::Prefix;
use follow::Follower;
use http::Client;
use keeper::Keeper;
use node_index::NodeIndex;
use nodes_client::NodesClient;
use own::{DesiredNode, condition};
use own_sight::OwnSight;
use publisher::Publisher;
use search::NodeSearch;

/// How long the end of the daemon may wait for the API server.
const FAREWELL: Duration = Duration::from_secs(5);

/// Leases in Kubernetes.
pub struct KubeStore {
    settings: KubeSettings,
    nodes: NodesClient,
    search: NodeSearch,
    status: StoreStatus,
    queue: Arc<EventQueue>,
    desired: watch::Sender<DesiredNode>,
    /// Keys of the configuration that were reported to have no effect.
    without_effect: Vec<&'static str>,
    /// Keeps our Node once a subnet is acquired; until it runs as a task.
    keeper: Option<Keeper>,
    tasks: Option<(AbortOnDrop, AbortOnDrop)>,
    following_config: Option<AbortOnDrop>,
}

impl KubeStore {
    /// Creates a store for these settings; `env` reads the environment. Nothing is sent yet.
    ///
    /// # Errors
    /// Settings that no waiting fixes: address, kubeconfig, certificates, prefix, no node name.
    pub fn new(
        settings: KubeSettings,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<KubeStore, KubeSettingsError> {
        let prefix = Prefix::parse(&settings.annotation_prefix)?;
        settings.node.check()?;
        let access = Access::new(&settings.api_url, settings.kubeconfig.as_deref(), env)?;
        let status = StoreStatus::default();
        let client = Arc::new(Client::new(access, status.activity().clone()));
        Ok(KubeStore {
            nodes: NodesClient::new(client.clone(), prefix.clone()),
            search: NodeSearch::new(client, settings.node.clone(), prefix, status.clone()),
            settings,
            status,
            queue: Arc::default(),
            desired: watch::Sender::default(),
            without_effect: Vec::new(),
            keeper: None,
            tasks: None,
            following_config: None,
        })
    }

    /// Returns what an administrator has this node use as its public addresses, on its Node.
    pub async fn assigned_ip(&mut self) -> Dual<IpAddr> {
        let own = self.search.fresh_node().await;
        peer::assigned(&own.annotations, |bad| warn!("our Node: {bad}: ignored"))
    }

    /// Says on our Node whether pods can be placed here, as soon as it can be written. Returns at once.
    pub fn set_network(&mut self, available: bool) {
        if self.settings.set_network_condition {
            self.desired
                .send_modify(|desired| desired.network = Some(available));
        }
    }

    /// Says on our Node that the network was removed, and stops keeping the Node: the daemon is about to
    /// end. Waits for a few seconds at most.
    pub async fn network_removed(&mut self) {
        if !self.settings.set_network_condition {
            return;
        }
        self.tasks = None;
        self.keeper = None;
        let Some(client) = self.search.known_client() else {
            return;
        };
        let farewell = async {
            let own = client.get().await?;
            if !own.has_condition(false, true) {
                client.set_condition(own, condition(false)).await?;
            }
            Ok::<_, failure::Failure>(())
        };
        let name = client.name();
        match timeout(FAREWELL, farewell).await {
            Ok(Ok(())) => info!("Node {name}: NetworkUnavailable is True"),
            Ok(Err(failure)) => warn!("Node {name}: NetworkUnavailable cannot be set: {failure}"),
            Err(_) => warn!("Node {name}: NetworkUnavailable cannot be set: no answer"),
        }
    }

    /// Reports a trouble to administrators, as an event on its Node. Returns at once.
    pub fn report(&mut self, trouble: Trouble) {
        if let Some(reporter) = self.search.reporter() {
            reporter.report(trouble);
        }
    }

    /// Warns of keys that have no effect, once for as long as they are the same.
    fn warn_without_effect(&mut self, keys: Vec<&'static str>) {
        if !keys.is_empty() && keys != self.without_effect {
            warn!(
                "-net-config-path {}: {} has no effect with -kube-subnet-mgr: the controller manager assigns the \
                 subnets, and its --node-cidr-mask-size decides how long they are",
                self.settings.net_config.display(),
                keys.join(", ")
            );
        }
        self.without_effect = keys;
    }

    fn start_tasks(&mut self) -> Option<(AbortOnDrop, AbortOnDrop)> {
        let keeper = self.keeper.take()?;
        let name = keeper.name().clone();
        let families = self.search.families().to_vec();
        let own = OwnSight::new(name, families.clone());
        let index = NodeIndex::new(self.queue.clone(), families, Some(keeper.lease().key));
        let keeper = keeper.run(self.desired.subscribe(), own.subscribe());
        let follower = Follower::new(
            self.nodes.clone(),
            (own, index),
            self.queue.clone(),
            self.search.reporter()?.sender(),
            self.settings.timing,
        );
        Some((
            AbortOnDrop::spawn(follower.run()),
            AbortOnDrop::spawn(keeper),
        ))
    }
}

/// Reads the configuration; with it come the keys that have no effect.
fn parse_config(
    path: &Path,
    read: io::Result<Vec<u8>>,
) -> Result<(NetConfig, Vec<&'static str>), String> {
    let read = read.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such file: put the network configuration there".into()
        }
        _ => error.to_string(),
    });
    let parse = |json: Vec<u8>| {
        let json = String::from_utf8_lossy(&json).into_owned();
        NetConfig::with_assigned_subnets(&json).map_err(|e| e.to_string())
    };
    read.and_then(parse)
        .map_err(|problem| format!("-net-config-path {}: {problem}", path.display()))
}

impl Store for KubeStore {
    async fn config(&mut self) -> NetConfig {
        let path = self.settings.net_config.clone();
        let mut retry = Retry::reporting_to(&self.status);
        let config = loop {
            let read = std::fs::read(&path);
            match parse_config(&path, read) {
                Ok((config, without_effect)) => {
                    self.warn_without_effect(without_effect);
                    break config;
                }
                Err(problem) => retry.wait(&problem, false).await,
            }
        };
        retry.over();
        self.search.configure(&config);
        config
    }

    async fn own(&mut self, config: &NetConfig, _who: &Who) -> Option<Lease> {
        self.search.configure(config);
        let families = self.search.families().to_vec();
        let own = self.search.node().await;
        let attrs = peer::attrs(&own.annotations, &families, |_, _| {}).ok()?;
        let key = SubnetKey::new(own.subnets)?;
        peer::is_managed(&own.annotations).then_some(Lease {
            key,
            attrs,
            seniority: own.created,
        })
    }

    async fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        self.tasks = None;
        self.search.configure(config);
        let client = self.search.client().await;
        let mut retry = Retry::reporting_to(&self.status);
        loop {
            let (key, own) = self.search.subnets().await;
            // A family without a subnet is not offered to the other nodes.
            let attrs = claim.attrs.of_families_in(&key);
            let publisher = Publisher::new(
                client.clone(),
                (key, own),
                *self.search.networks(),
                attrs.clone(),
                (self.queue.clone(), self.status.clone()),
            );
            let Ok(keeper) = Keeper::publish(publisher, &mut retry).await else {
                continue;
            };
            retry.over();
            let lease = keeper.lease();
            self.queue.lease(lease.key, Some(lease.clone()));
            self.desired.send_replace(DesiredNode {
                attrs: Some(attrs),
                network: None,
            });
            self.keeper = Some(keeper);
            return Ok(lease);
        }
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        self.desired
            .send_modify(|desired| desired.attrs = Some(attrs));
    }

    fn status(&self) -> StoreStatus {
        self.status.clone()
    }

    async fn next_event(&mut self) -> StoreEvent {
        self.following_config.get_or_insert_with(|| {
            let path = self.settings.net_config.clone();
            let parse = |path: &Path, read| parse_config(path, read).map(|(config, _)| config);
            let (queue, poll) = (self.queue.clone(), self.settings.timing.poll);
            AbortOnDrop::spawn(config_file::follow(path, poll, queue, parse))
        });
        if self.tasks.is_none() {
            self.tasks = self.start_tasks();
        }
        self.queue.next_event().await
    }
}

impl Administer for KubeStore {
    fn config_place(&self) -> String {
        format!("file {}", self.settings.net_config.display())
    }

    async fn stored_config(&self) -> Result<Option<StoredConfig>, AdminError> {
        admin::stored_config(&self.settings.net_config)
    }

    async fn swap_config(&self, _: &[u8], _: Option<&StoredConfig>) -> Result<bool, AdminError> {
        Err(admin::not_here())
    }

    async fn leases(&self) -> Result<Vec<ListedLease>, AdminError> {
        admin::leases(&self.nodes).await
    }
}
