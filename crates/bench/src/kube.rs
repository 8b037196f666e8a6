//! Kubernetes: a real API server with Nodes as large as real ones are.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::{Kube, Node};
use serde_json::{Value, json};

use crate::cold::{at_rest, complete};
use crate::figure::{Figure, Goal, JudgedAs, thousands};
use crate::fleet::{Peer, VISITORS, sample};
use crate::stage::{PATIENCE, Stage, pause};
use crate::stats::{median, ms};
use crate::witness::Witness;

const PEERS: u32 = 5_000;
/// Container images that a Node lists, each with two names: they make most of its 15 KB.
const IMAGES: usize = 50;
const STORE: &str = "kubernetes";
const PREFIX: &str = "flannel.alpha.coreos.com/";

const START_MS: Goal = Goal {
    must: 800.0,
    aim: 400.0,
};
const START_RATIO: Goal = Goal {
    must: 4.0,
    aim: 4.0,
};
const MEMORY_MIB: Goal = Goal {
    must: 24.0,
    aim: 14.0,
};
const BYTES_RATIO: Goal = Goal {
    must: 1.0 / 10.0,
    aim: 1.0 / 30.0,
};
const HEARTBEAT_MS: Goal = Goal {
    must: 0.1,
    aim: 0.05,
};
const NODE_MS: Goal = Goal {
    must: 5.0,
    aim: 2.0,
};

/// Measures all of it.
///
/// # Errors
/// Something does not work at all: no figures then.
pub fn measure(bin_dir: &Path, quick: bool) -> anyhow::Result<Vec<Figure>> {
    let (runs, beats, news) = if quick { (3, 200, 50) } else { (9, 1000, 200) };
    let stage = Stage::kubernetes(bin_dir)?;
    let kube = stage.kube()?;
    say("Nodes are made");
    fill(kube)?;

    let json_bytes: f64 = curl(&stage, "application/json", "%{size_download}")?;
    let (mut took, mut peak, mut cpu, mut bytes, mut curls) =
        (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..=runs {
        let protobuf = "application/vnd.kubernetes.protobuf";
        let curl_ms = curl(&stage, protobuf, "%{time_total}")? * 1e3;
        let start = start(&stage)?;
        stage.wipe()?;
        // The first one only warms up.
        if round > 0 {
            say(&format!("cold start {round} of {runs}: {:.0} ms", start.0));
            took.push(start.0);
            peak.push(start.1);
            cpu.push(start.2);
            bytes.push(start.3);
            curls.push(curl_ms);
        }
    }
    start(&stage)?;
    at_rest(stage.node())?;
    say("heartbeats");
    let beat = heartbeats(&stage, beats)?;
    say("new Nodes");
    let (created, route) = new_nodes(&stage, news)?;

    let figure = |work, ours, unit, reference, judged_as, goal| {
        Figure::new(
            work,
            (STORE, PEERS),
            (ours, unit),
            reference,
            judged_as,
            goal,
        )
    };
    let value = JudgedAs::Value;
    let curl = Some(median(&curls));
    Ok(vec![
        figure(START, median(&took), "ms", None, value, Some(START_MS)).samples(&took),
        figure(
            "the same beside curl of the list in protobuf",
            median(&took),
            "ms",
            curl,
            JudgedAs::Ratio,
            Some(START_RATIO),
        ),
        figure(
            "processor time of that start",
            median(&cpu),
            "ms",
            None,
            value,
            None,
        ),
        figure(
            "peak memory",
            median(&peak),
            "MiB",
            None,
            value,
            Some(MEMORY_MIB),
        ),
        figure(
            "bytes asked for at the start, beside the JSON list",
            median(&bytes) / 1e6,
            "MB",
            Some(json_bytes / 1e6),
            JudgedAs::Ratio,
            Some(BYTES_RATIO),
        ),
        figure(
            "processor time per heartbeat of another Node",
            beat,
            "ms",
            None,
            value,
            Some(HEARTBEAT_MS),
        ),
        figure(
            "new Node → route, from the request that makes it",
            median(&route),
            "ms",
            Some(median(&created)),
            JudgedAs::Value,
            Some(NODE_MS),
        ),
    ])
}

const START: &str = "exec → all in the kernel";

fn say(what: &str) {
    eprintln!("{:>6} Nodes, {STORE}: {what}", thousands(PEERS));
}

/// Makes the Nodes, by a few threads at once.
fn fill(kube: &Kube) -> anyhow::Result<()> {
    let next = Mutex::new(0..PEERS);
    let make = || -> anyhow::Result<()> {
        loop {
            let number = next.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(number) = number else { return Ok(()) };
            let peer = Peer(number);
            kube.create_node_with(&name(peer), &node(peer))?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
        let mut done = threads.into_iter().map(|thread| thread.join());
        done.try_for_each(|made| match made {
            Ok(made) => made,
            Err(_) => bail!("a thread that makes Nodes panicked"),
        })
    })
}

fn name(peer: Peer) -> String {
    format!(
        "ip-{}.example.internal",
        peer.public_ip().to_string().replace('.', "-")
    )
}

/// A Node as kubelets and flannel make it.
fn node(peer: Peer) -> Value {
    let subnet = format!("{}/24", peer.subnet());
    let digest = |i: usize| {
        format!(
            "{:064x}",
            u128::from(peer.0) * 0x9e37_79b9_7f4a_7c15 % 97 + i as u128
        )
    };
    let images: Vec<Value> = (0..IMAGES)
        .map(|i| {
            json!({
                "names": [
                    format!("registry.example.com/team-{}/some-service-name-{i}@sha256:{}", i % 7, digest(i)),
                    format!("registry.example.com/team-{}/some-service-name-{i}:v1.{i}.0", i % 7),
                ],
                "sizeBytes": 100_000_000 + i,
            })
        })
        .collect();
    let mut annotations = serde_json::Map::new();
    for (key, value) in [
        ("kube-subnet-manager", "true".to_owned()),
        ("backend-type", "vxlan".to_owned()),
        ("public-ip", peer.public_ip().to_string()),
        (
            "backend-data",
            format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, peer.mac()),
        ),
    ] {
        annotations.insert(format!("{PREFIX}{key}"), value.into());
    }
    json!({
        "metadata": {"annotations": annotations, "labels": {"kubernetes.io/hostname": name(peer)}},
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet]},
        "status": {"images": images, "addresses": [{"type": "InternalIP", "address": peer.public_ip()}]},
    })
}

/// Fetches the list as curl does; returns what `what` of its write-out names.
fn curl(stage: &Stage, accept: &str, what: &str) -> anyhow::Result<f64> {
    let kube = stage.kube()?;
    let token = kube.service_account_token("kube-flannel", "flannel", 600)?;
    let text = stage.rival().exec([
        "curl",
        "-ksS",
        "-o",
        "/dev/null",
        "-w",
        what,
        "-H",
        &format!("Accept: {accept}"),
        "-H",
        &format!("Authorization: Bearer {token}"),
        &format!("https://{}/api/v1/nodes?resourceVersion=0", kube.server()),
    ])?;
    text.trim()
        .parse()
        .with_context(|| format!("curl said {text:?}"))
}

/// One cold start: milliseconds, peak MiB, milliseconds of processor, bytes received.
fn start(stage: &Stage) -> anyhow::Result<(f64, f64, f64, f64)> {
    let node = stage.node();
    let subnets: Vec<_> = sample(PEERS)
        .into_iter()
        .map(|peer| peer.subnet())
        .collect();
    let witness = Witness::new(node, Some(&subnets))?;
    let before = received(node)?;
    let began = stage.start(&[])?;
    let seen = witness.all(&subnets, began + PATIENCE);
    let seen = seen.with_context(|| node.flanneld().log_tail(20))?;
    let seen = complete(node, PEERS, seen, began + PATIENCE)?;
    let usage = at_rest(node)?;
    let bytes = received(node)? - before;
    Ok((
        ms(seen - began),
        usage.peak_kib as f64 / 1024.0,
        ms(usage.cpu),
        bytes,
    ))
}

/// Bytes that have come in by a node's interface, TLS and TCP and all.
fn received(node: &Node) -> anyhow::Result<f64> {
    let text = node.exec(["ip", "-j", "-s", "link", "show", "eth0"])?;
    let links: Value = serde_json::from_str(&text)?;
    let bytes = links.pointer("/0/stats64/rx/bytes").and_then(Value::as_f64);
    bytes.context("ip does not say how many bytes were received")
}

/// Milliseconds of the daemon's processor time for each heartbeat of another Node.
fn heartbeats(stage: &Stage, count: u32) -> anyhow::Result<f64> {
    let kube = stage.kube()?;
    let before = at_rest(stage.node())?.cpu;
    for beat in 0..count {
        let peer = Peer(beat % PEERS);
        kube.heartbeat(
            &name(peer),
            &format!("2026-01-01T00:{:02}:{:02}Z", beat / 60 % 60, beat % 60),
        )?;
    }
    let cpu = at_rest(stage.node())?.cpu - before;
    Ok(ms(cpu) / f64::from(count))
}

/// How long it took to make each new Node, and until its route was there.
fn new_nodes(stage: &Stage, count: u32) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let kube = stage.kube()?;
    let (mut created, mut route) = (Vec::new(), Vec::new());
    for number in VISITORS..VISITORS + count {
        let peer = Peer(number);
        let witness = Witness::new(stage.node(), Some(&[peer.subnet()]))?;
        let (name, node) = (name(peer), node(peer));
        let began = Instant::now();
        let (made, seen) = std::thread::scope(|scope| {
            let seen = scope.spawn(|| witness.all(&[peer.subnet()], began + PATIENCE));
            let made = kube.create_node_with(&name, &node).map(|_| began.elapsed());
            (made, seen.join())
        });
        let Ok(seen) = seen else {
            bail!("the witness panicked")
        };
        created.push(ms(made?));
        route.push(ms(seen? - began));
        kube.delete_node(&name)?;
        pause(Duration::from_millis(20));
    }
    Ok((created, route))
}
