//! Tests of `state`.

use ipnet::IpNet;

use super::*;
use crate::object::RouteKey;

fn hop(via: &str) -> NextHop {
    NextHop {
        via: via.parse().unwrap(),
        dev: "flannel.1".parse().unwrap(),
        onlink: true,
    }
}

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

fn text(state: &mut KernelState) -> Vec<String> {
    state.batch(100, true).iter().map(Op::to_string).collect()
}

const PEER: Owner = Owner::Peer(0);

fn acknowledge(state: &mut KernelState) {
    for _ in 0..10 {
        let ops = state.batch(100, true);
        if ops.is_empty() {
            return;
        }
        ops.into_iter().for_each(|op| state.done(op));
    }
    panic!("there is always more to do");
}

#[test]
fn routes_on_our_devices_go_through_next_hop_objects() {
    let mut state = KernelState::new(true, vec!["flannel.1".parse().unwrap()]);
    let ours = || route("10.1.2.0/24", "10.1.2.0", "flannel.1");
    let direct = || route("10.1.3.0/24", "192.168.0.3", "eth0");
    state.set(PEER, [ours(), direct()]);
    let ops = state.batch(100, true);
    assert_eq!(
        text(&mut state),
        [
            "ip nexthop replace id 1115701376 via 10.1.2.0 dev flannel.1 onlink protocol 241",
            "ip route replace 10.1.2.0/24 nhid 1115701376 proto 241",
            "ip route replace 10.1.3.0/24 via 192.168.0.3 dev eth0 onlink proto 241",
        ]
    );
    ops.into_iter().for_each(|op| state.done(op));
    assert!(state.in_sync());
    assert_eq!(state.progress(PEER), Progress::Installed);
    state.set(PEER, [ours(), direct()]);
    assert!(state.in_sync(), "the same again is no work");
    state.set(PEER, [direct()]);
    assert!(
        state.batch(100, false).is_empty(),
        "no deletion without leave"
    );
    let ops = state.batch(100, true);
    assert_eq!(
        text(&mut state),
        [
            "ip route del 10.1.2.0/24 nhid 1115701376",
            "ip nexthop del id 1115701376"
        ]
    );
    ops.into_iter().for_each(|op| state.done(op));
    acknowledge(&mut state);
    assert!(state.in_sync());
}

#[test]
fn a_next_hop_object_outlives_a_route_that_cannot_be_replaced() {
    let mut state = KernelState::new(true, vec!["flannel.1".parse().unwrap()]);
    state.set(PEER, [route("10.1.2.0/24", "10.1.2.0", "flannel.1")]);
    acknowledge(&mut state);
    state.set(PEER, [route("10.1.2.0/24", "192.168.0.3", "eth0")]);
    let mut ops = state.batch(100, true);
    assert_eq!(ops.len(), 1);
    state.refused(
        &ops.remove(0),
        101,
        "Network is unreachable".into(),
        Instant::now(),
    );
    assert!(
        state.batch(100, true).is_empty(),
        "the old route still works"
    );
    let Progress::Refused(refused) = state.progress(PEER) else {
        panic!("{:?}", state.progress(PEER));
    };
    assert_eq!((refused.refusal.errno, refused.refusal.tries), (101, 1));
    assert_eq!(
        refused.op,
        "ip route replace 10.1.2.0/24 via 192.168.0.3 dev eth0 onlink proto 241"
    );
    state.retry_refused();
    acknowledge(&mut state);
    assert!(state.in_sync());
}

#[test]
fn another_programs_next_hop_object_is_left_alone() {
    let mut state = KernelState::new(true, vec!["flannel.1".parse().unwrap()]);
    let ours = || route("10.1.2.0/24", "10.1.2.0", "flannel.1");
    state.set_taken_ids([1115701376].into());
    state.set(PEER, [ours()]);
    assert!(text(&mut state)[0].starts_with("ip nexthop replace id 1115701377 "));
    acknowledge(&mut state);
    // Somebody changed ours: the kernel leads our route through it, so it is written again.
    state.set_taken_ids([1115701376, 1115701377].into());
    assert!(text(&mut state).is_empty());
    assert!(state.notify_gone(&Object::NextHop(1115701377, hop("10.1.2.0"))));
    let ops = state.batch(100, true);
    // It was not ours after all: the route takes another id.
    state.refused(&ops[0], 17, "File exists".into(), Instant::now());
    assert_eq!(
        text(&mut state),
        [
            "ip nexthop replace id 1115701378 via 10.1.2.0 dev flannel.1 onlink protocol 241",
            "ip route replace 10.1.2.0/24 nhid 1115701378 proto 241",
        ]
    );
}

#[test]
fn a_refused_operation_waits_and_the_others_go_on() {
    let mut state = KernelState::new(false, vec![]);
    state.set(
        PEER,
        [
            route("10.1.2.0/24", "10.1.2.0", "flannel.1"),
            route("10.1.3.0/24", "10.1.3.0", "flannel.1"),
        ],
    );
    let mut ops = state.batch(100, true);
    let refused = ops.remove(0);
    state.refused(&refused, 1, "no".into(), Instant::now());
    ops.into_iter().for_each(|op| state.done(op));
    assert!(state.batch(100, true).is_empty() && !state.in_sync());
    assert_eq!(state.refused_len(), 1);
    state.retry_refused();
    assert_eq!(state.batch(100, true), [refused]);
}

#[test]
fn what_an_owner_no_longer_names_goes_and_two_owners_never_take_turns() {
    let mut state = KernelState::new(true, vec!["flannel.1".parse().unwrap()]);
    let shared = |via: &str| route("10.1.2.0/24", via, "flannel.1");
    state.set(
        Owner::Peer(3),
        [
            shared("10.1.2.0"),
            route("10.1.9.0/24", "10.1.9.0", "flannel.1"),
        ],
    );
    acknowledge(&mut state);
    state.set(Owner::Peer(1), [shared("10.1.2.1")]);
    acknowledge(&mut state);
    let conflicts = state.conflicts();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(
        (conflicts[0].holder, conflicts[0].loser),
        (Owner::Peer(1), Owner::Peer(3))
    );
    state.drop_owner(Owner::Peer(1));
    assert!(state.conflicts().is_empty());
    assert_eq!(state.routes_desired(), 2);
    acknowledge(&mut state);
    state.drop_owner(Owner::Peer(3));
    acknowledge(&mut state);
    assert!(state.in_sync() && state.routes_desired() == 0);
    assert_eq!(state.progress(Owner::Peer(3)), Progress::Installed);
}

#[test]
fn v6_ids_of_one_network_differ() {
    let ids: std::collections::BTreeSet<u32> = (0..5000u32)
        .map(|n| hop_ids::derived(&format!("fd00:10:{n:x}::/48").parse().unwrap()))
        .collect();
    assert_eq!(ids.len(), 5000);
    assert!(ids.iter().all(|id| *id >= 1 << 31));
}

#[test]
fn where_packets_must_be_encrypted_plaintext_routes_go_at_once() {
    let dev: IfName = "flannel-wg".parse().unwrap();
    let network: IpNet = "10.1.0.0/16".parse().unwrap();
    let nowhere = Object::Route(
        RouteKey::with_metric(network, 7),
        Route::ours(RouteTo::Blackhole),
    );
    let tunnel = Object::Route(RouteKey::to(network), Route::ours(RouteTo::Dev(dev)));
    let left = || route("10.1.2.0/24", "192.168.0.2", "eth0");
    let mut state = KernelState::new(true, vec![dev]);
    state.observe(left());
    state.set(Owner::Node, [tunnel, nowhere]);
    let batch = |state: &mut KernelState| -> Vec<String> {
        let ops = state.batch(100, false);
        ops.iter().map(Op::to_string).collect()
    };
    assert!(!batch(&mut state).iter().any(|op| op.contains("del")));
    state.set_encrypted(true);
    assert_eq!(
        batch(&mut state),
        [
            // First, so that nothing finds another way out.
            "ip route replace blackhole 10.1.0.0/16 proto 241 metric 7",
            "ip route del 10.1.2.0/24 via 192.168.0.2 dev eth0 onlink",
            "ip route replace 10.1.0.0/16 dev flannel-wg scope link proto 241",
        ]
    );
}

#[test]
fn a_peer_with_another_key_takes_over_before_the_old_one_goes() {
    use crate::WgKey;
    use crate::object::{WgPeer, WgPeerKey};
    let peer = |key: u8| {
        let key = WgPeerKey {
            dev: "flannel-wg".parse().unwrap(),
            key: WgKey([key; 32]),
        };
        let value = WgPeer {
            endpoint: Some(([192, 0, 2, 1], 51_820).into()),
            allowed: vec!["10.1.2.0/24".parse().unwrap()],
            preshared: None,
            keepalive: 0,
        };
        Object::WgPeer(key, value)
    };
    let mut state = KernelState::default();
    state.set(PEER, [peer(1)]);
    acknowledge(&mut state);
    state.set(PEER, [peer(2)]);
    let ops = state.batch(100, true);
    assert_eq!(ops, [Op::Put(peer(2)), Op::Del(peer(1))]);
}
