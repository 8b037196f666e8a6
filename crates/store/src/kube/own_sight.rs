//! What the watch of all Nodes shows of ours, passed on to the task that keeps it.

use std::sync::Arc;

use model::Family;
use tokio::sync::watch;

use super::node::Node;
use super::own::OwnNode;

/// What the watch shows of our Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// What it says; `None`: it does not exist, or nothing is known yet.
    pub own: Option<Box<OwnNode>>,
    /// Counts how often the Node was gone. States in between may never be seen, the count always is.
    pub deletions: u64,
    /// Counts how often the API server lost data or became another one: versions are compared within one
    /// history only.
    pub history: u64,
}

/// Passes on what is seen of our Node.
pub(super) struct OwnSight {
    name: Arc<str>,
    families: Vec<Family>,
    seen: watch::Sender<Seen>,
}

impl OwnSight {
    pub(super) fn new(name: Arc<str>, families: Vec<Family>) -> OwnSight {
        OwnSight {
            name,
            families,
            seen: watch::Sender::default(),
        }
    }

    /// Returns what is seen from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Whether `node` is ours.
    pub(super) fn is(&self, node: &Node<'_>) -> bool {
        *node.name == *self.name
    }

    /// Passes on our Node.
    pub(super) fn observe(&self, node: &Node<'_>) {
        let own = OwnNode::of(node, &self.families);
        self.seen.send_modify(|seen| seen.own = Some(Box::new(own)));
    }

    /// Passes on that our Node does not exist.
    pub(super) fn gone(&self) {
        self.seen.send_modify(|seen| {
            seen.own = None;
            seen.deletions += 1;
        });
    }

    /// Passes on that the API server lost data, or is another one.
    pub(super) fn history_lost(&self) {
        self.seen.send_modify(|seen| {
            seen.own = None;
            seen.history += 1;
        });
    }
}
