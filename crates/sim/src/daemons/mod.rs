//! Whole daemons, simulated: everything of `flanneld` but the kernel, the host's interface, the packet filter and the
//! bytes on the way to etcd. All nodes run on one thread, whose clock runs ahead when nobody has anything to do.
//!
//! | module | holds |
//! |---|---|
//! | [`etcd_data`], [`etcd_server`] | a simulated etcd, and its answers over gRPC |
//! | [`network`] | connections between nodes and etcd, and what goes wrong with them |
//! | [`machine`] | a fake kernel with the host's interface |
//! | [`daemon`] | a daemon that can be killed at any step |
//! | [`plan`] | what happens to a fleet |
//! | [`fleet`] | the nodes, and how events come about |
//! | [`rules`], [`reach`] | what must hold, by what kernels and etcd show |
//! | [`log`] | what the daemons log |

pub mod daemon;
pub mod etcd_data;
pub mod etcd_server;
pub mod fleet;
pub mod log;
pub mod machine;
pub mod network;
pub mod plan;
pub mod reach;
pub mod rules;
