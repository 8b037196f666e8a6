//! One suite for the fake kernel and for the real one, and what only the real one can show.
//!
//! Each case on the real kernel has a network namespace of its own, which ends with its thread:
//! nothing is left behind, whatever happens. Needs root, `ip` and `bridge`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod adopt;
mod bulk;
mod cases;
mod host;
mod objects;
mod script;
mod truth;
mod witness;
mod worlds;
