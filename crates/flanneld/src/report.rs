//! What the daemon reports of itself as JSON, on the status socket: version 1. `flannelctl` reads the same types.
//! Fields are only ever added to a version.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The node: `GET /v1/status`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// The daemon's version, such as `0.1.0`.
    pub version: String,
    /// The daemon's process id, in its own PID namespace.
    pub pid: u32,
    /// Seconds since the daemon's start.
    pub uptime_seconds: u64,
    /// Whether the node is announced as ready.
    pub ready: bool,
    /// What keeps the node from being ready.
    pub problems: Vec<String>,
    /// What is not served although the node is ready: one address family of two.
    pub degraded: Option<String>,
    /// The store: `etcd`, `kubernetes` or `directory`, with its place.
    pub store: String,
    /// Whether the store answers.
    pub store_reachable: bool,
    /// What needs a lease to be known; absent until there is one.
    pub network: Option<NetworkReport>,
    /// Counts since the daemon's start, and at present.
    pub counts: Counts,
}

/// This node in the network.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkReport {
    /// The networks that subnets are cut from.
    pub networks: Vec<String>,
    /// This node's subnet, one of each family.
    pub subnets: Vec<String>,
    /// What the other nodes send to.
    pub public_ips: Vec<IpAddr>,
    /// The backend's type, as in the network configuration.
    pub backend: String,
    /// Bytes of the largest packet of a container.
    pub mtu: u32,
    /// The interface that reaches the other nodes.
    pub interface: String,
    /// The devices that the backend uses.
    pub devices: Vec<String>,
}

/// Numbers, as `/metrics` has them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Leases of other nodes that are used.
    pub peers: u64,
    /// Leases of other nodes that are not used.
    pub refused_leases: u64,
    /// Routes that this node should hold.
    pub routes: u64,
    /// Operations that the kernel refused and that are still needed.
    pub pending_operations: u64,
    /// Kernel objects that were repaired after somebody else had changed them.
    pub repairs: u64,
    /// Sets of traffic rules that were repaired.
    pub rules_repairs: u64,
}

/// The other nodes: `GET /v1/peers`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct PeersReport {
    /// In the order of their subnets.
    pub peers: Vec<PeerReport>,
}

/// Another node.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerReport {
    /// Its subnet, one of each family.
    pub subnets: Vec<String>,
    /// What this node sends to.
    pub public_ips: Vec<IpAddr>,
    /// The type of the backend that its lease offers.
    pub backend: String,
    /// The type of the backend that this node reaches it by, while the network changes from one to another.
    #[serde(default)]
    pub reached_by: Option<String>,
    /// How far this node is with it.
    pub state: PeerStatus,
    /// Why it is not simply installed.
    pub reason: Option<String>,
}

/// How far this node is with another one.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerStatus {
    /// The kernel holds all that is needed.
    Installed,
    /// Something is still to be written.
    Pending,
    /// The kernel refuses something.
    Failing,
    /// The lease cannot be used by this backend.
    Unusable,
    /// The lease contradicts this node, the network or another lease.
    Refused,
}

impl PeerStatus {
    /// All states.
    pub const ALL: [PeerStatus; 5] = [
        PeerStatus::Installed,
        PeerStatus::Pending,
        PeerStatus::Failing,
        PeerStatus::Unusable,
        PeerStatus::Refused,
    ];

    /// The name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            PeerStatus::Installed => "installed",
            PeerStatus::Pending => "pending",
            PeerStatus::Failing => "failing",
            PeerStatus::Unusable => "unusable",
            PeerStatus::Refused => "refused",
        }
    }
}
