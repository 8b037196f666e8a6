//! What a backend must know of its node before the node's lease is taken.

use std::sync::Arc;
use std::time::Duration;

use model::object::{CommandEnv, Psk};
use model::{Dual, IfName, Mac, WgKey, WgSecret};

/// What must be found out before the lease is taken. Pure: the daemon does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// The MACs that these devices have, if they exist: the backend keeps them.
    Macs(Dual<IfName>),
    /// WireGuard's key of this node, made if there is none.
    WgKey,
    /// The secret that the nodes of an IPsec network share, if a file of this node has it.
    Psk,
    /// What a command prints.
    Command {
        /// The option that holds it.
        name: &'static str,
        /// Program and arguments, separated by white space.
        line: Arc<str>,
        /// What it gets as environment variables.
        env: CommandEnv,
        /// How long it may take.
        limit: Duration,
    },
}

/// The answer to a [`Need`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Nothing was asked for, or nothing found.
    #[default]
    Nothing,
    /// The MACs of the devices that exist.
    Macs(Dual<Mac>),
    /// WireGuard's key of this node.
    WgKey {
        /// The private key.
        private: WgSecret,
        /// The public key that belongs to it.
        public: WgKey,
        /// A key that all nodes share, from a file of this node. Without, the configuration's is used, if any.
        preshared: Option<WgSecret>,
        /// Whether the kernel's WireGuard carries the packets, and not this process.
        in_kernel: bool,
    },
    /// The secret that the nodes of an IPsec network share, from a file of this node. Without, the configuration's is used.
    Psk(Option<Psk>),
    /// What a command printed.
    Data(Box<str>),
}

impl Identity {
    /// Returns how this node is named in backend data that it published earlier: a lease with such data
    /// is this node's, whatever its address.
    pub fn published_names(&self) -> Vec<String> {
        match self {
            Identity::Nothing | Identity::Psk(_) | Identity::Data(_) => Vec::new(),
            Identity::Macs(macs) => macs.iter().map(|(_, mac)| mac.to_string()).collect(),
            Identity::WgKey { public, .. } => vec![public.to_string()],
        }
    }

    /// Has WireGuard's packets carried by what carries them now, if `before` is a WireGuard key too: the kernel may have
    /// got the module since, and a device cannot be of both kinds.
    pub fn keep_carrier_of(&mut self, before: &Identity) {
        if let (
            Identity::WgKey { in_kernel, .. },
            Identity::WgKey {
                in_kernel: kept, ..
            },
        ) = (self, before)
        {
            *in_kernel = *kept;
        }
    }

    /// Returns the MAC that the device of each family has.
    pub(crate) fn macs(&self) -> Dual<Mac> {
        match self {
            Identity::Nothing | Identity::WgKey { .. } | Identity::Psk(_) | Identity::Data(_) => {
                Dual::default()
            }
            Identity::Macs(macs) => *macs,
        }
    }
}
