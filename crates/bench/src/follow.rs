//! From one lease in the store to its route in the kernel, with many peers there already.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cold::at_rest;
use crate::fleet::{Peer, VISITORS};
use crate::stage::{Stage, pause};
use crate::stats::ms;
use crate::target::Target;
use crate::witness::Witness;

/// Peers that came one at a time. All times in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Follow {
    /// From sending a put to the store's answer: what it takes without us.
    pub put: Vec<f64>,
    /// From sending a put to the route in the kernel.
    pub route: Vec<f64>,
    /// From the store's answer to the route; negative where the route was there before it.
    pub lag: Vec<f64>,
    /// Processor time of the daemon for one of them.
    pub cpu: f64,
}

/// Between two puts: each is to be an event of its own.
const PAUSE: Duration = Duration::from_millis(4);

/// A route that takes longer than this will not come.
const LATE: Duration = Duration::from_secs(10);

/// Puts `puts` leases, one after the other, under the eyes of the daemon that runs; then removes
/// them all.
///
/// # Errors
/// A route does not appear.
pub fn run(stage: &Stage, target: &mut Target, puts: u32) -> anyhow::Result<Follow> {
    let node = stage.node();
    let witness = Witness::new(node, None)?;
    let visitors: Vec<Peer> = (0..puts).map(|i| Peer(VISITORS + i)).collect();
    let before = at_rest(node)?;
    let over = AtomicBool::new(false);
    let (seen, sights) = mpsc::channel();
    let mut follow = std::thread::scope(|s| {
        s.spawn(|| watch(&witness, &over, &seen));
        let follow = put_each(target, &visitors, &sights);
        over.store(true, Ordering::Relaxed);
        follow
    })
    .with_context(|| node.flanneld().log_tail(20))?;
    let after = at_rest(node)?;
    follow.cpu = ms(after.cpu - before.cpu) / f64::from(puts);
    target.remove(visitors.iter().map(|peer| peer.key()))?;
    at_rest(node)?;
    Ok(follow)
}

/// Where a route leads and when it was seen.
type Sight = (Ipv4Addr, Instant);

fn watch(witness: &Witness, over: &AtomicBool, seen: &mpsc::Sender<Sight>) {
    while !over.load(Ordering::Relaxed) {
        for dst in witness.wait(Duration::from_millis(50)).unwrap_or_default() {
            let _ = seen.send((dst, Instant::now()));
        }
    }
}

fn put_each(
    target: &mut Target,
    visitors: &[Peer],
    sights: &mpsc::Receiver<Sight>,
) -> anyhow::Result<Follow> {
    let mut follow = Follow::default();
    for peer in visitors {
        let (sent, took) = target.put(*peer)?;
        let at = loop {
            let late = || format!("no route to {} within {LATE:?} of its lease", peer.subnet());
            let (dst, at) = sights.recv_timeout(LATE).with_context(late)?;
            if dst == peer.subnet() {
                break at;
            }
        };
        let (put, route) = (ms(took), ms(at - sent));
        follow.put.push(put);
        follow.route.push(route);
        follow.lag.push(route - put);
        pause(PAUSE);
    }
    Ok(follow)
}
