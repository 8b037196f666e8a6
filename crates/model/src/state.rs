//! All that this node's kernel should hold and does hold: one [`crate::Table`] for each kind of object.
//!
//! Desired objects have owners. An owner says all that it wants in one call; what it wanted before and
//! does not name any more is no longer desired. So nobody has to know what an earlier configuration
//! or an earlier lease asked for.
//!
//! Next-hop objects are decided here: a backend says "through this gateway", and where the kernel has
//! next-hop objects each such route on one of our own devices gets one. (IPv4 route insertion is quadratic
//! in the routes that share a device; next-hop objects avoid it.)

mod hop_ids;
mod owner;
mod owner_lists;
mod work;

use std::collections::BTreeSet;
use std::time::Instant;

pub use self::hop_ids::FIRST_ID;
use self::hop_ids::TakenIds;
pub use self::owner::{Owner, PeerId, SLOTS, Slot};
use self::owner_lists::OwnerLists;
use crate::object::{Handle, NextHop, Object, Route, RouteTo, Slots, Tables, Wanted};
use crate::table::{Audit, Retry};
use crate::{IfName, Op};

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
    owners: OwnerLists,
    /// Whether routes on our devices go through next-hop objects.
    next_hops: bool,
    /// Whether packets between nodes must be encrypted.
    encrypted: bool,
    /// Our own devices; the only ones whose routes get next-hop objects.
    devices: Vec<IfName>,
    taken: TakenIds,
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
        let before = self.owners.take(number, &mut self.tables);
        let mut list = Handle::NONE;
        for object in objects {
            self.want(object, number, &mut list);
        }
        self.owners.put(number, list);
        for handle in before {
            if !self
                .tables
                .with(handle, |table, slot| table.set_kept(slot, false))
            {
                self.release(handle);
            }
        }
        self.owners.unmark(number, &mut self.tables);
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
                let id = self.taken.choose(&key, owner, &self.tables);
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
            self.owners.unlink(loser, handle, &mut self.tables);
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
            self.owners.link(heir, handle, &mut self.tables);
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
    pub fn set_taken_ids(&mut self, taken: BTreeSet<u32>) {
        let ours = self.taken.set(taken, &self.tables);
        ours.into_iter().for_each(|id| self.move_hop(id));
    }

    /// Gives the route that uses the id another one.
    fn move_hop(&mut self, id: u32) {
        let Some(number) = self.tables.hops.owner(&id) else {
            return;
        };
        let list = self.owners.get(number, &mut self.tables);
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

    /// Returns the next operations, at most about `limit`, in an order that the kernel can follow; see [`work`].
    /// Deletions only if `may_delete`, but for routes where packets must be encrypted; an object that must be
    /// recreated is replaced in any case.
    pub fn batch(&mut self, limit: usize, may_delete: bool) -> Vec<Op> {
        work::next(&mut self.tables, limit, may_delete, self.encrypted)
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

    /// Returns whether the kernel was last seen to hold what meets `object`, desired or not.
    pub fn holds(&self, object: &Object) -> bool {
        self.tables.holds(object)
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
        for handle in self.owners.get(owner.number(), &mut self.tables) {
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
}

/// The `errno` of what exists already.
const EEXIST: i32 = 17;

#[cfg(test)]
mod tests;
