//! The node daemon: store → desired state → diff → kernel.
//!
//! | module | holds |
//! |---|---|
//! | [`flags`], [`options`] | the command line, and what it means |
//! | [`iface`], [`identity`], [`forwarding`] | where this node is, who, and whether it forwards |
//! | [`cluster`], `generations` | the other nodes, and what the kernel must hold for them; the backends in use |
//! | [`config_change`], [`backends_file`] | what a change of the configuration means; the backends in use, over a restart |
//! | [`reconcile`] | desired against observed, written to the kernel |
//! | [`traffic`] | the traffic rules, kept in a task of their own |
//! | [`subnet_file`], `subnet_env`, [`cni_conf`], [`whole_file`] | `subnet.env`, the CNI configuration, how they are written |
//! | [`withdraw`] | both of them withdrawn when the subnet is this node's no longer |
//! | [`settle`] | what must be known before a subnet is taken |
//! | `lock` | one daemon for each network and device |
//! | [`machine`] | the machine that a node runs on: this host, or a simulated one |
//! | `socket_peer` | who is at the other end of a Unix socket |
//! | `allowance`, `few_lines` | how often something may be done, and how often the log says it |
//! | [`announce`] | when this node is announced as ready |
//! | [`node`] | all of it as one handle, for `main` and for programs that embed it |
//! | `startup`, `daemon` | the order of it all |
//! | [`teardown`] | its reverse, for those who ask for it |
//! | [`status`], [`report`] | what the daemon says of itself: figures, reasons, peers |
//! | [`metrics`] | the figures as Prometheus reads them |
//! | [`version`] | version and commit |
//! | [`probes`] | whether the other nodes are reached, through the tunnel and past it |
//! | [`health`], [`status_socket`], `http`, [`systemd`], [`logging`] | to whom, and how |

#![forbid(unsafe_code)]

mod allowance;
mod announce;
pub mod backends_file;
pub mod cluster;
mod cni_conf;
pub mod config_change;
mod daemon;
mod few_lines;
pub mod flags;
pub mod forwarding;
mod generations;
pub mod health;
mod http;
pub mod identity;
pub mod iface;
mod lock;
pub mod logging;
pub mod machine;
pub mod metrics;
pub mod node;
pub mod options;
pub mod probes;
pub mod reconcile;
pub mod report;
pub mod settle;
mod socket_peer;
mod startup;
pub mod status;
pub mod status_socket;
mod subnet_env;
pub mod subnet_file;
pub mod systemd;
mod teardown;
pub mod traffic;
mod trial;
pub mod version;
pub mod wg_key_file;
mod whole_file;
mod withdraw;
