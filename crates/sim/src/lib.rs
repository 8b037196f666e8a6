//! The lease protocol on a simulated etcd: many nodes on one thread, every answer and every fault chosen by the
//! caller.
//!
//! What decides is the code that the daemon runs: [`store::own_lease::OwnLease`]. Simulated are etcd and what lies
//! between the two.
//!
//! `tests/lease_protocol` explores all orders of events within bounds, `tests/fleet.rs` random ones in larger fleets.
//!
//! | module | holds |
//! |---|---|
//! | [`etcd`] | keys, etcd leases, revisions, expiry, restores |
//! | [`daemons`] | whole daemons on a simulated etcd and fake kernels |
//! | [`agent`] | a node: its machine, its request on the way, what it has seen of etcd |

pub mod agent;
pub mod daemons;
pub mod etcd;
