//! Tests of `state`.

use super::*;

fn route(dst: &str, via: &str, dev: &str) -> Object {
    let hop = NextHop {
        via: via.parse().unwrap(),
        dev: dev.parse().unwrap(),
        onlink: true,
    };
    Object::Route(
        RouteKey::to(dst.parse().unwrap()),
        Route::ours(RouteTo::Gateway(hop)),
    )
}

fn text(state: &KernelState) -> Vec<String> {
    state.batch(100, true).iter().map(Op::to_string).collect()
}

#[test]
fn routes_on_our_devices_go_through_next_hop_objects() {
    let mut state = KernelState::new(true, vec!["flannel.1".parse().unwrap()]);
    state.want(route("10.1.2.0/24", "10.1.2.0", "flannel.1"));
    state.want(route("10.1.3.0/24", "192.168.0.3", "eth0"));
    let ops = state.batch(100, true);
    assert_eq!(
        text(&state),
        [
            "ip nexthop replace id 1115701376 via 10.1.2.0 dev flannel.1 onlink protocol 241",
            "ip route replace 10.1.2.0/24 nhid 1115701376 proto 241",
            "ip route replace 10.1.3.0/24 via 192.168.0.3 dev eth0 onlink proto 241",
        ]
    );
    ops.into_iter().for_each(|op| state.done(op));
    assert!(state.in_sync());
    state.want(route("10.1.2.0/24", "10.1.2.0", "flannel.1"));
    assert!(state.in_sync(), "the same again is no work");
    state.unwant(&route("10.1.2.0/24", "10.1.2.0", "flannel.1"));
    assert_eq!(
        text(&state),
        [
            "ip route del 10.1.2.0/24 nhid 1115701376",
            "ip nexthop del id 1115701376"
        ]
    );
    assert!(
        state.batch(100, false).is_empty(),
        "no deletion without leave"
    );
}

#[test]
fn a_refused_operation_waits_and_the_others_go_on() {
    let mut state = KernelState::new(false, vec![]);
    state.want(route("10.1.2.0/24", "10.1.2.0", "flannel.1"));
    state.want(route("10.1.3.0/24", "10.1.3.0", "flannel.1"));
    let mut ops = state.batch(100, true);
    let refused = ops.remove(0);
    state.refused(refused.clone());
    ops.into_iter().for_each(|op| state.done(op));
    assert!(state.batch(100, true).is_empty() && !state.in_sync());
    state.unpark();
    assert_eq!(state.batch(100, true), [refused]);
}

#[test]
fn v6_ids_of_one_network_differ() {
    let ids: std::collections::BTreeSet<u32> = (0..5000u32)
        .map(|n| derived_id(&format!("fd00:10:{n:x}::/48").parse().unwrap()))
        .collect();
    assert_eq!(ids.len(), 5000);
    assert!(ids.iter().all(|id| *id >= 1 << 31));
}
