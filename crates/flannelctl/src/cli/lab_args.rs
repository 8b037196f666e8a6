//! The command line of `flannelctl lab`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use lab::{LabBuilder, StoreKind};
use serde_json::{Value, json};

#[derive(Subcommand)]
pub(crate) enum LabCommand {
    /// Build a lab and keep it in the background
    Up(Shape),
    /// End a lab
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// List the labs, their nodes and pods
    Status,
    /// Run a command on a node (n1), in a pod (n1-p1) or in the fabric between the nodes
    Exec {
        #[command(flatten)]
        name: Name,
        /// n1, n2, …; n1-p1, …; fabric
        place: String,
        /// The command; a shell when there is none
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Build a lab, run a command beside it, and end it
    ///
    /// The command runs on this machine; `flannelctl lab exec n1 …` in it finds this lab.
    Run {
        #[command(flatten)]
        shape: Shape,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// What `up` leaves in the background
    #[command(hide = true)]
    Hold {
        #[command(flatten)]
        shape: Shape,
        #[arg(long)]
        file: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct Name {
    /// Which lab
    #[arg(long, default_value = "lab", env = "FLANNEL_LAB", value_parser = lab_name)]
    pub(crate) name: String,
}

/// What a lab is to be like.
#[derive(Args)]
pub(crate) struct Shape {
    #[command(flatten)]
    pub(crate) name: Name,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=250))]
    pub(crate) nodes: u8,
    /// How many pods on each node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=200))]
    pub(crate) pods: u8,
    /// Where the leases live
    #[arg(long, value_enum, default_value_t = StoreArg::Directory)]
    pub(crate) store: StoreArg,
    /// vxlan, host-gw, ipip, udp or alloc, or a backend as JSON, such as '{"Type":"vxlan","DirectRouting":true}'
    #[arg(long, default_value = "vxlan", value_parser = backend_named)]
    pub(crate) backend: Value,
    /// Pods have IPv6 and no IPv4
    #[arg(long, conflicts_with = "dual")]
    pub(crate) ipv6: bool,
    /// Pods have IPv4 and IPv6
    #[arg(long)]
    pub(crate) dual: bool,
    /// A whole Kubernetes: API server, controller manager, scheduler, and containerd and kubelet on every node
    ///
    /// Needs this machine's root. There is no network for pods yet: `--manifest` applies one.
    #[arg(long, conflicts_with_all = ["pods", "store", "backend", "flanneld_args"])]
    pub(crate) kube: bool,
    /// With --kube: an image for every node, an archive as `docker save` writes it; may be given again
    #[arg(long = "image", value_name = "FILE", requires = "kube")]
    pub(crate) images: Vec<PathBuf>,
    /// With --kube: a manifest to apply, such as deploy/kube-flannel.yml; waits until every Node is Ready
    #[arg(long, value_name = "FILE", requires = "kube")]
    pub(crate) manifest: Option<PathBuf>,
    /// An argument for every flanneld, such as --flanneld-arg=-v=1; may be given again
    #[arg(long = "flanneld-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) flanneld_args: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum StoreArg {
    /// A directory that all nodes share
    Directory,
    /// A real etcd
    Etcd,
    /// A real etcd with certificates on both sides
    EtcdTls,
    /// The API server of a real Kubernetes, without kubelets
    Kubernetes,
}

impl Shape {
    /// A builder of such a lab.
    pub(crate) fn builder(&self) -> LabBuilder {
        let store = match self.store {
            StoreArg::Directory => StoreKind::Directory,
            StoreArg::Etcd => StoreKind::Etcd { tls: false },
            StoreArg::EtcdTls => StoreKind::Etcd { tls: true },
            StoreArg::Kubernetes => StoreKind::Kubernetes,
        };
        let builder = lab::Lab::builder().nodes(self.nodes.into());
        if self.kube {
            let builder = builder
                .kubelets()
                .ipv4(!self.ipv6)
                .ipv6(self.ipv6 || self.dual);
            return self.images.iter().fold(builder, |b, image| b.image(image));
        }
        builder
            .pods_per_node(self.pods.into())
            .store(store)
            .backend(self.backend.clone())
            .ipv4(!self.ipv6)
            .ipv6(self.ipv6 || self.dual)
            .flanneld_args(self.flanneld_args.iter())
    }

    /// The arguments that mean this shape.
    pub(crate) fn to_args(&self) -> Vec<String> {
        let store = self
            .store
            .to_possible_value()
            .map(|v| v.get_name().to_string())
            .unwrap_or_default();
        let mut args = vec![
            format!("--name={}", self.name.name),
            format!("--nodes={}", self.nodes),
        ];
        if self.kube {
            args.push("--kube".into());
            let image = |file: &PathBuf| format!("--image={}", file.display());
            args.extend(self.images.iter().map(image));
            let manifest = |file: &PathBuf| format!("--manifest={}", file.display());
            args.extend(self.manifest.as_ref().map(manifest));
        } else {
            args.extend([
                format!("--pods={}", self.pods),
                format!("--store={store}"),
                format!("--backend={}", self.backend),
            ]);
        }
        args.extend(self.ipv6.then(|| "--ipv6".to_string()));
        args.extend(self.dual.then(|| "--dual".to_string()));
        args.extend(
            self.flanneld_args
                .iter()
                .map(|arg| format!("--flanneld-arg={arg}")),
        );
        args
    }
}

fn backend_named(text: &str) -> Result<Value, String> {
    if !text.trim_start().starts_with('{') {
        let names = backend::HAVE.map(|kind| kind.to_string());
        return if names.iter().any(|name| name == text) {
            Ok(json!({ "Type": text }))
        } else {
            Err(format!("expected {} or a JSON object", names.join(", ")))
        };
    }
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    match value.get("Type").is_some_and(Value::is_string) {
        true => Ok(value),
        false => Err("the JSON object has no \"Type\"".into()),
    }
}

/// It becomes a file's name.
fn lab_name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match !text.is_empty() && text.len() <= 40 && text.chars().all(good) {
        true => Ok(text.into()),
        false => Err("expected 1 to 40 letters, digits, '-' and '_'".into()),
    }
}
