//! What the daemon reports of itself as JSON, on the status socket: version 1. `flannelctl` reads the same types.
//! Fields are only ever added to a version.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::de::IntoDeserializer;
use serde::de::value::{Error, StringDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

pub use crate::probes::Cause;

/// The node: `GET /v1/status`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// The daemon's version, such as `0.1.0`.
    pub version: String,
    /// The commit that it was built from, where the build knew it.
    #[serde(default)]
    pub commit: Option<String>,
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
    /// What probes of the other nodes show; absent if there are none.
    #[serde(default)]
    pub mesh: Option<MeshReport>,
}

/// The other nodes as probes see them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshReport {
    /// The UDP port that probes are sent to.
    pub port: u16,
    /// Where this node's probes of each family come from, past the tunnel.
    pub underlay: Vec<IpAddr>,
    /// Where this node's probes of each family come from, through the tunnel; empty for backends without a device.
    pub overlay: Vec<IpAddr>,
    /// Bytes of the largest packet of a container, which probes of full size have.
    pub full_size: u32,
    /// Nodes that answer.
    pub reachable: u64,
    /// Nodes whose packets are lost.
    pub failing: u64,
    /// Nodes that answer no probes, and are not known to be broken.
    pub silent: u64,
    /// Nodes that have not been probed often enough.
    pub unknown: u64,
    /// What keeps this node from answering the others' probes.
    pub problem: Option<String>,
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
    /// The repairs by kind of object, such as `route`.
    #[serde(default)]
    pub repairs_by_kind: BTreeMap<String, u64>,
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
    /// What probes of it show; absent if there are none.
    #[serde(default)]
    pub probe: Option<ProbeReport>,
}

/// What has happened lately: `GET /v1/events`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct EventsReport {
    /// The log's last lines, the oldest first, without those of `-v`.
    pub events: Vec<EventReport>,
}

/// A line of the log.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventReport {
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
    /// `error`, `warn` or `info`.
    pub level: String,
    /// What has happened.
    pub text: String,
}

/// What probes of a node show.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// The worst of the families' states.
    pub state: ProbeState,
    /// What is wrong.
    #[serde(default, deserialize_with = "known")]
    pub cause: Option<Cause>,
    /// The same as a sentence, with the remedy.
    pub reason: Option<String>,
    /// Each family.
    pub families: Vec<FamilyReport>,
}

/// What probes of one family show.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyReport {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Of this family.
    pub state: ProbeState,
    /// What is wrong in this family.
    #[serde(default, deserialize_with = "known")]
    pub cause: Option<Cause>,
    /// Microseconds until an answer, on average; by the way that containers' packets go.
    pub rtt_micros: Option<u64>,
    /// The least of them since the daemon's start.
    pub least_rtt_micros: Option<u64>,
    /// Share of the last 32 probes without an answer, 0 to 1.
    pub loss: Option<f64>,
    /// The same past the tunnel.
    pub underlay_rtt_micros: Option<u64>,
    /// The same past the tunnel.
    pub underlay_loss: Option<f64>,
    /// Whether packets of full size arrive there and back.
    pub full_size: Option<bool>,
}

/// Reads a cause. One that only a newer daemon has counts as none: the reason says it in words.
fn known<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cause>, D::Error> {
    let name = Option::<String>::deserialize(from)?;
    Ok(name.and_then(|name| {
        let name: StringDeserializer<Error> = name.into_deserializer();
        Cause::deserialize(name).ok()
    }))
}

/// A node as probes see it, the worst last.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeState {
    /// Not probed often enough.
    Unknown,
    /// It answers.
    Reachable,
    /// It answers no probes, and is not known to be broken: upstream's flannel, an older version.
    Silent,
    /// Packets are lost.
    Failing,
}

impl ProbeState {
    /// All states.
    pub const ALL: [ProbeState; 4] = [
        ProbeState::Unknown,
        ProbeState::Reachable,
        ProbeState::Silent,
        ProbeState::Failing,
    ];

    /// Returns the name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            ProbeState::Unknown => "unknown",
            ProbeState::Reachable => "reachable",
            ProbeState::Silent => "silent",
            ProbeState::Failing => "failing",
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_of_a_newer_daemon_does_not_cost_the_report() {
        let read = |cause: &str| {
            let text = format!(
                r#"{{"state": "failing", "cause": {cause}, "reason": "why", "families": [
                    {{"family": "ipv4", "state": "failing", "cause": {cause}}}]}}"#
            );
            serde_json::from_str::<ProbeReport>(&text).unwrap()
        };
        let newer = read(r#""gremlins""#);
        assert_eq!((newer.cause, newer.families[0].cause), (None, None));
        assert_eq!(newer.reason.as_deref(), Some("why"));
        assert_eq!(read("null").cause, None);
        let cause = read(r#""underlayDown""#).cause;
        assert_eq!(cause, Some(Cause::UnderlayDown));
    }
}
