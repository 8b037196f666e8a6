//! What others do to what is ours.

use dataplane::Scope;
use model::object::*;

use super::{ours, without};
use crate::objects::*;
use crate::script::*;

pub fn outside_deletions_are_told(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let mut steps = vec![apply(&all)];
    for object in all.iter().skip(1).rev() {
        if matches!(object, Object::NextHop(..)) {
            continue;
        }
        let rest = without(&all, std::slice::from_ref(object));
        steps.push(outside_del(object.clone()));
        // With the last IPv4 address go the IPv4 neighbours and the plain IPv4 routes.
        let takes = |o: &Object| {
            let lost = [
                neigh(OURS, "10.244.2.0", 2),
                via("10.244.2.0/24", "10.244.2.0"),
            ];
            *object == all[1] && lost.contains(o)
        };
        let rest: Vec<Object> = rest.into_iter().filter(|o| !takes(o)).collect();
        steps.push(holds(&rest));
        steps.push(apply(&all[1..]));
        steps.push(holds(&all));
    }
    if nh {
        steps.push(outside_del(next_hop(5, "10.244.2.0")));
        steps.push(holds(&without(
            &all,
            &[next_hop(5, "10.244.2.0"), by_id("10.244.2.0/24", 5)],
        )));
        steps.push(outside_del(next_hop(6, "fd44:0:0:2::")));
        steps.push(holds(&all[..all.len() - 4]));
    }
    (ours(), steps)
}

pub fn outside_changes_are_told(nh: bool) -> (Scope, Vec<Step>) {
    let mut all = mesh(nh);
    let mut steps = vec![apply(&all)];
    let mut change = |at: usize, object: Object| {
        all[at] = object.clone();
        steps.push(outside_put(object));
        steps.push(holds(&all));
    };
    change(3, neigh(OURS, "10.244.2.0", 8));
    change(4, neigh(OURS, "fd44:0:0:2::", 8));
    change(5, fdb(OURS, 2, "192.168.7.8"));
    if nh {
        change(6, next_hop(5, "10.244.2.1"));
        change(7, next_hop(6, "fd44:0:0:2::1"));
    }
    let own_checksums = vxlan_with_offload(Some(false));
    all[0] = link(OURS, own_checksums.clone());
    steps.push(Step::Alter(OURS, own_checksums));
    steps.push(holds(&all));
    let moved = Link {
        mac: Some(mac(8)),
        mtu: 1300,
        ..vxlan(1)
    };
    all[0] = link(OURS, moved.clone());
    steps.push(Step::Alter(OURS, moved));
    // With its address go a device's neighbours.
    all.drain(3..5);
    steps.push(holds(&all));
    for object in [
        addr(OURS, "10.9.9.9/32"),
        neigh(OURS, "10.9.9.8", 3),
        fdb(OURS, 9, "192.168.7.77"),
    ] {
        all.push(object.clone());
        steps.push(outside_put(object));
        steps.push(holds(&all));
    }
    (ours(), steps)
}

pub fn a_device_that_goes_down_takes_much_along(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let mut down = vec![
        link(
            OURS,
            Link {
                up: false,
                ..vxlan(1)
            },
        ),
        addr(OURS, "10.244.1.0/32"),
        fdb(OURS, 2, "192.168.7.2"),
    ];
    let steps = vec![
        apply(&all),
        Step::Up(OURS, false),
        holds(&down),
        Step::Up(OURS, true),
        holds(&{
            down[0] = link(OURS, vxlan(1));
            down
        }),
        apply(&all),
        holds(&all),
        Step::Quiet,
    ];
    (ours(), steps)
}

pub fn a_device_that_is_deleted_takes_all_along(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let steps = vec![
        apply(&all),
        outside_del(link(OURS, vxlan(1))),
        holds(&[]),
        apply(&all),
        holds(&all),
        Step::Quiet,
        // Made anew by somebody else, under the same name.
        outside_del(link(OURS, vxlan(1))),
        outside_put(link(OURS, vxlan(2))),
        outside_put(addr(OURS, "10.244.7.0/32")),
        holds(&[link(OURS, vxlan(2)), addr(OURS, "10.244.7.0/32")]),
    ];
    (ours(), steps)
}

pub fn the_interface_flaps(nh: bool) -> (Scope, Vec<Step>) {
    let on_host = [route(
        "10.244.3.0/24",
        RouteTo::Gateway(hop("192.168.7.9", IFACE, false)),
    )];
    let all = [mesh(nh), on_host.to_vec()].concat();
    let steps = vec![
        apply(&all),
        Step::Up(IFACE, false),
        holds(&mesh(nh)),
        Step::Up(IFACE, true),
        Step::HostChanged,
        holds(&mesh(nh)),
        apply(&on_host),
        // Without a carrier the kernel keeps plain routes.
        Step::Carrier(false),
        Step::HostChanged,
        holds(&all),
        Step::Carrier(true),
        Step::HostChanged,
        holds(&all),
    ];
    (ours(), steps)
}

pub fn a_foreign_route_takes_our_place(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let last = all.len() - 2;
    let theirs = RouteTo::Gateway(hop("192.168.7.9", IFACE, false));
    let theirs6 = RouteTo::Gateway(hop("fd07::9", IFACE, false));
    let steps = vec![
        apply(&all),
        outside_put(their_route("10.244.2.0/24", theirs, 4)),
        outside_put(their_route("fd44:0:0:2::/64", theirs6, 4)),
        holds(&all[..last]),
        apply(&all[last..]),
        holds(&all),
        Step::Quiet,
    ];
    (ours(), steps)
}

pub fn everything_on_our_device_is_ours(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let strays = [
        addr(OURS, "172.30.0.1/32"),
        neigh(OURS, "172.30.0.2", 6),
        fdb(OURS, 6, "192.168.7.66"),
        their_route(
            "172.30.1.0/24",
            RouteTo::Gateway(hop("172.30.0.2", OURS, true)),
            4,
        ),
        their_route("172.30.2.0/24", RouteTo::Dev(dev(OURS)), 3),
    ];
    let mut steps = vec![apply(&all)];
    steps.extend(strays.iter().cloned().map(outside_put));
    steps.push(holds(&[all.clone(), strays.to_vec()].concat()));
    let mut reversed = strays.to_vec();
    reversed.reverse();
    steps.push(delete(&reversed));
    steps.push(holds(&all));
    (ours(), steps)
}
