//! Tunnels whose packets flanneld carries itself: one TCP stream, and small requests and answers, between two pods on
//! two nodes. Beside the `udp` of upstream's flanneld, if this machine can build it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::{Lab, Namespace, Process, StoreKind, bulk, wait_for};
use serde_json::json;

use crate::figure::{Figure, Goal, JudgedAs};
use crate::stage::PATIENCE;
use crate::stats::{median, ms};

/// What a stream carries: 2.15 Gbit.
const STREAM: u64 = 256 << 20;
const REQUESTS: u32 = 5_000;

/// 1 Gb/s and 2.5 Gb/s.
const WIREGUARD_MS: Goal = Goal {
    must: 2_147.0,
    aim: 859.0,
};
/// 4 Gb/s and 8 Gb/s.
const UDP_MS: Goal = Goal {
    must: 537.0,
    aim: 268.0,
};
/// Three and five times as many a second as upstream.
const REQUESTS_RATIO: Goal = Goal {
    must: 1.0 / 3.0,
    aim: 0.2,
};

/// Measures it; `root` is the project's directory.
///
/// # Errors
/// Something does not work at all: no figures then.
pub fn measure(bin_dir: &Path, root: &Path, quick: bool) -> anyhow::Result<Vec<Figure>> {
    let rounds = if quick { 1 } else { 5 };
    let wireguard = ours(
        bin_dir,
        "wireguard",
        &["-wireguard-implementation=userspace"],
        rounds,
    )?;
    let udp = ours(bin_dir, "udp", &[], rounds)?;
    let theirs = match upstream(root) {
        Some(program) => Some(upstreams(bin_dir, &program, rounds)?),
        None => {
            eprintln!(
                "tunnels: upstream's flanneld cannot be built here: nothing to hold udp against"
            );
            None
        }
    };
    let figure = |work, samples: &[f64], reference: Option<f64>, judged_as, goal| {
        let ours = (median(samples), "ms");
        Figure::new(work, ("etcd", 1), ours, reference, judged_as, Some(goal)).samples(samples)
    };
    let beside =
        |samples: fn(&Times) -> &[f64]| theirs.as_ref().map(|times| median(samples(times)));
    let mut figures = vec![
        figure(
            "wireguard in user space: one TCP stream, 256 MiB",
            &wireguard.streams,
            None,
            JudgedAs::Value,
            WIREGUARD_MS,
        ),
        figure(
            "udp: one TCP stream, 256 MiB",
            &udp.streams,
            None,
            JudgedAs::Value,
            UDP_MS,
        ),
    ];
    if theirs.is_some() {
        figures.push(figure(
            "udp: 5,000 requests and answers, beside upstream",
            &udp.requests,
            beside(|times| &times.requests),
            JudgedAs::Ratio,
            REQUESTS_RATIO,
        ));
        let reference = beside(|times| &times.streams);
        let ours = (median(&udp.streams), "ms");
        let work = "udp: one TCP stream, 256 MiB, beside upstream";
        figures.push(Figure::new(
            work,
            ("etcd", 1),
            ours,
            reference,
            JudgedAs::Ratio,
            None,
        ));
    }
    Ok(figures)
}

/// Milliseconds.
#[derive(Default)]
struct Times {
    streams: Vec<f64>,
    requests: Vec<f64>,
}

fn lab(bin_dir: &Path, backend: &str) -> anyhow::Result<Lab> {
    let lab = Lab::builder()
        .nodes(2)
        .store(StoreKind::Etcd { tls: false })
        .backend(json!({ "Type": backend }))
        .bin_dir(bin_dir)
        .build()?;
    Ok(lab)
}

fn ours(bin_dir: &Path, backend: &str, args: &[&str], rounds: u32) -> anyhow::Result<Times> {
    let lab = lab(bin_dir, backend)?;
    for node in lab.nodes() {
        node.flanneld().set_args(args.iter().copied());
        node.flanneld().start_ready(PATIENCE)?;
    }
    times(&lab, backend, rounds)
}

fn upstreams(bin_dir: &Path, program: &Path, rounds: u32) -> anyhow::Result<Times> {
    let lab = lab(bin_dir, "udp")?;
    let arguments = lab.etcd().context("the lab has no etcd")?.flanneld_args();
    let mut processes = Vec::new();
    for node in lab.nodes() {
        let mut command = Command::new(program);
        command.args(&arguments).arg("-iface=eth0");
        let log = lab
            .shared_dir()
            .join(format!("log/{}-upstream", node.name()));
        processes.push(Process::start(
            "upstream's flanneld",
            node,
            &mut command,
            &log,
        )?);
    }
    for node in lab.nodes() {
        wait_for("upstream's flanneld is ready", PATIENCE, || {
            node.subnet_env().map(drop).map_err(|e| e.to_string())
        })?;
    }
    times(&lab, "upstream's udp", rounds)
}

/// The program of upstream, which the tests use.
fn upstream(root: &Path) -> Option<PathBuf> {
    let output = Command::new(root.join("scripts/upstream")).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| path.trim().into())
}

fn times(lab: &Lab, what: &str, rounds: u32) -> anyhow::Result<Times> {
    for node in lab.nodes() {
        node.add_pods(1)?;
    }
    lab.wait_mesh(PATIENCE)?;
    let (from, to) = (lab.node(1).pods(), lab.node(2).pods());
    let (Some(from), Some(to)) = (from.first(), to.first()) else {
        bail!("no pods");
    };
    let ip = to.ips().into_iter().find(IpAddr::is_ipv4);
    let ip = ip.context("a pod without an address")?;
    let mut times = Times::default();
    for round in 1..=rounds {
        let stream = ms(bulk(from, to, ip, STREAM)?);
        let requests = ms(requests(from, to, ip)?);
        eprintln!("{what}: stream {round} of {rounds}: {stream:.0} ms, requests: {requests:.0} ms");
        times.streams.push(stream);
        times.requests.push(requests);
    }
    Ok(times)
}

/// How long small requests and their answers take, one after the other.
fn requests(from: &Namespace, to: &Namespace, ip: IpAddr) -> anyhow::Result<Duration> {
    const WAIT: Duration = Duration::from_millis(500);
    let server = to.run(|| UdpSocket::bind(SocketAddr::new(ip, 0)))??;
    server.set_read_timeout(Some(WAIT))?;
    let client = from.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    client.connect(server.local_addr()?)?;
    client.set_read_timeout(Some(WAIT))?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((len, at)) = server.recv_from(&mut buffer) {
                    let _ = server.send_to(&buffer[..len], at);
                }
            }
        });
        let began = Instant::now();
        let mut lost = 0;
        let mut buffer = [0; 64];
        for number in 0..REQUESTS {
            let answered =
                client.send(&number.to_be_bytes()).is_ok() && client.recv(&mut buffer).is_ok();
            lost += u32::from(!answered);
        }
        let took = began.elapsed();
        ended.store(true, Ordering::Relaxed);
        if lost > REQUESTS / 100 {
            bail!("{lost} of {REQUESTS} requests were lost");
        }
        Ok(took)
    })
}
