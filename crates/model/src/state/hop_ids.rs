//! The ids of our next-hop objects; see ADR 3.

use std::collections::{BTreeSet, HashSet};

use ipnet::IpNet;

use crate::object::{Route, RouteKey, RouteTo, Tables};

/// The lowest id that we give to a next-hop object.
pub const FIRST_ID: u32 = 1 << 30;

/// Ids that next-hop objects of other programs have.
#[derive(Default)]
pub(super) struct TakenIds(BTreeSet<u32>);

impl TakenIds {
    /// Makes `taken` the ids that other programs use, but for those through which the kernel leads a route of ours: then
    /// the object was ours, and somebody changed it. Returns the ids among them that objects of ours are to have.
    pub(super) fn set(&mut self, mut taken: BTreeSet<u32>, tables: &Tables) -> Vec<u32> {
        if taken.is_empty() && self.0.is_empty() {
            return Vec::new();
        }
        let ids = tables.routes.held().filter_map(|route| match route.to {
            RouteTo::NextHopId(id) => Some(id),
            _ => None,
        });
        let in_use: HashSet<u32> = ids.collect();
        taken.retain(|id| !in_use.contains(id));
        self.0 = taken;
        let ours = self.0.iter().copied();
        ours.filter(|id| tables.hops.desired(id).is_some())
            .collect()
    }

    /// Records that another program uses this id.
    pub(super) fn insert(&mut self, id: u32) {
        self.0.insert(id);
    }

    /// Returns the id of the next-hop object for a route: the one it has, else one derived from the
    /// destination, so that a restart finds its own objects under the ids it would give them, and
    /// two networks on one host do not meet. Ids start at 2^30, far above those that the kernel
    /// hands out.
    pub(super) fn choose(&self, key: &RouteKey, owner: u32, tables: &Tables) -> u32 {
        let routes = &tables.routes;
        if let Some(Route {
            to: RouteTo::NextHopId(id),
            ..
        }) = routes.desired(key)
            && routes.owner(key) == Some(owner)
            && !self.0.contains(id)
        {
            return *id;
        }
        let mut id = derived(&key.dst);
        while tables.hops.desired(&id).is_some() || self.0.contains(&id) {
            id = id.wrapping_add(1).max(FIRST_ID);
        }
        id
    }
}

/// IPv4: the network address without its two lowest bits, which no subnet uses: one id a subnet.
/// IPv6: the subnet's number, its high bits folded in; one id a subnet in networks of up to 2^31.
pub(super) fn derived(dst: &IpNet) -> u32 {
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
