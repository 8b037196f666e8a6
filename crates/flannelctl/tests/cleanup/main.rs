//! `flannelctl cleanup` on nodes that ran ours in every mode, and on nodes with what another flannel
//! leaves: afterwards the host is as it was before, to the last rule and file.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod anothers;
mod host;
mod ours;
mod refusals;
