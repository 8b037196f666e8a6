//! Kernel objects as values: a key that names the object, and a value that says what it holds.
//!
//! Each kind of object is one file here. [`kinds!`](self) lists them once, and makes from that list
//! [`Object`], the tables of [`crate::KernelState`] and everything else that goes kind by kind. To
//! add a kind, write its file and add it to the list: the compiler names the rest (its netlink form
//! and its table in the fake kernel, both in `dataplane`).
//!
//! Objects name their device, not its index: an index changes when the device is recreated.

pub mod addr;
pub mod command;
pub mod fdb;
pub mod ike;
pub mod link;
pub mod neigh;
pub mod next_hop;
pub mod packet_loop;
pub mod route;
pub mod tunnel_peer;
pub mod tunnel_route;
pub mod wg_device;
pub mod wg_peer;
pub mod xfrm_policy;

use std::fmt;
use std::hash::Hash;

pub use addr::{AddrKey, Addrs};
pub use command::{
    CommandEnv, PeerCommand, PeerCommandRuns, PeerCommands, PostStartup, PostStartups,
};
pub use fdb::{Fdb, FdbKey, Remote};
pub use ike::{IkeConnection, IkeConnections, IkeDaemons, IkeKey, Psk};
pub use link::{Beneath, Ipip, Link, LinkKind, Links, Mark, Tun, Vxlan, Wireguard};
pub use neigh::{NeighKey, Neighs};
pub use next_hop::{NextHop, NextHops};
pub use packet_loop::{PacketLoop, PacketLoops, WgKeys};
pub use route::{
    BOOT_PROTOCOL, KERNEL_PROTOCOL, ROUTE_PROTOCOL, Route, RouteKey, RouteTo, Routes,
    default_metric,
};
pub use tunnel_peer::{TunnelPeer, TunnelPeers};
pub use tunnel_route::{TunnelRouteKey, TunnelRoutes};
pub use wg_device::{WgDevice, WgDevices};
pub use wg_peer::{WgPeer, WgPeerKey, WgPeers};
pub use xfrm_policy::{
    IPSEC_PRIORITY, IPSEC_REQUEST, XfrmDir, XfrmPolicies, XfrmPolicy, XfrmPolicyKey,
};

use crate::IfName;
use crate::table::{Audit, Retry, Table};

/// A kind of kernel object.
pub trait Kind {
    /// Names the object.
    type Key: Copy + Ord + Hash + fmt::Debug;
    /// What the object holds.
    type Value: Clone + Eq + fmt::Debug;

    /// The kind's name in log lines and metrics.
    const NAME: &'static str;

    /// Whether the deletion of an object that holds one value leaves another's with the same key alone.
    /// Only then is something deleted of which it is not known whether it is there.
    const DELETES_ONLY_ITSELF: bool = true;

    /// Returns whether an object that holds `observed` is as `desired` asks. Settings that the desired
    /// value leaves open are no difference.
    fn is_met_by(desired: &Self::Value, observed: &Self::Value) -> bool {
        desired == observed
    }

    /// Returns whether an object that holds `old` can be changed to `new` where it is; otherwise it
    /// is deleted and recreated.
    fn in_place(_old: &Self::Value, _new: &Self::Value) -> bool {
        true
    }

    /// Returns the device that the object is, or is on, as far as the object itself says.
    fn device(key: &Self::Key, value: &Self::Value) -> Option<IfName>;

    /// Writes the command that creates the object.
    fn put(f: &mut fmt::Formatter<'_>, key: &Self::Key, value: &Self::Value) -> fmt::Result;

    /// Writes the command that deletes the object.
    fn del(f: &mut fmt::Formatter<'_>, key: &Self::Key, value: &Self::Value) -> fmt::Result;
}

/// Lists the kinds. For each: the variant of [`Object`], the type that implements [`Kind`], and its
/// table's name.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $kind:ident in $table:ident;)*) => {
        /// Any kernel object: key and value.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Object {
            $($(#[$doc])* $name(<$kind as Kind>::Key, <$kind as Kind>::Value),)*
        }

        /// What names a kernel object among all.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ObjectKey {
            $($(#[$doc])* $name(<$kind as Kind>::Key),)*
        }

        impl Object {
            /// The names of all kinds, devices first.
            pub const KINDS: &[&str] = &[$($kind::NAME),*];

            /// Returns what names the object.
            pub fn key(&self) -> ObjectKey {
                match self {
                    $(Object::$name(key, _) => ObjectKey::$name(*key),)*
                }
            }

            /// Returns the kind's name, for log lines and metrics.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Object::$name(..) => $kind::NAME,)*
                }
            }

            /// Returns the device that the object is, or is on, as far as the object itself says: a
            /// route through a next-hop object does not.
            pub fn device(&self) -> Option<IfName> {
                match self {
                    $(Object::$name(key, value) => $kind::device(key, value),)*
                }
            }

            /// Returns whether both have the same kind and key.
            pub fn same_key(&self, other: &Object) -> bool {
                match (self, other) {
                    $((Object::$name(a, _), Object::$name(b, _)) => a == b,)*
                    _ => false,
                }
            }

            pub(crate) fn put(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Object::$name(key, value) => $kind::put(f, key, value),)*
                }
            }

            pub(crate) fn del(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Object::$name(key, value) => $kind::del(f, key, value),)*
                }
            }
        }

        /// One table for each kind, in the order in which objects are created.
        #[derive(Default)]
        pub(crate) struct Tables {
            $(pub(crate) $table: Table<$kind>,)*
        }

        /// The position of each kind in the list.
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        enum Place {
            $($name,)*
        }

        impl Tables {
            /// Claims the object for `owner`; see [`Table::want`].
            pub(crate) fn want(&mut self, object: Object, owner: u32) -> Wanted {
                match object {
                    $(Object::$name(key, value) => {
                        let wanted = self.$table.want(key, value, owner);
                        Wanted { handle: Handle::new(Place::$name as u32, wanted.slot), won_from: wanted.won_from, lost: wanted.lost }
                    })*
                }
            }

            /// Passes the table of `handle` to `f`.
            pub(crate) fn with<T>(&mut self, handle: Handle, f: impl FnOnce(&mut dyn Slots, u32) -> T) -> T {
                let place = handle.place();
                $(if place == Place::$name as u32 {
                    return f(&mut self.$table, handle.slot());
                })*
                unreachable!("a handle is made by `want` alone")
            }

            /// Returns the object of `handle` as it is desired.
            pub(crate) fn object(&self, handle: Handle) -> Option<Object> {
                let place = handle.place();
                $(if place == Place::$name as u32 {
                    return self.$table.at(handle.slot()).map(|(key, value)| Object::$name(*key, value.clone()));
                })*
                None
            }

            /// Calls `f` on every table.
            pub(crate) fn each(&mut self, mut f: impl FnMut(&mut dyn Slots)) {
                $(f(&mut self.$table);)*
            }

            /// Folds every table into one value.
            pub(crate) fn all(&self) -> [&dyn Slots; [$(Place::$name),*].len()] {
                [$(&self.$table),*]
            }

            /// The kernel was seen to hold this.
            pub(crate) fn observe(&mut self, object: Object) {
                match object {
                    $(Object::$name(key, value) => self.$table.observe(key, value),)*
                }
            }

            /// The kernel did as it was asked, and holds this.
            pub(crate) fn acknowledge(&mut self, object: Object) {
                match object {
                    $(Object::$name(key, value) => self.$table.acknowledge(key, value),)*
                }
            }

            /// A notification says that the kernel holds this; see [`Table::notify`].
            pub(crate) fn notify(&mut self, object: Object) -> bool {
                match object {
                    $(Object::$name(key, value) => self.$table.notify(key, Some(value)),)*
                }
            }

            /// A notification says that the kernel does not hold this any more.
            pub(crate) fn notify_gone(&mut self, object: &Object) -> bool {
                match object {
                    $(Object::$name(key, _) => self.$table.notify(*key, None),)*
                }
            }

            /// The kernel deleted this for us.
            pub(crate) fn deleted(&mut self, object: &Object) {
                match object {
                    $(Object::$name(key, _) => self.$table.gone(key),)*
                }
            }

            /// What this object needs is being done.
            pub(crate) fn set_under_way(&mut self, object: &Object) {
                match object {
                    $(Object::$name(key, _) => self.$table.set_under_way(key),)*
                }
            }

            /// Returns whether something is desired under the object's key.
            pub(crate) fn is_desired(&self, object: &Object) -> bool {
                match object {
                    $(Object::$name(key, _) => self.$table.desired(key).is_some(),)*
                }
            }

            /// Returns whether the kernel was last seen to hold what meets this, desired or not.
            pub(crate) fn holds(&self, object: &Object) -> bool {
                match object {
                    $(Object::$name(key, value) => {
                        let observed = self.$table.observed(key);
                        observed.is_some_and(|observed| <$kind as Kind>::is_met_by(value, observed))
                    })*
                }
            }

            /// Does not offer what this object needs for now.
            pub(crate) fn hold(&mut self, object: &Object) {
                match object {
                    $(Object::$name(key, _) => self.$table.hold(key),)*
                }
            }

            /// The kernel refused to do what this object needs.
            pub(crate) fn refuse(&mut self, object: &Object, refusal: Retry) {
                match object {
                    $(Object::$name(key, _) => self.$table.refuse(key, refusal),)*
                }
            }
        }

        /// Collects what one table has to write or delete.
        pub(crate) trait Offers: Kind + Sized {
            /// Makes an object of key and value.
            fn object(key: Self::Key, value: Self::Value) -> Object;
        }

        $(impl Offers for $kind {
            fn object(key: Self::Key, value: Self::Value) -> Object {
                Object::$name(key, value)
            }
        })*
    };
}

kinds! {
    /// A device.
    Link: Links in links;
    /// An address.
    Addr: Addrs in addrs;
    /// A packet loop.
    PacketLoop: PacketLoops in packet_loops;
    /// A route inside a packet loop.
    TunnelRoute: TunnelRoutes in tunnel_routes;
    /// A peer of a packet loop that encrypts.
    TunnelPeer: TunnelPeers in tunnel_peers;
    /// The key and port of a WireGuard device.
    WgDevice: WgDevices in wg_devices;
    /// A peer of a WireGuard device.
    WgPeer: WgPeers in wg_peers;
    /// A neighbour entry.
    Neigh: Neighs in neighs;
    /// A forwarding-database entry.
    Fdb: Fdb in fdb;
    /// A next-hop object.
    NextHop: NextHops in hops;
    /// A route.
    Route: Routes in routes;
    /// An IPsec policy.
    XfrmPolicy: XfrmPolicies in xfrm_policies;
    /// That charon runs.
    IkeDaemon: IkeDaemons in ike_daemons;
    /// A connection of charon.
    IkeConnection: IkeConnections in ike_connections;
    /// A command that prepares this node.
    PostStartup: PostStartups in post_startups;
    /// A command for a peer.
    PeerCommand: PeerCommandRuns in peer_commands;
}

/// Names one object of an owner in 4 bytes: its kind and its place in that kind's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle(u32);

impl Handle {
    /// Names nothing: the end of a list.
    pub(crate) const NONE: Handle = Handle(u32::MAX);
    const SLOT_BITS: u32 = 28;

    fn new(place: u32, slot: u32) -> Handle {
        Handle(place << Self::SLOT_BITS | slot)
    }

    fn place(self) -> u32 {
        self.0 >> Self::SLOT_BITS
    }

    fn slot(self) -> u32 {
        self.0 & ((1 << Self::SLOT_BITS) - 1)
    }
}

/// What became of a claim.
pub(crate) struct Wanted {
    pub(crate) handle: Handle,
    /// The owner that had the key until now and has to wait.
    pub(crate) won_from: Option<u32>,
    /// Another owner keeps the key.
    pub(crate) lost: bool,
}

/// What a table does without knowing its kind.
pub(crate) trait Slots {
    /// Ends the owner's claim; see [`Table::release`]. Returns the owner that now has the key.
    fn release(&mut self, slot: u32) -> Option<u32>;
    /// Gives up the claims for which `owner` waits.
    fn stop_waiting(&mut self, owner: u32);
    fn set_next(&mut self, slot: u32, next: Handle);
    fn next(&self, slot: u32) -> Handle;
    fn set_kept(&mut self, slot: u32, kept: bool) -> bool;
    fn is_held(&self, slot: u32) -> bool;
    fn refusal(&self, slot: u32) -> Option<&Retry>;
    fn retry_refused(&mut self);
    fn release_held(&mut self);
    fn audit(&mut self, audit: Audit) -> usize;
    fn refused_len(&self) -> usize;
    fn missing_len(&self) -> usize;
    fn stray_len(&self) -> usize;
    fn contested(&self) -> Vec<(u32, u32, String)>;
}
