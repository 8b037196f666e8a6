//! How long the kernel takes for a cluster's worth of objects: `cargo bench -p dataplane`.
//!
//! Each figure is the median of five runs, each in a network namespace of its own. Needs root.

#![allow(unsafe_code, reason = "a namespace for the measurement")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for a person to run"
)]

use std::process::Command;
use std::time::{Duration, Instant};

use dataplane::{Dataplane, Kernel, Scope};
use model::object::*;
use model::{Dual, IfName, Mac, Object, Op};

const RUNS: usize = 5;

fn main() {
    let mut counts: Vec<u32> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    if counts.is_empty() {
        counts = vec![1_000, 5_000, 15_000];
    }
    println!("| peers | write | look | write again | one peer | delete |");
    println!("|---|---|---|---|---|---|");
    for count in counts {
        let runs: Vec<[Duration; 5]> = (0..RUNS)
            .map(|_| std::thread::spawn(move || run(count)).join().unwrap())
            .collect();
        let median = |column: usize| {
            let mut all: Vec<Duration> = runs.iter().map(|run| run[column]).collect();
            all.sort();
            format!("{:.2} ms", all[RUNS / 2].as_secs_f64() * 1e3)
        };
        let cells: Vec<String> = (0..5).map(median).collect();
        println!("| {count} | {} |", cells.join(" | "));
    }
}

fn run(count: u32) -> [Duration; 5] {
    // SAFETY: takes no pointers; moves this thread alone to a new network namespace.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(moved, 0, "a new network namespace needs root");
    let setup = "ip link add eth0 index 100 type veth peer name peer0 && ip link set peer0 up && \
                 ip link set eth0 up && ip address add 192.168.7.1/16 dev eth0";
    assert!(
        Command::new("sh")
            .args(["-c", setup])
            .status()
            .unwrap()
            .success()
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure(count))
}

async fn measure(count: u32) -> [Duration; 5] {
    let dev: IfName = "flannel.1".parse().unwrap();
    let iface: IfName = "eth0".parse().unwrap();
    let mut kernel = Kernel::open(false).unwrap();
    kernel.set_scope(Scope {
        devices: vec![dev],
        iface,
        network: Dual {
            v4: Some("10.0.0.0/8".parse().unwrap()),
            v6: None,
        },
        own: Dual {
            v4: Some("10.0.0.0/24".parse().unwrap()),
            v6: None,
        },
        take_over: false,
    });
    let local = "192.168.7.1".parse().unwrap();
    let vxlan = Vxlan {
        vni: 1,
        port: 8472,
        local,
        beneath: Beneath {
            index: 100,
            name: Some(iface),
        },
        learning: false,
        gbp: false,
        tx_checksum: None,
    };
    let mac = Some(Mac([0x0e, 0, 0, 0, 0, 1]));
    let link = Link {
        kind: LinkKind::Vxlan(vxlan),
        mac,
        mtu: 1450,
        up: true,
        mark: None,
        enslaved: false,
    };
    let node = [
        Op::Put(Object::Link(dev, link)),
        Op::Put(Object::Addr(
            AddrKey {
                dev,
                net: "10.0.0.0/32".parse().unwrap(),
            },
            (),
        )),
    ];
    assert!(
        kernel
            .apply(&node)
            .await
            .iter()
            .all(dataplane::Outcome::is_done)
    );

    // As the reconciler orders them: kind by kind.
    let objects: Vec<Object> = (0..4)
        .flat_map(|kind| (1..=count).map(move |n| object(dev, n, kind)))
        .collect();
    let puts: Vec<Op> = objects.iter().cloned().map(Op::Put).collect();
    let dels: Vec<Op> = objects.iter().rev().cloned().map(Op::Del).collect();

    let write = timed(&mut kernel, &puts).await;
    let start = Instant::now();
    let mut seen = 0;
    kernel.observe(&mut |_| seen += 1).await.unwrap();
    let look = start.elapsed();
    assert_eq!(seen, 2 + 4 * count);
    let again = timed(&mut kernel, &puts).await;
    let one: Vec<Op> = (0..4)
        .map(|kind| Op::Put(object(dev, count + 1, kind)))
        .collect();
    let one = timed(&mut kernel, &one).await;
    let delete = timed(&mut kernel, &dels).await;
    [write, look, again, one, delete]
}

async fn timed(kernel: &mut Kernel, ops: &[Op]) -> Duration {
    let start = Instant::now();
    let outcomes = kernel.apply(ops).await;
    let elapsed = start.elapsed();
    assert!(outcomes.iter().all(dataplane::Outcome::is_done));
    elapsed
}

fn object(dev: IfName, n: u32, kind: usize) -> Object {
    let [_, a, b, c] = n.to_be_bytes();
    let subnet = std::net::Ipv4Addr::from_bits(10 << 24 | n << 8);
    let mac = Mac([0x0e, 1, 0, a, b, c]);
    match kind {
        0 => Object::Neigh(
            NeighKey {
                dev,
                ip: subnet.into(),
            },
            mac,
        ),
        1 => Object::Fdb(
            FdbKey { dev, mac },
            Remote::At(std::net::Ipv4Addr::new(192, 168, b, c).into()),
        ),
        2 => Object::NextHop(
            (1 << 30) + n,
            NextHop {
                via: subnet.into(),
                dev,
                onlink: true,
            },
        ),
        _ => {
            let dst = ipnet::Ipv4Net::new(subnet, 24).unwrap().into();
            Object::Route(
                RouteKey::to(dst),
                Route::ours(RouteTo::NextHopId((1 << 30) + n)),
            )
        }
    }
}
