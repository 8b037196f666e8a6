//! The door to the commands of the network configuration (backend `extension`).
//!
//! For each peer there is one wish, the latest, and what was done last. What differs is brought about one
//! command after the other: a peer that changed is removed as it was added and then added as it is now; an
//! add that failed is removed before it is tried again, since half of it may be there. No peer is added before
//! the command that prepares this node has ended with success.
//!
//! Commands run one at a time, because they may share what they change; but one that takes long does not hold
//! back those for other peers.

mod journal;
mod run;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::object::{CommandEnv, PeerCommand, PostStartup};
use model::{Dual, Object, Op, SubnetKey};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use crate::door::Door;
use crate::failure::Failure;
use crate::{KernelError, KernelEvent, Outcome, Scope};
use journal::Journal;
pub use run::run;

/// A command that has run for so long does not hold back others any more.
const SLOW: Duration = Duration::from_secs(5);

/// So many commands run at once at most.
const MOST_AT_ONCE: usize = 8;

/// After a failure a command is run again after this time, doubling up to the other.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(300);

/// Commands that were run, run or are to be run.
pub(crate) struct Commands {
    /// Where journals are kept, a directory for each network; `None` to keep none.
    dir: Option<PathBuf>,
    network: Dual<IpNet>,
    journal: Journal,
    post: Post,
    peers: BTreeMap<SubnetKey, Peer>,
    /// Peers for which there may be something to do, in the order in which it was asked for.
    queue: VecDeque<SubnetKey>,
    running: JoinSet<Result<String, String>>,
    jobs: HashMap<Id, Job>,
    events: VecDeque<KernelEvent>,
}

/// A command that runs.
struct Job {
    since: Instant,
    what: What,
}

enum What {
    Prepare(PostStartup),
    Add(SubnetKey),
    Remove(SubnetKey),
}

/// The command that prepares this node.
#[derive(Default)]
struct Post {
    wish: Option<PostStartup>,
    /// The last one that ended with success.
    done: Option<PostStartup>,
    runs: bool,
    failures: Failures,
}

impl Post {
    fn is_done(&self) -> bool {
        self.wish.is_none() || self.wish == self.done
    }
}

/// What there is to know about the commands for a peer.
#[derive(Default)]
struct Peer {
    wish: Option<PeerCommand>,
    /// What was run last to add it, in whatever way that ended.
    begun: Option<PeerCommand>,
    /// It ended with success in this run of the daemon.
    added: bool,
    /// It failed in this run, so that a part of it may be there.
    dirty: bool,
    /// It runs again what an earlier run of the daemon did, and nothing may have undone that.
    again: bool,
    runs: bool,
    queued: bool,
    failures: Failures,
}

impl Peer {
    /// Returns whether what was run last to add it is what is wished for.
    fn is_same(&self) -> bool {
        let both = self.wish.as_ref().zip(self.begun.as_ref());
        both.is_some_and(|(wish, begun)| wish.adds_the_same(begun))
    }

    fn is_settled(&self) -> bool {
        self.added && !self.runs && self.is_same()
    }

    /// Returns what was done, for the reconciler.
    fn observed(&self) -> Option<PeerCommand> {
        let begun = self.begun.clone()?;
        Some(PeerCommand {
            earlier: !self.added,
            ..begun
        })
    }
}

/// Failures since the last success.
#[derive(Default)]
struct Failures {
    count: u32,
    last: String,
    retry_at: Option<Instant>,
}

impl Failures {
    fn add(&mut self, why: String) {
        let wait = RETRY * 2u32.pow(self.count.min(10));
        self.count += 1;
        self.last = why;
        self.retry_at = Some(Instant::now() + wait.min(RETRY_AT_MOST));
    }

    /// Returns the last failure while it is too early for another try.
    fn hold_back(&self) -> Option<&str> {
        let waits = self.retry_at.is_some_and(|at| Instant::now() < at);
        waits.then_some(self.last.as_str())
    }
}

impl Commands {
    /// `dir` is where journals are kept.
    pub(crate) fn new(dir: Option<PathBuf>) -> Commands {
        Commands {
            dir,
            network: Dual::default(),
            journal: Journal::default(),
            post: Post::default(),
            peers: BTreeMap::new(),
            queue: VecDeque::new(),
            running: JoinSet::new(),
            jobs: HashMap::new(),
            events: VecDeque::new(),
        }
    }

    fn change(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Put(Object::PostStartup((), wish)) => {
                if self.post.wish.as_ref() != Some(wish) {
                    self.post.wish = Some(wish.clone());
                    self.post.failures = Failures::default();
                }
                if self.post.is_done() {
                    return Outcome::Done;
                }
                match self.post.failures.hold_back() {
                    Some(why) if !self.post.runs => refused(op, "PostStartupCommand", why),
                    _ => Outcome::UnderWay,
                }
            }
            Op::Del(Object::PostStartup((), _)) => {
                (self.post.wish, self.post.done) = (None, None);
                Outcome::Done
            }
            Op::Put(Object::PeerCommand(key, wish)) => self.wish(op, key, Some(wish)),
            Op::Del(Object::PeerCommand(key, _)) => self.wish(op, key, None),
            Op::Put(_) | Op::Del(_) => Outcome::Refused(Failure::errno(libc::EINVAL).of(op)),
        }
    }

    /// Takes in what is to be for a peer.
    fn wish(&mut self, op: &Op, key: &SubnetKey, wish: Option<&PeerCommand>) -> Outcome {
        let peer = self.peers.entry(*key).or_default();
        if peer.wish.as_ref() != wish {
            peer.wish = wish.cloned();
            peer.failures = Failures::default();
        }
        if peer.wish.is_none() && peer.begun.is_none() && !peer.runs {
            self.peers.remove(key);
            return Outcome::Done;
        }
        if peer.is_settled() {
            if peer.begun != peer.wish {
                // Only what concerns its removal is new.
                peer.begun.clone_from(&peer.wish);
                let written = peer.wish.as_ref().map(|wish| self.journal.write(key, wish));
                if let Some(Err(why)) = written {
                    return refused(op, "SubnetAddCommand", &why);
                }
            }
            return Outcome::Done;
        }
        match peer.failures.hold_back() {
            Some(why) if !peer.runs => refused(op, name_of(op), why),
            _ => {
                self.enqueue(*key);
                Outcome::UnderWay
            }
        }
    }

    fn enqueue(&mut self, key: SubnetKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !std::mem::replace(&mut peer.queued, true)
        {
            self.queue.push_back(key);
        }
    }

    /// Returns when another command may be started; a time that is past if now.
    fn may_start(&self) -> Option<Instant> {
        if self.jobs.len() >= MOST_AT_ONCE {
            return None;
        }
        let latest = self.jobs.values().map(|job| job.since).max();
        Some(latest.map_or_else(Instant::now, |latest| latest + SLOW))
    }

    /// Starts what may be started.
    fn start(&mut self) {
        let may_start = |commands: &Commands| {
            let at = commands.may_start();
            at.is_some_and(|at| at <= Instant::now())
        };
        let post = &mut self.post;
        if !post.is_done()
            && !post.runs
            && post.failures.hold_back().is_none()
            && let Some(wish) = post.wish.clone()
            && may_start(self)
        {
            self.post.runs = true;
            let (line, env, limit) = (wish.line.clone(), wish.env, wish.limit);
            self.spawn(What::Prepare(wish), line, env, "".into(), limit);
        }
        let mut blocked = VecDeque::new();
        while may_start(self)
            && let Some(key) = self.queue.pop_front()
        {
            if !self.next(key) {
                blocked.push_back(key);
            }
        }
        blocked.append(&mut self.queue);
        self.queue = blocked;
    }

    /// Does what is next for a peer. Returns `false` if that has to wait until this node is prepared.
    fn next(&mut self, key: SubnetKey) -> bool {
        let Some(peer) = self.peers.get_mut(&key) else {
            return true;
        };
        peer.queued = false;
        if peer.runs || peer.is_settled() || peer.failures.hold_back().is_some() {
            return true;
        }
        if peer.wish.is_some() && !self.post.is_done() {
            peer.queued = true;
            return false;
        }
        let outdated = peer.wish.is_none() || peer.dirty || !peer.is_same();
        let remove = peer.begun.as_ref().filter(|_| outdated);
        let remove = remove.and_then(|begun| Some((begun.commands.remove.clone()?, begun.clone())));
        if let Some((line, begun)) = remove {
            peer.runs = true;
            let limit = begun.commands.limit;
            self.spawn(What::Remove(key), line, begun.env, begun.data, limit);
            return true;
        }
        let Some(wish) = peer.wish.clone() else {
            self.forget(key);
            return true;
        };
        if let Err(why) = self.journal.write(&key, &wish) {
            peer.failures.add(why.clone());
            self.refuse(Op::Put(Object::PeerCommand(key, wish)), &why);
            return true;
        }
        peer.again = !wish.commands.prepared
            && peer.is_same()
            && peer.begun.as_ref().is_some_and(|begun| begun.earlier);
        peer.begun = Some(wish.clone());
        (peer.added, peer.dirty) = (false, false);
        match wish.commands.add.clone() {
            Some(line) => {
                peer.runs = true;
                let limit = wish.commands.limit;
                self.spawn(What::Add(key), line, wish.env, wish.data, limit);
            }
            None => {
                peer.added = true;
                let done = Object::PeerCommand(key, wish);
                self.events.push_back(KernelEvent::Saw(done));
            }
        }
        true
    }

    fn spawn(
        &mut self,
        what: What,
        line: Arc<str>,
        env: CommandEnv,
        input: Arc<str>,
        limit: Duration,
    ) {
        let work = async move { run(&line, &env.variables(), &input, limit).await };
        let id = self.running.spawn(work).id();
        let since = Instant::now();
        self.jobs.insert(id, Job { since, what });
    }

    /// A command has ended.
    fn ended(&mut self, id: Id, result: Result<String, String>) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        match job.what {
            What::Prepare(wish) => self.prepared(wish, result),
            What::Add(key) => self.added(key, result),
            What::Remove(key) => self.removed(key, result),
        }
    }

    fn prepared(&mut self, wish: PostStartup, result: Result<String, String>) {
        self.post.runs = false;
        match result {
            Ok(_) => {
                self.post.failures = Failures::default();
                let done = Object::PostStartup((), wish.clone());
                if self.post.wish.as_ref() == Some(&wish) {
                    self.post.done = Some(wish);
                    self.events.push_back(KernelEvent::Saw(done));
                }
            }
            Err(why) => {
                self.post.failures.add(why.clone());
                if let Some(wish) = self.post.wish.clone() {
                    self.refuse(Op::Put(Object::PostStartup((), wish)), &why);
                }
            }
        }
    }

    fn added(&mut self, key: SubnetKey, result: Result<String, String>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.runs = false;
        let again = std::mem::take(&mut peer.again);
        match result {
            Err(why) if !again => {
                peer.dirty = true;
                if peer.is_same() {
                    peer.failures.add(why.clone());
                    let op = peer.wish.clone();
                    let op = op.map(|wish| Op::Put(Object::PeerCommand(key, wish)));
                    op.into_iter().for_each(|op| self.refuse(op, &why));
                    return;
                }
            }
            // It is there, and the command is one that says so.
            Ok(_) | Err(_) => {
                peer.added = true;
                peer.failures = Failures::default();
                if let Some(wish) = peer.wish.clone().filter(|_| peer.is_same()) {
                    peer.begun = Some(wish.clone());
                    let done = Object::PeerCommand(key, wish);
                    self.events.push_back(KernelEvent::Saw(done));
                    return;
                }
            }
        }
        self.enqueue(key);
    }

    fn removed(&mut self, key: SubnetKey, result: Result<String, String>) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.runs = false;
        match (result, peer.wish.is_some()) {
            // What keeps it from being removed may be that it is not there.
            (_, true) => {
                (peer.begun, peer.added, peer.dirty) = (None, false, false);
                self.journal.remove(&key);
                self.enqueue(key);
            }
            (Ok(_), false) => self.forget(key),
            (Err(why), false) => {
                peer.failures.add(why.clone());
                let op = peer.begun.clone();
                let op = op.map(|begun| Op::Del(Object::PeerCommand(key, begun)));
                op.into_iter().for_each(|op| self.refuse(op, &why));
            }
        }
    }

    /// The peer has gone, and what was done for it.
    fn forget(&mut self, key: SubnetKey) {
        self.journal.remove(&key);
        if let Some(peer) = self.peers.remove(&key)
            && let Some(begun) = peer.begun
        {
            let gone = Object::PeerCommand(key, begun);
            self.events.push_back(KernelEvent::Gone(gone));
        }
    }

    fn refuse(&mut self, op: Op, why: &str) {
        let error = failure(name_of(&op), why).of(&op);
        self.events.push_back(KernelEvent::Refused(op, error));
    }
}

/// The option that holds the command of an operation.
fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Put(Object::PostStartup(..)) => "PostStartupCommand",
        Op::Put(_) => "SubnetAddCommand",
        Op::Del(_) => "SubnetRemoveCommand",
    }
}

fn failure(name: &str, why: &str) -> Failure {
    Failure::because(libc::ECANCELED, format!("{name}: {why}"))
}

fn refused(op: &Op, name: &str, why: &str) -> Outcome {
    Outcome::Refused(failure(name, why).of(op))
}

impl Door for Commands {
    fn set_scope(&mut self, scope: &Scope) {
        if self.network == scope.network {
            return;
        }
        self.network = scope.network;
        let name = SubnetKey::new(scope.network).map(|network| network.to_string());
        let dir = self.dir.as_ref().zip(name);
        self.journal = Journal::new(dir.map(|(dir, name)| dir.join(name)));
        for (key, begun) in self.journal.read() {
            self.peers.entry(key).or_default().begun = Some(begun);
        }
    }

    async fn observe(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
        if let Some(done) = &self.post.done {
            each(Object::PostStartup((), done.clone()));
        }
        for (key, peer) in &self.peers {
            let observed = peer.observed();
            observed
                .into_iter()
                .for_each(|peer| each(Object::PeerCommand(*key, peer)));
        }
        Ok(())
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let outcomes = ops.iter().map(|op| self.change(op)).collect();
        self.start();
        outcomes
    }

    async fn event(&mut self) -> KernelEvent {
        loop {
            self.start();
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if self.jobs.is_empty() {
                return std::future::pending().await;
            }
            // What runs may turn out to be slow while others wait. What may be started was started.
            let next = self.may_start().filter(|next| *next > Instant::now());
            let slow = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(ended) = self.running.join_next_with_id() => match ended {
                    Ok((id, result)) => self.ended(id, result),
                    Err(error) => self.ended(error.id(), Err(error.to_string())),
                },
                () = slow => {}
            }
        }
    }
}
