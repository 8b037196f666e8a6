//! A real Kubernetes: a control plane in the fabric, and nodes with kubelets where they are wanted.

mod access;
mod api;
mod audit;
mod control;
mod images;
mod kubelet;
mod networks;
mod objects;
mod pods;
mod programs;
mod servers;

pub use access::Who;
pub use api::{Api, Patch, Response};
pub use audit::Request;
pub use control::Kube;
pub use images::BOX_IMAGE;
pub use kubelet::{Kubelet, check_kubelets};
pub(crate) use networks::Networks;
pub use programs::{kube_bin_dir, not_run};

/// What people apply.
const MANIFEST: &str = include_str!("../../../../deploy/kube-flannel.yml");

/// The service account of flanneld and what it may do, exactly as the manifest has it.
fn flannel_role() -> String {
    let wanted = |document: &&str| {
        let kind = document
            .lines()
            .find_map(|line| line.strip_prefix("kind: "));
        kind.is_some_and(|kind| {
            kind == "Namespace" || kind == "ServiceAccount" || kind.contains("Role")
        })
    };
    let parts: Vec<&str> = MANIFEST.split("\n---\n").filter(wanted).collect();
    parts.join("\n---\n")
}
