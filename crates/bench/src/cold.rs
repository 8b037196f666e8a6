//! From exec to the last object in the kernel, with the memory and the requests that it took.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::Node;

use crate::fleet::sample;
use crate::stage::{PATIENCE, Stage, pause};
use crate::target::{Kind, Target};
use crate::usage::Usage;
use crate::witness::Witness;

/// One cold start.
#[derive(Clone, Copy, Debug)]
pub struct Cold {
    /// From exec until the kernel holds everything.
    pub took: Duration,
    /// Processor time until it was at rest.
    pub cpu: Duration,
    /// Peak memory in KiB, after it has also read the whole kernel once more, if it has.
    pub peak_kib: Option<u64>,
    /// Requests to etcd until it was at rest; 0 on another store.
    pub requests: u64,
}

/// Starts a daemon on a clean node and follows it until it is at rest, with one more full look at the kernel if
/// `look`. The daemon stays.
///
/// # Errors
/// It does not start, or something is missing from the kernel in the end.
pub fn start(stage: &Stage, target: &Target, look: bool) -> anyhow::Result<Cold> {
    let (node, peers) = (stage.node(), target.peers());
    let subnets: Vec<_> = sample(peers)
        .into_iter()
        .map(|peer| peer.subnet())
        .collect();
    let witness = Witness::new(node, Some(&subnets))?;
    let before = requests(stage, target)?;

    let began = stage.start(&target.flanneld_args())?;
    let seen = witness.all(&subnets, began + PATIENCE);
    let seen = seen.with_context(|| node.flanneld().log_tail(20))?;
    let seen = complete(node, peers, seen, began + PATIENCE)?;

    let cpu = at_rest(node)?.cpu;
    let requests = requests(stage, target)? - before;
    let peak_kib = if look {
        look_again(node)?;
        Some(at_rest(node)?.peak_kib)
    } else {
        None
    };
    Ok(Cold {
        took: seen - began,
        cpu,
        peak_kib,
        requests,
    })
}

/// The routes of the sample were there at `seen`: are all the others, and neighbours and
/// forwarding entries too? If not, the time is that of the look that finds them.
///
/// # Errors
/// Something is missing when `deadline` has passed.
pub fn complete(
    node: &Node,
    peers: u32,
    seen: Instant,
    deadline: Instant,
) -> anyhow::Result<Instant> {
    let mut at = seen;
    loop {
        let counts = counts(node)?;
        if counts.iter().all(|(_, n)| *n == peers as usize) {
            return Ok(at);
        }
        if Instant::now() >= deadline {
            bail!(
                "{peers} peers, but the kernel holds {counts:?}; flanneld says:\n{}",
                node.flanneld().log_tail(20)
            );
        }
        pause(Duration::from_millis(5));
        at = Instant::now();
    }
}

/// How many objects of each kind a node's `flannel.1` has for its peers.
fn counts(node: &Node) -> anyhow::Result<[(&'static str, usize); 4]> {
    let picture = node.picture()?.only("dev flannel.1");
    let mut counts = [("route", 0), ("nexthop", 0), ("neigh", 0), ("fdb", 0)];
    for line in picture.lines() {
        for (kind, n) in &mut counts {
            *n += usize::from(line.starts_with(*kind));
        }
    }
    Ok(counts)
}

/// That the daemon and the reference leave the same behind, apart from what is the node's own.
///
/// # Errors
/// Names the first difference.
pub fn compare(stage: &Stage) -> anyhow::Result<()> {
    let peers_part = |node: &Node| -> anyhow::Result<Vec<String>> {
        let picture = node.picture()?.only("dev flannel.1");
        let lines = picture.lines().filter(|line| !line.starts_with("addr "));
        // Who wrote a route is where the two rightly differ.
        Ok(lines
            .map(|line| line.split(" proto ").next().unwrap_or(line).to_owned())
            .collect())
    };
    let (ours, theirs) = (peers_part(stage.node())?, peers_part(stage.rival())?);
    let difference = ours.iter().zip(&theirs).find(|(a, b)| a != b);
    match difference {
        Some((a, b)) => bail!("the daemon and the reference differ: {a:?} against {b:?}"),
        None if ours.len() != theirs.len() => bail!(
            "{} objects against {} of the reference",
            ours.len(),
            theirs.len()
        ),
        None => Ok(()),
    }
}

/// Waits until the node's flanneld has done nothing for a while; returns what it has used.
///
/// # Errors
/// It has ended, or does not come to rest.
pub fn at_rest(node: &Node) -> anyhow::Result<Usage> {
    const QUIET: u32 = 5;
    let deadline = Instant::now() + PATIENCE;
    let (mut last, mut quiet) = (Usage::of(node)?, 0);
    while quiet < QUIET {
        if Instant::now() >= deadline {
            bail!(
                "flanneld does not come to rest; its log ends with:\n{}",
                node.flanneld().log_tail(20)
            );
        }
        pause(Duration::from_millis(20));
        let now = Usage::of(node)?;
        quiet = if now.cpu == last.cpu { quiet + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}

/// Makes the node's flanneld read the whole kernel once, as it does by itself every few minutes:
/// it does so when the addresses of its interface change.
///
/// # Errors
/// The kernel refuses.
pub fn look_again(node: &Node) -> anyhow::Result<()> {
    node.exec(["ip", "addr", "add", "192.0.2.1/32", "dev", "eth0"])?;
    at_rest(node)?;
    node.exec(["ip", "addr", "del", "192.0.2.1/32", "dev", "eth0"])?;
    Ok(())
}

fn requests(stage: &Stage, target: &Target) -> anyhow::Result<u64> {
    match target.kind() {
        Kind::Etcd => Ok(stage.etcd()?.requests()?.values().sum()),
        Kind::Directory => Ok(0),
    }
}
