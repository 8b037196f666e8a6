//! A node of the network inside another program, and inside `flanneld`, whose `main` is one user of it.
//!
//! Nothing here reads arguments, installs signal handlers or sets a global logger: log lines go through `tracing`, to
//! whatever subscriber the program has. Settings come from the [`NodeBuilder`] alone. Only the programs that a node
//! runs depend on the environment: `PATH` finds `iptables` and `nft`, which get the variables that they know. They are
//! waited for by tokio, which handles SIGCHLD.

mod builder;
mod changes;
mod error;
mod runner;

use std::time::Duration;

use tokio::sync::watch;

use crate::status::Question;

pub use crate::options::{Environment, Options, StoreChoice};
pub use crate::report::{PeerReport, PeerStatus};
pub use crate::status::{NodeStatus, Phase, Status};
pub use model::{Lease, NetConfig};

pub use builder::NodeBuilder;
pub use changes::StatusChanges;
pub use error::NodeError;
pub use runner::Runner;

/// How long the node's own thread may take to answer a question: it may be writing thousands of objects.
const ANSWER: Duration = Duration::from_secs(3);

/// What becomes of what a node has put into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teardown {
    /// It stays: packets flow on, and the next start finds it.
    Keep,
    /// Devices, routes and rules, and the files that announce the node are removed.
    Remove,
}

/// A node of the network, running. Dropping it ends the node as [`Teardown::Keep`] does, without waiting for the end.
///
/// Its methods can be called from any thread; those that are `async` need a tokio runtime.
#[must_use = "a node that is dropped ends"]
pub struct Node {
    status: Status,
    stop: watch::Sender<Option<Teardown>>,
    network: Option<watch::Sender<NetConfig>>,
    ended: watch::Receiver<Option<Result<(), NodeError>>>,
}

impl Node {
    /// Returns what the node is now.
    pub fn status(&self) -> NodeStatus {
        self.status.node()
    }

    /// Returns the node's subnet and what it publishes, once it has one.
    pub fn lease(&self) -> Option<Lease> {
        self.status().lease
    }

    /// Returns the bytes of the largest packet of a pod, once there is a subnet.
    pub fn mtu(&self) -> Option<u32> {
        self.status().mtu
    }

    /// Returns the other nodes, in the order of their subnets, and how far this node is with each.
    ///
    /// # Errors
    /// [`NodeError::NotRunning`]: the node has no subnet yet, or has ended. [`NodeError::Busy`]: it has not answered
    /// within 3 s.
    pub async fn peers(&self) -> Result<Vec<PeerReport>, NodeError> {
        match self.status.ask(ANSWER, Question::Peers).await {
            Some(mut report) => {
                self.status.add_probes(&mut report);
                Ok(report.peers)
            }
            None if self.status.takes_questions() => Err(NodeError::Busy),
            None => Err(NodeError::NotRunning),
        }
    }

    /// Returns the changes of [`Node::status`], beginning with the present one. A reader that is slow misses the
    /// statuses in between; it holds up nothing, and no status is kept for it.
    pub fn changes(&self) -> StatusChanges {
        StatusChanges::new(self.status.clone())
    }

    /// Returns what `/readyz`, `/metrics` and the status socket read: pass it to [`crate::health::serve`] or
    /// [`crate::status_socket::serve`].
    pub fn observer(&self) -> Status {
        self.status.clone()
    }

    /// Changes the network configuration while packets flow, as far as that is possible: [`NodeStatus::degraded`]
    /// says why it is not. Every node must be given the same.
    ///
    /// # Errors
    /// [`NodeError::Settings`]: the store has the configuration, since [`NodeBuilder::network`] was not called.
    pub fn set_network(&self, config: NetConfig) -> Result<(), NodeError> {
        let Some(network) = &self.network else {
            return Err(NodeError::Settings(
                "the network configuration is in the store: change it there".to_owned(),
            ));
        };
        network.send_replace(config);
        Ok(())
    }

    /// Waits until the node is announced: its devices are up and `subnet.env` is written.
    ///
    /// # Errors
    /// Why the node has ended instead.
    pub async fn announced(&self) -> Result<NodeStatus, NodeError> {
        let mut changes = self.changes();
        while let Some(status) = changes.next().await {
            if status.phase == Phase::Announced {
                return Ok(status);
            }
        }
        self.ended().await?;
        Err(NodeError::NotRunning)
    }

    /// Waits until the node has ended. A caller that stops waiting loses nothing.
    ///
    /// # Errors
    /// Why it has ended, if [`Node::stop`] did not ask for it.
    pub async fn ended(&self) -> Result<(), NodeError> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Ok(())),
            Err(_) => Err(NodeError::Died),
        }
    }

    /// Asks the node to end; only the first request counts. [`Node::ended`] waits for the end.
    pub fn request_stop(&self, teardown: Teardown) {
        self.stop.send_if_modified(|asked| {
            let is_first = asked.is_none();
            asked.get_or_insert(teardown);
            is_first
        });
    }

    /// Ends the node and waits for the end. With [`Teardown::Remove`] its devices, routes, rules and the files that
    /// announce it are gone then. Its WireGuard key stays, and so does the lease in the store until it expires: a later
    /// start gets the same subnet. A node that has no subnet yet has nothing to remove; what an earlier run left stays.
    ///
    /// # Errors
    /// Why the node had already ended, or that something could not be removed.
    pub async fn stop(&self, teardown: Teardown) -> Result<(), NodeError> {
        self.request_stop(teardown);
        self.ended().await
    }
}
