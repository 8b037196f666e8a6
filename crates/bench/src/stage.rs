//! Where it all happens: one node for the daemon that is measured, one for the reference, and an
//! etcd, in namespaces of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::{Lab, Node, StoreKind};
use serde_json::json;

use crate::fleet::NETWORK;
use crate::usage::user_time_of_ended;

/// How long one start may take, whatever the number of peers.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The lab of a benchmark.
pub struct Stage {
    lab: Lab,
}

impl Stage {
    /// Builds it: an etcd, two nodes, the programs of `bin_dir`.
    ///
    /// # Errors
    /// The machine lacks something; says what to do.
    pub fn build(bin_dir: &Path) -> anyhow::Result<Stage> {
        let lab = Lab::builder()
            .nodes(2)
            .store(StoreKind::Etcd { tls: false })
            .config("Network", json!(NETWORK))
            .config("SubnetLen", json!(24))
            .bin_dir(bin_dir)
            .build()?;
        Ok(Stage { lab })
    }

    /// Builds one with a Kubernetes control plane in place of the etcd.
    ///
    /// # Errors
    /// As [`Stage::build`].
    pub fn kubernetes(bin_dir: &Path) -> anyhow::Result<Stage> {
        let lab = Lab::builder()
            .nodes(2)
            .store(StoreKind::Kubernetes)
            .config("Network", json!(NETWORK))
            .config("SubnetLen", json!(24))
            .bin_dir(bin_dir)
            .build()?;
        Ok(Stage { lab })
    }

    /// The Kubernetes control plane.
    ///
    /// # Errors
    /// The lab was built without one.
    pub fn kube(&self) -> anyhow::Result<&lab::Kube> {
        self.lab.kube().context("the lab has no Kubernetes")
    }

    /// The etcd.
    ///
    /// # Errors
    /// Never: the lab was built with one.
    pub fn etcd(&self) -> anyhow::Result<&lab::Etcd> {
        self.lab.etcd().context("the lab has no etcd")
    }

    /// Writes the network configuration in etcd.
    ///
    /// # Errors
    /// etcd refuses.
    pub fn put_config(&self, text: &str) -> Result<(), lab::Error> {
        self.lab.put_config(text)
    }

    /// The node whose flanneld is measured.
    pub fn node(&self) -> &Node {
        self.lab.node(1)
    }

    /// The node on which the reference runs.
    pub fn rival(&self) -> &Node {
        self.lab.node(2)
    }

    /// A directory that the lab's nodes see as `/run/lab`, by a path for this process.
    pub fn shared_dir(&self) -> PathBuf {
        self.lab.shared_dir()
    }

    /// Starts the node's flanneld with `args`; returns the moment before.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, args: &[String]) -> anyhow::Result<Instant> {
        let flanneld = self.node().flanneld();
        flanneld.set_args(args.iter().cloned());
        let before = Instant::now();
        flanneld.start()?;
        Ok(before)
    }

    /// Kills the node's flanneld and removes all that it left: device, routes, files. Returns what is known of
    /// it only then.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn wipe(&self) -> anyhow::Result<Ended> {
        let node = self.node();
        let before = user_time_of_ended()?;
        node.flanneld().kill9()?;
        let user = user_time_of_ended()?.saturating_sub(before);
        let subnet = node.subnet_env().ok().and_then(|env| env.subnet.v4);
        let key = subnet.map(|net| format!("{}-{}", net.network(), net.prefix_len()));
        // Routes, neighbours and next hops go with the device, and are gone when this returns.
        node.output(["ip", "link", "del", "flannel.1"])?;
        let forget = || {
            for dir in ["/run/flannel", "/var/lib/flannel"] {
                let _ = fs::remove_dir_all(dir);
            }
            fs::create_dir_all("/run/flannel")
        };
        node.run(forget)?.context("/run/flannel")?;
        Ok(Ended { key, user })
    }
}

/// A flanneld that was killed.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The key of the subnet that it had, to be removed from the store.
    pub key: Option<String>,
    /// Its processor time in user space.
    pub user: Duration,
}

/// The one sleep: between two looks, or for a span of time that is to be observed.
#[allow(clippy::disallowed_methods)]
pub fn pause(span: Duration) {
    std::thread::sleep(span);
}
