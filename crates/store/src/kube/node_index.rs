//! Every Node of the cluster but ours, in as few bytes as it takes to notice a change, and which of them
//! are in use as peers.

use std::collections::HashMap;
use std::sync::Arc;

use model::{Family, SubnetKey};
use tracing::{debug, warn};

use super::node::Node;
use super::peer::{self, Published};
use crate::event_queue::EventQueue;
use crate::retry_log::FaultLog;

/// The Nodes other than ours.
#[derive(Debug)]
pub(super) struct NodeIndex {
    nodes: HashMap<Arc<str>, Known>,
    /// Whose each subnet is.
    holders: HashMap<SubnetKey, Arc<str>>,
    queue: Arc<EventQueue>,
    fault_log: FaultLog,
    families: Vec<Family>,
    own: Option<SubnetKey>,
    round: u16,
    /// The holder of a subnet that several Nodes claim gave it up: the others' annotations have to be read
    /// again.
    list_again: bool,
}

#[derive(Debug)]
struct Known {
    fingerprint: u64,
    /// The subnet that it claims, and when it was created.
    claim: Option<(SubnetKey, u64)>,
    /// The listing that showed it last.
    round: u16,
}

/// How many Nodes there are of each sort.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub peers: usize,
    pub others: usize,
}

impl NodeIndex {
    pub(super) fn new(
        queue: Arc<EventQueue>,
        families: Vec<Family>,
        own: Option<SubnetKey>,
    ) -> NodeIndex {
        NodeIndex {
            nodes: HashMap::new(),
            holders: HashMap::new(),
            queue,
            fault_log: FaultLog::default(),
            families,
            own,
            round: 0,
            list_again: false,
        }
    }

    /// Begins a listing.
    pub(super) fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// Ends a listing: Nodes that it did not show were deleted.
    pub(super) fn sweep(&mut self) {
        let gone: Vec<Arc<str>> = self
            .nodes
            .iter()
            .filter(|(_, known)| known.round != self.round)
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.gone(&name);
        }
    }

    /// Returns whether the Nodes have to be listed again, once for each reason.
    pub(super) fn must_list_again(&mut self) -> bool {
        std::mem::take(&mut self.list_again)
    }

    pub(super) fn count(&self) -> Count {
        let peers = self.holders.len();
        Count {
            peers,
            others: self.nodes.len() - peers,
        }
    }

    /// Takes in a Node as it is now. Returns what is wrong with it, if that is new.
    pub(super) fn observe(&mut self, node: &Node<'_>) -> Option<String> {
        let (fingerprint, round) = (node.fingerprint(), self.round);
        let name = match self.nodes.get_mut(&*node.name) {
            Some(known) if known.fingerprint == fingerprint => {
                known.round = round;
                return None;
            }
            // The name is there already, once.
            Some(_) => self.nodes.get_key_value(&*node.name)?.0.clone(),
            None => Arc::from(&*node.name),
        };
        let lease = if peer::is_managed(&node.annotations) {
            peer::lease(node, &self.families).map(Some)
        } else {
            Ok(None)
        };
        let claim = match &lease {
            Ok(Some(published)) => Some((published.lease.key, published.lease.seniority)),
            _ => None,
        };
        let known = Known {
            fingerprint,
            claim,
            round,
        };
        let before = self
            .nodes
            .insert(name.clone(), known)
            .and_then(|old| old.claim);
        if let Some((key, _)) = before.filter(|(key, _)| claim.map(|(new, _)| new) != Some(*key)) {
            self.release(key, &name);
        }
        match lease {
            Ok(Some(Published { lease, faults })) => {
                match self.take(&name, lease.key, lease.seniority) {
                    Ok(()) => {
                        self.queue.lease(lease.key, Some(lease));
                        if faults.is_empty() {
                            self.fault_log.cleared(&*name);
                            return None;
                        }
                        let faults = format!("in one family only: {}", faults.join("; "));
                        self.complain(&name, faults)
                    }
                    Err(problem) => self.complain(&name, problem),
                }
            }
            Ok(None) => {
                self.fault_log.cleared(&*name);
                debug!("Node {name} is no peer: flannel does not run there (yet)");
                None
            }
            Err(problem) => self.complain(&name, problem),
        }
    }

    /// Removes a Node that was deleted.
    pub(super) fn gone(&mut self, name: &str) {
        let Some((name, known)) = self.nodes.remove_entry(name) else {
            return;
        };
        self.fault_log.cleared(&*name);
        if let Some((key, _)) = known.claim {
            self.release(key, &name);
        }
    }

    /// Makes `name` the holder of `key`, unless it is ours or an older Node's.
    fn take(&mut self, name: &Arc<str>, key: SubnetKey, since: u64) -> Result<(), String> {
        if self.own == Some(key) {
            return Err(format!("its podCIDR {key} is ours"));
        }
        let holder = self.holders.get(&key).filter(|holder| *holder != name);
        if let Some(holder) = holder.cloned() {
            let claim = self.nodes.get(&holder).and_then(|known| known.claim);
            let older = claim.is_some_and(|(_, held)| (held, &holder) <= (since, name));
            if older {
                return Err(format!(
                    "its podCIDR {key} is Node {holder}'s, which is older"
                ));
            }
            self.complain(
                &holder,
                format!("its podCIDR {key} is Node {name}'s, which is older"),
            );
        }
        self.holders.insert(key, name.clone());
        Ok(())
    }

    /// Gives up `key` if `name` holds it. Other Nodes that claim it must be read again.
    fn release(&mut self, key: SubnetKey, name: &Arc<str>) {
        if self.holders.get(&key) != Some(name) {
            return;
        }
        self.holders.remove(&key);
        self.queue.lease(key, None);
        for known in self.nodes.values_mut() {
            if known.claim.is_some_and(|(claimed, _)| claimed == key) {
                known.fingerprint = !known.fingerprint;
                self.list_again = true;
            }
        }
    }

    fn complain(&mut self, name: &str, problem: String) -> Option<String> {
        if !self.fault_log.is_new(name, &problem) {
            return None;
        }
        if problem.starts_with("in one family only") {
            warn!("Node {name} is used {problem}");
        } else {
            warn!("Node {name} is not used: {problem}");
        }
        Some(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::annotations::Prefix;

    struct Cluster {
        node_index: NodeIndex,
        queue: Arc<EventQueue>,
    }

    impl Cluster {
        fn new() -> Cluster {
            let queue = Arc::new(EventQueue::default());
            let own = "10.1.0.0-24".parse().ok();
            let node_index = NodeIndex::new(queue.clone(), vec![Family::V4], own);
            Cluster { node_index, queue }
        }

        /// A Node made at second `created`; returns what is wrong with it, if that is new.
        fn saw(&mut self, name: &str, cidr: &str, ip: &str, created: u8) -> Option<String> {
            let json = format!(
                r#"{{"metadata":{{"name":"{name}","creationTimestamp":"2026-01-01T00:00:{created:02}Z","annotations":{{
                    "f.io/kube-subnet-manager":"true","f.io/public-ip":"{ip}"}}}},"spec":{{"podCIDR":"{cidr}"}}}}"#
            );
            let prefix = Prefix::parse("f.io").unwrap();
            let node = Node::from_json(json.as_bytes(), &prefix).unwrap();
            self.node_index.observe(&node)
        }

        /// What the daemon is told: subnet and address, or that it is gone.
        async fn told(&self) -> Vec<String> {
            self.queue.flush();
            let news =
                tokio::time::timeout(std::time::Duration::ZERO, self.queue.next_event()).await;
            let leases = news.map(|news| news.leases).unwrap_or_default();
            let mut leases: Vec<_> = leases.into_iter().collect();
            leases.sort_by_key(|(key, _)| *key);
            let told = leases.into_iter().map(|(key, lease)| match lease {
                Some(lease) => format!("{key} {}", lease.attrs.public_ip.v4.unwrap()),
                None => format!("{key} gone"),
            });
            told.collect()
        }
    }

    #[tokio::test]
    async fn a_heartbeat_is_no_news_and_a_change_is() {
        let mut cluster = Cluster::new();
        cluster.saw("a", "10.1.1.0/24", "192.0.2.1", 0);
        assert_eq!(cluster.told().await, ["10.1.1.0-24 192.0.2.1"]);
        cluster.saw("a", "10.1.1.0/24", "192.0.2.1", 0);
        assert_eq!(cluster.told().await, [""; 0]);
        cluster.saw("a", "10.1.1.0/24", "192.0.2.2", 0);
        assert_eq!(cluster.told().await, ["10.1.1.0-24 192.0.2.2"]);
        cluster.saw("a", "10.1.2.0/24", "192.0.2.2", 0);
        let both = ["10.1.1.0-24 gone", "10.1.2.0-24 192.0.2.2"];
        assert_eq!(cluster.told().await, both);
        assert!(cluster.saw("a", "nothing", "192.0.2.2", 0).is_some());
        assert_eq!(cluster.told().await, ["10.1.2.0-24 gone"]);
        assert!(
            cluster
                .saw("b", "10.1.0.0/24", "192.0.2.3", 0)
                .unwrap()
                .contains("ours")
        );
        assert_eq!(cluster.told().await, [""; 0]);
    }

    #[tokio::test]
    async fn a_listing_that_does_not_show_a_node_removes_it_at_its_end() {
        let mut cluster = Cluster::new();
        cluster.node_index.begin();
        cluster.saw("a", "10.1.1.0/24", "192.0.2.1", 0);
        cluster.saw("b", "10.1.2.0/24", "192.0.2.2", 0);
        cluster.node_index.sweep();
        assert_eq!(cluster.told().await.len(), 2);
        cluster.node_index.begin();
        cluster.saw("b", "10.1.2.0/24", "192.0.2.2", 0);
        assert_eq!(cluster.told().await, [""; 0]);
        cluster.node_index.sweep();
        assert_eq!(cluster.told().await, ["10.1.1.0-24 gone"]);
        assert_eq!(
            cluster.node_index.count(),
            Count {
                peers: 1,
                others: 0
            }
        );
    }

    #[tokio::test]
    async fn the_older_of_two_nodes_has_the_subnet_in_whatever_order_they_come() {
        for order in [["old", "new"], ["new", "old"]] {
            let mut cluster = Cluster::new();
            let mut fault_log = 0;
            for name in order {
                let created = u8::from(name == "new");
                let ip = format!("192.0.2.{created}");
                fault_log += usize::from(cluster.saw(name, "10.1.1.0/24", &ip, created).is_some());
            }
            assert_eq!(cluster.told().await, ["10.1.1.0-24 192.0.2.0"]);
            // The one that is refused after it had been told is complained of in the log alone.
            assert_eq!(fault_log, usize::from(order[0] == "old"));
            assert!(!cluster.node_index.must_list_again());
            cluster.node_index.gone("old");
            assert_eq!(cluster.told().await, ["10.1.1.0-24 gone"]);
            assert!(cluster.node_index.must_list_again());
            cluster.saw("new", "10.1.1.0/24", "192.0.2.1", 1);
            assert_eq!(cluster.told().await, ["10.1.1.0-24 192.0.2.1"]);
        }
    }
}
