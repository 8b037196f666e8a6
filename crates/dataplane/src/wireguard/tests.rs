//! Tests of `wireguard`. With a kernel that has it: `tests/conformance`, and flanneld's in virtual machines.

use super::*;
use model::WgKey;

fn peer(endpoint: &str) -> WgPeer {
    WgPeer {
        endpoint: Some(endpoint.parse().unwrap()),
        allowed: vec!["10.1.4.0/24".parse().unwrap()],
        preshared: None,
        keepalive: 0,
    }
}

fn found(endpoint: &str, handshake: SystemTime) -> Found {
    Found {
        key: WgKey([1; 32]),
        peer: peer(endpoint),
        handshake,
    }
}

#[test]
fn an_end_point_that_was_learnt_is_no_difference_and_one_that_was_set_is() {
    const OURS: &str = "192.0.2.1:51820";
    const OTHER: &str = "198.51.100.9:4000";
    let now = SystemTime::now();
    let ago = |seconds| now - Duration::from_secs(seconds);
    let written = Some((Some(OURS.parse().unwrap()), ago(60)));
    let endpoint = |found, written| as_observed(found, written, now).endpoint;
    // A handshake since it was written.
    assert_eq!(
        endpoint(found(OTHER, ago(10)), written),
        Some(OURS.parse().unwrap())
    );
    // None since: somebody set it.
    assert_eq!(
        endpoint(found(OTHER, ago(70)), written),
        Some(OTHER.parse().unwrap())
    );
    // Written by an earlier run, and heard a moment ago; long ago; never.
    assert_eq!(endpoint(found(OTHER, ago(10)), None), None);
    assert_eq!(
        endpoint(found(OTHER, ago(300)), None),
        Some(OTHER.parse().unwrap())
    );
    assert_eq!(
        endpoint(found(OTHER, SystemTime::UNIX_EPOCH), None),
        Some(OTHER.parse().unwrap())
    );
}

#[test]
fn what_differs_between_two_looks_is_reported() {
    let name: IfName = "flannel-wg".parse().unwrap();
    let key = |n| WgPeerKey {
        dev: name,
        key: WgKey([n; 32]),
    };
    let known = |keys: &[u8], port| Known {
        device: Some(WgDevice {
            private: model::WgSecret([5; 32]),
            port,
        }),
        peers: keys
            .iter()
            .map(|n| {
                let peer = peer("192.0.2.1:51820");
                let written = None;
                (key(*n), KnownPeer { peer, written })
            })
            .collect(),
    };
    let events = |before: &Known, now: &Known| {
        let mut events = VecDeque::new();
        report(&name, before, now, &mut events);
        events
    };
    assert!(events(&known(&[1, 2], 1), &known(&[1, 2], 1)).is_empty());
    let all = events(&known(&[1, 2], 1), &known(&[2, 3], 2));
    assert_eq!(all.len(), 3, "{all:?}");
    let nothing = Known::default();
    let gone = events(&known(&[1], 1), &nothing);
    assert!(
        gone.iter()
            .all(|event| matches!(event, KernelEvent::Gone(_)))
            && gone.len() == 2
    );
}

#[test]
fn a_peer_that_takes_over_subnets_is_greeted() {
    let key = |n| WgPeerKey {
        dev: "flannel-wg".parse().unwrap(),
        key: WgKey([n; 32]),
    };
    let put = Op::Put(Object::WgPeer(key(2), peer("192.0.2.1:51820")));
    let left = HashSet::from(["10.1.4.0/24".parse().unwrap()]);
    assert!(change(&put, &left).unwrap().greet);
    assert!(!change(&put, &HashSet::new()).unwrap().greet);
}
