//! The stores of leases: etcd, Kubernetes, or a directory. All implement one small trait.
//!
//! | module | holds |
//! |---|---|
//! | [`etcd`] | leases in etcd |
//! | [`kube`] | leases on Kubernetes' Nodes |
//! | [`directory`] | leases in a directory |
//! | [`endpoint`], [`connect`], [`tls`] | a verified connection |
//! | [`config_file`], [`notify`] | a configuration in a file, followed; notifications of changed files |
//! | [`event_queue`] | events on their way to the daemon, the last state of each lease only |
//! | [`lease_index`] | which keys there are: what is in use, and what a listing shows to be gone |
//! | [`own_lease`] | the life of the own lease as a pure state machine, and what drives it |
//! | [`store_task`] | what etcd and directory share: from the daemon's calls to a task |
//! | [`reachability`] | whether the store can be reached, reported to daemon and log |
//! | [`admin`] | the administrator's access to a store: configuration and leases, without waiting |
//! | [`secret`] | passwords and tokens |
//! | [`activity`] | what the store was asked and how it answered, for metrics |
//! | [`backoff`], [`retry`], [`retry_log`] | waiting, and logging it once |
//! | [`skip_log`] | keys that are no leases |

use std::future::Future;
use std::time::Duration;

use model::{Lease, LeaseAttrs, NetConfig, SubnetKey};

mod activity;
mod admin;
mod any;
mod backoff;
mod clock;
mod config_file;
mod connect;
pub mod directory;
mod endpoint;
pub mod etcd;
mod event_queue;
pub mod kube;
mod lease_index;
mod lease_states;
mod lease_value;
mod notify;
pub mod own_lease;
mod reachability;
mod retry;
mod retry_log;
mod secret;
mod skip_log;
mod store_task;
mod subnet_allocator;
mod task;
mod tls;

pub use activity::Activity;
pub use admin::{AdminError, Administer, ListedLease, StoredConfig};
pub use any::AnyStore;
pub use clock::simulate_time;
pub use connect::{Dialer, ProxyError, ProxyVariables, Stream};
pub use directory::DirectoryStore;
pub use etcd::{EtcdSettings, EtcdStore, SettingsError};
pub use kube::{
    AccessError, KubeApi, KubeApiError, KubeSettings, KubeSettingsError, KubeStore, NodeName,
    PodExec, PodOutput, Trouble,
};
pub use lease_states::LeaseStates;
pub use own_lease::Who;
pub use retry::{Assigned, StoreStatus};
pub use secret::Secret;
pub use tls::TlsError;

/// What a node requests when it takes a subnet.
#[derive(Clone, Debug)]
pub struct Claim {
    /// What to publish.
    pub attrs: LeaseAttrs,
    /// The subnet that an old `subnet.env` names: taken again if it is free and fits.
    pub previous: Option<SubnetKey>,
}

/// How long leases live, and when they are renewed and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Life of a lease that is not renewed; whole seconds.
    pub ttl: Duration,
    /// A lease is renewed when so much of its life is left (`-subnet-lease-renew-margin`).
    pub margin: Duration,
    /// When a store has lost data, leases that it no longer shows are kept for so long: their owners
    /// are about to publish them again.
    pub grace: Duration,
    /// How often a directory is checked for changes that were not notified.
    pub poll: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            ttl: Duration::from_secs(24 * 3600),
            margin: Duration::from_secs(3600),
            grace: Duration::from_secs(300),
            poll: Duration::from_secs(10),
        }
    }
}

impl Timing {
    /// How long before its end a lease of `ttl` is renewed: the margin, if it leaves anything.
    pub(crate) fn margin_of(&self, ttl: Duration) -> Duration {
        if self.margin < ttl {
            self.margin
        } else {
            ttl / 2
        }
    }
}

/// A store of leases: what every store has. One daemon owns one store value.
///
/// What only one store has is a method of its own type, which [`AnyStore`] hands out: [`AnyStore::node`].
pub trait Store {
    /// Reads the network configuration. Waits until there is one that can be used, logging each reason
    /// once and then once a minute (contract §3: retried every second).
    fn config(&mut self) -> impl Future<Output = NetConfig>;

    /// Returns the lease that this node already has, recognised by its public address or a device. Called
    /// before the backend is built, so that the backend keeps the MAC that other nodes know.
    fn own(&mut self, config: &NetConfig, who: &Who) -> impl Future<Output = Option<Lease>>;

    /// Takes a subnet (contract §4: reuse, previous, random), waiting while the store is unreachable.
    ///
    /// # Errors
    /// [`AcquireError`]: what waiting does not fix.
    fn acquire(
        &mut self,
        config: &NetConfig,
        claim: &Claim,
    ) -> impl Future<Output = Result<Lease, AcquireError>>;

    /// Publishes changed attributes under our lease, by compare-and-swap. Returns at once; they are
    /// written as soon as the store is reachable, during [`Store::next_event`].
    fn publish(&mut self, attrs: LeaseAttrs) -> impl Future<Output = ()>;

    /// Returns what the store waits for, serves only in part, and assigns to this node, as long as it lives.
    fn status(&self) -> StoreStatus;

    /// Waits for the next batch of events. The first call starts tasks that keep our lease alive
    /// and follow everybody's, and the configuration, for as long as the store value lives. Cancel-safe.
    fn next_event(&mut self) -> impl Future<Output = StoreEvent>;
}

/// What changed in the store, coalesced by key: only the last state of each lease counts.
#[derive(Debug, Default)]
pub struct StoreEvent {
    /// Leases that are there (`Some`) or gone (`None`), our own included.
    pub leases: LeaseStates,
    /// All leases have been listed at least once and the store is reachable: what is not known now does
    /// not exist, and may be removed from the kernel.
    pub complete: bool,
    /// Our lease was deleted or belongs to somebody else: the reason.
    pub revoked: Option<String>,
    /// The network configuration as the store shows it now, or why it cannot be used: present when that
    /// may have changed.
    pub config: Option<Result<NetConfig, String>>,
}

/// Why there is no subnet for this node.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The pool is exhausted.
    #[error("{0}")]
    Full(String),
    /// A living node has the lease that looks like ours.
    #[error("{0}")]
    Held(String),
}
