//! The tasks beside the main loop that keep the host's packets as they should be: traffic rules, forwarding, guard
//! and check of the tunnels' sources.

use std::collections::BTreeSet;

use ipnet::IpNet;
use model::{Host, Lease, NetConfig, Object};
use tokio::task::AbortHandle;

use crate::cluster::Cluster;
use crate::generations::networks;
use crate::status::Status;
use crate::traffic::{self, Guarding, SourceCheck, TrafficOptions};

/// The tasks, and what they were told last.
pub(crate) struct TrafficTasks {
    /// Keeps the traffic rules in place.
    pub(crate) rules: Option<AbortHandle>,
    /// Checks that the host forwards packets.
    pub(crate) forwarding: Option<AbortHandle>,
    /// Keeps forged packets out.
    pub(crate) guard: Option<Guarding>,
    /// Keeps out packets that no node sends.
    pub(crate) source_check: Option<SourceCheck>,
    /// The UDP ports of the tunnels.
    pub(crate) ports: BTreeSet<u16>,
}

impl TrafficTasks {
    /// Returns no tasks yet, for tunnels with these UDP ports.
    pub(crate) fn new(ports: BTreeSet<u16>) -> TrafficTasks {
        TrafficTasks {
            rules: None,
            forwarding: None,
            guard: None,
            source_check: None,
            ports,
        }
    }

    /// Ends all tasks; what they put in place stays.
    pub(super) fn abort(&self) {
        self.stop_writing();
        self.guard.iter().for_each(Guarding::abort);
        self.source_check.iter().for_each(SourceCheck::abort);
    }

    /// Ends the tasks that write for this node's subnet.
    pub(super) fn stop_writing(&self) {
        let both = [&self.rules, &self.forwarding];
        both.into_iter().flatten().for_each(AbortHandle::abort);
    }

    /// Follows a change of the networks, or of the program that writes the rules. Returns whether the networks moved:
    /// [`TrafficTasks::follow_sources`] is then to be called.
    pub(super) async fn follow_config(
        &mut self,
        before: &NetConfig,
        after: &NetConfig,
        options: &TrafficOptions,
        own: &Lease,
        host: &Host,
        status: &Status,
    ) -> bool {
        let moved = networks(before) != networks(after);
        if !moved && before.nftables == after.nftables {
            return false;
        }
        let Some(rules) = &self.rules else {
            return moved;
        };
        let former: Vec<IpNet> = networks(before).iter().map(|(_, net)| *net).collect();
        rules.abort();
        let rules = traffic::start(options, after, &own.key, former.clone(), status);
        self.rules = Some(rules.task());
        if moved {
            self.guard.iter().for_each(Guarding::abort);
            self.guard = Guarding::start(after, host, self.ports.clone(), former, status).await;
            self.source_check.iter().for_each(SourceCheck::abort);
            self.source_check = SourceCheck::start(options, after);
        }
        moved
    }

    /// Follows a change of this node's objects or addresses.
    pub(super) fn follow_node<'a>(
        &mut self,
        config: &NetConfig,
        host: &Host,
        objects: impl IntoIterator<Item = &'a Object>,
    ) {
        self.ports = traffic::tunnel_ports(objects);
        if let Some(guard) = &self.guard {
            guard.follow(config, host, self.ports.clone());
        }
    }

    /// Has the check of the tunnels' sources follow the peers and this node.
    pub(super) fn follow_sources(&self, own: &Lease, cluster: &Cluster) {
        let Some(check) = &self.source_check else {
            return;
        };
        let host = cluster.host();
        let all = cluster.generations().all().iter();
        let backends = all.map(|one| (one.backend.kind(), one.backend.node(own, host)));
        let backends: Vec<_> = backends.collect();
        let backends = backends
            .iter()
            .map(|(kind, of)| (kind.clone(), of.as_slice()));
        check.follow(backends, cluster.published());
    }
}
