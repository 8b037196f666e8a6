//! What a lab is to be like.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::fabric::{self, Underlay};
use crate::ground::Ground;
use crate::kube::{Networks, check_kubelets};
use crate::lab::Lab;
use crate::node::Node;
use crate::settle::settle;
use crate::store::{CONFIG, Keys};
use crate::{
    BIN_DIR, Error, Etcd, KUBE_BIN_DIR, Kube, Kubelet, Namespace, SHARED_DIR, StoreKind,
    kube_bin_dir, privilege, programs,
};

/// Told what is being done, a line each.
pub type Progress = Box<dyn Fn(&str) + Send + Sync>;

/// What a lab is to be like. [`LabBuilder::build`] makes it.
pub struct LabBuilder {
    nodes: usize,
    pods_per_node: usize,
    store: StoreKind,
    etcd_prefix: String,
    backend: Value,
    ipv4: bool,
    ipv6: bool,
    config: Map<String, Value>,
    underlay: Underlay,
    flanneld_args: Vec<String>,
    without_flanneld: bool,
    bin_dir: Option<PathBuf>,
    kubelets: bool,
    images: Vec<PathBuf>,
    unlink_at_end: Option<PathBuf>,
    held_until_end: Option<OwnedFd>,
    progress: Progress,
}

impl Default for LabBuilder {
    fn default() -> Self {
        LabBuilder {
            nodes: 3,
            pods_per_node: 1,
            store: StoreKind::Directory,
            etcd_prefix: "/coreos.com/network".into(),
            backend: json!({"Type": "vxlan"}),
            ipv4: true,
            ipv6: false,
            config: Map::new(),
            underlay: Underlay {
                mtu: 1500,
                ipv4: true,
                ipv6: true,
            },
            flanneld_args: Vec::new(),
            without_flanneld: false,
            bin_dir: None,
            kubelets: false,
            images: Vec::new(),
            unlink_at_end: None,
            held_until_end: None,
            progress: Box::new(|_| {}),
        }
    }
}

impl LabBuilder {
    /// How many nodes, 1 to 250. Default 3.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many pods [`Lab::start`] puts on each node. Default 1.
    pub fn pods_per_node(mut self, pods: usize) -> Self {
        self.pods_per_node = pods;
        self
    }

    /// Where the leases live. Default: a directory that all nodes share.
    pub fn store(mut self, store: StoreKind) -> Self {
        self.store = store;
        self
    }

    /// The etcd prefix. Default: flanneld's own, `/coreos.com/network`.
    pub fn etcd_prefix(mut self, prefix: &str) -> Self {
        self.etcd_prefix = prefix.into();
        self
    }

    /// `Backend` of the network config, such as `json!({"Type": "host-gw"})`. Default vxlan.
    pub fn backend(mut self, backend: Value) -> Self {
        self.backend = backend;
        self
    }

    /// The pods have IPv4 (`172.30.0.0/16`). Default yes.
    pub fn ipv4(mut self, on: bool) -> Self {
        self.ipv4 = on;
        self
    }

    /// The pods have IPv6 (`fd00:30::/48`). Default no.
    pub fn ipv6(mut self, on: bool) -> Self {
        self.ipv6 = on;
        self
    }

    /// The pods have both.
    pub fn dual(self) -> Self {
        self.ipv4(true).ipv6(true)
    }

    /// One more key of the network config, or another value for one that the lab sets.
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.into(), value);
        self
    }

    /// MTU of the nodes' `eth0`. Default 1500.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.underlay.mtu = mtu;
        self
    }

    /// Which families the nodes' `eth0` has. Default both.
    pub fn underlay(mut self, ipv4: bool, ipv6: bool) -> Self {
        self.underlay = Underlay {
            ipv4,
            ipv6,
            ..self.underlay
        };
        self
    }

    /// Arguments for every flanneld.
    pub fn flanneld_args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.flanneld_args = args.into_iter().map(Into::into).collect();
        self
    }

    /// The directory of the programs to run. Default: see [`crate::flannel_bin_dir`].
    pub fn bin_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.bin_dir = Some(dir.into());
        self
    }

    /// No flanneld will be started, so none need be there.
    pub fn without_flanneld(mut self) -> Self {
        self.without_flanneld = true;
        self
    }

    /// A kubelet and a containerd on every node, and a scheduler: a whole Kubernetes, in which flanneld is a pod like
    /// any other. Pods' IPv4 network is the manifest's, 10.244.0.0/16. The store is then [`StoreKind::Kubernetes`], and [`Lab::start`] is not for it.
    pub fn kubelets(mut self) -> Self {
        self.kubelets = true;
        let network = self.config.entry("Network");
        network.or_insert_with(|| json!("10.244.0.0/16"));
        self.store = StoreKind::Kubernetes;
        self
    }

    /// One more image for every node's containerd, an archive as `docker save` writes it.
    pub fn image(mut self, file: impl Into<PathBuf>) -> Self {
        self.images.push(file.into());
        self
    }

    /// A file to be removed when the lab ends, in whatever way it ends.
    pub fn unlink_at_end(mut self, file: impl Into<PathBuf>) -> Self {
        self.unlink_at_end = Some(file.into());
        self
    }

    /// The open file of [`unlink_at_end`](Self::unlink_at_end): it stays open until the lab has ended,
    /// in whatever way, and the file is removed. A lock on it lasts as long as the lab.
    pub fn held_until_end(mut self, held: impl Into<OwnedFd>) -> Self {
        self.held_until_end = Some(held.into());
        self
    }

    /// Is told what is being done.
    pub fn progress(mut self, tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.progress = Box::new(tell);
        self
    }

    /// Builds fabric, store and nodes, and writes the network config. Starts no flanneld yet:
    /// that is [`Lab::start`].
    ///
    /// # Errors
    /// [`Error::Needs`] when the machine lacks something; says what to do.
    pub fn build(self) -> Result<Lab, Error> {
        if self.nodes == 0 || self.nodes > fabric::MAX_NODES {
            return Err(Error::Bad(format!(
                "{} nodes: a lab has 1 to {}",
                self.nodes,
                fabric::MAX_NODES
            )));
        }
        if self.ipv6 && !fabric::kernel_has_ipv6() {
            return Err(Error::Needs(
                "this kernel has IPv6 switched off (ipv6.disable=1)".into(),
            ));
        }
        let underlay = Underlay {
            ipv6: self.underlay.ipv6 && fabric::kernel_has_ipv6(),
            ..self.underlay
        };
        privilege::check()?;
        programs::require(&["ip"])?;
        if self.store != StoreKind::Directory {
            programs::require(&["etcd", "etcdctl"])?;
        }
        if self.kubelets {
            check_kubelets()?;
        }
        let bin_dir = match (self.bin_dir, self.without_flanneld || self.kubelets) {
            (Some(dir), _) => Some(dir),
            (None, true) => programs::flannel_bin_dir().ok(),
            (None, false) => Some(programs::flannel_bin_dir()?),
        };
        let tell = &self.progress;
        let mut bins = Vec::new();
        bins.extend(bin_dir.map(|dir| (dir, BIN_DIR)));
        if self.store == StoreKind::Kubernetes {
            tell("Kubernetes' programs (the first time they are built, which takes minutes)");
            bins.push((kube_bin_dir()?, KUBE_BIN_DIR));
        }
        tell("a network of its own, out of sight of this machine's");
        let ground = Arc::new(Ground::lay(
            &bins,
            self.unlink_at_end.as_deref(),
            self.held_until_end.as_ref().map(AsFd::as_fd),
        )?);
        let fabric = ground.place("fabric")?;
        fabric::build(&fabric, underlay)?;

        let config = config(self.ipv4, self.ipv6, self.backend, self.config);
        let (keys, mut args) = match self.store {
            StoreKind::Directory => {
                tell("a directory for the leases");
                (
                    Keys::Directory(ground.dir().join("store")),
                    vec![format!("--store-dir={SHARED_DIR}/store")],
                )
            }
            StoreKind::Etcd { tls } => {
                tell(if tls {
                    "etcd, with certificates"
                } else {
                    "etcd"
                });
                let etcd = Etcd::new(&fabric, &ground, tls, &self.etcd_prefix)?;
                let args = etcd.flanneld_args();
                (Keys::Etcd(Box::new(etcd)), args)
            }
            StoreKind::Kubernetes => {
                tell("etcd, kube-apiserver, kube-controller-manager");
                let networks = Networks::of_config(&config)?;
                let kube = Kube::new(&fabric, &ground, networks, self.kubelets)?;
                let args = kube.flanneld_args();
                (Keys::Kubernetes(Box::new(kube)), args)
            }
        };
        keys.put(CONFIG, &config.to_string())?;

        args.extend(self.flanneld_args);
        tell(&format!("{} nodes on a bridge", self.nodes));
        let mut places = Vec::new();
        for index in 1..=self.nodes as u8 {
            let place = ground.node(&format!("n{index}"))?;
            fabric::connect(&fabric, &place, index, underlay)?;
            places.push((index, place));
        }
        let nodes: Vec<(u8, Namespace, Option<Kubelet>)> = match &keys {
            Keys::Kubernetes(kube) if self.kubelets => {
                tell("containerd and kubelet on every node");
                kube.start_kubelets(places, underlay, &self.images)?
            }
            keys => {
                if let Keys::Kubernetes(kube) = keys {
                    let mut indices = places.iter().map(|(index, _)| *index);
                    indices.try_for_each(|index| kube.register(index, underlay))?;
                }
                let bare = |(index, place)| (index, place, None);
                places.into_iter().map(bare).collect()
            }
        };
        let node =
            |(index, place, kubelet)| Node::new(index, place, &ground, args.clone(), kubelet);
        let nodes: Vec<Node> = nodes.into_iter().map(node).collect();
        settle(&fabric)?;
        nodes.iter().try_for_each(|node| settle(node))?;
        Ok(Lab {
            nodes,
            keys,
            fabric,
            pods_per_node: self.pods_per_node,
            progress: self.progress,
            ground,
        })
    }
}

fn config(ipv4: bool, ipv6: bool, backend: Value, more: Map<String, Value>) -> Value {
    let mut config = Map::new();
    match ipv4 {
        true => config.insert("Network".into(), json!("172.30.0.0/16")),
        false => config.insert("EnableIPv4".into(), json!(false)),
    };
    if ipv6 {
        config.insert("EnableIPv6".into(), json!(true));
        config.insert("IPv6Network".into(), json!("fd00:30::/48"));
    }
    config.insert("Backend".into(), backend);
    let family = |key: &str| key != "Network" || ipv4;
    config.extend(more.into_iter().filter(|(key, _)| family(key)));
    Value::Object(config)
}
