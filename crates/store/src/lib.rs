//! Where leases live: etcd, or a directory. Both speak one small trait.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;

use model::{Dual, Lease, LeaseAttrs, NetConfig, SubnetKey};

/// What a node asks for when it takes a subnet.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What to publish.
    pub attrs: LeaseAttrs,
    /// The subnet that an old `subnet.env` names: taken again if it is free and fits.
    pub previous: Option<SubnetKey>,
}

/// A store of leases. One daemon owns one store value.
pub trait Store {
    /// Reads the network configuration; waits, saying so once a reason and once a minute, until
    /// there is one that can be used (contract §3: retried every second).
    fn config(&mut self) -> impl Future<Output = NetConfig>;

    /// The lease that this node already has, found by its public addresses: what its peers
    /// believe. Read before the backend is built, so that it keeps its MAC.
    fn own(&mut self, public_ip: &Dual<IpAddr>) -> impl Future<Output = Option<Lease>>;

    /// Takes a subnet (contract §4: reuse, previous, random), waiting while the store is away.
    ///
    /// # Errors
    /// [`AcquireError`]: what waiting does not mend.
    fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> impl Future<Output = Result<Lease, AcquireError>>;

    /// Publishes changed attributes under our lease, by compare-and-swap.
    fn publish(&mut self, attrs: LeaseAttrs) -> impl Future<Output = ()>;

    /// Keeps our lease alive, follows everybody's, and waits for the next batch of news. Does the
    /// store's housekeeping while it waits. Cancel-safe.
    fn news(&mut self) -> impl Future<Output = News>;
}

/// What is new in the store, coalesced by key: only the last state of each lease counts.
#[derive(Debug, Default)]
pub struct News {
    /// Leases that are there (`Some`) or gone (`None`), our own included.
    pub leases: BTreeMap<SubnetKey, Option<Lease>>,
    /// All leases have been listed at least once and the store is there: what is not known now is
    /// not there, and may be removed.
    pub complete: bool,
    /// Our lease was deleted or belongs to somebody else: the reason.
    pub revoked: Option<String>,
}

/// Why no subnet could be had.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The pool is used up.
    #[error("{0}")]
    Full(String),
    /// Another living node publishes our public address.
    #[error("{0}")]
    Conflict(String),
}
