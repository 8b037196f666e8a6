//! The stores against the real thing: a real etcd, a real directory, an API server in this process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod admin;
mod alarms;
mod cluster;
mod connecting;
mod directory;
mod etcd;
mod etcd_server;
mod gate;
mod impostors;
mod kube;
mod lossy;
mod lost_answers;
mod node;
mod outage;
mod own_lease;
mod programs;
mod proxied;
mod restore;
mod suite;
mod tls;
mod world;
