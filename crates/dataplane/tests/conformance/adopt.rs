//! Routes that another flannel left are taken over where they stand: never two, never none.

use dataplane::{Dataplane, Kernel};
use model::object::*;
use model::{Object, Op};

use crate::objects::*;
use crate::script::sorted;
use crate::worlds::{Real, World, in_namespace, sh};

/// The routes to `dst` that `ip` shows.
fn routes(dst: &str) -> Vec<serde_json::Value> {
    let family = if dst.contains(':') { "-6" } else { "-4" };
    serde_json::from_str(&sh(&format!("ip -j {family} route show {dst}"))).unwrap()
}

const SUBNETS: [(&str, &str, u32); 2] = [
    ("10.244.2.0/24", "10.244.2.0", 5),
    ("fd44:0:0:2::/64", "fd44:0:0:2::", 6),
];

/// Both ways to say the same route, by gateway and by next-hop object.
fn forms(dst: &str, gateway: &str, id: u32) -> [Object; 2] {
    [via(dst, gateway), by_id(dst, id)]
}

async fn apply(kernel: &mut Kernel, ops: &[Op]) {
    for outcome in kernel.apply(ops).await {
        assert!(outcome.is_done(), "{outcome:?}");
    }
}

#[test]
fn a_route_changes_its_form_in_place() {
    in_namespace(|| async {
        let world = Real::new(true);
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        apply(&mut kernel, &puts(&mesh(true)[..8])).await;
        for (dst, gateway, id) in SUBNETS {
            let [plain, by_number] = forms(dst, gateway, id);
            // What upstream's flannel leaves, then back and forth between the two forms of ours.
            sh(&format!(
                "ip route add {dst} via {gateway} dev {OURS} onlink proto boot"
            ));
            for form in [&by_number, &plain, &by_number, &by_number, &plain] {
                let notices = monitored(&Op::Put(form.clone()), dst, &mut kernel).await;
                assert_eq!(
                    notices.iter().filter(|l| l.starts_with("Deleted")).count(),
                    0,
                    "{notices:?}"
                );
                let there = routes(dst);
                assert_eq!(there.len(), 1, "{dst}: {there:?}");
                assert_eq!(there[0]["protocol"], "241");
                assert_eq!(there[0]["gateway"], gateway);
                let number =
                    matches!(form, Object::Route(_, r) if matches!(r.to, RouteTo::NextHopId(_)));
                assert_eq!(there[0].get("nhid").is_some(), number, "{there:?}");
            }
        }
    });
}

/// Makes `op`'s change and returns what `ip monitor` says of `dst` meanwhile.
async fn monitored(op: &Op, dst: &str, kernel: &mut Kernel) -> Vec<String> {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let mut monitor = Command::new("ip");
    monitor.args(["monitor", "route"]).stdout(Stdio::piped());
    let mut monitor = Reaped(monitor.spawn().unwrap());
    let mut lines = BufReader::new(monitor.0.stdout.take().unwrap()).lines();
    let mut until = |mark: &str| -> Vec<String> {
        let mut seen = Vec::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if line.contains(mark) {
                return seen;
            }
            seen.push(line);
        }
        panic!("ip monitor ended");
    };
    // It listens as soon as it shows a first change.
    let listening = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let poker = poke(std::sync::Arc::clone(&listening));
    until("10.99.0.0");
    listening.store(true, std::sync::atomic::Ordering::SeqCst);
    poker.join().unwrap();
    apply(kernel, std::slice::from_ref(op)).await;
    sh("ip route replace blackhole 10.99.1.0/24 && ip route del blackhole 10.99.1.0/24");
    let all = until("10.99.1.0");
    all.into_iter().filter(|line| line.contains(dst)).collect()
}

/// Changes a route over and over until told to stop; the thread shares the network namespace.
fn poke(stop: std::sync::Arc<std::sync::atomic::AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            sh("ip route replace blackhole 10.99.0.0/24; ip route del blackhole 10.99.0.0/24");
        }
    })
}

/// A child that ends with the test.
struct Reaped(std::process::Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_existing_device_is_adopted_as_it_stands() {
    in_namespace(|| async {
        let world = Real::new(true);
        // As upstream's flannel makes it.
        sh(
            "ip link add flannel.1 address 0e:00:00:00:00:01 type vxlan id 1 dev eth0 \
            local 192.168.7.1 dstport 8472 nolearning && ip link set flannel.1 up",
        );
        sh("ip address add 10.244.1.0/32 dev flannel.1");
        let index = || sh("cat /proc/net/dev_snmp6/flannel.1 | head -1");
        let before = index();
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        let mut seen = Vec::new();
        kernel
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        let unmarked = Link {
            mark: None,
            ..vxlan(1)
        };
        let expected = [link(OURS, unmarked), addr(OURS, "10.244.1.0/32")];
        assert_eq!(sorted(&seen), sorted(&expected));
        apply(&mut kernel, &puts(&mesh(true))).await;
        assert_eq!(index(), before, "it was made anew");
    });
}

#[test]
fn odd_routes_on_our_device_are_seen_and_deleted() {
    in_namespace(|| async {
        let world = Real::new(true);
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        apply(&mut kernel, &puts(&mesh(true))).await;
        sh("ip nexthop add id 20 via 10.244.2.9 dev flannel.1 onlink");
        sh("ip nexthop add id 21 group 20");
        let odd = [
            "10.8.1.0/24 nexthop via 192.168.7.9 dev eth0 nexthop via 10.244.2.0 dev flannel.1 onlink",
            "10.8.2.0/24 via 10.244.2.0 dev flannel.1 onlink src 192.168.7.1",
            "10.8.3.0/24 via 10.244.2.0 dev flannel.1 onlink mtu 1200",
            "10.8.4.0/24 dev flannel.1 scope global proto static",
            "10.8.5.0/24 nhid 20",
            "10.8.6.0/24 nhid 21",
            "10.8.7.0/24 via inet6 fd44:0:0:2:: dev flannel.1 onlink",
            "fd48:1::/64 nexthop via fd44:0:0:2:: dev flannel.1 onlink nexthop via fd44:0:0:2::1 dev flannel.1 onlink",
            "fd48:2::/64 via fd44:0:0:2:: dev flannel.1 onlink mtu 1290",
            "fd48:3::/64 via fd44:0:0:2:: dev flannel.1 onlink metric 7",
        ];
        for route in odd {
            sh(&format!("ip route add {route}"));
        }
        // Alike but on another device: not to be touched.
        sh("ip route add 10.8.2.0/24 dev eth0 metric 5");
        sh("ip route add fd48:2::/64 dev eth0 metric 2000");
        let mut seen = Vec::new();
        kernel
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        let is_odd = |object: &Object| matches!(object, Object::Route(key, _) if key.dst.to_string().contains("10.8.") || key.dst.to_string().contains("fd48"));
        let strays: Vec<Object> = seen.iter().filter(|o| is_odd(o)).cloned().collect();
        assert_eq!(strays.len(), odd.len(), "{strays:#?}");
        apply(&mut kernel, &dels(&strays)).await;
        let mut rest = Vec::new();
        kernel
            .observe(&mut |object| rest.push(object))
            .await
            .unwrap();
        assert_eq!(sorted(&rest), sorted(&mesh(true)));
        assert_eq!(routes("10.8.2.0/24").len() + routes("fd48:2::/64").len(), 2);
    });
}

#[test]
fn next_hops_told_by_number_alone() {
    in_namespace(|| async {
        let world = Real::new(true);
        std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").unwrap();
        let mut kernel = world.plane();
        kernel.set_scope(scope(&[OURS]));
        apply(&mut kernel, &puts(&mesh(true))).await;
        let mut seen = Vec::new();
        kernel
            .observe(&mut |object| seen.push(object))
            .await
            .unwrap();
        assert_eq!(sorted(&seen), sorted(&mesh(true)));
        for (dst, _, id) in SUBNETS {
            sh(&format!("ip route del {dst}"));
            let event = kernel.event().await;
            assert_eq!(event, dataplane::KernelEvent::Gone(by_id(dst, id)));
        }
    });
}
