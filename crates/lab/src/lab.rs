//! The lab itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::builder::{LabBuilder, Progress};
use crate::echo;
use crate::ground::Ground;
use crate::node::Node;
use crate::outside::Handles;
use crate::pod::Pod;
use crate::store::Keys;
use crate::{Error, Etcd, Namespace, wait_for};

/// How long a flanneld may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// How long a ping may take.
const PING: Duration = Duration::from_secs(1);

/// How long a ping may take that is tried again when it is lost.
const SHORT_PING: Duration = Duration::from_millis(200);

/// How many pings of a matrix are under way at once.
const AT_ONCE: usize = 32;

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

/// One ping of a [`Lab::ping_matrix`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// The pod that asked.
    pub from: String,
    /// The pod that was asked.
    pub to: String,
    /// Its address.
    pub ip: IpAddr,
    /// The round trip; `None` when no reply came within a second.
    pub rtt: Option<Duration>,
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

    /// Pings from every pod to every address of every other.
    ///
    /// # Errors
    /// A namespace could not be entered. A lost ping is no error here.
    pub fn ping_matrix(&self) -> Result<Vec<Ping>, Error> {
        self.ping_all(PING)
    }

    /// Waits until every pod answers every other.
    ///
    /// # Errors
    /// [`Error::Timeout`] lists the pings that were lost last.
    pub fn wait_mesh(&self, deadline: Duration) -> Result<(), Error> {
        wait_for("every pod answers every other", deadline, || {
            all_answered(&self.ping_all(SHORT_PING)?)
        })
    }

    fn ping_all(&self, timeout: Duration) -> Result<Vec<Ping>, Error> {
        let pods = self.pods();
        let mut pairs = Vec::new();
        for from in &pods {
            for to in pods.iter().filter(|to| to.name() != from.name()) {
                pairs.extend(to.ips().into_iter().map(|ip| (from, to, ip)));
            }
        }
        let ask = |(from, to, ip): &(&Arc<Pod>, &Arc<Pod>, IpAddr)| {
            let rtt = echo::ping(from, *ip, timeout)?;
            Ok(Ping {
                from: from.name().into(),
                to: to.name().into(),
                ip: *ip,
                rtt,
            })
        };
        // Some at a time: a lost ping takes a second, and hundreds at once would wait for a processor.
        let batches = pairs.chunks(AT_ONCE).map(|batch| {
            std::thread::scope(|s| {
                let threads: Vec<_> = batch
                    .iter()
                    .map(|pair| s.spawn(move || ask(pair)))
                    .collect();
                let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
                    t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))
                };
                threads
                    .into_iter()
                    .map(join)
                    .collect::<Result<Vec<Ping>, Error>>()
            })
        });
        Ok(batches.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Pings from every pod to every other, and all must answer.
    ///
    /// # Errors
    /// [`Error::Bad`] lists the pings that were lost.
    pub fn must_ping(&self) -> Result<(), Error> {
        all_answered(&self.ping_matrix()?)
    }

    /// The etcd, where that is the store.
    pub fn etcd(&self) -> Option<&Etcd> {
        match &self.keys {
            Keys::Etcd(etcd) => Some(etcd),
            Keys::Directory(_) => None,
        }
    }

    /// The store's directory, where that is the store: a path for this process. The nodes know it
    /// as `/run/lab/store`.
    pub fn store_dir(&self) -> Option<PathBuf> {
        match &self.keys {
            Keys::Directory(dir) => Some(dir.clone()),
            Keys::Etcd(_) => None,
        }
    }

    /// Writes the network config, whatever the text.
    ///
    /// # Errors
    /// The store refuses it.
    pub fn put_config(&self, text: &str) -> Result<(), Error> {
        self.keys.put("config", text)
    }

    /// Removes the network config.
    ///
    /// # Errors
    /// The store refuses it.
    pub fn delete_config(&self) -> Result<(), Error> {
        self.keys.delete("config")
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

fn all_answered(pings: &[Ping]) -> Result<(), Error> {
    let lost = pings.iter().filter(|p| p.rtt.is_none());
    let lost: Vec<String> = lost
        .map(|p| format!("{} -> {} ({})", p.from, p.to, p.ip))
        .collect();
    match lost.is_empty() {
        true => Ok(()),
        false => Err(Error::Bad(format!(
            "{} of {} pings lost: {}",
            lost.len(),
            pings.len(),
            lost.join(", ")
        ))),
    }
}
