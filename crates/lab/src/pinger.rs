//! Ping after ping while something is broken: how many were lost, and for how long.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::echo::Echo;
use crate::error::Doing;
use crate::{Error, Namespace};

/// How long replies are read between two requests, at least.
const READ: Duration = Duration::from_millis(1);

/// The last requests may still be under way when it is stopped: they get so long.
const LINGER: Duration = Duration::from_millis(500);

/// A thread that pings until it is stopped.
#[derive(Debug)]
pub struct Pinger {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<JoinHandle<PingReport>>,
}

/// What a [`Pinger`] saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingReport {
    /// Requests made, those that the kernel refused to send among them.
    pub sent: usize,
    /// Requests without a reply.
    pub lost: usize,
    /// The longest time without any reply, from reply to reply.
    pub longest_gap: Duration,
    /// Each run of requests in a row without a reply: the time of the first since the start, if all were sent in time, and how
    /// many.
    pub gaps: Vec<(Duration, usize)>,
}

impl Pinger {
    /// Pings `to` from `from` every `interval`.
    ///
    /// # Errors
    /// The socket or the thread could not be made.
    pub fn start(from: &Namespace, to: IpAddr, interval: Duration) -> Result<Pinger, Error> {
        let echo = Echo::open(from, to)?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicUsize::new(0));
        let (told, count) = (stop.clone(), sent.clone());
        let run = move || ping_until(&echo, to, interval, &told, &count);
        let thread = std::thread::Builder::new().name("pinger".into()).spawn(run);
        Ok(Pinger {
            stop,
            sent,
            thread: Some(thread.doing(|| "start a thread".into())?),
        })
    }

    /// Requests made so far.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops, waits for replies that are under way, and tells what was seen.
    pub fn stop(mut self) -> PingReport {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => PingReport {
                sent: 0,
                lost: 0,
                longest_gap: Duration::ZERO,
                gaps: Vec::new(),
            },
        }
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ping_until(
    echo: &Echo,
    to: IpAddr,
    interval: Duration,
    stop: &AtomicBool,
    sent: &AtomicUsize,
) -> PingReport {
    let mut answered: Vec<bool> = Vec::new();
    let mut last_reply = Instant::now();
    let mut longest_gap = Duration::ZERO;
    let mut receive = |answered: &mut Vec<bool>, until: Instant| {
        // An error is a refusal from the network, or the time is up: no reply either way.
        while Instant::now() < until {
            let Ok(number) = echo.receive(until) else {
                continue;
            };
            longest_gap = longest_gap.max(last_reply.elapsed());
            last_reply = Instant::now();
            if let Some(slot) = answered.get_mut(number as usize) {
                *slot = true;
            }
        }
    };
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let _ = echo.send(to, answered.len() as u64);
        answered.push(false);
        sent.store(answered.len(), Ordering::Relaxed);
        // After a pause of the machine there is no burst: its replies would not fit into the socket's buffer.
        next = (next + interval).max(Instant::now() + READ);
        receive(&mut answered, next);
    }
    let end = Instant::now() + LINGER;
    while answered.contains(&false) && Instant::now() < end {
        receive(
            &mut answered,
            (Instant::now() + Duration::from_millis(2)).min(end),
        );
    }
    // Silence at the end is a gap too.
    if answered.last() == Some(&false) {
        longest_gap = longest_gap.max(last_reply.elapsed());
    }
    let lost = answered.iter().filter(|a| !**a).count();
    PingReport {
        sent: answered.len(),
        lost,
        longest_gap,
        gaps: gaps(&answered, interval),
    }
}

fn gaps(answered: &[bool], interval: Duration) -> Vec<(Duration, usize)> {
    let mut at = 0;
    let mut found = Vec::new();
    for run in answered.chunk_by(|a, b| a == b) {
        if run.first() == Some(&false) {
            found.push((interval * at as u32, run.len()));
        }
        at += run.len();
    }
    found
}
