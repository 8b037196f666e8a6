//! What the program does itself.

use dataplane::Scope;
use model::Op;
use model::object::*;

use super::{ours, without};
use crate::objects::*;
use crate::script::*;

pub fn everything_is_made_and_seen(nh: bool) -> (Scope, Vec<Step>) {
    let mut all = mesh(nh);
    all.push(route("10.244.1.0/24", RouteTo::Blackhole));
    all.push(route("fd44:0:0:1::/64", RouteTo::Blackhole));
    let on_host = hop("192.168.7.9", IFACE, false);
    let on_host6 = hop("fd07::9", IFACE, false);
    all.push(route("10.244.3.0/24", RouteTo::Gateway(on_host)));
    all.push(route("fd44:0:0:3::/64", RouteTo::Gateway(on_host6)));
    all.push(route("10.244.4.0/24", RouteTo::Dev(dev(OURS))));
    all.push(route("fd44:0:0:4::/64", RouteTo::Dev(dev(OURS))));
    let mut reversed = all.clone();
    reversed.reverse();
    let steps = vec![
        holds(&[]),
        apply(&all),
        holds(&all),
        Step::Quiet,
        delete(&reversed),
        holds(&[]),
    ];
    (ours(), steps)
}

pub fn doing_it_twice_is_silent(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let steps = vec![
        apply(&all),
        apply(&all),
        Step::Quiet,
        holds(&all),
        Step::Quiet,
    ];
    (ours(), steps)
}

pub fn deleting_what_is_gone_succeeds(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let node = node();
    let steps = vec![
        delete(&all),
        apply(&node),
        delete(&peer(nh)),
        delete(&[route("10.244.9.0/24", RouteTo::Blackhole)]),
        holds(&node),
        Step::Quiet,
    ];
    (ours(), steps)
}

pub fn a_device_is_changed_in_place(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let changed = Link {
        mac: Some(mac(7)),
        mtu: 1400,
        ..vxlan_with_offload(Some(false))
    };
    let as_it_is = Link {
        kind: vxlan_with_offload(None).kind,
        ..changed.clone()
    };
    let mut rest = without(&all, &peer(nh)[..2]);
    rest[0] = link(OURS, changed.clone());
    let other = Link {
        mtu: 1400,
        ..vxlan(3)
    };
    let too_large = Link {
        mtu: 1490,
        ..changed.clone()
    };
    let steps = vec![
        apply(&all),
        Step::Apply(vec![Op::Put(link(OURS, changed))]),
        // With its address go a device's neighbours.
        holds(&rest),
        // Whoever does not ask for a change of it leaves it alone.
        Step::Apply(vec![Op::Put(link(OURS, as_it_is))]),
        holds(&rest),
        Step::Refused(
            Op::Put(link(OURS, too_large)),
            libc::EINVAL,
            "fit the device beneath",
        ),
        Step::Quiet,
        // What can only be set at creation: the device is replaced.
        Step::Apply(vec![Op::Put(link(OURS, other.clone()))]),
        holds(&[link(OURS, other)]),
    ];
    (ours(), steps)
}

pub fn what_cannot_be_recreated_is_not_deleted(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let mut nowhere = vxlan(3);
    if let LinkKind::Vxlan(vxlan) = &mut nowhere.kind {
        vxlan.beneath.index = 4711;
    }
    let steps = vec![
        apply(&all),
        Step::Refused(Op::Put(link(OURS, nowhere)), libc::ENODEV, "eth0 (index 4711)"),
        holds(&all),
        Step::Quiet,
    ];
    (ours(), steps)
}

pub fn a_refusal_names_its_reason(nh: bool) -> (Scope, Vec<Step>) {
    let gateway = |via, dev| {
        Op::Put(route(
            "10.244.9.0/24",
            RouteTo::Gateway(hop(via, dev, false)),
        ))
    };
    let mut steps = vec![Step::Refused(
        Op::Put(link(
            OURS,
            Link {
                mtu: 1490,
                ..vxlan(1)
            },
        )),
        libc::EINVAL,
        "fit",
    )];
    steps.push(delete(&[link(OURS, vxlan(1))]));
    for object in [
        addr("none0", "10.244.1.0/32"),
        neigh("none0", "10.244.2.0", 2),
        fdb("none0", 2, "192.168.7.2"),
        route(
            "10.244.9.0/24",
            RouteTo::Gateway(hop("10.244.9.0", "none0", true)),
        ),
    ] {
        steps.push(Step::Refused(Op::Put(object), libc::ENODEV, "none0"));
    }
    steps.push(apply(&node()));
    let unknown = Op::Put(by_id("10.244.9.0/24", 99));
    steps.push(Step::Refused(
        gateway("172.16.0.1", IFACE),
        libc::ENETUNREACH,
        "gateway",
    ));
    if nh {
        steps.push(Step::Refused(unknown, libc::EINVAL, "Nexthop id"));
        let bad = Object::NextHop(9, hop("172.16.0.1", IFACE, false));
        steps.push(Step::Refused(Op::Put(bad), libc::ENETUNREACH, "gateway"));
        steps.push(Step::Up(OURS, false));
        steps.push(Step::Refused(
            Op::Put(next_hop(5, "10.244.2.0")),
            libc::ENETDOWN,
            "up",
        ));
    }
    (ours(), steps)
}

pub fn another_route_stands_in_the_way(nh: bool) -> (Scope, Vec<Step>) {
    let theirs = RouteTo::Gateway(hop("192.168.7.9", IFACE, false));
    let theirs6 = RouteTo::Gateway(hop("fd07::9", IFACE, false));
    let steps = vec![
        outside_put(their_route("10.244.2.0/24", theirs, 4)),
        outside_put(their_route("fd44:0:0:2::/64", theirs6, 4)),
        outside_put(their_route("fd44:0:0:2::/63", theirs6, 4)),
        holds(&[]),
        apply(&mesh(nh)),
        holds(&mesh(nh)),
        Step::Quiet,
    ];
    (ours(), steps)
}

pub fn another_kind_of_device_under_our_name(_: bool) -> (Scope, Vec<Step>) {
    let steps = vec![
        outside_put(bridge(OURS)),
        holds(&[bridge(OURS)]),
        apply(&node()),
        holds(&node()),
        Step::Quiet,
    ];
    (ours(), steps)
}
