//! The guides that people install flannel by, step for step, with real etcd, docker and CNI plugins.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::explicit_write,
    reason = "tests"
)]

mod docker;
mod install_etcd;
mod manager;
mod role;
mod scene;
