//! What a backend must know of its node before the node's lease is taken.

use model::{Dual, IfName, Mac};

/// What must be found out before the lease is taken. Pure: the daemon does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// The MACs that these devices have, if they exist: the backend keeps them.
    Macs(Dual<IfName>),
}

/// The answer to a [`Need`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Nothing was asked for, or nothing found.
    #[default]
    Nothing,
    /// The MACs of the devices that exist.
    Macs(Dual<Mac>),
}

impl Identity {
    /// Returns how this node is named in backend data that it published earlier: a lease with such data
    /// is this node's, whatever its address.
    pub fn published_names(&self) -> Vec<String> {
        match self {
            Identity::Nothing => Vec::new(),
            Identity::Macs(macs) => macs.iter().map(|(_, mac)| mac.to_string()).collect(),
        }
    }

    /// Returns the MAC that the device of each family has.
    pub(crate) fn macs(&self) -> Dual<Mac> {
        match self {
            Identity::Nothing => Dual::default(),
            Identity::Macs(macs) => *macs,
        }
    }
}
