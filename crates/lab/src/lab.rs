//! The lab itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::builder::{LabBuilder, Progress};
use crate::ground::Ground;
use crate::node::Node;
use crate::outside::Handles;
use crate::pod::Pod;
use crate::store::{CONFIG, Keys};
use crate::{Error, Etcd, Kube, Namespace};

/// How long a flanneld may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// Nodes on a bridge, a store, and a flanneld on each node. Dropping it ends all of it; so does
/// the end of this process, whatever its cause.
pub struct Lab {
    // Dropped in this order: what runs before what it runs in.
    pub(crate) nodes: Vec<Node>,
    pub(crate) keys: Keys,
    pub(crate) fabric: Namespace,
    pub(crate) pods_per_node: usize,
    pub(crate) progress: Progress,
    pub(crate) ground: Arc<Ground>,
}

impl Lab {
    /// What the lab is to be like: three nodes on the directory store, unless told otherwise.
    pub fn builder() -> LabBuilder {
        LabBuilder::default()
    }

    /// Starts the flanneld of every node, all at once, waits until each is ready, and plugs in the
    /// pods.
    ///
    /// # Errors
    /// A flanneld ended or was not ready in time: with the end of its log.
    pub fn start(&self) -> Result<(), Error> {
        (self.progress)("a flanneld on every node");
        self.nodes
            .iter()
            .try_for_each(|node| node.flanneld().start())?;
        let ready = self
            .nodes
            .iter()
            .map(|node| node.flanneld().wait_ready(READY));
        let subnets = ready.collect::<Result<Vec<_>, _>>()?;
        if self.pods_per_node > 0 {
            (self.progress)("pods behind every node");
        }
        for (node, subnet) in self.nodes.iter().zip(&subnets) {
            node.add_pods_from(subnet, self.pods_per_node)?;
        }
        Ok(())
    }

    /// The nodes, `n1` first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Node `index`, counted from 1.
    ///
    /// # Panics
    /// There is no such node.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index - 1]
    }

    /// The namespace of the bridge `br0`, on which port `n1` leads to node 1, and of etcd.
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }

    /// Every pod.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.nodes.iter().flat_map(Node::pods).collect()
    }

    /// The place of a Kubernetes pod, an object as the API has it: its network, and its node's files and processes.
    ///
    /// # Errors
    /// Its node has no kubelet, or no process of it.
    pub fn kube_pod(&self, pod: &serde_json::Value) -> Result<Namespace, Error> {
        let text = |at: &str| pod.pointer(at).and_then(|v| v.as_str()).unwrap_or_default();
        let (name, on) = (text("/metadata/name"), text("/spec/nodeName"));
        let node = self.nodes.iter().find(|node| node.name() == on);
        let kubelet = node.and_then(Node::kubelet);
        let lacks = || Error::Bad(format!("pod {name}: no kubelet on its node {on:?}"));
        kubelet.ok_or_else(lacks)?.pod(name, text("/metadata/uid"))
    }

    /// The etcd, where that is the store.
    pub fn etcd(&self) -> Option<&Etcd> {
        match &self.keys {
            Keys::Etcd(etcd) => Some(etcd),
            _ => None,
        }
    }

    /// The Kubernetes control plane, where that is the store.
    pub fn kube(&self) -> Option<&Kube> {
        match &self.keys {
            Keys::Kubernetes(kube) => Some(kube),
            _ => None,
        }
    }

    /// The store's directory, where that is the store: a path for this process. The nodes know it
    /// as `/run/lab/store`.
    pub fn store_dir(&self) -> Option<PathBuf> {
        match &self.keys {
            Keys::Directory(dir) => Some(dir.clone()),
            _ => None,
        }
    }

    /// Writes the network config, whatever the text.
    ///
    /// # Errors
    /// The store refuses it.
    pub fn put_config(&self, text: &str) -> Result<(), Error> {
        self.keys.put(CONFIG, text)
    }

    /// Removes the network config.
    ///
    /// # Errors
    /// The store refuses it.
    pub fn delete_config(&self) -> Result<(), Error> {
        self.keys.delete(CONFIG)
    }

    /// Writes a lease, whatever its key (`172.30.80.0-24`) and value. In etcd it is a reservation.
    ///
    /// # Errors
    /// The store refuses it.
    pub fn put_lease(&self, key: &str, value: &str) -> Result<(), Error> {
        self.keys.put(&format!("subnets/{key}"), value)
    }

    /// Removes a lease.
    ///
    /// # Errors
    /// The store refuses it.
    pub fn delete_lease(&self, key: &str) -> Result<(), Error> {
        self.keys.delete(&format!("subnets/{key}"))
    }

    /// The leases: key below `subnets/`, and the value as it is stored.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn leases(&self) -> Result<BTreeMap<String, String>, Error> {
        self.keys.leases()
    }

    /// A directory that all places of the lab see as `/run/lab`, by a path for this process.
    pub fn shared_dir(&self) -> PathBuf {
        self.ground.dir()
    }

    /// How another process gets into this lab while this one holds it.
    pub fn handles(&self) -> Handles {
        Handles::of(self)
    }
}
