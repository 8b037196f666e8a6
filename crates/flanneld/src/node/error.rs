//! Why a node does not run.

use std::error::Error;

use backend::BackendError;
use dataplane::KernelError;
use store::AcquireError;

use crate::settle::wrong_flag;
use crate::subnet_file::SubnetFileError;

/// Why a node does not start, has ended, or does not answer. Whatever waiting may fix is none of these: it is in
/// [`crate::status::NodeStatus::problems`] while it lasts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A setting cannot be used as it is: names the setting, the value and what is expected.
    #[error("{0}")]
    Settings(String),
    /// The store cannot be opened, as with a certificate that cannot be read.
    #[error("{0}")]
    Store(String),
    /// The kernel gives no netlink socket, or does not answer on it.
    #[error("{0}")]
    Kernel(String),
    /// This host cannot use the backend of the network.
    #[error("{0}")]
    Backend(String),
    /// There is no subnet for this node: the network is full, or a living node has the one that looks like this
    /// node's.
    #[error("{0}")]
    NoSubnet(String),
    /// `subnet.env` cannot be written.
    #[error("{0}")]
    SubnetFile(String),
    /// The node's lease was deleted or taken by another node: its pods' addresses are no longer its own. What it has
    /// put into the kernel is still there.
    #[error("lease {lease} is lost: {reason}")]
    LeaseLost {
        /// The lease, as in the store.
        lease: String,
        /// What has become of it.
        reason: String,
    },
    /// Something could not be removed: `flannelctl cleanup` shows and removes it.
    #[error("{0} objects are left in the kernel: `flannelctl cleanup` shows them")]
    Left(usize),
    /// The node has no subnet yet, or has ended.
    #[error("the node has no subnet yet, or has ended")]
    NotRunning,
    /// The node writes to the kernel and has not answered in time.
    #[error("the node is busy and has not answered in time; try again")]
    Busy,
    /// The thread of the node cannot be started.
    #[error("cannot start the node's thread: {0}")]
    Thread(String),
    /// The node ended without saying why: it panicked, or its [`crate::node::Runner`] was dropped.
    #[error("the node ended without a result: it panicked, or its runner was dropped")]
    Died,
}

impl NodeError {
    /// Sorts what opening a store reports.
    pub(super) fn of_store(error: &anyhow::Error) -> NodeError {
        let text = format!("{error:#}");
        if wrong_flag(error) {
            NodeError::Settings(text)
        } else {
            NodeError::Store(text)
        }
    }
}

/// Returns an error and its causes as one line.
fn line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl From<BackendError> for NodeError {
    fn from(error: BackendError) -> NodeError {
        NodeError::Backend(line(&error))
    }
}

impl From<AcquireError> for NodeError {
    fn from(error: AcquireError) -> NodeError {
        NodeError::NoSubnet(line(&error))
    }
}

impl From<KernelError> for NodeError {
    fn from(error: KernelError) -> NodeError {
        NodeError::Kernel(line(&error))
    }
}

impl From<SubnetFileError> for NodeError {
    fn from(error: SubnetFileError) -> NodeError {
        NodeError::SubnetFile(line(&error))
    }
}
