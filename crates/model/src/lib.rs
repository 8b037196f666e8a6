//! What flannel-rs knows, and nothing it does: configuration, leases, kernel objects, and the
//! difference between what a kernel should hold and what it does hold. No I/O, no clock, no async.
//!
//! | module | holds |
//! |---|---|
//! | [`family`] | [`Family`] and [`Dual`]: an address family is data, never a second copy of the code |
//! | [`config`] | [`NetConfig`]: the network's JSON configuration, its defaults and refusals |
//! | [`subnet`] | [`SubnetKey`]: the name of a lease, and the arithmetic of subnets |
//! | [`lease`] | [`Lease`], [`LeaseAttrs`]: who owns a subnet and how to reach it |
//! | [`pool`] | which subnets are free and which of them to take |
//! | [`roster`] | which of the leases that the store shows are fit to be used |
//! | [`object`] | [`Object`]: links, addresses, neighbours, FDB entries, next hops, routes; one file a kind |
//! | [`if_name`], [`mac`] | [`IfName`], [`Mac`]: what names a device, and its Ethernet address |
//! | [`table`] | [`Table`]: desired against observed, for any kind of kernel object |
//! | [`state`] | [`KernelState`]: who wants which objects, one table for each kind, the order of the work |
//! | [`op`] | [`Op`]: one change to the kernel; prints as the `ip` command that would make it |
//! | [`rules`] | [`TrafficRules`]: masquerading and forwarding as a list of values |
//! | [`guard`] | which packets a node never lets in, whatever its other rules |
//! | [`go_json`] | JSON of others, read as upstream reads it |
//! | [`outside`] | [`Outside`]: text that others wrote, made fit for a message |
//! | [`host`] | [`Host`]: what a backend must know of the machine |

#![forbid(unsafe_code)]

pub mod config;
pub mod family;
pub mod go_json;
pub mod guard;
pub mod host;
pub mod if_name;
pub mod lease;
pub mod mac;
pub mod object;
pub mod op;
pub mod outside;
pub mod pool;
mod range;
pub mod roster;
pub mod rules;
pub mod state;
pub mod subnet;
pub mod table;
mod wg_key;

pub use config::{BackendConfig, ConfigError, ConfigFaults, NetConfig, Pool};
pub use family::{Dual, Family};
pub use host::Host;
pub use if_name::IfName;
pub use lease::{BackendType, BadAttrs, Lease, LeaseAttrs, Offer};
pub use mac::Mac;
pub use object::Object;
pub use op::Op;
pub use outside::Outside;
pub use rules::TrafficRules;
pub use state::{KernelState, Owner, SLOTS, Slot};
pub use subnet::SubnetKey;
pub use table::Table;
pub use wg_key::{BadKey, WgKey, WgSecret};
