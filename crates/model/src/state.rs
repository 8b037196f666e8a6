//! All that this node's kernel should hold and does hold: one [`Table`] for each kind of object.
//!
//! Next-hop objects are an affair of this module: a backend says "through this gateway", and where
//! the kernel has next-hop objects each such route on one of our own devices gets one. (IPv4 route
//! insertion is quadratic in the routes that share a device; next-hop objects avoid it.)

use std::net::IpAddr;

use ipnet::IpNet;

use crate::Op;
use crate::kernel::{
    AddrKey, FdbKey, IfName, Link, Mac, NeighKey, NextHop, Object, Route, RouteKey, RouteTo,
};
use crate::table::{Change, Kind, Table};

macro_rules! kinds {
    ($($name:ident: $key:ty => $value:ty;)*) => {
        $(struct $name;
        impl Kind for $name {
            type Key = $key;
            type Value = $value;
        })*
    };
}

kinds! {
    Addrs: AddrKey => ();
    Neighs: NeighKey => Mac;
    Fdb: FdbKey => IpAddr;
    NextHops: u32 => NextHop;
    Routes: RouteKey => Route;
}

struct Links;
impl Kind for Links {
    type Key = IfName;
    type Value = Link;
    fn in_place(old: &Link, new: &Link) -> bool {
        old.can_become(new)
    }
}

/// Desired and observed kernel objects of every kind.
#[derive(Default)]
pub struct KernelState {
    links: Table<Links>,
    addrs: Table<Addrs>,
    neighs: Table<Neighs>,
    fdb: Table<Fdb>,
    hops: Table<NextHops>,
    routes: Table<Routes>,
    /// Whether routes on our devices go through next-hop objects.
    next_hops: bool,
    /// Our own devices; the only ones whose routes get next-hop objects.
    devices: Vec<IfName>,
}

/// Runs `$body` with `$table` and `$key` bound to the table and key of `$object`.
macro_rules! with_table {
    ($self:ident, $object:expr, |$table:ident, $key:ident, $value:ident| $body:expr) => {
        match $object {
            Object::Link($key, $value) => {
                let $table = &mut $self.links;
                $body
            }
            Object::Addr($key) => {
                let ($table, $value) = (&mut $self.addrs, ());
                $body
            }
            Object::Neigh($key, $value) => {
                let $table = &mut $self.neighs;
                $body
            }
            Object::Fdb($key, $value) => {
                let $table = &mut $self.fdb;
                $body
            }
            Object::NextHop($key, $value) => {
                let $table = &mut $self.hops;
                $body
            }
            Object::Route($key, $value) => {
                let $table = &mut $self.routes;
                $body
            }
        }
    };
}

/// The same where the value does not matter.
macro_rules! with_key {
    ($self:ident, $object:expr, |$table:ident, $key:ident| $body:expr) => {
        match $object {
            Object::Link($key, _) => {
                let $table = &mut $self.links;
                $body
            }
            Object::Addr($key) => {
                let $table = &mut $self.addrs;
                $body
            }
            Object::Neigh($key, _) => {
                let $table = &mut $self.neighs;
                $body
            }
            Object::Fdb($key, _) => {
                let $table = &mut $self.fdb;
                $body
            }
            Object::NextHop($key, _) => {
                let $table = &mut $self.hops;
                $body
            }
            Object::Route($key, _) => {
                let $table = &mut $self.routes;
                $body
            }
        }
    };
}

impl KernelState {
    /// Nothing desired, nothing observed. With `next_hops`, routes through gateways on `devices`
    /// are written by way of next-hop objects.
    pub fn new(next_hops: bool, devices: Vec<IfName>) -> KernelState {
        KernelState {
            next_hops,
            devices,
            ..KernelState::default()
        }
    }

    /// The kernel should hold this.
    pub fn want(&mut self, object: Object) {
        match object {
            Object::Route(
                key,
                Route {
                    to: RouteTo::Gateway(hop),
                    protocol,
                },
            ) if self.indirect(&hop) => {
                let id = self.next_hop_id(&key);
                self.hops.want(id, hop);
                self.routes.want(
                    key,
                    Route {
                        to: RouteTo::NextHopId(id),
                        protocol,
                    },
                );
            }
            Object::Route(key, route) => {
                self.unwant_hop_of(&key);
                self.routes.want(key, route);
            }
            other => with_table!(self, other, |table, key, value| table.want(key, value)),
        }
    }

    /// The kernel should no longer hold this.
    pub fn unwant(&mut self, object: &Object) {
        if let Object::Route(key, _) = object {
            self.unwant_hop_of(key);
        }
        with_key!(self, object, |table, key| table.unwant(*key));
    }

    /// A full look at the kernel showed this.
    pub fn saw(&mut self, object: Object) {
        let object = self.as_asked(object);
        with_table!(self, object, |table, key, value| {
            table.saw(key, value);
        })
    }

    /// A notice says that the kernel holds this; see [`Table::heard`]. Returns whether there is
    /// work to do about it.
    pub fn heard(&mut self, object: Object) -> bool {
        let object = self.as_asked(object);
        with_table!(self, object, |table, key, value| table
            .heard(key, Some(value)))
    }

    /// A notice says that the kernel holds this no more. Returns whether there is work to do about it.
    pub fn heard_gone(&mut self, object: Object) -> bool {
        with_key!(self, object, |table, key| table.heard(key, None))
    }

    /// Begins a full look at the kernel; see [`Table::begin_audit`].
    pub fn begin_audit(&mut self) {
        self.links.begin_audit();
        self.addrs.begin_audit();
        self.neighs.begin_audit();
        self.fdb.begin_audit();
        self.hops.begin_audit();
        self.routes.begin_audit();
    }

    /// Ends a full look at the kernel; returns how many objects turned out to be missing.
    pub fn end_audit(&mut self) -> usize {
        self.links.end_audit()
            + self.addrs.end_audit()
            + self.neighs.end_audit()
            + self.fdb.end_audit()
            + self.hops.end_audit()
            + self.routes.end_audit()
    }

    /// The next operations, at most about `limit`, in an order that the kernel can follow:
    /// forwarding entries that must go, then everything that must be there from the device up,
    /// then next-hop objects, addresses and devices that must go (a next-hop object, and the last
    /// address of a device, take their routes along, so the new ones come first). Deletions only if `may_delete`; a device that must be
    /// made anew is replaced in any case.
    pub fn batch(&self, limit: usize, may_delete: bool) -> Vec<Op> {
        let mut ops = Vec::new();
        if may_delete {
            dels(&self.routes, limit, &mut ops, Object::Route);
            dels(&self.fdb, limit, &mut ops, Object::Fdb);
            dels(&self.neighs, limit, &mut ops, Object::Neigh);
        }
        puts(&self.links, limit, &mut ops, Object::Link);
        puts(&self.addrs, limit, &mut ops, |key, ()| Object::Addr(key));
        puts(&self.neighs, limit, &mut ops, Object::Neigh);
        puts(&self.fdb, limit, &mut ops, Object::Fdb);
        puts(&self.hops, limit, &mut ops, Object::NextHop);
        puts(&self.routes, limit, &mut ops, Object::Route);
        if may_delete {
            dels(&self.hops, limit, &mut ops, Object::NextHop);
            dels(&self.addrs, limit, &mut ops, |key, ()| Object::Addr(key));
            dels(&self.links, limit, &mut ops, Object::Link);
        }
        ops
    }

    /// The kernel acknowledged `op`.
    pub fn done(&mut self, op: Op) {
        match op {
            Op::Put(object) => self.saw(object),
            Op::Del(object) => with_key!(self, object, |table, key| table.del_done(key)),
        }
    }

    /// The kernel refused `op`: it is not offered again until [`KernelState::unpark`], or until
    /// something about its object changes.
    pub fn refused(&mut self, op: Op) {
        let (Op::Put(object) | Op::Del(object)) = op;
        with_key!(self, object, |table, key| table.park(key))
    }

    /// Offers again what the kernel refused.
    pub fn unpark(&mut self) {
        self.links.unpark();
        self.addrs.unpark();
        self.neighs.unpark();
        self.fdb.unpark();
        self.hops.unpark();
        self.routes.unpark();
    }

    /// How many operations the kernel refused and are still needed.
    pub fn parked(&self) -> usize {
        self.links.parked()
            + self.addrs.parked()
            + self.neighs.parked()
            + self.fdb.parked()
            + self.hops.parked()
            + self.routes.parked()
    }

    /// The kernel holds what it should.
    pub fn in_sync(&self) -> bool {
        self.links.in_sync()
            && self.addrs.in_sync()
            && self.neighs.in_sync()
            && self.fdb.in_sync()
            && self.hops.in_sync()
            && self.routes.in_sync()
    }

    /// Whether every device that should be there is, as it should be.
    pub fn devices_in_sync(&self) -> bool {
        self.links.in_sync() && self.addrs.puts().next().is_none()
    }

    /// Number of routes that should be there.
    pub fn routes_desired(&self) -> usize {
        self.routes.desired_len()
    }

    /// What was observed, without the settings that are left as they are: they are never wrong.
    fn as_asked(&self, mut object: Object) -> Object {
        if let Object::Link(name, link) = &mut object
            && let Some(wanted) = self.links.desired(name)
            && wanted.tx_checksum.is_none()
        {
            link.tx_checksum = None;
        }
        object
    }

    fn unwant_hop_of(&mut self, key: &RouteKey) {
        if let Some(Route {
            to: RouteTo::NextHopId(id),
            ..
        }) = self.routes.desired(key)
        {
            self.hops.unwant(*id);
        }
    }

    fn indirect(&self, hop: &NextHop) -> bool {
        self.next_hops && self.devices.contains(&hop.dev)
    }

    /// The id of the next-hop object for a route: the one it has, else one derived from the
    /// destination, so that a restart finds its own objects under the ids it would give them, and
    /// two networks on one host do not meet. Ids start at 2^30, far above those that the kernel
    /// hands out.
    fn next_hop_id(&self, key: &RouteKey) -> u32 {
        if let Some(Route {
            to: RouteTo::NextHopId(id),
            ..
        }) = self.routes.desired(key)
        {
            return *id;
        }
        let mut id = derived_id(&key.dst);
        while self.hops.desired(&id).is_some() {
            id = id.wrapping_add(1).max(FIRST_ID);
        }
        id
    }
}

/// The lowest id that we give to a next-hop object; see ADR 3.
pub const FIRST_ID: u32 = 1 << 30;

/// IPv4: the network address without its two lowest bits, which no subnet uses: one id a subnet.
/// IPv6: the subnet's number, its high bits folded in; one id a subnet in networks of up to 2^31.
fn derived_id(dst: &IpNet) -> u32 {
    match dst {
        IpNet::V4(net) => FIRST_ID | (net.network().to_bits() >> 2),
        IpNet::V6(net) => {
            let number = net.network().to_bits() >> (128 - net.prefix_len().max(1));
            let high =
                ((number >> 31) as u64 ^ (number >> 95) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (1 << 31) | ((number as u32 ^ (high >> 33) as u32) & 0x7fff_ffff)
        }
    }
}

fn puts<K: Kind>(
    table: &Table<K>,
    limit: usize,
    ops: &mut Vec<Op>,
    object: fn(K::Key, K::Value) -> Object,
) {
    for key in table.puts() {
        if ops.len() >= limit {
            return;
        }
        match table.change(key) {
            Some(Change::Put(value)) => ops.push(Op::Put(object(*key, value))),
            Some(Change::Anew { old, new }) => {
                ops.push(Op::Del(object(*key, old)));
                ops.push(Op::Put(object(*key, new)));
            }
            Some(Change::Del(_)) | None => {}
        }
    }
}

fn dels<K: Kind>(
    table: &Table<K>,
    limit: usize,
    ops: &mut Vec<Op>,
    object: fn(K::Key, K::Value) -> Object,
) {
    for key in table.dels() {
        if ops.len() >= limit {
            return;
        }
        if let Some(Change::Del(value)) = table.change(key) {
            ops.push(Op::Del(object(*key, value)));
        }
    }
}

#[cfg(test)]
mod tests;
