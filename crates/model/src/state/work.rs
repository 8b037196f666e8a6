//! The order of the work: routes that lead nowhere, forwarding entries that must go, then everything that must be
//! there from the device up, then next-hop objects, addresses and devices that must go (the last address of a device
//! takes its routes along, so the new ones come first).

use std::collections::HashSet;

use crate::Op;
use crate::object::{Offers, Route, RouteKey, RouteTo, Slots, Tables};
use crate::table::{Change, Table};

/// Returns the next operations, at most about `limit`. Deletions only if `may_delete`, but for routes if `encrypted`.
///
/// A next-hop object is deleted only once no route that is to be replaced uses it: the route that
/// takes that one's place may be refused.
pub(super) fn next(
    tables: &mut Tables,
    limit: usize,
    may_delete: bool,
    encrypted: bool,
) -> Vec<Op> {
    let mut ops = Vec::new();
    // Nothing may leave by another route in the place of one that is about to be deleted.
    let leads_nowhere = |_: &RouteKey, route: &Route| route.to == RouteTo::Blackhole;
    puts(&mut tables.xfrm_policies, limit, &mut ops);
    puts_where(&mut tables.routes, limit, &mut ops, leads_nowhere);
    if may_delete || encrypted {
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
