//! Tunnels whose packets flanneld carries itself: one TCP stream, and small requests and answers, between two pods on
//! two nodes, from one client and from many. Beside the kernel's vxlan, and the `udp` of upstream's flanneld, if this
//! machine can build it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::{Lab, Namespace, Process, StoreKind, bulk, wait_for};
use serde_json::json;

use crate::figure::{Figure, Goal, JudgedAs};
use crate::stage::PATIENCE;
use crate::stats::{median, ms};
use crate::usage::{Usage, cpu};

/// What a stream carries: 8.59 Gbit.
const STREAM: u64 = 1 << 30;
/// Upstream takes half a minute for it, so its stream is a sixteenth, and the time is multiplied.
const UPSTREAM_SHARE: u64 = 16;
const REQUESTS: u32 = 5_000;
/// How many requests are under way at the same time where it is many, of one client or of as many clients.
const UNDER_WAY: u32 = 64;
const REQUESTS_UNDER_WAY: u32 = 32_000;

/// 1 Gb/s and 2.5 Gb/s.
const WIREGUARD_MS: Goal = Goal {
    must: 8_590.0,
    aim: 3_436.0,
};
/// 4 Gb/s and 8 Gb/s.
const UDP_MS: Goal = Goal {
    must: 2_147.0,
    aim: 1_074.0,
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
    let userspace = &["-wireguard-implementation=userspace"];
    let mut wireguard = Network::ours(bin_dir, "wireguard", userspace)?;
    let mut udp = Network::ours(bin_dir, "udp", &[])?;
    let mut vxlan = Network::ours(bin_dir, "vxlan", &[])?;
    let mut theirs = match upstream(root) {
        Some(program) => Some(Network::upstream(bin_dir, &program)?),
        None => {
            eprintln!(
                "tunnels: upstream's flanneld cannot be built here: nothing to hold udp against"
            );
            None
        }
    };
    // In turn, so that what else the machine does disturbs all of them alike.
    for round in 1..=rounds {
        let networks = [&mut wireguard, &mut udp, &mut vxlan];
        for network in networks.into_iter().chain(&mut theirs) {
            network.measure(&format!("{round} of {rounds}"))?;
        }
    }
    let (wireguard, udp, vxlan) = (wireguard.times, udp.times, vxlan.times);
    let kernel = median(&vxlan.streams);
    let figure = |work, samples: &[f64], reference: Option<f64>, judged_as, goal| {
        let ours = (median(samples), "ms");
        Figure::new(work, ("etcd", 1), ours, reference, judged_as, goal).samples(samples)
    };
    let mut figures = vec![
        figure(
            "wireguard in user space: one TCP stream, 1 GiB, beside the kernel's vxlan",
            &wireguard.streams,
            Some(kernel),
            JudgedAs::Value,
            Some(WIREGUARD_MS),
        ),
        figure(
            "udp: one TCP stream, 1 GiB, beside the kernel's vxlan",
            &udp.streams,
            Some(kernel),
            JudgedAs::Value,
            Some(UDP_MS),
        ),
        figure(
            "wireguard in user space: processor time of both daemons for 1 GiB",
            &wireguard.processor,
            None,
            JudgedAs::Value,
            None,
        ),
    ];
    if let Some(theirs) = theirs.map(|theirs| theirs.times) {
        figures.extend([
            figure(
                "udp: processor time of both daemons for 1 GiB, beside upstream",
                &udp.processor,
                Some(median(&theirs.processor)),
                JudgedAs::Ratio,
                None,
            ),
            figure(
                "udp: one TCP stream, 1 GiB, beside upstream",
                &udp.streams,
                Some(median(&theirs.streams)),
                JudgedAs::Ratio,
                None,
            ),
            figure(
                "udp: 5,000 requests and answers, beside upstream",
                &udp.requests,
                Some(median(&theirs.requests)),
                JudgedAs::Ratio,
                Some(REQUESTS_RATIO),
            ),
            figure(
                "udp: 32,000 requests and answers, 64 under way, beside upstream",
                &udp.windows,
                Some(median(&theirs.windows)),
                JudgedAs::Ratio,
                Some(REQUESTS_RATIO),
            ),
            figure(
                "udp: 32,000 requests and answers of 64 clients, beside upstream",
                &udp.crowds,
                Some(median(&theirs.crowds)),
                JudgedAs::Ratio,
                Some(REQUESTS_RATIO),
            ),
        ]);
    }
    Ok(figures)
}

/// Milliseconds.
#[derive(Default)]
struct Times {
    streams: Vec<f64>,
    requests: Vec<f64>,
    /// Requests of one client, many at a time.
    windows: Vec<f64>,
    /// Requests of many clients, each one at a time.
    crowds: Vec<f64>,
    /// Of the daemons, during a stream.
    processor: Vec<f64>,
}

/// Two nodes with a pod each, which are connected.
struct Network {
    what: String,
    lab: Lab,
    /// The daemons, if they are not the lab's own.
    processes: Vec<Process>,
    /// Which part of a stream it carries.
    share: u64,
    times: Times,
}

impl Network {
    fn build(bin_dir: &Path, what: &str, backend: &str) -> anyhow::Result<Network> {
        let lab = Lab::builder()
            .nodes(2)
            .store(StoreKind::Etcd { tls: false })
            .backend(json!({ "Type": backend }))
            .bin_dir(bin_dir)
            .build()?;
        Ok(Network {
            what: what.into(),
            lab,
            processes: Vec::new(),
            share: 1,
            times: Times::default(),
        })
    }

    fn ours(bin_dir: &Path, backend: &str, args: &[&str]) -> anyhow::Result<Network> {
        let network = Network::build(bin_dir, backend, backend)?;
        for node in network.lab.nodes() {
            node.flanneld().set_args(args.iter().copied());
            node.flanneld().start_ready(PATIENCE)?;
        }
        network.with_pods()
    }

    fn upstream(bin_dir: &Path, program: &Path) -> anyhow::Result<Network> {
        let mut network = Network::build(bin_dir, "upstream's udp", "udp")?;
        network.share = UPSTREAM_SHARE;
        let lab = &network.lab;
        let arguments = lab.etcd().context("the lab has no etcd")?.flanneld_args();
        for node in lab.nodes() {
            let mut command = Command::new(program);
            command.args(&arguments).arg("-iface=eth0");
            let log = lab
                .shared_dir()
                .join(format!("log/{}-upstream", node.name()));
            network.processes.push(Process::start(
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
        network.with_pods()
    }

    fn with_pods(self) -> anyhow::Result<Network> {
        for node in self.lab.nodes() {
            node.add_pods(1)?;
        }
        self.lab.wait_mesh(PATIENCE)?;
        Ok(self)
    }

    fn measure(&mut self, round: &str) -> anyhow::Result<()> {
        let (from, to) = (self.lab.node(1).pods(), self.lab.node(2).pods());
        let (Some(from), Some(to)) = (from.first(), to.first()) else {
            bail!("no pods");
        };
        let ip = to.ips().into_iter().find(IpAddr::is_ipv4);
        let ip = ip.context("a pod without an address")?;
        let before = self.processor()?;
        let share = self.share as f64;
        let stream = ms(bulk(from, to, ip, STREAM / self.share)?) * share;
        let processor = ms(self.processor()?.saturating_sub(before)) * share;
        let load = |clients, each, window| Load {
            clients,
            each,
            window,
        };
        let one = ms(requests(from, to, ip, load(1, REQUESTS, 1))?);
        let window = load(1, REQUESTS_UNDER_WAY, UNDER_WAY);
        let window = ms(requests(from, to, ip, window)?);
        let crowd = load(UNDER_WAY, REQUESTS_UNDER_WAY / UNDER_WAY, 1);
        let crowd = ms(requests(from, to, ip, crowd)?);
        eprintln!(
            "{}, round {round}: stream {stream:.0} ms, processor {processor:.0} ms, requests {one:.0} ms, {UNDER_WAY} under way {window:.0} ms, of {UNDER_WAY} clients {crowd:.0} ms",
            self.what
        );
        self.times.streams.push(stream);
        self.times.processor.push(processor);
        self.times.requests.push(one);
        self.times.windows.push(window);
        self.times.crowds.push(crowd);
        Ok(())
    }

    /// What both daemons have used so far.
    fn processor(&self) -> anyhow::Result<Duration> {
        if self.processes.is_empty() {
            let nodes = self.lab.nodes().iter();
            return nodes.map(|node| Ok(Usage::of(node)?.cpu)).sum();
        }
        self.processes
            .iter()
            .map(|process| cpu(process.pid()))
            .sum()
    }
}

/// The program of upstream, which the tests use.
fn upstream(root: &Path) -> Option<PathBuf> {
    let output = Command::new(root.join("scripts/upstream")).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| path.trim().into())
}

/// Who sends how many small requests.
#[derive(Clone, Copy)]
struct Load {
    clients: u32,
    /// Requests of each client.
    each: u32,
    /// How many of them are under way at the same time.
    window: u32,
}

/// Returns how long it takes until all requests are answered.
fn requests(from: &Namespace, to: &Namespace, ip: IpAddr, load: Load) -> anyhow::Result<Duration> {
    const WAIT: Duration = Duration::from_millis(500);
    let server = to.run(|| UdpSocket::bind(SocketAddr::new(ip, 0)))??;
    server.set_read_timeout(Some(WAIT))?;
    let at = server.local_addr()?;
    let client = || -> anyhow::Result<UdpSocket> {
        let client = from.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        client.connect(at)?;
        client.set_read_timeout(Some(WAIT))?;
        Ok(client)
    };
    let sockets: Vec<UdpSocket> = (0..load.clients)
        .map(|_| client())
        .collect::<Result<_, _>>()?;
    let (ended, lost) = (AtomicBool::new(false), AtomicU32::new(0));
    let run = |client: &UdpSocket| {
        let mut buffer = [0; 64];
        let (mut sent, mut waits_for) = (0, 0u32);
        while sent < load.each || waits_for > 0 {
            while sent < load.each && waits_for < load.window {
                waits_for += u32::from(client.send(&sent.to_be_bytes()).is_ok());
                sent += 1;
            }
            if client.recv(&mut buffer).is_ok() {
                waits_for = waits_for.saturating_sub(1);
            } else {
                lost.fetch_add(waits_for, Ordering::Relaxed);
                waits_for = 0;
            }
        }
    };
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
        std::thread::scope(|scope| {
            for client in &sockets {
                scope.spawn(|| run(client));
            }
        });
        let took = began.elapsed();
        ended.store(true, Ordering::Relaxed);
        let (lost, all) = (lost.load(Ordering::Relaxed), load.clients * load.each);
        if lost > all / 100 {
            bail!("{lost} of {all} requests were lost");
        }
        Ok(took)
    })
}
