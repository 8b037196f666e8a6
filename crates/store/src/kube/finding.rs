//! Which Node is ours, and its subnets: asked for, and waited for where they are not there yet.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::{Dual, Family, SubnetKey};
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
use crate::retry::{Assigned, Retry};
use crate::retry_log::RetryLog;

/// A watch of our Node alone is over after a minute; one that is not is dead.
const UNCHANGED: Duration = Duration::from_secs(75);

impl KubeStore {
    /// Our Node's name; waits while it has to be asked for and cannot.
    pub(super) async fn name(&mut self) -> Arc<str> {
        if let Some(name) = &self.name {
            return name.clone();
        }
        let mut retry = Retry::reporting_to(&self.status);
        let name: Arc<str> = loop {
            match self.ask_name().await {
                Ok(name) => break name,
                Err(failure) => retry.wait(&failure.to_string(), failure.is_away()).await,
            }
        };
        retry.over();
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
        let mut retry = Retry::reporting_to(&self.status);
        loop {
            match own::get(&self.client, &name, &self.families, &self.prefix).await {
                Ok(own) => {
                    retry.over();
                    return own;
                }
                Err(failure) => {
                    let text = match &failure {
                        Failure::NotFound(_) => {
                            self.status.assign(Assigned::Nothing);
                            format!("there is no Node {name}")
                        }
                        failure => format!("Node {name}: {failure}"),
                    };
                    retry.wait(&text, failure.is_away()).await;
                }
            }
        }
    }

    /// StoreStatus until our Node is another than `own`, as far as one can tell; or for a while.
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

    /// Our subnets, once our Node has one that lies in the network. In dual-stack one family is
    /// enough; what is missing of the other one is reported.
    pub(super) async fn subnets(&mut self) -> SubnetKey {
        let name = self.name().await;
        let (mut waiting, mut said) = (RetryLog::default(), false);
        let mut backoff = Backoff::default();
        let mut node = self.node.take();
        loop {
            let own = match node.take() {
                Some(own) => own,
                None => self.ask_node().await,
            };
            let Served { key, faults } = served(&own, &self.networks);
            self.status.assign(Assigned::of(&own.subnets, key));
            let faults: Vec<Trouble> = faults
                .into_iter()
                .map(|(reason, problem)| Trouble {
                    reason,
                    message: format!("Node {name}: {problem}"),
                    node: None,
                })
                .collect();
            let texts: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
            let text = texts.join("; ");
            if let Some(key) = key {
                self.status.set(None);
                if said {
                    info!("Node {name} has podCIDR {key} now");
                }
                if !faults.is_empty() && self.degraded.is_due(&text) {
                    warn!("serving {key} alone: {text}");
                }
                self.status.set_degraded((!text.is_empty()).then_some(text));
                for fault in faults {
                    self.report(fault).await;
                }
                self.node = Some(own);
                return key;
            }
            self.status.set(Some(text.clone()));
            if waiting.is_due(&text) {
                warn!("waiting: {text}");
                said = true;
            }
            for fault in faults {
                self.report(fault).await;
            }
            match self.node_changes(&name, &own).await {
                Ok(Some(fresh)) => node = Some(fresh),
                Ok(None) | Err(_) => backoff.wait().await,
            }
        }
    }
}

/// What can be served of our Node's subnets.
#[derive(Debug, PartialEq)]
pub(super) struct Served {
    /// The subnets that are there and in the network.
    pub key: Option<SubnetKey>,
    /// What is wrong with the other families: an event's reason, and the text.
    pub faults: Vec<(&'static str, String)>,
}

/// The subnets of our Node that lie in their `networks`, and what is wrong with the others.
pub(super) fn served(own: &Own, networks: &Dual<IpNet>) -> Served {
    let mut faults = Vec::new();
    let subnets = Dual::from_fn(|family| {
        let network = networks.get(family)?;
        match subnet_in(own, family, network) {
            Ok(net) => Some(net),
            Err(fault) => {
                faults.push(fault);
                None
            }
        }
    });
    Served {
        key: SubnetKey::new(subnets),
        faults,
    }
}

fn subnet_in(own: &Own, family: Family, network: &IpNet) -> Result<IpNet, (&'static str, String)> {
    if let Some(text) = own.bad_subnets.get(family) {
        return Err((
            "InvalidPodCIDR",
            format!("spec.podCIDRs holds {text:?}, which is not a subnet"),
        ));
    }
    let Some(net) = own.subnets.get(family) else {
        return Err((
            "NoPodCIDR",
            format!(
                "no {family} subnet in spec.podCIDRs yet: the controller manager assigns it, with --allocate-node-cidrs and --cluster-cidr"
            ),
        ));
    };
    if network.contains(net) {
        return Ok(*net);
    }
    let named = match family {
        Family::V4 => "Network",
        Family::V6 => "IPv6Network",
    };
    Err((
        "PodCIDROutsideNetwork",
        format!(
            "spec.podCIDRs has {net}, which is outside {named} {network} of the network configuration: make the controller manager's --cluster-cidr and {named} agree"
        ),
    ))
}
