//! The pages of the documentation: their links, their commands, and what they say about flags and keys.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod commands;
mod form;
mod links;
mod page;
mod reference;
