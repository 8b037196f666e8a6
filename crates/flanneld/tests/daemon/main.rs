//! The daemon as a whole: real ones in the lab, on a real kernel, with a real etcd or a directory.
//! Every row of the table of faults it must survive is a test here, with its figure measured
//! (`--nocapture` shows them).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod between_runs;
mod connected;
mod crowd;
mod etcd_access;
mod etcd_faults;
mod families;
mod fights;
mod flow;
mod foreign;
mod former;
mod guard;
mod health;
mod host;
mod hostile;
mod lies;
mod mixed;
mod offload;
mod repair;
mod restart;
mod revoked;
mod scene;
#[path = "../seen/mod.rs"]
mod seen;
mod service;
mod traffic;
mod twice;
mod two_networks;
mod udp;
mod underlay;
mod upgrade;
mod usage;
