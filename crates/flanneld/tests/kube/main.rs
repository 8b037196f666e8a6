//! The daemon with `-kube-subnet-mgr`, and a real Kubernetes API server and controller manager. Every
//! promise about Nodes, annotations and outages is a test here.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod access;
mod families;
mod outage;
mod peers;
mod publishing;
mod scene;
#[path = "../seen/mod.rs"]
mod seen;
mod waiting;
