//! What is not ours, and what becomes ours.

use dataplane::Scope;
use model::Op;
use model::object::*;

use super::ours;
use crate::objects::*;
use crate::script::*;

pub fn what_is_foreign_wakes_nobody(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let gateway = |via| RouteTo::Gateway(hop(via, IFACE, false));
    let elsewhere = RouteTo::Gateway(hop("192.168.8.9", "eth1", false));
    let mut foreign = vec![
        neigh(IFACE, "192.168.7.77", 5),
        neigh("eth1", "192.168.8.77", 5),
        addr("eth1", "192.168.8.5/24"),
        route("172.20.0.0/24", gateway("192.168.7.9")),
        their_route("10.244.7.0/24", gateway("192.168.7.9"), 4),
        their_route("10.244.8.0/24", gateway("192.168.7.9"), 3),
        route("10.244.9.0/24", elsewhere),
        their_route("10.244.10.0/24", RouteTo::Blackhole, 4),
        route("172.21.0.0/24", RouteTo::Blackhole),
        bridge("cni0"),
        addr("cni0", "10.244.1.1/24"),
        neigh("cni0", "10.244.1.7", 5),
    ];
    if nh {
        foreign.push(Object::NextHop(70, hop("192.168.8.9", "eth1", false)));
    }
    let mut steps = vec![apply(&all)];
    steps.extend(foreign.iter().cloned().map(outside_put));
    steps.push(Step::Quiet);
    steps.extend(foreign.iter().rev().cloned().map(outside_del));
    steps.push(Step::Quiet);
    steps.push(holds(&all));
    (ours(), steps)
}

pub fn two_networks_do_not_see_each_other(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let direct = hop("192.168.7.9", IFACE, false);
    let second = Link {
        mac: Some(mac(4)),
        mark: Mark::parse("flannel 10.245.0.0/16"),
        ..vxlan(2)
    };
    let mut theirs = vec![
        link("flannel.2", second),
        addr("flannel.2", "10.245.1.0/32"),
        neigh("flannel.2", "10.245.2.0", 2),
        fdb("flannel.2", 2, "192.168.7.2"),
        route(
            "10.245.2.0/24",
            RouteTo::Gateway(hop("10.245.2.0", "flannel.2", true)),
        ),
        route("10.245.3.0/24", RouteTo::Blackhole),
    ];
    match nh {
        false => theirs.push(route("10.245.4.0/24", RouteTo::Gateway(direct))),
        true => {
            theirs.push(Object::NextHop(50, hop("10.245.5.0", "flannel.2", true)));
            theirs.push(by_id("10.245.5.0/24", 50));
            theirs.push(Object::NextHop(60, direct));
            theirs.push(by_id("10.245.4.0/24", 60));
        }
    }
    let mut steps = vec![apply(&all)];
    steps.extend(theirs.iter().cloned().map(outside_put));
    steps.extend([Step::Quiet, holds(&all)]);
    steps.extend(theirs.iter().rev().cloned().map(outside_del));
    steps.extend([Step::Quiet, holds(&all)]);
    (ours(), steps)
}

pub fn upstreams_routes_are_seen_when_taken_over(_: bool) -> (Scope, Vec<Step>) {
    let gateway = |via| RouteTo::Gateway(hop(via, IFACE, false));
    let upstreams = [
        their_route("10.244.7.0/24", gateway("192.168.7.9"), 3),
        their_route("fd44:0:0:7::/64", gateway("fd07::9"), 3),
    ];
    let key = RouteKey::with_metric("10.244.9.0/24".parse().unwrap(), 50);
    let others = [
        their_route("10.244.8.0/25", gateway("192.168.7.9"), 3),
        their_route("10.244.8.128/25", RouteTo::Dev(dev(IFACE)), 3),
        Object::Route(
            key,
            Route {
                to: gateway("192.168.7.9"),
                protocol: 3,
            },
        ),
        their_route("10.244.10.0/24", gateway("192.168.7.9"), 4),
        their_route("172.20.1.0/24", gateway("192.168.7.9"), 3),
    ];
    let blackholes = [
        // Of a smaller subnet that this node had.
        their_route("10.244.1.128/25", RouteTo::Blackhole, 3),
        their_route("10.244.11.0/24", RouteTo::Blackhole, 3),
    ];
    let ours_now = [&upstreams[..], &blackholes[..1]].concat();
    let mine = [
        route("10.244.7.0/24", gateway("192.168.7.8")),
        upstreams[1].clone(),
        blackholes[0].clone(),
    ];
    let mut steps: Vec<Step> = upstreams.iter().cloned().map(outside_put).collect();
    steps.extend(others.iter().chain(&blackholes).cloned().map(outside_put));
    steps.push(Step::Restart);
    steps.push(holds(&ours_now));
    // Taken over in place: it is one route before and after.
    steps.push(apply(&mine[..1]));
    steps.push(holds(&mine));
    // What an administrator adds from now on looks the same and is his.
    let later = their_route("10.244.12.0/24", gateway("192.168.7.9"), 3);
    steps.push(outside_put(later.clone()));
    steps.push(Step::Quiet);
    steps.push(Step::Knows(mine.to_vec()));
    steps.push(outside_del(later));
    steps.push(delete(&mine));
    steps.push(holds(&[]));
    // Nor is what he puts where another flannel's was.
    steps.push(outside_put(upstreams[0].clone()));
    steps.push(Step::Knows(vec![]));
    (
        Scope {
            take_over: true,
            ..ours()
        },
        steps,
    )
}

pub fn what_an_earlier_configuration_left_is_ours(nh: bool) -> (Scope, Vec<Step>) {
    let second = |network: &str| Link {
        mac: Some(mac(4)),
        mark: Mark::parse(network),
        ..vxlan(2)
    };
    let on_it = |name: &str| {
        vec![
            addr(name, "10.244.1.0/32"),
            neigh(name, "10.244.2.0", 2),
            fdb(name, 2, "192.168.7.2"),
            route(
                "10.244.2.0/24",
                RouteTo::Gateway(hop("10.244.2.0", name, true)),
            ),
        ]
    };
    let former = [
        vec![link("flannel.2", second("flannel 10.244.0.0/16"))],
        on_it("flannel.2"),
    ]
    .concat();
    let mut elsewhere = Link {
        mac: Some(mac(6)),
        mark: Mark::parse("flannel 10.245.0.0/16"),
        ..vxlan(3)
    };
    elsewhere.mtu = 1400;
    let theirs = [
        link("flannel.3", elsewhere),
        addr("flannel.3", "10.245.1.0/32"),
    ];
    let mut steps: Vec<Step> = [&former[..], &theirs[..]]
        .concat()
        .into_iter()
        .map(outside_put)
        .collect();
    steps.push(Step::Restart);
    steps.push(holds(&former));
    steps.push(delete(&[
        former[4].clone(),
        former[2].clone(),
        former[3].clone(),
        former[1].clone(),
        former[0].clone(),
    ]));
    steps.push(holds(&[]));
    steps.push(apply(&mesh(nh)));
    steps.push(holds(&mesh(nh)));
    // Another network's device that gets the name of ours is not ours.
    steps.push(outside_put(link("flannel.2", second("flannel 10.245.0.0/16"))));
    steps.push(Step::Quiet);
    steps.push(holds(&mesh(nh)));
    (ours(), steps)
}

pub fn the_hosts_changes_are_told(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let mut steps = vec![apply(&all)];
    for object in [
        addr(IFACE, "192.168.7.200/24"),
        addr(IFACE, "fd07::200/64"),
        their_route("172.22.0.0/24", RouteTo::Dev(dev(IFACE)), 4),
    ] {
        steps.extend([outside_put(object.clone()), Step::HostChanged, holds(&all)]);
        steps.extend([outside_del(object), Step::HostChanged, holds(&all)]);
    }
    steps.push(Step::Quiet);
    (ours(), steps)
}

pub fn the_kernels_own_routes_are_never_replaced(nh: bool) -> (Scope, Vec<Step>) {
    let all = mesh(nh);
    let kernels = their_route("10.244.7.0/24", RouteTo::Dev(dev("eth1")), 2);
    let ours_there = match nh {
        true => by_id("10.244.7.0/24", 5),
        false => via("10.244.7.0/24", "10.244.2.0"),
    };
    let refused = Step::Refused(Op::Put(ours_there.clone()), 17, "through eth1");
    let both = [&all[..], std::slice::from_ref(&ours_there)].concat();
    let steps = vec![
        apply(&all),
        outside_put(kernels.clone()),
        Step::HostChanged,
        refused.clone(),
        holds(&all),
        Step::Restart,
        refused,
        holds(&all),
        outside_del(kernels),
        Step::HostChanged,
        apply(&[ours_there]),
        holds(&both),
    ];
    (ours(), steps)
}
