//! Which Node is this machine's, and its subnets: asked for, and waited for where they do not exist yet.

use std::sync::Arc;

use ipnet::IpNet;
use model::{Dual, Family, NetConfig, SubnetKey};
use serde::Deserialize;
use tracing::{info, warn};

use super::annotations::Prefix;
use super::events::{Reporter, Trouble};
use super::failure::Failure;
use super::http::{Ask, Client};
use super::own::OwnNode;
use super::own_client::OwnClient;
use super::served::Served;
use super::settings::{KubeSettingsError, NodeName, is_name};
use crate::backoff::Backoff;
use crate::retry::{Assigned, Retry, StoreStatus};
use crate::retry_log::RetryLog;

/// No pod is larger.
const LARGEST: usize = 16 << 20;

/// Looks for our Node, from its name to its subnets.
pub(super) struct NodeSearch {
    client: Arc<Client>,
    node: NodeName,
    prefix: Prefix,
    status: StoreStatus,
    /// What the configuration enables.
    families: Vec<Family>,
    /// The configured networks of these families.
    networks: Dual<IpNet>,
    /// Our Node's name once it is known, and who reports on it.
    found: Option<(Arc<str>, Reporter)>,
    /// Our Node as it was last read, until it is taken.
    last: Option<OwnNode>,
    /// What the log says of a family that cannot be served.
    degraded: RetryLog,
}

impl NodeSearch {
    pub(super) fn new(
        client: Arc<Client>,
        node: NodeName,
        prefix: Prefix,
        status: StoreStatus,
    ) -> NodeSearch {
        NodeSearch {
            client,
            node,
            prefix,
            status,
            families: Family::ALL.into(),
            networks: Dual::default(),
            found: None,
            last: None,
            degraded: RetryLog::default(),
        }
    }

    /// Takes over which families and networks are configured.
    pub(super) fn configure(&mut self, config: &NetConfig) {
        let families: Vec<Family> = config.families().collect();
        if families != self.families {
            self.families = families;
            self.last = None;
        }
        self.networks = config.pools.map(|_, pool| pool.network);
    }

    pub(super) fn families(&self) -> &[Family] {
        &self.families
    }

    pub(super) fn networks(&self) -> &Dual<IpNet> {
        &self.networks
    }

    /// Returns who reports on our Node, once its name is known.
    pub(super) fn reporter(&self) -> Option<&Reporter> {
        self.found.as_ref().map(|(_, reporter)| reporter)
    }

    /// Returns a client for our Node, once its name is known.
    pub(super) fn known_client(&self) -> Option<OwnClient> {
        let (name, _) = self.found.as_ref()?;
        Some(self.client_of(name.clone()))
    }

    /// Returns a client for our Node; waits while its name has to be asked for and cannot.
    pub(super) async fn client(&mut self) -> OwnClient {
        let name = self.name().await;
        self.client_of(name)
    }

    fn client_of(&self, name: Arc<str>) -> OwnClient {
        OwnClient::new(
            self.client.clone(),
            name,
            self.prefix.clone(),
            self.families.clone(),
        )
    }

    async fn name(&mut self) -> Arc<str> {
        if let Some((name, _)) = &self.found {
            return name.clone();
        }
        let mut retry = Retry::reporting_to(&self.status);
        let name: Arc<str> = loop {
            match self.ask_name().await {
                Ok(name) => break name,
                Err(failure) => {
                    let is_away = failure.is_away();
                    let reason = match failure {
                        Failure::Away(why) => format!("API server: {why}"),
                        other => other.to_string(),
                    };
                    retry.wait(&reason, is_away).await;
                }
            }
        };
        retry.over();
        info!(
            "subnets are the podCIDRs of Nodes at {}; ours is Node {name}",
            self.client.place()
        );
        let reporter = Reporter::start(self.client.clone(), name.clone());
        self.found = Some((name.clone(), reporter));
        name
    }

    async fn ask_name(&self) -> Result<Arc<str>, Failure> {
        #[derive(Deserialize)]
        struct Pod {
            spec: Spec,
        }
        #[derive(Deserialize)]
        struct Spec {
            #[serde(rename = "nodeName", default)]
            node: String,
        }
        let (namespace, pod) = match &self.node {
            NodeName::Given(node) => return Ok(node.as_str().into()),
            NodeName::OfPod { namespace, name } => (namespace, name),
            // Refused when the store was created.
            NodeName::Unknown => {
                return Err(Failure::Refused(KubeSettingsError::NoNode.to_string()));
            }
        };
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
        let answer = self
            .client
            .send(&Ask::get(&path, "application/json"))
            .await?;
        let json = answer.whole(LARGEST).await.map_err(Failure::Away)?;
        let node = serde_json::from_slice(&json).map(|pod: Pod| pod.spec.node);
        match node.ok().filter(|node| is_name(node)) {
            Some(node) => Ok(node.into()),
            None => Err(Failure::Refused(format!(
                "pod {namespace}/{pod} names no Node in spec.nodeName"
            ))),
        }
    }

    /// Reads our Node, also if that was done before: an administrator may have changed it.
    pub(super) async fn fresh_node(&mut self) -> &OwnNode {
        let own = self.read().await;
        self.last.insert(own)
    }

    /// Returns our Node; reads it if that has not been done since the last [`NodeSearch::subnets`].
    pub(super) async fn node(&mut self) -> &OwnNode {
        let own = match self.last.take() {
            Some(own) => own,
            None => self.read().await,
        };
        self.last.insert(own)
    }

    /// Reads our Node; retries while that fails.
    async fn read(&mut self) -> OwnNode {
        let client = self.client().await;
        let mut retry = Retry::reporting_to(&self.status);
        loop {
            match client.get().await {
                Ok(own) => {
                    retry.over();
                    return own;
                }
                Err(failure) => {
                    let text = match &failure {
                        Failure::NotFound(_) => {
                            self.status.assign(Assigned::Nothing);
                            format!("there is no Node {}", client.name())
                        }
                        failure => format!("Node {}: {failure}", client.name()),
                    };
                    retry.wait(&text, failure.is_away()).await;
                }
            }
        }
    }

    /// Returns our subnets and our Node, once it has one that lies in the network. In dual-stack one
    /// family is enough; what is missing of the other one is reported.
    pub(super) async fn subnets(&mut self) -> (SubnetKey, OwnNode) {
        let client = self.client().await;
        let name = client.name();
        let (mut waiting, mut waited) = (RetryLog::default(), false);
        let mut backoff = Backoff::default();
        let mut node = self.last.take();
        loop {
            let own = match node.take() {
                Some(own) => own,
                None => self.read().await,
            };
            let served = Served::of(&own, &self.networks);
            self.status.assign(Assigned::of(&own.subnets, served.key));
            let faults = served.faults.iter();
            let texts: Vec<String> = faults
                .map(|(_, fault)| format!("Node {name}: {fault}"))
                .collect();
            for ((reason, _), message) in served.faults.iter().zip(&texts) {
                if let Some(reporter) = self.reporter() {
                    reporter.report(Trouble {
                        reason,
                        message: message.clone(),
                        node: None,
                    });
                }
            }
            let text = texts.join("; ");
            if let Some(key) = served.key {
                self.status.set(None);
                if waited {
                    info!("Node {name} has podCIDR {key} now");
                }
                if !text.is_empty() && self.degraded.is_due(&text) {
                    warn!("serving {key} alone: {text}");
                }
                self.status.set_degraded((!text.is_empty()).then_some(text));
                return (key, own);
            }
            self.status.set(Some(text.clone()));
            if waiting.is_due(&text) {
                warn!("waiting: {text}");
                waited = true;
            }
            match client.change(&own).await {
                Ok(Some(fresh)) => node = Some(fresh),
                Ok(None) | Err(_) => backoff.wait().await,
            }
        }
    }
}
