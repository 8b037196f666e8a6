//! Traffic rules on the real kernel, by the real programs, in network namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod coexist;
mod guard;
mod modes;
mod old;
mod order;
mod packets;
mod repair;
mod streams;
mod world;
