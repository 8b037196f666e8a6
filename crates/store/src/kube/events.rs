//! Events on Nodes: what an administrator sees in `kubectl describe node` and nowhere else.
//!
//! They need rights beyond what the network needs (`create` on `events` in namespace `default`, where
//! the events of Nodes live). Without those none are written, and nothing else changes.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::Method;
use serde_json::json;
use tokio::time::timeout;
use tracing::debug;

use super::http::{Ask, Client, Failure};

/// An event is worth no more.
const PATIENCE: Duration = Duration::from_secs(3);
/// A cluster that finds new faults for ever says so many of them.
const MOST: usize = 1000;

/// Something that keeps a node from what it should do, for an administrator to mend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trouble {
    /// In one word, as events have it: `NoPodCIDR`.
    pub reason: &'static str,
    /// What is wrong, and what mends it.
    pub message: String,
    /// The Node that it is about; `None`: ours.
    pub node: Option<String>,
}

/// Writes events, each once.
pub(super) struct Events {
    client: Arc<Client>,
    own: Arc<str>,
    said: HashSet<u64>,
    forbidden: bool,
}

impl Events {
    pub(super) fn new(client: Arc<Client>, own: Arc<str>) -> Events {
        Events {
            client,
            own,
            said: HashSet::new(),
            forbidden: false,
        }
    }

    /// Writes an event, if it is new and we may. About another Node every node of the cluster would say
    /// the same: the first one says it, by a name that follows from what is said.
    pub(super) async fn post(&mut self, trouble: Trouble) {
        let mut hasher = DefaultHasher::new();
        trouble.hash(&mut hasher);
        let id = hasher.finish();
        if self.forbidden || self.said.len() >= MOST || !self.said.insert(id) {
            return;
        }
        let node = trouble.node.as_deref().unwrap_or(&self.own);
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": format!("{node}.{id:016x}"), "namespace": "default" },
            "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": node, "uid": node },
            "type": "Warning",
            "reason": trouble.reason,
            "message": trouble.message,
            "source": { "component": "flanneld", "host": &*self.own },
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let ask = Ask {
            method: Method::POST,
            path: "/api/v1/namespaces/default/events",
            accept: "application/json",
            body: Some(("application/json", Bytes::from(event.to_string()))),
        };
        match timeout(PATIENCE, self.client.send(&ask)).await {
            Ok(Err(Failure::Refused(reason))) => {
                self.forbidden = true;
                debug!("no events are written: {reason}");
            }
            // That it is there already is as good; and one that is lost is said again later.
            Ok(Ok(_) | Err(Failure::Conflict(_))) => {}
            Ok(Err(_)) | Err(_) => drop(self.said.remove(&id)),
        }
    }
}
