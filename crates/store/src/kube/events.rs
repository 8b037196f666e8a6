//! Events on Nodes: what an administrator sees in `kubectl describe node` and nowhere else.
//!
//! They need a right that the network does not need: `create` on `events` in namespace `default`, where
//! the events of Nodes are. Without it no events are written, and nothing else changes.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::Method;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use super::failure::Failure;
use super::http::{Ask, Client};
use crate::task::AbortOnDrop;

/// Troubles that wait to be written. Nobody reads more at once.
const TROUBLES: usize = 64;
/// An event is not worth a longer wait.
const PATIENCE: Duration = Duration::from_secs(3);
/// A cluster with ever new faults: only so many are written.
const MOST: usize = 1000;
/// The API server's limits.
const LONGEST_NAME: usize = 253;
const LONGEST_MESSAGE: usize = 1024;

/// Something that keeps a node from working as it should, for an administrator to fix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trouble {
    /// One word, as events have it: `NoPodCIDR`.
    pub reason: &'static str,
    /// What is wrong, and what fixes it.
    pub message: String,
    /// The Node that it is about; `None`: this machine's.
    pub node: Option<String>,
}

/// Passes troubles to the task that writes them as events; dropping this ends the task.
#[derive(Debug)]
pub(super) struct Reporter {
    queue: mpsc::Sender<Trouble>,
    _task: AbortOnDrop,
}

impl Reporter {
    /// Starts the task; `own` is this machine's Node.
    pub(super) fn start(client: Arc<Client>, own: Arc<str>) -> Reporter {
        let (queue, troubles) = mpsc::channel(TROUBLES);
        let writer = EventWriter {
            client,
            own,
            written: HashSet::new(),
            forbidden: false,
        };
        Reporter {
            queue,
            _task: AbortOnDrop::spawn(writer.run(troubles)),
        }
    }

    /// Queues a trouble and returns at once. Of very many at a time some are lost.
    pub(super) fn report(&self, trouble: Trouble) {
        let _ = self.queue.try_send(trouble);
    }

    /// Returns a sender for another task.
    pub(super) fn sender(&self) -> mpsc::Sender<Trouble> {
        self.queue.clone()
    }
}

/// Writes events, each once.
struct EventWriter {
    client: Arc<Client>,
    own: Arc<str>,
    /// Hashes of the troubles that were written.
    written: HashSet<u64>,
    forbidden: bool,
}

impl EventWriter {
    async fn run(mut self, mut troubles: mpsc::Receiver<Trouble>) {
        while let Some(trouble) = troubles.recv().await {
            self.post(trouble).await;
        }
    }

    /// Writes an event if it is new and writing is allowed. Every node of the cluster finds the same
    /// trouble with another Node: the event's name follows from its content, so that only one is created.
    async fn post(&mut self, trouble: Trouble) {
        let mut hasher = DefaultHasher::new();
        trouble.hash(&mut hasher);
        let id = hasher.finish();
        if self.forbidden || self.written.len() >= MOST || !self.written.insert(id) {
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
            // The API server does not accept this event; others may be fine.
            Ok(Err(Failure::Invalid(reason))) => debug!("an event is not accepted: {reason}"),
            Ok(Err(Failure::Refused(reason))) => {
                self.forbidden = true;
                debug!("no events are written: {reason}");
            }
            // A conflict means that another node has created it.
            Ok(Ok(_) | Err(Failure::Conflict(_))) => {}
            Ok(Err(_)) | Err(_) => drop(self.written.remove(&id)),
        }
    }
}

/// Returns a name that follows from the content, no longer than the name of an object may be.
fn event_name(node: &str, id: u64) -> String {
    // Names of Nodes are ASCII.
    let node: String = node.chars().take(LONGEST_NAME - 17).collect();
    format!("{}.{id:016x}", node.trim_end_matches(['.', '-']))
}

/// Cuts a message to the length that the API server accepts.
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
