//! A real Kubernetes: a control plane in the fabric.

mod access;
mod api;
mod audit;
mod control;
mod networks;
mod objects;
mod programs;

pub use access::Who;
pub use api::{Api, Patch, Response};
pub use audit::Request;
pub use control::Kube;
pub(crate) use networks::Networks;
pub use programs::{kube_bin_dir, not_run};

/// The service account of flanneld and what it may do.
const FLANNEL_ROLE: &str = include_str!("role.yaml");
