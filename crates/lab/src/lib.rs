//! A cluster on one machine: nodes as network namespaces on a bridge, pods behind each, a store,
//! and the real daemons in them. `flannelctl lab`, the demo, the tests and the benchmarks stand on it.
//!
//! ```no_run
//! # fn main() -> Result<(), lab::Error> {
//! let lab = lab::Lab::builder().nodes(3).store(lab::StoreKind::Etcd { tls: true }).build()?;
//! lab.start()?;
//! lab.must_ping()?;
//! let n1 = lab.node(1);
//! let repair = n1.measure_repair(
//!     || n1.exec(["ip", "link", "del", "flannel.1"]).map(drop),
//!     std::time::Duration::from_secs(5),
//! )?;
//! eprintln!("{:?}", repair.took);
//! # Ok(()) }
//! ```
//!
//! A lab adds nothing to the machine: no named namespace, no link, no mount, no file. All of it is
//! held by file descriptors of the process that built it and by the processes in it, which a
//! guard ends when that process is gone. Labs do not see each other; any number may run at once.
//!
//! It works as root, and as anybody else where the kernel allows user namespaces ([`become_root`]).

#![warn(unreachable_pub)]

mod builder;
mod certs;
mod cgroup;
mod daemon;
mod docker;
mod echo;
mod error;
mod etcd;
mod fabric;
mod flow;
mod ground;
mod guard;
mod http;
mod kube;
#[allow(clippy::module_inception)]
mod lab;
mod machine;
mod mesh;
mod namespace;
mod netlink;
mod node;
mod outside;
mod picture;
mod pinger;
mod pod;
mod privilege;
mod process;
mod programs;
mod repair;
mod seccomp;
mod settle;
mod store;
mod subnet_env;
mod usage;
mod wait;

pub use builder::{LabBuilder, Progress};
pub use daemon::{Daemon, Instance};
pub use docker::{Container, Docker};
pub use error::Error;
pub use etcd::Etcd;
pub use flow::{Flow, FlowReport, bulk};
pub use kube::{
    Api, BOX_IMAGE, Kube, Kubelet, Patch, Request, Response, Who, check_kubelets, kube_bin_dir,
    not_run,
};
pub use lab::Lab;
pub use machine::{Debian, Machine, debian_root};
pub use mesh::Ping;
pub use namespace::Namespace;
pub use node::Node;
pub use outside::{Handles, PlaceHandles};
pub use picture::Picture;
pub use pinger::{PingReport, Pinger};
pub use pod::Pod;
pub use privilege::{become_root, check as check_privilege, real_root_for, user_namespace};
pub use process::Process;
pub use programs::{flannel_bin_dir, flannel_image};
pub use repair::Repair;
pub use seccomp::Seccomp;
pub use store::StoreKind;
pub use subnet_env::SubnetEnv;
pub use usage::{Usage, usage};
pub use wait::{holds_for, wait_for};

/// The directory that every place of a lab shares, as they see it.
pub const SHARED_DIR: &str = "/run/lab";

/// Where the places of a lab find flannel's programs.
pub const BIN_DIR: &str = "/run/lab/bin";

/// Where they find Kubernetes' own, in a lab that has it.
pub const KUBE_BIN_DIR: &str = "/run/lab/kube-bin";

/// Where they find its kubeconfig files (`admin.conf`, `flannel.conf`, `n1.conf`) and certificates.
pub const KUBE_DIR: &str = "/run/lab/kube";
