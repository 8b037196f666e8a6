//! What a person does to a store: look at the network configuration and the leases, and write the
//! configuration. Unlike the daemon nobody here waits: what does not answer is an error.

use std::fmt;
use std::future::Future;

use model::{LeaseAttrs, SubnetKey};

/// The configuration as it is stored, whether or not it can be used.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredConfig {
    /// What was written, byte for byte. May hold a secret.
    pub json: Vec<u8>,
    /// Tells one state of etcd's key from the next; a directory compares the bytes.
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

/// A subnet that is somebody's.
#[derive(Clone, Debug)]
pub struct ListedLease {
    /// The subnets.
    pub key: SubnetKey,
    /// Whose; or why the value cannot be read.
    pub attrs: Result<LeaseAttrs, String>,
    /// It does not expire.
    pub reserved: bool,
}

/// The store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AdminError(pub(crate) String);

/// A store as the person at the keyboard sees it.
pub trait Administer {
    /// Where the configuration is, for messages: `etcd key /coreos.com/network/config`.
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

    /// Every lease and reservation, by subnet. Keys that name no subnet are left out.
    ///
    /// # Errors
    /// The store does not answer, or refuses.
    fn leases(&self) -> impl Future<Output = Result<Vec<ListedLease>, AdminError>>;
}
