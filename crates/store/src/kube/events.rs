//! Events on Nodes: what an administrator sees in `kubectl describe node` and nowhere else.
//!
//! They need rights that the network does not need: `create` on `events` in namespace `default`, where the events
//! of Nodes are, and `patch`, to count what lasts. Without the first no events are written, without the second each is
//! written once; nothing else changes.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};
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
/// Where the events of Nodes are.
const EVENTS: &str = "/api/v1/namespaces/default/events";
const MERGE: &str = "application/merge-patch+json";
/// Bytes of an event.
const LARGEST: usize = 64 << 10;
/// Events are changed so often at once, and then one in so long.
const CHANGES: f64 = 5.0;
const CHANGE_EVERY: Duration = Duration::from_secs(60);
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
            written: HashMap::new(),
            forbidden: false,
            never_again: false,
            changes: CHANGES,
            counted_at: Instant::now(),
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

/// Writes events, each once; what is reported again about this machine's Node counts up.
struct EventWriter {
    client: Arc<Client>,
    own: Arc<str>,
    /// Hashes of the troubles that were written, and how often each was there; 0 if that is not known.
    written: HashMap<u64, u64>,
    forbidden: bool,
    /// The right to change events is missing.
    never_again: bool,
    /// How often an event may be changed now.
    changes: f64,
    counted_at: Instant,
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
        if self.forbidden {
            return;
        }
        let is_own = trouble.node.is_none();
        if self.written.contains_key(&id) {
            let gone = is_own && self.may_change() && !self.count_up(id).await;
            if !gone {
                return;
            }
            self.written.remove(&id);
        }
        if self.written.len() >= MOST {
            return;
        }
        let node = trouble.node.as_deref().unwrap_or(&self.own);
        let now = now();
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
        let body = ("application/json", Bytes::from(event.to_string()));
        let ask = Ask::with_body(Method::POST, EVENTS, "application/json", body);
        match timeout(PATIENCE, self.client.send(&ask)).await {
            // The API server does not accept this event; others may be fine.
            Ok(Err(Failure::Invalid(reason))) => {
                self.written.insert(id, 0);
                debug!("an event is not accepted: {reason}");
            }
            Ok(Err(Failure::Refused(reason))) => {
                self.forbidden = true;
                debug!("no events are written: {reason}");
            }
            Ok(Ok(_)) => drop(self.written.insert(id, 1)),
            // Another node has created it, or an earlier run of this daemon.
            Ok(Err(Failure::Conflict(_))) => {
                self.written.insert(id, 0);
                if is_own && self.may_change() {
                    self.count_up(id).await;
                }
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Whether an event may be changed: a fault that comes and goes must not flood the API server.
    fn may_change(&mut self) -> bool {
        let passed = self.counted_at.elapsed().as_secs_f64() / CHANGE_EVERY.as_secs_f64();
        self.counted_at = Instant::now();
        self.changes = (self.changes + passed).min(CHANGES);
        let may = !self.never_again && self.changes >= 1.0;
        if may {
            self.changes -= 1.0;
        }
        may
    }

    /// Counts an event up that was written before. Returns whether it is still there.
    async fn count_up(&mut self, id: u64) -> bool {
        let path = format!("{EVENTS}/{}", event_name(&self.own, id));
        // The first change of an event that an earlier run wrote returns how often it was there.
        for _ in 0..2 {
            let known = self.written.get(&id).copied().unwrap_or_default();
            let mut patch = json!({ "lastTimestamp": now() });
            if known > 0 {
                patch["count"] = (known + 1).into();
            }
            let body = (MERGE, Bytes::from(patch.to_string()));
            let ask = Ask::with_body(Method::PATCH, &path, "application/json", body);
            let answer = match timeout(PATIENCE, self.client.send(&ask)).await {
                Ok(Ok(answer)) => answer.whole(LARGEST).await.unwrap_or_default(),
                Ok(Err(Failure::NotFound(_))) => return false,
                Ok(Err(Failure::Refused(reason))) => {
                    self.never_again = true;
                    debug!("events are not counted: {reason}");
                    return true;
                }
                Ok(Err(_)) | Err(_) => return true,
            };
            let event: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let count = event["count"].as_u64().unwrap_or_default().max(1);
            self.written.insert(id, count);
            if known > 0 {
                return true;
            }
        }
        true
    }
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
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
