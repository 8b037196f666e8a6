//! Properties on the fake kernel: whatever is wanted, damaged and refused in whatever order, in the
//! end the kernel holds what it should, and then nothing more is done.

use std::collections::BTreeSet;

use dataplane::fake::{FakeKernel, fault};
use model::object::{
    AddrKey, Beneath, FdbKey, Link, LinkKind, Mark, NeighKey, NextHop, Remote, Route, RouteKey,
    RouteTo, Vxlan,
};
use model::{Dual, IfName, Mac};
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn scope() -> Scope {
    Scope {
        devices: vec![name("flannel.1")],
        iface: name("eth0"),
        network: Dual {
            v4: Some("10.244.0.0/16".parse().unwrap()),
            v6: None,
        },
        own: Dual {
            v4: Some("10.244.255.0/24".parse().unwrap()),
            v6: None,
        },
        take_over: false,
    }
}

fn node() -> Vec<Object> {
    node_with_offload(Some(false))
}

/// The node's objects, with this wish for the device's checksum offload.
fn node_with_offload(offload: Option<bool>) -> Vec<Object> {
    let tunnel = Vxlan {
        vni: 1,
        port: 8472,
        local: "192.168.0.1".parse().unwrap(),
        beneath: Beneath {
            index: 100,
            name: Some(name("eth0")),
        },
        learning: false,
        gbp: false,
        tx_checksum: offload,
    };
    let link = Link {
        kind: LinkKind::Vxlan(tunnel),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu: 1450,
        up: true,
        mark: Mark::parse("flannel 10.244.0.0/16"),
        enslaved: false,
    };
    let addr = AddrKey {
        dev: name("flannel.1"),
        net: "10.244.255.0/32".parse().unwrap(),
    };
    vec![
        Object::Link(name("flannel.1"), link),
        Object::Addr(addr, ()),
    ]
}

/// What peer `n` needs, at its `version`-th address.
fn peer(n: u8, version: u8) -> Vec<Object> {
    let dev = name("flannel.1");
    let gateway = format!("10.244.{n}.0").parse().unwrap();
    let mac = Mac([2, 0, 0, 1, version, n]);
    let dst = format!("10.244.{n}.0/24").parse().unwrap();
    let hop = NextHop {
        via: gateway,
        dev,
        onlink: true,
    };
    let remote = format!("192.168.{version}.{n}").parse().unwrap();
    vec![
        Object::Neigh(NeighKey { dev, ip: gateway }, mac),
        Object::Fdb(FdbKey { dev, mac }, Remote::At(remote)),
        Object::Route(RouteKey::to(dst), Route::ours(RouteTo::Gateway(hop))),
    ]
}

fn kernel(next_hops: bool) -> FakeKernel {
    let kernel = FakeKernel::new(next_hops);
    kernel.add_iface(
        name("eth0"),
        100,
        1500,
        &["192.168.0.1/16".parse().unwrap()],
    );
    kernel
}

/// Time passes until the daemon would have nothing to do but its audit.
async fn settle(reconciler: &mut Reconciler<FakeKernel>) {
    for _ in 0..200 {
        take_notices(reconciler, usize::MAX).await;
        reconciler.pass().await;
        if reconciler.in_sync() {
            return;
        }
        tokio::time::sleep_until(reconciler.due()).await;
    }
    panic!(
        "does not settle: {} operations refused",
        reconciler.refused_len()
    );
}

/// Takes in what has arrived, at most so many.
async fn take_notices(reconciler: &mut Reconciler<FakeKernel>, most: usize) {
    for _ in 0..most {
        tokio::select! {
            biased;
            event = reconciler.event() => drop(reconciler.note(event)),
            () = std::future::ready(()) => return,
        }
    }
}

/// What somebody may do at any moment: write and delete what peers need, and what they need at
/// another address, take the device's address, set the device down, or take it away.
fn meddling() -> Vec<Op> {
    let peers = (0..8).flat_map(|n| (0..3).flat_map(move |version| peer(n, version)));
    let peers: Vec<Object> = peers.collect();
    let down = node().into_iter().map(|object| match object {
        Object::Link(name, link) => Object::Link(name, Link { up: false, ..link }),
        other => other,
    });
    let puts = peers.iter().cloned().chain(down.take(1)).map(Op::Put);
    let dels = peers.iter().cloned().chain(node()).map(Op::Del);
    puts.chain(dels).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Want(u8, u8),
    Leave(u8),
    /// Somebody deletes the n-th object that is there.
    Damage(usize),
    /// Somebody writes what another version of a peer would need.
    Intrude(u8, u8),
    /// Each operation fails with this probability until further notice.
    Faults(u64, u8),
    /// Each full look fails with this probability until further notice.
    Looks(u64, u8),
    /// Notices arrive up to so many operations late until further notice.
    Delays(u64, usize),
    /// Notices are lost, and this is told.
    Overrun,
    /// Somebody changes something between two operations, with this probability, until further notice.
    Meddler(u64, u8),
    /// Notices are taken in, at most so many.
    Notices(usize),
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8u8, 0..3u8).prop_map(|(n, v)| Step::Want(n, v)),
        2 => (0..8u8).prop_map(Step::Leave),
        3 => any::<usize>().prop_map(Step::Damage),
        1 => (0..8u8, 0..3u8).prop_map(|(n, v)| Step::Intrude(n, v)),
        1 => (any::<u64>(), 0..80u8).prop_map(|(s, p)| Step::Faults(s, p)),
        1 => (any::<u64>(), 0..80u8).prop_map(|(s, p)| Step::Looks(s, p)),
        1 => (any::<u64>(), 0..30usize).prop_map(|(s, most)| Step::Delays(s, most)),
        1 => Just(Step::Overrun),
        1 => (any::<u64>(), 0..50u8).prop_map(|(s, p)| Step::Meddler(s, p)),
        3 => (0..20usize).prop_map(Step::Notices),
        4 => Just(Step::Pass),
    ]
}

/// Runs the steps; then the kernel recovers, and must end as a fresh one that was never disturbed.
async fn converges(next_hops: bool, steps: Vec<Step>) {
    let kernel = kernel(next_hops);
    let outside = kernel.another();
    let mut reconciler = Reconciler::new(kernel.clone(), scope());
    reconciler.set_may_delete(true);
    reconciler.set(Owner::Node, node());
    let mut wanted: [Option<u8>; 8] = [None; 8];
    for step in steps {
        match step {
            Step::Want(n, version) => {
                wanted[n as usize] = Some(version);
                reconciler.set(Owner::Peer(n.into()), peer(n, version));
            }
            Step::Leave(n) => {
                wanted[n as usize] = None;
                reconciler.set(Owner::Peer(n.into()), []);
            }
            Step::Damage(which) => {
                let there = kernel.in_scope();
                if let Some(object) = there.get(which % there.len().max(1)) {
                    outside.outside(&Op::Del(object.clone()));
                }
            }
            Step::Intrude(n, version) => {
                for object in peer(n, version) {
                    outside.outside(&Op::Put(object));
                }
            }
            Step::Faults(seed, percent) => kernel.set_faults(fault::random(seed, percent)),
            Step::Looks(seed, percent) => {
                kernel.set_look_faults(fault::random_looks(seed, percent));
            }
            Step::Delays(seed, most) => kernel.set_delays(fault::random_delays(seed, most)),
            Step::Overrun => kernel.lose_notices(),
            Step::Meddler(seed, percent) => {
                kernel.set_meddler(fault::random_meddler(seed, percent, meddling()));
            }
            Step::Notices(most) => take_notices(&mut reconciler, most).await,
            Step::Pass => drop(reconciler.pass().await),
        }
    }
    kernel.calm();
    settle(&mut reconciler).await;

    let undisturbed = self::kernel(next_hops);
    let mut fresh = Reconciler::new(undisturbed.clone(), scope());
    fresh.set(Owner::Node, node());
    for (n, version) in wanted.iter().enumerate() {
        let objects = version.iter().flat_map(|v| peer(n as u8, *v));
        fresh.set(Owner::Peer(n as u32), objects);
    }
    settle(&mut fresh).await;
    let (ends, should) = (kernel.render(), undisturbed.render());
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (ends, should) = (lines(&ends), lines(&should));
    let wrong: Vec<_> = ends.symmetric_difference(&should).collect();
    assert!(wrong.is_empty(), "in one of the kernels only: {wrong:#?}");

    let before = kernel.counts().ops;
    reconciler.note(KernelEvent::LookAgain);
    assert_eq!(
        reconciler.pass().await,
        Pass::default(),
        "a second pass finds nothing to do"
    );
    assert_eq!(kernel.counts().ops, before);
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(test);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn converges_with_next_hop_objects(steps in proptest::collection::vec(step(), 0..40)) {
        run(converges(true, steps));
    }

    #[test]
    fn converges_with_plain_routes(steps in proptest::collection::vec(step(), 0..40)) {
        run(converges(false, steps));
    }
}

#[test]
fn nothing_is_deleted_without_leave() {
    run(async {
        let kernel = kernel(true);
        let mut reconciler = Reconciler::new(kernel.clone(), scope());
        reconciler.set(Owner::Node, node());
        reconciler.set(Owner::Peer(1), peer(1, 0));
        settle(&mut reconciler).await;
        let whole = kernel.render();
        // A restart: the store has not been listed yet, so nothing of peer 1 is wanted.
        let mut restarted = Reconciler::new(kernel.clone(), scope());
        restarted.set(Owner::Node, node());
        restarted.pass().await;
        assert_eq!(kernel.render(), whole);
        restarted.set_may_delete(true);
        restarted.pass().await;
        assert!(
            !kernel.render().contains("10.244.1.0"),
            "{}",
            kernel.render()
        );
    });
}

#[test]
fn one_refusal_stops_nothing_else() {
    run(async {
        let kernel = kernel(true);
        let mut reconciler = Reconciler::new(kernel.clone(), scope());
        let refused = RouteKey::to("10.244.3.0/24".parse().unwrap());
        kernel.set_faults(fault::matching(
            move |op| matches!(op.object(), Object::Route(key, _) if *key == refused),
            libc::EPERM,
        ));
        reconciler.set(Owner::Node, node());
        (0..6).for_each(|n| reconciler.set(Owner::Peer(n.into()), peer(n, 0)));
        let pass = reconciler.pass().await;
        assert_eq!((pass.refused, reconciler.refused_len()), (1, 1));
        let routes: BTreeSet<String> = kernel
            .render()
            .lines()
            .filter(|l| l.contains("nhid"))
            .map(str::to_owned)
            .collect();
        assert_eq!(routes.len(), 5, "{routes:?}");
        let before = kernel.counts().ops;
        reconciler.pass().await;
        assert_eq!(kernel.counts().ops, before, "not before it is due");
        kernel.set_faults(fault::none());
        settle(&mut reconciler).await;
        assert!(reconciler.in_sync());
    });
}

/// Takes in the events that wait.
async fn hear(reconciler: &mut Reconciler<FakeKernel>) {
    loop {
        tokio::select! {
            biased;
            event = reconciler.event() => drop(reconciler.note(event)),
            () = std::future::ready(()) => return,
        }
    }
}

#[test]
fn what_is_under_way_is_not_asked_for_again() {
    run(async {
        let kernel = kernel(true);
        let mut reconciler = Reconciler::new(kernel.clone(), scope());
        reconciler.set_may_delete(true);
        reconciler.set(Owner::Node, node());
        settle(&mut reconciler).await;
        for (fault, refused) in [
            (fault::Fault::DoneLater, 0),
            (fault::Fault::RefusedLater(libc::EBUSY), 1),
        ] {
            let only = move |op: &Op| matches!(op, Op::Put(Object::Neigh(..))).then_some(fault);
            kernel.set_faults(Box::new(only));
            reconciler.set(Owner::Peer(1), peer(1, 1));
            let pass = reconciler.pass().await;
            assert_eq!((pass.under_way, pass.refused), (1, 0));
            assert_eq!(reconciler.progress(Owner::Peer(1)), Progress::Pending);
            let ops = kernel.counts().ops;
            assert_eq!(reconciler.pass().await.ops(), 0);
            assert_eq!(kernel.counts().ops, ops);
            // Its end is an event.
            hear(&mut reconciler).await;
            assert_eq!(reconciler.refused_len(), refused);
            assert_eq!(reconciler.in_sync(), refused == 0);
            if refused == 1 {
                assert!(matches!(
                    reconciler.progress(Owner::Peer(1)),
                    Progress::Refused(_)
                ));
                // Begun again it still counts as refused, and is retried with growing delay.
                for _ in 0..5 {
                    tokio::time::sleep_until(reconciler.due()).await;
                    let began = Instant::now();
                    assert_eq!(reconciler.pass().await.under_way, 1);
                    assert_eq!(reconciler.refused_len(), 1);
                    assert!(reconciler.due() > began, "no busy loop");
                    hear(&mut reconciler).await;
                }
            }
            kernel.set_faults(fault::none());
            settle(&mut reconciler).await;
            reconciler.set(Owner::Peer(1), []);
            settle(&mut reconciler).await;
        }
    });
}

#[test]
fn checksum_offload_is_put_right_only_where_it_is_asked_for() {
    run(async {
        for wanted in [None, Some(true), Some(false)] {
            let kernel = kernel(true);
            let mut reconciler = Reconciler::new(kernel.clone(), scope());
            reconciler.set(Owner::Node, node_with_offload(wanted));
            settle(&mut reconciler).await;
            for theirs in [Some(false), Some(true), Some(false)] {
                let device = node_with_offload(theirs).swap_remove(0);
                assert!(kernel.outside(&Op::Put(device)));
                let before = kernel.counts().ops;
                settle(&mut reconciler).await;
                let expected = node_with_offload(wanted.or(theirs)).swap_remove(0);
                assert!(kernel.objects().contains(&expected), "{}", kernel.render());
                let needed = wanted.is_some() && theirs != wanted;
                assert_eq!(kernel.counts().ops - before, usize::from(needed));
            }
            // A full look changes nothing either.
            let before = kernel.counts().ops;
            reconciler.note(KernelEvent::LookAgain);
            settle(&mut reconciler).await;
            assert_eq!(kernel.counts().ops, before);
        }
    });
}

/// Time passes, and another program deletes a route whenever it sees it; returns how often it did.
async fn fought_over(
    reconciler: &mut Reconciler<FakeKernel>,
    other: &FakeKernel,
    route: &Object,
    span: Duration,
) -> usize {
    let end = Instant::now() + span;
    let mut deleted = 0;
    while Instant::now() < end {
        if other.objects().contains(route) {
            assert!(other.outside(&Op::Del(route.clone())));
            deleted += 1;
        }
        let due = reconciler.due().min(end);
        tokio::select! {
            biased;
            event = reconciler.event() => drop(reconciler.note(event)),
            () = tokio::time::sleep_until(due) => {}
        }
        reconciler.pass().await;
    }
    deleted
}

#[test]
fn a_fight_is_limited_to_what_it_is_about() {
    run(async {
        let kernel = kernel(false);
        let other = kernel.another();
        let mut reconciler = Reconciler::new(kernel, scope());
        reconciler.set_may_delete(true);
        reconciler.set(Owner::Node, node());
        for n in [1, 2] {
            reconciler.set(Owner::Peer(n.into()), peer(n, 1));
        }
        settle(&mut reconciler).await;
        let (fought, spared) = (peer(1, 1).remove(2), peer(2, 1).remove(2));

        let minute = Duration::from_secs(60);
        let deleted = fought_over(&mut reconciler, &other, &fought, minute).await;
        assert!(
            (101..=109).contains(&deleted),
            "{deleted} times in a minute"
        );
        let deleted = fought_over(&mut reconciler, &other, &fought, 5 * minute).await;
        assert!(
            (8..=16).contains(&deleted),
            "{deleted} times in five minutes"
        );

        // What nobody fights over is repaired at once meanwhile.
        assert!(other.outside(&Op::Del(spared.clone())));
        let event = reconciler.event().await;
        assert!(reconciler.note(event));
        reconciler.pass().await;
        assert!(other.objects().contains(&spared));

        // The other gives up: the last repair comes, and the next fault is repaired at once again.
        settle(&mut reconciler).await;
        assert!(other.objects().contains(&fought));
        tokio::time::sleep(minute).await;
        let moment = Duration::from_millis(10);
        let deleted = fought_over(&mut reconciler, &other, &fought, moment).await;
        assert!(deleted >= 2, "{deleted} times in a moment");
    });
}

#[tokio::test(start_paused = true)]
async fn a_next_hop_that_went_unannounced_is_written_again_without_waiting_for_the_audit() {
    let kernel = kernel(true);
    let outside = kernel.another();
    let mut reconciler = Reconciler::new(kernel.clone(), scope());
    reconciler.set_may_delete(true);
    reconciler.set(Owner::Node, node());
    reconciler.set(Owner::Peer(1), peer(1, 0));
    settle(&mut reconciler).await;
    let whole = outside.render();
    let (audits, began) = (reconciler.audits(), Instant::now());
    let objects = outside.objects();
    let of_peer = |object: &&Object| match object {
        Object::NextHop(..) => true,
        Object::Route(_, route) => matches!(route.to, RouteTo::NextHopId(_)),
        _ => false,
    };
    let (hops, routes): (Vec<_>, Vec<_>) = objects
        .iter()
        .filter(of_peer)
        .cloned()
        .partition(|object| matches!(object, Object::NextHop(..)));
    assert_eq!((hops.len(), routes.len()), (1, 1));
    assert!(outside.outside(&Op::Del(hops[0].clone())));
    // Only that the route is gone arrives.
    loop {
        tokio::select! {
            biased;
            event = reconciler.event() => drop(event),
            () = std::future::ready(()) => break,
        }
    }
    reconciler.note(KernelEvent::Gone(routes[0].clone()));
    settle(&mut reconciler).await;
    assert_eq!(outside.render(), whole);
    assert_eq!(reconciler.audits(), audits);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

/// The kernel holds something else under the key: each full look has the object offered again.
#[test]
fn a_change_that_is_refused_for_good_is_not_looked_at_without_end() {
    run(async {
        let kernel = kernel(true);
        let mut reconciler = Reconciler::new(kernel.clone(), scope());
        reconciler.set_may_delete(true);
        reconciler.set(Owner::Node, node());
        reconciler.set(Owner::Peer(1), peer(1, 0));
        settle(&mut reconciler).await;
        let is_route = |op: &Op| matches!(op, Op::Put(Object::Route(..)));
        let changed = peer(1, 0).into_iter().map(|object| match object {
            Object::Route(key, _) => {
                Object::Route(key, Route::ours(RouteTo::Dev(name("flannel.1"))))
            }
            other => other,
        });
        let changed: Vec<_> = changed.collect();
        for errno in [libc::EINVAL, libc::ENOENT] {
            kernel.set_faults(fault::matching(is_route, errno));
            reconciler.set(Owner::Peer(1), changed.clone());
            let before = kernel.counts();
            let end = Instant::now() + Duration::from_secs(60);
            while Instant::now() < end {
                take_notices(&mut reconciler, usize::MAX).await;
                reconciler.pass().await;
                tokio::time::sleep_until(reconciler.due()).await;
            }
            let after = kernel.counts();
            let looks = after.observed - before.observed;
            let failed = after.failed - before.failed;
            assert!(looks <= 20 && failed <= 40, "{looks} looks, {failed} tries");
            assert!(looks >= 1 && failed >= 5, "{looks} looks, {failed} tries");
            kernel.calm();
            reconciler.set(Owner::Peer(1), peer(1, 0));
            settle(&mut reconciler).await;
        }
    });
}
