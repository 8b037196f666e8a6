//! The administrator's access to a store: reads the network configuration and the leases, and writes the
//! configuration. Unlike the daemon it does not wait: a store that does not answer is an error.

use std::fmt;
use std::future::Future;

use model::{LeaseAttrs, SubnetKey};

/// The configuration as it is stored, whether or not it can be used.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredConfig {
    /// What was written, byte for byte. May hold a secret.
    pub json: Vec<u8>,
    /// Identifies the state of etcd's key; a directory compares the bytes.
    pub(crate) revision: i64,
}

impl fmt::Debug for StoredConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredConfig")
            .field("bytes", &self.json.len())
            .field("revision", &self.revision)
            .finish()
    }
}

/// A subnet that is in use.
#[derive(Clone, Debug)]
pub struct ListedLease {
    /// The subnets.
    pub key: SubnetKey,
    /// Its owner, or why the value cannot be read.
    pub attrs: Result<LeaseAttrs, String>,
    /// It does not expire.
    pub reserved: bool,
}

/// Why the store did not do what was requested.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AdminError(pub(crate) String);

/// A store as an administrator sees it.
pub trait Administer {
    /// Returns where the configuration is, for messages: `etcd key /coreos.com/network/config`.
    fn config_place(&self) -> String;

    /// Reads the configuration; `None` if there is none.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    fn stored_config(&self) -> impl Future<Output = Result<Option<StoredConfig>, AdminError>>;

    /// Writes the configuration if what is stored is still `was`; returns whether it was.
    ///
    /// # Errors
    /// The store does not answer, or refuses. In the first case it may have been written.
    fn swap_config(
        &self,
        json: &[u8],
        was: Option<&StoredConfig>,
    ) -> impl Future<Output = Result<bool, AdminError>>;

    /// Returns every lease and reservation, by subnet. Keys that name no subnet are left out.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    fn leases(&self) -> impl Future<Output = Result<Vec<ListedLease>, AdminError>>;
}
