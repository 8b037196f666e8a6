//! The Kubernetes store against an API server in this process, which can be told to misbehave.

pub mod api;
mod credentials;
mod following;
mod publishing;
mod scene;
mod world;
