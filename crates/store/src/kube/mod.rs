//! Leases in Kubernetes: a Node's podCIDRs are its subnets, its annotations say how it is reached.
//!
//! | module | does |
//! |---|---|
//! | [`settings`], [`access`], [`kubeconfig`], [`exec`] | where the API server is, who we are to it |
//! | [`http`], [`body`], [`status`] | a request, its answer inflated as it arrives, a refusal |
//! | [`wire`], [`node`], [`listing`], [`frames`] | Nodes in protobuf or JSON, read in place |
//! | [`annotations`], [`peer`], [`node_index`] | a Node as a lease; all of them, and what changed |
//! | [`finding`], [`own`], [`keeper`], [`events`] | our own Node: found, written to, kept as it should be; troubles told |
//! | [`admin`] | the leases, for a person who asks |
//! | [`follow`] | everybody's Nodes, for as long as the daemon runs |
//!
//! A start needs one request for our Node, one or two to write to it, one list and one watch, all
//! over one connection; nothing is ever asked per peer.

mod access;
mod admin;
mod annotations;
mod body;
mod events;
mod exec;
mod finding;
mod follow;
mod frames;
mod http;
mod keeper;
mod kubeconfig;
mod listing;
mod node;
mod node_index;
mod own;
mod peer;
mod settings;
mod status;
mod wire;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::{Dual, Family, Lease, LeaseAttrs, NetConfig, SubnetKey};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{info, warn};

pub use access::AccessError;
pub use events::Trouble;
pub use settings::{KubeSettings, KubeSettingsError, NodeName};

use crate::backoff::Backoff;
use crate::event_queue::EventQueue;
use crate::reachability::Reachability;
use crate::retry::{Retry, StoreStatus};
use crate::retry_log::RetryLog;
use crate::task::AbortOnDrop;
use crate::tenure::Tenure;
use crate::{AcquireError, Claim, Store, StoreEvent, Who};
use access::Access;
use annotations::Prefix;
use events::Events;
use follow::Follower;
use http::Client;
use keeper::{Keeper, Seen, Written};
use node_index::NodeIndex;
use own::{DesiredNode, Own};
use settings::is_name;

/// Troubles that wait to be told. More at once are not read by anybody.
const TROUBLES: usize = 64;
/// How long a stop may take to say that the network is down.
const FAREWELL: Duration = Duration::from_secs(5);
const LARGEST: usize = 16 << 20;

/// Leases in Kubernetes.
pub struct KubeStore {
    client: Arc<Client>,
    settings: KubeSettings,
    prefix: Prefix,
    status: StoreStatus,
    queue: Arc<EventQueue>,
    wish: watch::Sender<DesiredNode>,
    /// Once we know it.
    name: Option<Arc<str>>,
    /// What the configuration enables.
    families: Vec<Family>,
    /// The configured networks of these families.
    networks: Dual<IpNet>,
    /// What was said of a family that cannot be served.
    degraded: RetryLog,
    /// Keys of the configuration that were said to have no effect.
    without_effect: Vec<&'static str>,
    /// Our Node as last asked for.
    node: Option<Own>,
    written: Option<Written>,
    lease: Option<SubnetKey>,
    events: Option<Events>,
    tasks: Option<Tasks>,
}

struct Tasks {
    _follower: AbortOnDrop,
    _keeper: AbortOnDrop,
    troubles: mpsc::Sender<Trouble>,
}

impl KubeStore {
    /// A store for these settings; `env` reads the environment. Nothing is sent yet.
    ///
    /// # Errors
    /// Settings that no waiting mends: address, kubeconfig, certificates, prefix, no node name.
    pub fn new(
        settings: KubeSettings,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<KubeStore, KubeSettingsError> {
        let prefix = Prefix::parse(&settings.annotation_prefix)?;
        let check = |variable, name: &str| match is_name(name) {
            true => Ok(()),
            false => Err(KubeSettingsError::Name {
                variable,
                name: name.into(),
            }),
        };
        match &settings.node {
            NodeName::Given(node) => check("NODE_NAME", node)?,
            NodeName::OfPod { namespace, name } => {
                check("POD_NAMESPACE", namespace)?;
                check("POD_NAME", name)?;
            }
            NodeName::Unknown => return Err(KubeSettingsError::NoNode),
        }
        let access = Access::new(&settings.api_url, settings.kubeconfig.as_deref(), env)?;
        Ok(KubeStore {
            client: Arc::new(Client::new(access)),
            settings,
            prefix,
            status: StoreStatus::default(),
            queue: Arc::default(),
            wish: watch::Sender::new(DesiredNode::default()),
            name: None,
            families: Family::ALL.into(),
            networks: Dual::default(),
            degraded: RetryLog::default(),
            without_effect: Vec::new(),
            node: None,
            written: None,
            lease: None,
            events: None,
            tasks: None,
        })
    }

    /// Warns of keys that have no effect, once for as long as they are the same.
    fn say_without_effect(&mut self, keys: Vec<&'static str>) {
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

    fn start_tasks(&mut self) -> Option<Tasks> {
        let (name, own) = (self.name.clone()?, self.lease?);
        let node = self.node.take();
        let since = node.as_ref().map_or(0, |own| own.version);
        let (seen, seeing) = watch::channel(Seen {
            own: node.map(Box::new),
            epoch: 0,
        });
        let (troubles, told) = mpsc::channel(TROUBLES);
        let events = self.events.take();
        let keeper = Keeper {
            client: self.client.clone(),
            name: name.clone(),
            prefix: self.prefix.clone(),
            families: self.families.clone(),
            wish: self.wish.subscribe(),
            seen: seeing,
            troubles: told,
            events: events.unwrap_or_else(|| Events::new(self.client.clone(), name.clone())),
            written: self.written.take(),
            epoch: 0,
            tenure: Tenure::created(),
            backoff: Backoff::default(),
            waiting: RetryLog::default(),
        };
        let follower = Follower {
            client: self.client.clone(),
            name,
            prefix: self.prefix.clone(),
            families: self.families.clone(),
            networks: self.networks,
            status: self.status.clone(),
            own,
            since,
            node_index: NodeIndex::new(self.queue.clone(), self.families.clone(), Some(own)),
            queue: self.queue.clone(),
            seen,
            troubles: troubles.clone(),
            timing: self.settings.timing,
            reachability: Reachability::new("the API server"),
            refusal: RetryLog::default(),
            position: None,
            known: None,
            interrupted: false,
            regressed: false,
            sweep_at: None,
        };
        Some(Tasks {
            _follower: AbortOnDrop::spawn(follower.run()),
            _keeper: AbortOnDrop::spawn(keeper.run()),
            troubles,
        })
    }
}

impl Store for KubeStore {
    async fn config(&mut self) -> NetConfig {
        let path = self.settings.net_config.clone();
        let mut retry = Retry::reporting_to(&self.status);
        let config = loop {
            let read = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "there is no such file: put the network configuration there".into()
                }
                _ => error.to_string(),
            });
            let read = read.and_then(|json| {
                NetConfig::with_assigned_subnets(&json).map_err(|e| e.to_string())
            });
            match read {
                Ok((config, without_effect)) => {
                    self.say_without_effect(without_effect);
                    break config;
                }
                Err(problem) => {
                    let text = format!("-net-config-path {}: {problem}", path.display());
                    retry.wait(&text, false).await;
                }
            }
        };
        retry.over();
        self.families = config.families().collect();
        self.networks = config.pools.map(|_, pool| pool.network);
        config
    }

    async fn assigned_ip(&mut self) -> Dual<IpAddr> {
        let own = self.ask_node().await;
        let assigned = peer::assigned(&own.annotations, |bad| warn!("our Node: {bad}: ignored"));
        self.node = Some(own);
        assigned
    }

    async fn own(&mut self, _config: &NetConfig, _who: &Who) -> Option<Lease> {
        let own = match self.node.take() {
            Some(own) => own,
            None => self.ask_node().await,
        };
        let key = SubnetKey::new(own.subnets);
        let attrs = peer::attrs(&own.annotations, &self.families, |_, _| {}).ok();
        let seniority = own.created;
        let managed = peer::is_managed(&own.annotations);
        self.node = Some(own);
        let (key, attrs) = key.zip(attrs).filter(|_| managed)?;
        Some(Lease {
            key,
            attrs,
            seniority,
        })
    }

    async fn acquire(&mut self, _: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        let name = self.name().await;
        let mut retry = Retry::reporting_to(&self.status);
        let (key, own, wish, attrs) = loop {
            let key = self.subnets().await;
            // A family without a subnet is not offered to the other nodes.
            let attrs = claim.attrs.of_families_in(&key);
            let wish = DesiredNode {
                attrs: Some(attrs.clone()),
                network: None,
            };
            let Some(mut own) = self.node.take() else {
                continue;
            };
            let patch = own::difference(&own, &wish, &self.families, &self.prefix, true);
            let Some(patch) = patch else {
                break (key, own, wish, attrs);
            };
            match own::patch(&self.client, &name, &patch).await {
                Ok(version) => {
                    own.wrote(version, &attrs, &self.families);
                    self.written = Some(Written {
                        uid: own.uid.clone(),
                        version: own.version,
                        wish: wish.clone(),
                    });
                    break (key, own, wish, attrs);
                }
                Err(failure) => {
                    let text = format!("cannot publish on Node {name}: {failure}");
                    retry.wait(&text, failure.is_away()).await;
                }
            }
        };
        retry.over();
        let lease = Lease {
            key,
            attrs,
            seniority: own.created,
        };
        self.wish.send_replace(wish);
        self.lease = Some(key);
        self.node = Some(own);
        Ok(lease)
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        self.wish.send_modify(|wish| wish.attrs = Some(attrs));
    }

    async fn network(&mut self, stands: bool) {
        if !self.settings.set_network_condition {
            return;
        }
        self.wish.send_modify(|wish| wish.network = Some(stands));
        if stands {
            return;
        }
        // Nobody waits for the tasks any more.
        self.tasks = None;
        let Some(name) = self.name.clone() else {
            return;
        };
        let wish = DesiredNode {
            attrs: None,
            network: Some(stands),
        };
        let farewell = async {
            let own = own::get(&self.client, &name, &self.families, &self.prefix).await?;
            match own::difference(&own, &wish, &self.families, &self.prefix, true) {
                Some(patch) => own::patch(&self.client, &name, &patch).await,
                None => Ok(0),
            }
        };
        match timeout(FAREWELL, farewell).await {
            Ok(Ok(_)) => info!("Node {name}: NetworkUnavailable is True"),
            Ok(Err(failure)) => warn!("Node {name}: NetworkUnavailable cannot be set: {failure}"),
            Err(_) => warn!("Node {name}: NetworkUnavailable cannot be set: no answer"),
        }
    }

    async fn network_lost(&mut self) {
        if self.settings.set_network_condition {
            self.wish.send_modify(|wish| wish.network = Some(false));
        }
    }

    async fn report(&mut self, trouble: Trouble) {
        if let Some(tasks) = &self.tasks {
            let _ = tasks.troubles.try_send(trouble);
        } else if let Some(events) = &mut self.events {
            events.post(trouble).await;
        }
    }

    fn status(&self) -> StoreStatus {
        self.status.clone()
    }

    async fn next_event(&mut self) -> StoreEvent {
        if self.tasks.is_none() {
            self.tasks = self.start_tasks();
        }
        self.queue.next_event().await
    }
}
