//! Many operations at once on the real kernel: each has its own outcome, none is told back, and a
//! flood of others' notices is survived.

use std::future::Future;
use std::task::Poll;

use dataplane::{Dataplane, Kernel, KernelEvent};
use model::object::*;
use model::{Object, Op};

use crate::objects::*;
use crate::script::sorted;
use crate::worlds::{Real, World, in_namespace, sh};

/// What peer `n` needs, kind by kind.
fn peers(count: u32) -> Vec<Object> {
    let kinds = 0..4;
    let of = |kind: i32, n: u32| {
        let subnet = std::net::Ipv4Addr::from_bits(0x0af4_1000 + (n << 4));
        let [_, _, b, c] = n.to_be_bytes();
        let mac = model::Mac([0x0e, 1, 0, 0, b, c]);
        let ip = subnet.into();
        let dst = ipnet::Ipv4Net::new(subnet, 28).unwrap().into();
        match kind {
            0 => Object::Neigh(NeighKey { dev: dev(OURS), ip }, mac),
            1 => Object::Fdb(
                FdbKey {
                    dev: dev(OURS),
                    mac,
                },
                Remote::At([192, 168, b, c].into()),
            ),
            2 => Object::NextHop(
                n,
                NextHop {
                    via: ip,
                    dev: dev(OURS),
                    onlink: true,
                },
            ),
            _ => Object::Route(RouteKey::to(dst), Route::ours(RouteTo::NextHopId(n))),
        }
    };
    kinds
        .flat_map(|kind| (1..=count).map(move |n| of(kind, n)))
        .collect()
}

async fn seen(kernel: &mut Kernel) -> Vec<Object> {
    let mut seen = Vec::new();
    kernel
        .observe(&mut |object| seen.push(object))
        .await
        .unwrap();
    seen
}

#[test]
fn every_operation_has_its_own_outcome() {
    in_namespace(|| async {
        let world = Real::new(true);
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        assert!(
            kernel
                .apply(&puts(&node()))
                .await
                .iter()
                .all(dataplane::Outcome::is_done)
        );

        const COUNT: u32 = 2_000;
        let mut ops = puts(&peers(COUNT));
        // Of each way to fail one, at the ends of batches and in the middle of them.
        let absent = Op::Put(neigh("none0", "10.9.9.9", 3));
        let unknown = Op::Put(by_id("10.244.250.0/24", 99_999));
        let unreachable = Op::Put(route(
            "10.9.0.0/24",
            RouteTo::Gateway(hop("172.16.0.1", IFACE, false)),
        ));
        let gone = Op::Del(neigh(OURS, "10.9.9.8", 3));
        let foreign = Op::Put(route("10.9.1.0/24", RouteTo::Foreign(dev(OURS))));
        let bad = [
            (0, absent.clone(), Some(libc::ENODEV)),
            (999, unknown.clone(), Some(libc::EINVAL)),
            (1_000, unreachable.clone(), Some(libc::ENETUNREACH)),
            (1_001, gone.clone(), None),
            (3_333, foreign, Some(libc::EOPNOTSUPP)),
            (5_000, unknown, Some(libc::EINVAL)),
            (7_000, unreachable, Some(libc::ENETUNREACH)),
            (7_001, gone, None),
            (8_008, absent, Some(libc::ENODEV)),
        ];
        for (at, op, _) in &bad {
            ops.insert(*at, op.clone());
        }
        let outcomes = kernel.apply(&ops).await;
        assert_eq!(outcomes.len(), ops.len());
        for (at, (op, outcome)) in ops.iter().zip(&outcomes).enumerate() {
            let expected = bad.iter().find(|b| b.0 == at).and_then(|b| b.2);
            let errno = outcome.refusal().map(|err| err.errno);
            assert_eq!(errno, expected, "{at}: {op}: {outcome:?}");
            assert!(outcome.refusal().is_none_or(|err| err.op == op.to_string()));
        }

        let expected = [node(), peers(COUNT)].concat();
        let mut there = world.plane();
        there.set_scope(scope(&[OURS]));
        assert_eq!(sorted(&seen(&mut there).await), sorted(&expected));
        // Of all that nothing is told.
        sh(&format!(
            "ip route add blackhole 10.244.255.0/24 proto {ROUTE_PROTOCOL}"
        ));
        let told = kernel.event().await;
        assert!(
            matches!(told, KernelEvent::Saw(Object::Route(..))),
            "{told:?}"
        );

        // By other programs' count.
        let lines = |command: &str| sh(command).lines().count() as u32;
        assert_eq!(lines("ip neigh show dev flannel.1 nud permanent"), COUNT);
        assert_eq!(
            lines("bridge fdb show dev flannel.1 | grep 'dst 192.168.'"),
            COUNT
        );
        assert_eq!(lines("ip nexthop show protocol 241"), COUNT);
        assert_eq!(lines("ip route show dev flannel.1 proto 241"), COUNT);

        let mut gone = peers(COUNT);
        gone.reverse();
        assert!(
            kernel
                .apply(&dels(&gone))
                .await
                .iter()
                .all(dataplane::Outcome::is_done)
        );
        assert_eq!(lines("ip nexthop show protocol 241"), 0);
        assert_eq!(lines("ip neigh show dev flannel.1 nud permanent"), 0);
    });
}

#[test]
fn a_thousand_refusals_in_one_send_all_arrive() {
    in_namespace(|| async {
        let world = Real::new(true);
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        let refused: Vec<Op> = (0..5_000)
            .map(|n| Op::Put(by_id("10.244.9.0/24", 1_000 + n)))
            .collect();
        let outcomes = kernel.apply(&refused).await;
        let told = |o: &dataplane::Outcome| {
            o.refusal()
                .is_some_and(|e| e.errno == libc::EINVAL && e.reason.contains("Nexthop id"))
        };
        let missed = outcomes.iter().filter(|o| !told(o)).count();
        assert_eq!(missed, 0, "of 5,000 refusals");
    });
}

#[test]
fn a_flood_of_notices_leads_to_a_look_and_not_to_silence() {
    in_namespace(|| async {
        let world = Real::new(true);
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        assert!(
            kernel
                .apply(&puts(&node()))
                .await
                .iter()
                .all(dataplane::Outcome::is_done)
        );
        seen(&mut kernel).await;

        // Far more than the receive buffer holds, while nobody reads.
        let mut other = world.plane();
        let blackhole = |n: u32| {
            let dst = ipnet::Ipv4Net::new(std::net::Ipv4Addr::from_bits(0x0af4_0000 + n), 32);
            Object::Route(
                RouteKey::to(dst.unwrap().into()),
                Route::ours(RouteTo::Blackhole),
            )
        };
        let flood: Vec<Object> = (0..65_536).map(blackhole).collect();
        for _ in 0..2 {
            assert!(
                other
                    .apply(&puts(&flood))
                    .await
                    .iter()
                    .all(dataplane::Outcome::is_done)
            );
            assert!(
                other
                    .apply(&dels(&flood))
                    .await
                    .iter()
                    .all(dataplane::Outcome::is_done)
            );
        }
        assert!(
            other
                .apply(&puts(&flood[..3]))
                .await
                .iter()
                .all(dataplane::Outcome::is_done)
        );
        sh("ip address add 10.244.77.0/32 dev flannel.1");

        let mut events = 0;
        loop {
            match kernel.event().await {
                KernelEvent::LookAgain => break,
                _ => events += 1,
            }
            assert!(events < 10_000, "one by one costs more than a look");
        }
        let expected = [
            node(),
            flood[..3].to_vec(),
            vec![addr(OURS, "10.244.77.0/32")],
        ]
        .concat();
        assert_eq!(sorted(&seen(&mut kernel).await), sorted(&expected));

        // And it hears again.
        sh("ip address del 10.244.77.0/32 dev flannel.1");
        let gone = KernelEvent::Gone(addr(OURS, "10.244.77.0/32"));
        loop {
            match kernel.event().await {
                event if event == gone => break,
                KernelEvent::HostChanged | KernelEvent::LookAgain => {}
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn an_event_that_is_waited_for_and_given_up_is_not_lost() {
    in_namespace(|| async {
        let world = Real::new(true);
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        assert!(
            kernel
                .apply(&puts(&node()))
                .await
                .iter()
                .all(dataplane::Outcome::is_done)
        );
        seen(&mut kernel).await;
        let mut heard = Vec::new();
        for n in 0..50 {
            sh(&format!("ip address add 10.244.200.{n}/32 dev flannel.1"));
            // Given up before, while or after it arrives.
            let patience = std::time::Duration::from_micros(n * 20);
            if let Ok(event) = tokio::time::timeout(patience, kernel.event()).await {
                heard.push(event);
            }
        }
        while heard.len() < 50 {
            heard.push(kernel.event().await);
        }
        for n in 0..50 {
            let event = KernelEvent::Saw(addr(OURS, &format!("10.244.200.{n}/32")));
            assert_eq!(heard.iter().filter(|e| **e == event).count(), 1, "{n}");
        }
    });
}

#[test]
fn many_events_of_which_the_first_is_given_up_all_arrive() {
    in_namespace(|| async {
        let world = Real::new(true);
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        const COUNT: u32 = 3_500;
        let blackhole = |n: u32| {
            let dst = ipnet::Ipv4Net::new(std::net::Ipv4Addr::from_bits(0x0af4_0000 + n), 32);
            Object::Route(
                RouteKey::to(dst.unwrap().into()),
                Route::ours(RouteTo::Blackhole),
            )
        };
        let routes: Vec<Object> = (0..COUNT).map(blackhole).collect();
        let outcomes = world.plane().apply(&puts(&routes)).await;
        assert!(outcomes.iter().all(dataplane::Outcome::is_done));
        let mut heard = Vec::new();
        // Polled once, so that it has begun to read and lets others have their turn; then given up.
        tokio::task::yield_now().await;
        {
            let mut first = std::pin::pin!(kernel.event());
            let polled = std::future::poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "it read more than it does at once");
        }
        while heard.len() < COUNT as usize {
            let next = tokio::time::timeout(std::time::Duration::from_secs(5), kernel.event());
            heard.push(
                next.await
                    .unwrap_or_else(|_| panic!("stuck after {}", heard.len())),
            );
        }
        let expected: Vec<KernelEvent> = routes.into_iter().map(KernelEvent::Saw).collect();
        assert!(heard == expected);
    });
}
