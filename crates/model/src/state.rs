//! All that this node's kernel should hold and does hold: one [`crate::Table`] for each kind of object.
//!
//! Desired objects have owners. An owner says all that it wants in one call; what it wanted before and
//! does not name any more is no longer desired. So nobody has to know what an earlier configuration
//! or an earlier lease asked for.
//!
//! Next-hop objects are decided here: a backend says "through this gateway", and where the kernel has
//! next-hop objects each such route on one of our own devices gets one. (IPv4 route insertion is quadratic
//! in the routes that share a device; next-hop objects avoid it.)

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use ipnet::IpNet;

use crate::object::{
    Handle, NextHop, Object, Offers, Route, RouteKey, RouteTo, Slots, Tables, Wanted,
};
use crate::table::{Audit, Change, Retry, Table};
use crate::{IfName, Op};

/// Who wants an object. Of two owners that want the same key the one listed first has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// This node: its devices and their addresses.
    Node,
    /// A backend in use, while the network changes from one to another there are several: its devices and
    /// their addresses.
    Generation(Slot),
    /// The network as a whole: routes that lead nowhere.
    Network,
    /// One peer.
    Peer(PeerId),
}

/// Names a backend in use for as long as it is: a small number, reused later.
pub type Slot = u8;

/// How many backends can be in use at once.
pub const SLOTS: Slot = 8;

/// Names a peer for as long as it exists; the roster's position of its lease.
pub type PeerId = u32;

/// The owners' numbers begin with this node and the network.
const FIRST_SLOT: u32 = 2;
const FIRST_PEER: u32 = FIRST_SLOT + SLOTS as u32;

impl Owner {
    fn number(self) -> u32 {
        match self {
            Owner::Node => 0,
            Owner::Network => 1,
            Owner::Generation(slot) => FIRST_SLOT + u32::from(slot % SLOTS),
            Owner::Peer(id) => id.saturating_add(FIRST_PEER),
        }
    }

    fn from_number(number: u32) -> Owner {
        match number {
            0 => Owner::Node,
            1 => Owner::Network,
            slot @ FIRST_SLOT..FIRST_PEER => Owner::Generation((slot - FIRST_SLOT) as Slot % SLOTS),
            peer => Owner::Peer(peer - FIRST_PEER),
        }
    }
}

/// How far the kernel is with what one owner wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The kernel holds all of it.
    Installed,
    /// Something is still to be written, and was not refused.
    Pending,
    /// The kernel refused this object.
    Refused(Refused),
}

/// An object that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The operation, as a command.
    pub op: String,
    /// Why, since when and how often.
    pub refusal: Retry,
}

/// A key that two owners want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner that has it.
    pub holder: Owner,
    /// The owner that does not get it.
    pub loser: Owner,
    /// The object, as the command that creates it for its holder.
    pub object: String,
}

/// Desired and observed kernel objects of every kind.
#[derive(Default)]
pub struct KernelState {
    tables: Tables,
    /// The first object of each owner, by the owner's number; the rest of the list is in the tables.
    owners: Vec<Handle>,
    /// Whether routes on our devices go through next-hop objects.
    next_hops: bool,
    /// Whether packets between nodes must be encrypted.
    encrypted: bool,
    /// Our own devices; the only ones whose routes get next-hop objects.
    devices: Vec<IfName>,
    /// Ids that next-hop objects of other programs have.
    taken: BTreeSet<u32>,
}

impl KernelState {
    /// Returns a state in which nothing is desired and nothing observed. With `next_hops`, routes
    /// through gateways on `devices` are written by way of next-hop objects.
    pub fn new(next_hops: bool, devices: Vec<IfName>) -> KernelState {
        KernelState {
            next_hops,
            devices,
            ..KernelState::default()
        }
    }

    /// Sets which devices are our own. Takes effect for objects that are set from now on.
    pub fn set_devices(&mut self, devices: Vec<IfName>) {
        self.devices = devices;
    }

    /// Sets whether packets between nodes must be encrypted. Then a route that is not desired is deleted at once, even
    /// while nothing else may be: it may lead packets out of this node as they are.
    pub fn set_encrypted(&mut self, encrypted: bool) {
        self.encrypted = encrypted;
    }

    /// Makes `objects` all that `owner` wants. What it wanted before and is not among them is no
    /// longer desired.
    pub fn set(&mut self, owner: Owner, objects: impl IntoIterator<Item = Object>) {
        let number = owner.number();
        self.tables.each(|table| table.stop_waiting(number));
        let before = self.take_list(number);
        let mut list = Handle::NONE;
        for object in objects {
            self.want(object, number, &mut list);
        }
        self.put_list(number, list);
        for handle in before {
            if !self
                .tables
                .with(handle, |table, slot| table.set_kept(slot, false))
            {
                self.release(handle);
            }
        }
        self.unmark(number);
    }

    /// Ends the claims of `owner`: it wants nothing any more.
    pub fn drop_owner(&mut self, owner: Owner) {
        self.set(owner, []);
    }

    /// Claims one object, and the next-hop object that it needs.
    fn want(&mut self, object: Object, owner: u32, list: &mut Handle) {
        let object = match object {
            Object::Route(
                key,
                Route {
                    to: RouteTo::Gateway(hop),
                    protocol,
                },
            ) if self.indirect(&hop) => {
                let id = self.next_hop_id(&key, owner);
                self.claim(Object::NextHop(id, hop), owner, list);
                let to = RouteTo::NextHopId(id);
                Object::Route(key, Route { to, protocol })
            }
            other => other,
        };
        self.claim(object, owner, list);
    }

    fn claim(&mut self, object: Object, owner: u32, list: &mut Handle) {
        let Wanted {
            handle,
            won_from,
            lost,
        } = self.tables.want(object, owner);
        if lost {
            return;
        }
        if let Some(loser) = won_from {
            self.unlink(loser, handle);
        }
        let named_twice = self
            .tables
            .with(handle, |table, slot| table.set_kept(slot, true));
        if !named_twice {
            let next = std::mem::replace(list, handle);
            self.tables
                .with(handle, |table, slot| table.set_next(slot, next));
        }
    }

    fn release(&mut self, handle: Handle) {
        if let Some(heir) = self.tables.with(handle, |table, slot| table.release(slot)) {
            let first = self
                .owners
                .get(heir as usize)
                .copied()
                .unwrap_or(Handle::NONE);
            self.tables
                .with(handle, |table, slot| table.set_next(slot, first));
            self.put_list(heir, handle);
        }
    }

    /// Takes the owner's list out: its objects, in any order.
    fn take_list(&mut self, owner: u32) -> Vec<Handle> {
        let first = self.owners.get_mut(owner as usize);
        let mut at = first.map_or(Handle::NONE, |first| std::mem::replace(first, Handle::NONE));
        let mut list = Vec::new();
        while at != Handle::NONE {
            list.push(at);
            at = self.tables.with(at, |table, slot| table.next(slot));
        }
        list
    }

    fn put_list(&mut self, owner: u32, first: Handle) {
        let at = owner as usize;
        if first != Handle::NONE && self.owners.len() <= at {
            self.owners.resize(at + 1, Handle::NONE);
        }
        if let Some(place) = self.owners.get_mut(at) {
            *place = first;
        }
    }

    /// Takes one object out of an owner's list.
    fn unlink(&mut self, owner: u32, handle: Handle) {
        let list = self.take_list(owner);
        let mut first = Handle::NONE;
        for kept in list.into_iter().filter(|kept| *kept != handle) {
            let next = std::mem::replace(&mut first, kept);
            self.tables
                .with(kept, |table, slot| table.set_next(slot, next));
        }
        self.put_list(owner, first);
    }

    fn unmark(&mut self, owner: u32) {
        let mut at = self
            .owners
            .get(owner as usize)
            .copied()
            .unwrap_or(Handle::NONE);
        while at != Handle::NONE {
            at = self.tables.with(at, |table, slot| {
                table.set_kept(slot, false);
                table.next(slot)
            });
        }
    }

    /// A full look at the kernel showed this.
    pub fn observe(&mut self, object: Object) {
        self.tables.observe(object);
    }

    /// A notification says that the kernel holds this; see [`Table::notify`]. Returns whether there is
    /// work to do about it.
    pub fn notify(&mut self, object: Object) -> bool {
        self.tables.notify(object)
    }

    /// A notification says that the kernel does not hold this any more. Returns whether there is work to
    /// do about it.
    pub fn notify_gone(&mut self, object: &Object) -> bool {
        self.tables.notify_gone(object)
    }

    /// Begins a full look at the kernel; see [`Table::begin_audit`].
    pub fn begin_audit(&mut self) {
        self.tables.each(|table| {
            table.audit(Audit::Begin);
        });
    }

    /// Ends a full look at the kernel; returns how many objects turned out to be missing.
    pub fn end_audit(&mut self) -> usize {
        let mut missing = 0;
        self.tables.each(|table| missing += table.audit(Audit::End));
        missing
    }

    /// Sets which ids of next-hop objects other programs use, as a full look showed them. A route of
    /// ours whose id is among them gets another one, unless the kernel leads it through that id: then
    /// the object was ours, somebody changed it, and it is written again.
    pub fn set_taken_ids(&mut self, mut taken: BTreeSet<u32>) {
        if taken.is_empty() && self.taken.is_empty() {
            return;
        }
        let ids = self
            .tables
            .routes
            .held()
            .filter_map(|route| match route.to {
                RouteTo::NextHopId(id) => Some(id),
                _ => None,
            });
        let in_use: HashSet<u32> = ids.collect();
        taken.retain(|id| !in_use.contains(id));
        let ours: Vec<u32> = taken
            .iter()
            .copied()
            .filter(|id| self.tables.hops.desired(id).is_some())
            .collect();
        self.taken = taken;
        ours.into_iter().for_each(|id| self.move_hop(id));
    }

    /// Gives the route that uses the id another one.
    fn move_hop(&mut self, id: u32) {
        let Some(number) = self.tables.hops.owner(&id) else {
            return;
        };
        let list = self.list(number);
        let objects: Vec<Object> = list
            .iter()
            .filter_map(|at| self.tables.object(*at))
            .collect();
        let hops: Vec<(u32, NextHop)> = objects
            .iter()
            .filter_map(|object| match object {
                Object::NextHop(id, hop) => Some((*id, *hop)),
                _ => None,
            })
            .collect();
        // As the owner asked: routes through gateways, without the objects made of them.
        let asked = objects.into_iter().filter_map(|object| match object {
            Object::NextHop(..) => None,
            Object::Route(
                key,
                Route {
                    to: RouteTo::NextHopId(id),
                    protocol,
                },
            ) => {
                let (_, hop) = hops.iter().find(|(of, _)| *of == id)?;
                let to = RouteTo::Gateway(*hop);
                Some(Object::Route(key, Route { to, protocol }))
            }
            other => Some(other),
        });
        let asked: Vec<Object> = asked.collect();
        self.set(Owner::from_number(number), asked);
    }

    fn list(&mut self, owner: u32) -> Vec<Handle> {
        let mut at = self
            .owners
            .get(owner as usize)
            .copied()
            .unwrap_or(Handle::NONE);
        let mut list = Vec::new();
        while at != Handle::NONE {
            list.push(at);
            at = self.tables.with(at, |table, slot| table.next(slot));
        }
        list
    }

    /// Returns the next operations, at most about `limit`, in an order that the kernel can follow:
    /// routes that lead nowhere, forwarding entries that must go, then everything that must be there from the device up,
    /// then next-hop objects, addresses and devices that must go (the last address of a device takes
    /// its routes along, so the new ones come first). Deletions only if `may_delete`, but for routes where packets must
    /// be encrypted; an object that must be recreated is replaced in any case.
    ///
    /// A next-hop object is deleted only once no route that is to be replaced uses it: the route that
    /// takes that one's place may be refused.
    pub fn batch(&mut self, limit: usize, may_delete: bool) -> Vec<Op> {
        let mut ops = Vec::new();
        let tables = &mut self.tables;
        // Nothing may leave by another route in the place of one that is about to be deleted.
        let leads_nowhere = |_: &RouteKey, route: &Route| route.to == RouteTo::Blackhole;
        puts(&mut tables.xfrm_policies, limit, &mut ops);
        puts_where(&mut tables.routes, limit, &mut ops, leads_nowhere);
        if may_delete || self.encrypted {
            dels(&mut tables.routes, limit, &mut ops, |_, _| true);
        }
        if may_delete {
            dels(&mut tables.peer_commands, limit, &mut ops, |_, _| true);
            dels(&mut tables.ike_connections, limit, &mut ops, |_, _| true);
            dels(&mut tables.tunnel_routes, limit, &mut ops, |_, _| true);
            dels(&mut tables.neighs, limit, &mut ops, |_, _| true);
            dels(&mut tables.fdb, limit, &mut ops, |_, _| true);
        }
        puts(&mut tables.links, limit, &mut ops);
        puts(&mut tables.addrs, limit, &mut ops);
        puts(&mut tables.packet_loops, limit, &mut ops);
        puts(&mut tables.tunnel_routes, limit, &mut ops);
        puts(&mut tables.tunnel_peers, limit, &mut ops);
        puts(&mut tables.wg_devices, limit, &mut ops);
        puts(&mut tables.wg_peers, limit, &mut ops);
        if may_delete {
            // After the peer that has the same subnets under a new key, which takes them over.
            dels(&mut tables.wg_peers, limit, &mut ops, |_, _| true);
            dels(&mut tables.tunnel_peers, limit, &mut ops, |_, _| true);
        }
        puts(&mut tables.neighs, limit, &mut ops);
        puts(&mut tables.fdb, limit, &mut ops);
        puts(&mut tables.hops, limit, &mut ops);
        puts_where(&mut tables.routes, limit, &mut ops, |key, route| {
            !leads_nowhere(key, route)
        });
        puts(&mut tables.ike_daemons, limit, &mut ops);
        puts(&mut tables.ike_connections, limit, &mut ops);
        puts(&mut tables.post_startups, limit, &mut ops);
        puts(&mut tables.peer_commands, limit, &mut ops);
        if may_delete {
            dels(&mut tables.post_startups, limit, &mut ops, |(), _| true);
            dels(&mut tables.ike_daemons, limit, &mut ops, |(), _| true);
            dels(&mut tables.xfrm_policies, limit, &mut ops, |_, _| true);
            if tables.hops.stray_len() > 0 {
                let used: HashSet<u32> = tables
                    .routes
                    .differing()
                    .filter_map(|route| match route.to {
                        RouteTo::NextHopId(id) => Some(id),
                        _ => None,
                    })
                    .collect();
                dels(&mut tables.hops, limit, &mut ops, |id, _| {
                    !used.contains(id)
                });
            }
            dels(&mut tables.packet_loops, limit, &mut ops, |_, _| true);
            dels(&mut tables.wg_devices, limit, &mut ops, |_, _| true);
            dels(&mut tables.addrs, limit, &mut ops, |_, ()| true);
            dels(&mut tables.links, limit, &mut ops, |_, _| true);
        }
        ops
    }

    /// The kernel acknowledged `op`.
    pub fn done(&mut self, op: Op) {
        match op {
            Op::Put(object) => self.tables.acknowledge(object),
            Op::Del(object) => self.tables.deleted(&object),
        }
    }

    /// `op` was begun and takes a while: it is not offered again until something about its object changes.
    pub fn set_under_way(&mut self, op: &Op) {
        self.tables.set_under_way(op.object());
    }

    /// The kernel refused `op`, with this errno and for this reason. It is not offered again until
    /// [`KernelState::retry_refused`], or until something about its object changes.
    pub fn refused(&mut self, op: &Op, errno: i32, reason: String, now: Instant) {
        let refusal = Retry {
            errno,
            reason,
            since: now,
            tries: 1,
        };
        self.tables.refuse(op.object(), refusal);
        if let Op::Put(Object::NextHop(id, _)) = op
            && errno == EEXIST
        {
            // Another program's, created since the last full look.
            self.taken.insert(*id);
            self.move_hop(*id);
        }
    }

    /// Returns whether something is desired under the object's key.
    pub fn is_desired(&self, object: &Object) -> bool {
        self.tables.is_desired(object)
    }

    /// Does not offer what the object needs until [`KernelState::release_held`].
    pub fn hold(&mut self, object: &Object) {
        self.tables.hold(object);
    }

    /// Offers again what was held.
    pub fn release_held(&mut self) {
        self.tables.each(|table| table.release_held());
    }

    /// Returns whether the device is there as it should be.
    pub fn has_device(&self, name: &IfName) -> bool {
        self.tables.links.is_as_desired(name)
    }

    /// Offers again what the kernel refused.
    pub fn retry_refused(&mut self) {
        self.tables.each(|table| table.retry_refused());
    }

    /// Returns how many operations the kernel refused and are still needed.
    pub fn refused_len(&self) -> usize {
        self.sum(|table| table.refused_len())
    }

    /// Returns whether the kernel holds what it should, and nothing else.
    pub fn in_sync(&self) -> bool {
        self.sum(|table| table.missing_len() + table.stray_len()) == 0
    }

    /// Returns whether every device that should be there is, as it should be, with its addresses and with what
    /// carries its packets.
    pub fn devices_in_sync(&self) -> bool {
        // Refused addresses count too: in sync is what the kernel holds, not what is being tried.
        self.tables.links.missing_len() == 0
            && self.tables.addrs.missing_len() == 0
            && self.tables.packet_loops.missing_len() == 0
            && self.tables.wg_devices.missing_len() == 0
            && self.is_prepared()
            && self.has_ike_daemon()
            && self.tables.xfrm_policies.missing_len() == 0
    }

    /// Returns whether charon runs, if it is needed.
    pub fn has_ike_daemon(&self) -> bool {
        self.tables.ike_daemons.missing_len() == 0
    }

    /// Returns whether the command that prepares this node has ended with success, if there is one.
    pub fn is_prepared(&self) -> bool {
        self.tables.post_startups.missing_len() == 0
    }

    /// Returns how many routes are missing that should be there.
    pub fn routes_missing(&self) -> usize {
        self.tables.routes.missing_len()
    }

    /// Returns the number of routes that should be there.
    pub fn routes_desired(&self) -> usize {
        self.tables.routes.desired_len()
    }

    /// Returns how far the kernel is with what `owner` wants.
    pub fn progress(&mut self, owner: Owner) -> Progress {
        let mut progress = Progress::Installed;
        for handle in self.list(owner.number()) {
            let refusal = self.tables.with(handle, |table, slot| {
                (!table.is_held(slot)).then(|| table.refusal(slot).cloned())
            });
            match refusal {
                Some(Some(refusal)) => {
                    let object = self.tables.object(handle);
                    let op = object.map(|object| Op::Put(object).to_string());
                    let op = op.unwrap_or_default();
                    return Progress::Refused(Refused { op, refusal });
                }
                Some(None) => progress = Progress::Pending,
                None => {}
            }
        }
        progress
    }

    /// Returns the keys that more than one owner wants.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let tables = self.tables.all();
        let contested = tables.iter().flat_map(|table| table.contested());
        contested
            .map(|(holder, loser, object)| Conflict {
                holder: Owner::from_number(holder),
                loser: Owner::from_number(loser),
                object,
            })
            .collect()
    }

    fn sum(&self, of: impl Fn(&dyn Slots) -> usize) -> usize {
        self.tables.all().iter().map(|table| of(*table)).sum()
    }

    fn indirect(&self, hop: &NextHop) -> bool {
        self.next_hops && self.devices.contains(&hop.dev)
    }

    /// Returns the id of the next-hop object for a route: the one it has, else one derived from the
    /// destination, so that a restart finds its own objects under the ids it would give them, and
    /// two networks on one host do not meet. Ids start at 2^30, far above those that the kernel
    /// hands out.
    fn next_hop_id(&self, key: &RouteKey, owner: u32) -> u32 {
        let routes = &self.tables.routes;
        if let Some(Route {
            to: RouteTo::NextHopId(id),
            ..
        }) = routes.desired(key)
            && routes.owner(key) == Some(owner)
            && !self.taken.contains(id)
        {
            return *id;
        }
        let mut id = derived_id(&key.dst);
        while self.tables.hops.desired(&id).is_some() || self.taken.contains(&id) {
            id = id.wrapping_add(1).max(FIRST_ID);
        }
        id
    }
}

/// The `errno` of what exists already.
const EEXIST: i32 = 17;

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

fn puts<K: Offers>(table: &mut Table<K>, limit: usize, ops: &mut Vec<Op>) {
    puts_where(table, limit, ops, |_, _| true);
}

fn puts_where<K: Offers>(
    table: &mut Table<K>,
    limit: usize,
    ops: &mut Vec<Op>,
    may: impl Fn(&K::Key, &K::Value) -> bool,
) {
    let left = limit.saturating_sub(ops.len());
    table.puts(left, may, |key, change| match change {
        Change::Put(value) => ops.push(Op::Put(K::object(key, value))),
        Change::Recreate { old, new } => {
            ops.push(Op::Del(K::object(key, old)));
            ops.push(Op::Put(K::object(key, new)));
        }
        Change::Del(_) => {}
    });
}

fn dels<K: Offers>(
    table: &mut Table<K>,
    limit: usize,
    ops: &mut Vec<Op>,
    may: impl Fn(&K::Key, &K::Value) -> bool,
) {
    let left = limit.saturating_sub(ops.len());
    table.dels(left, may, |key, change| match change {
        Change::Del(value) => ops.push(Op::Del(K::object(key, value))),
        Change::Put(_) | Change::Recreate { .. } => {}
    });
}

#[cfg(test)]
mod tests;
