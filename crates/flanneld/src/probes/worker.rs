//! The thread that sends probes and answers those of other nodes. It never waits for the main loop, nor the main loop
//! for it.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};
use model::SubnetKey;
use tracing::{debug, info, warn};

use super::Shared;
use super::diagnosis::Diagnosis;
use super::mesh::{Change, Mesh, Outgoing};
use super::sockets::{PLACES, Sockets};
use super::summary;
use crate::few_lines::FewLines;
use crate::report::ProbeState;

/// The pace of everything but answers.
const TICK: Duration = Duration::from_secs(1);

/// Datagrams that are read from each socket in a second: what exceeds it is left to the kernel, which drops it. So a
/// flood costs a bounded share of a processor, and one of a public address takes nothing from the tunnel's.
const READ: u32 = 4000;

/// Nodes that are looked at more closely at the same time.
const CASES: usize = 32;

/// Nodes that are named in the log at once.
const NAMED: usize = 5;

const WAKER: Token = Token(PLACES.len());

/// The thread's state.
pub(super) struct Worker {
    shared: Arc<Shared>,
    poll: Poll,
    sockets: Sockets,
    diagnoses: Vec<Diagnosis>,
    began: Instant,
    buffer: Box<[u8]>,
    problem: Option<String>,
    lines: FewLines,
    counts: FewLines,
}

impl Worker {
    /// # Errors
    /// The system's, such as too many open files.
    pub(super) fn new(shared: Arc<Shared>, port: u16) -> io::Result<(Worker, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let worker = Worker {
            shared,
            poll,
            sockets: Sockets::new(port),
            diagnoses: Vec::new(),
            began: Instant::now(),
            buffer: vec![0; 65_536].into_boxed_slice(),
            problem: None,
            lines: FewLines::new(10),
            counts: FewLines::new(2),
        };
        Ok((worker, waker))
    }

    /// Works until the node ends.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(16);
        let mut due = Instant::now();
        let mut left = [READ; PLACES.len()];
        loop {
            let timeout = due.saturating_duration_since(Instant::now());
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != ErrorKind::Interrupted
            {
                debug!(%error, "probes: poll");
            }
            if self.shared.ended.load(Ordering::Relaxed) {
                return;
            }
            for event in &events {
                match event.token() {
                    WAKER => self.follow(),
                    Token(slot) => self.read(slot, &mut left),
                }
            }
            if Instant::now() >= due {
                due = Instant::now() + TICK;
                let used = std::mem::replace(&mut left, [READ; PLACES.len()]);
                // Readiness is reported once, and what was left unread before is still there.
                for (slot, _) in used.iter().enumerate().filter(|(_, left)| **left == 0) {
                    self.read(slot, &mut left);
                }
                self.tick();
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Follows the node's addresses.
    fn follow(&mut self) {
        let view = self.shared.mesh().view().addresses();
        self.sockets.follow(&view, self.poll.registry());
        let problem = self.sockets.problem().map(str::to_owned);
        if problem != self.problem {
            match &problem {
                Some(problem) => warn!("{problem}"),
                None => info!("the other nodes' probes are answered"),
            }
            self.shared.set_problem(problem.clone());
            self.problem = problem;
        }
    }

    /// Reads what has arrived by the socket in this slot, as much as is left to it.
    fn read(&mut self, slot: usize, left: &mut [u32; PLACES.len()]) {
        let (Some((_, way)), Some(left)) = (PLACES.get(slot), left.get_mut(slot)) else {
            return;
        };
        while *left > 0
            && let Some((len, from)) = self.sockets.receive(slot, &mut self.buffer)
        {
            *left -= 1;
            let now = self.began.elapsed();
            let bytes = self.buffer.get(..len).unwrap_or_default();
            let answer = self.shared.mesh().receive(now, from.ip(), *way, bytes);
            if let Some((answer, wish)) = answer
                && let Err(error) = self.sockets.answer(slot, from, &answer, wish)
            {
                debug!(%error, %from, "probes: answer");
            }
        }
    }

    fn tick(&mut self) {
        self.follow();
        // First: other hosts report few of the packets that they reject, and here the reports are read.
        self.diagnose();
        let now = self.now();
        let sockets = &self.sockets;
        let outgoing = self
            .shared
            .mesh()
            .tick(now, |family, way| sockets.is_ready(family, way));
        for one in outgoing {
            self.send(&one);
        }
        let changes = self.shared.mesh().changes();
        self.log(&changes);
    }

    fn send(&self, one: &Outgoing) {
        // Sending many takes a while: the time of each counts from here.
        self.shared.mesh().sent(one.nonce, self.now());
        let Err(error) = self.sockets.send(one.family, one.way, one.to, &one.bytes) else {
            return;
        };
        debug!(%error, to = %one.to, "probes: send");
        let full =
            error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS);
        if full {
            self.shared.mesh().not_sent(one.nonce);
        }
    }

    fn diagnose(&mut self) {
        let mut mesh = self.shared.mesh();
        let now = self.began.elapsed();
        self.diagnoses
            .retain_mut(|diagnosis| match diagnosis.step() {
                Some(evidence) => {
                    debug!(?evidence, case = ?diagnosis.case, "probes");
                    mesh.judge(
                        &diagnosis.case,
                        evidence,
                        diagnosis.seen,
                        diagnosis.filter,
                        now,
                    );
                    false
                }
                None => true,
            });
        let free = CASES.saturating_sub(self.diagnoses.len());
        for case in mesh.cases(free) {
            let nonce = mesh.number();
            let view = mesh.view().addresses();
            let diagnosis = Diagnosis::start(case, &view, self.shared.port, nonce);
            self.diagnoses.push(diagnosis);
        }
    }

    fn log(&mut self, changes: &[Change]) {
        for change in changes.iter().take(NAMED) {
            let Some(more) = self.lines.next() else {
                continue;
            };
            let key = &change.key;
            let reason = self.reason(key);
            match change.state {
                ProbeState::Failing => warn!("probes of {key} fail: {reason}{more}"),
                // Such as a host that is up again, and its flanneld not yet.
                ProbeState::Silent => info!("{key} is no longer known to fail: {reason}{more}"),
                ProbeState::Reachable | ProbeState::Unknown => {
                    info!("probes of {key} are answered again{more}");
                }
            }
        }
        let others = changes.len().saturating_sub(NAMED);
        if others > 0
            && let Some(more) = self.counts.next()
        {
            let failing = count(&self.shared.mesh());
            info!("probes: {others} more nodes changed, {failing} fail (flannelctl peers){more}");
        }
    }

    /// Returns what is wrong with a node.
    fn reason(&self, key: &SubnetKey) -> String {
        let (mesh, port) = (self.shared.mesh(), self.shared.port);
        let tunnel = &mesh.view().tunnel;
        let reason = mesh.one(key, |seen| summary::reason(seen, tunnel, port));
        reason.flatten().unwrap_or_default()
    }
}

fn count(mesh: &Mesh) -> usize {
    let mut failing = 0;
    mesh.each(|seen| failing += usize::from(seen.state == ProbeState::Failing));
    failing
}
