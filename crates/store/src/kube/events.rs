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
/// The API server's limits.
const LONGEST_NAME: usize = 253;
const LONGEST_MESSAGE: usize = 1024;

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
            "metadata": { "name": event_name(node, id), "namespace": "default" },
            "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": node, "uid": node },
            "type": "Warning",
            "reason": trouble.reason,
            "message": shortened(&trouble.message),
            "source": { "component": "flanneld", "host": &*self.own },
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let ask = Ask::with_body(
            Method::POST,
            "/api/v1/namespaces/default/events",
            "application/json",
            ("application/json", Bytes::from(event.to_string())),
        );
        match timeout(PATIENCE, self.client.send(&ask)).await {
            // It is not tried again, and says nothing of other events.
            Ok(Err(Failure::Invalid(reason))) => debug!("an event is not accepted: {reason}"),
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

/// A name that follows from what is said and about whom, no longer than an object's may be.
fn event_name(node: &str, id: u64) -> String {
    // Names of Nodes are ASCII.
    let node: String = node.chars().take(LONGEST_NAME - 17).collect();
    format!("{}.{id:016x}", node.trim_end_matches(['.', '-']))
}

/// No more than the API server takes.
fn shortened(message: &str) -> String {
    message.chars().take(LONGEST_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_too_long() {
        assert_eq!(event_name("n1", 7), "n1.0000000000000007");
        for length in 200..=253 {
            let node = "a.b-".repeat(64);
            let name = event_name(&node[..length], u64::MAX);
            assert!(name.len() <= LONGEST_NAME, "{name}");
            assert!(!name.contains("..") && !name.contains("-."), "{name}");
        }
    }
}
