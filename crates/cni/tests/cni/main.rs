//! The plugin `flannel`: against recorders that take a delegate's place, against Debian's real plugins in
//! network namespaces, and by way of the CNI project's own cnitool.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attach;
mod cnitool;
mod delegate_config;
mod hostile;
mod real;
mod scene;
mod stale_bridge;
mod upkeep;
