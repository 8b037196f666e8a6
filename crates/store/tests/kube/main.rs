//! The Kubernetes store against an API server in this process, which can be told to misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod api;
mod credentials;
mod following;
mod publishing;
mod scene;
