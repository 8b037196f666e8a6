//! The suite: every case runs against both kernels, with next-hop objects and without.

use dataplane::Scope;
use model::Object;
use model::kernel::*;

use crate::objects::*;
use crate::script::*;
use crate::worlds::{Fake, Real, in_namespace, on_runtime};

/// Scope and script of a case; the argument says whether there are next-hop objects.
type Case = fn(bool) -> (Scope, Vec<Step>);

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            #[test]
            fn fake() {
                super::on_fake(super::script::$name);
            }
            #[test]
            fn real() {
                super::on_real(super::script::$name);
            }
        })*
    };
}

cases!(
    everything_is_made_and_seen,
    doing_it_twice_is_silent,
    deleting_what_is_gone_succeeds,
    a_device_is_changed_in_place,
    a_refusal_names_its_reason,
    outside_deletions_are_told,
    outside_changes_are_told,
    a_device_that_goes_down_takes_much_along,
    a_device_that_is_deleted_takes_all_along,
    the_interface_flaps,
    another_kind_of_device_under_our_name,
    what_is_foreign_wakes_nobody,
    two_networks_do_not_see_each_other,
    upstreams_routes_are_seen_when_taken_over,
    a_foreign_route_takes_our_place,
    another_route_stands_in_the_way,
    the_hosts_changes_are_told,
    everything_on_our_device_is_ours,
);

fn on_fake(case: Case) {
    for next_hops in [true, false] {
        on_runtime(|| async move {
            let world = Fake::new(next_hops);
            let (scope, steps) = case(next_hops);
            Player::new(&world, scope).await.play(&steps).await;
        });
    }
}

fn on_real(case: Case) {
    for next_hops in [true, false] {
        in_namespace(move || async move {
            let world = Real::new(next_hops);
            let (scope, steps) = case(next_hops);
            Player::new(&world, scope).await.play(&steps).await;
        });
    }
}

fn without(objects: &[Object], gone: &[Object]) -> Vec<Object> {
    objects
        .iter()
        .filter(|object| !gone.contains(object))
        .cloned()
        .collect()
}

mod script {
    use model::Op;

    use super::*;

    fn ours() -> Scope {
        scope(&[OURS])
    }

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
            ..vxlan(1)
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
            Step::Refused(Op::Put(link(OURS, other)), libc::EEXIST, "deleted first"),
            Step::Refused(
                Op::Put(link(OURS, too_large)),
                libc::EINVAL,
                "fit the device beneath",
            ),
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

    pub fn another_kind_of_device_under_our_name(_: bool) -> (Scope, Vec<Step>) {
        let steps = vec![
            outside_put(bridge(OURS)),
            holds(&[bridge(OURS)]),
            Step::Refused(Op::Put(link(OURS, vxlan(1))), libc::EEXIST, "deleted first"),
            delete(&[bridge(OURS)]),
            apply(&node()),
            holds(&node()),
            Step::Quiet,
        ];
        (ours(), steps)
    }

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
        let key = RouteKey {
            dst: "10.244.9.0/24".parse().unwrap(),
            metric: 50,
        };
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
        let mine = [
            route("10.244.7.0/24", gateway("192.168.7.8")),
            upstreams[1].clone(),
        ];
        let mut steps: Vec<Step> = upstreams.iter().cloned().map(outside_put).collect();
        steps.extend(others.iter().cloned().map(outside_put));
        steps.push(holds(&upstreams));
        // Taken over in place: it is one route before and after.
        steps.push(apply(&mine[..1]));
        steps.push(holds(&mine));
        steps.push(delete(&mine));
        steps.push(holds(&[]));
        (
            Scope {
                take_over: true,
                ..ours()
            },
            steps,
        )
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
}
