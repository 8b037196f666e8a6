//! Which Node is ours, and its subnets: asked for, and waited for where they are not there yet.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::{Dual, Family, NetConfig, SubnetKey};
use serde::Deserialize;
use tokio::time::timeout;
use tracing::{info, warn};

use super::events::{Events, Trouble};
use super::frames::{Event, Frames};
use super::http::{Ask, Failure};
use super::own::{self, Own};
use super::settings::{KubeSettingsError, NodeName, is_name};
use super::{KubeStore, LARGEST, wire};
use crate::Store;
use crate::backoff::Backoff;
use crate::complaints::Waiting;
use crate::patience::Patience;

/// A watch of our Node alone is over after a minute; one that is not is dead.
const UNCHANGED: Duration = Duration::from_secs(75);

impl KubeStore {
    /// Our Node's name; waits while it has to be asked for and cannot.
    pub(super) async fn name(&mut self) -> Arc<str> {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let mut patience = Patience::telling(&self.waits);
        let name: Arc<str> = loop {
            match self.ask_name().await {
                Ok(name) => break name,
                Err(failure) => patience.wait(&failure.to_string(), failure.is_away()).await,
            }
        };
        patience.over();
        info!(
            "subnets are the podCIDRs of Nodes at {}; ours is Node {name}",
            self.client.place()
        );
        self.events = Some(Events::new(self.client.clone(), name.clone()));
        self.name.insert(name).clone()
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
        let (namespace, pod) = match &self.settings.node {
            NodeName::Given(node) => return Ok(node.as_str().into()),
            NodeName::OfPod { namespace, name } => (namespace, name),
            // Refused when the store was made.
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

    /// Asks for our Node, again and again while that fails.
    pub(super) async fn ask_node(&mut self) -> Own {
        let name = self.name().await;
        let mut patience = Patience::telling(&self.waits);
        loop {
            match own::get(&self.client, &name, &self.families, &self.prefix).await {
                Ok(own) => {
                    patience.over();
                    return own;
                }
                Err(failure) => {
                    let text = match &failure {
                        Failure::NotFound(_) => format!("there is no Node {name}"),
                        failure => format!("Node {name}: {failure}"),
                    };
                    patience.wait(&text, failure.is_away()).await;
                }
            }
        }
    }

    /// Waits until our Node is another than `own`, as far as one can tell; or for a while.
    async fn node_changes(&self, name: &str, own: &Own) -> Result<Option<Own>, Failure> {
        let path = format!(
            "/api/v1/nodes?watch=true&timeoutSeconds=60&fieldSelector=metadata.name%3D{name}&resourceVersion={}",
            own.resource_version
        );
        let mut body = self
            .client
            .send(&Ask::get(&path, "application/json"))
            .await?;
        let mut frames = Frames::new(body.encoding);
        loop {
            let malformed = |error: wire::Malformed| Failure::Away(error.to_string());
            while let Some(frame) = frames.next().map_err(malformed)? {
                match frames.read(frame, &self.prefix).map_err(malformed)? {
                    Event::Put(node) => return Ok(Some(Own::of(&node, &self.families))),
                    Event::Bookmark(_) => {}
                    Event::Gone(_) | Event::Error(_) => return Ok(None),
                }
            }
            match timeout(UNCHANGED, body.more(&mut frames.buffer)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return Ok(None),
                Ok(Err(reason)) => return Err(Failure::Away(reason)),
            }
        }
    }

    /// Our subnets, once our Node has them and they lie in the network.
    pub(super) async fn subnets(&mut self, config: &NetConfig) -> SubnetKey {
        let name = self.name().await;
        let (mut waiting, mut said) = (Waiting::default(), false);
        let mut backoff = Backoff::default();
        let mut node = self.node.take();
        loop {
            let own = match node.take() {
                Some(own) => own,
                None => self.ask_node().await,
            };
            let trouble = match fitting(&own, config, &self.families) {
                Ok(key) => {
                    self.waits.set(None);
                    if said {
                        info!("Node {name} has podCIDR {key} now");
                    }
                    self.node = Some(own);
                    return key;
                }
                Err((reason, problem)) => Trouble {
                    reason,
                    message: format!("Node {name}: {problem}"),
                    node: None,
                },
            };
            self.waits.set(Some(trouble.message.clone()));
            if waiting.is_due(&trouble.message) {
                warn!("waiting: {}", trouble.message);
                said = true;
            }
            self.report(trouble).await;
            match self.node_changes(&name, &own).await {
                Ok(Some(fresh)) => node = Some(fresh),
                Ok(None) | Err(_) => backoff.wait().await,
            }
        }
    }
}

/// Our subnets, if they are all there and in the network; else an event's reason, and what is wrong.
fn fitting(
    own: &Own,
    config: &NetConfig,
    families: &[Family],
) -> Result<SubnetKey, (&'static str, String)> {
    let subnets = own.subnets.as_ref().map_err(|text| {
        (
            "InvalidPodCIDR",
            format!("spec.podCIDRs holds {text:?}, which is no subnet"),
        )
    })?;
    let key = whole_key(subnets, families).map_err(|family| {
        (
            "NoPodCIDR",
            format!(
                "no {family} subnet in spec.podCIDRs yet: the controller manager assigns it, with --allocate-node-cidrs and --cluster-cidr"
            ),
        )
    })?;
    for (family, net) in subnets.iter() {
        if let Some(pool) = config
            .pools
            .get(family)
            .filter(|pool| !pool.network.contains(net))
        {
            let named = match family {
                Family::V4 => "Network",
                Family::V6 => "IPv6Network",
            };
            return Err((
                "PodCIDROutsideNetwork",
                format!(
                    "spec.podCIDRs has {net}, which is outside {named} {} of the network configuration: make the controller manager's --cluster-cidr and {named} agree",
                    pool.network
                ),
            ));
        }
    }
    Ok(key)
}

/// The subnets as a key, of all the families that are in use.
fn whole_key(subnets: &Dual<IpNet>, families: &[Family]) -> Result<SubnetKey, Family> {
    let missing = families
        .iter()
        .find(|family| subnets.get(**family).is_none());
    match (missing, SubnetKey::new(*subnets)) {
        (None, Some(key)) => Ok(key),
        (missing, _) => Err(missing.copied().unwrap_or(Family::V4)),
    }
}
