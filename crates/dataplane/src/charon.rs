//! The door to charon, strongSwan's daemon that agrees on keys with the peers.
//!
//! What is wanted is compared with what charon has, again after every change and every few seconds: a
//! connection that broke is begun again, and a charon that was restarted is told everything again. All of that
//! happens in a task, so that a charon that hangs delays nobody.

mod process;
mod sync;
#[cfg(test)]
mod tests;
mod vici;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use model::object::{IkeConnection, IkeKey, Psk};
use model::{Dual, Family, Object, Op};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::door::Door;
use crate::failure::Failure;
use crate::{KernelError, KernelEvent, Outcome, Scope};
use process::Process;
use sync::{Found, Plan, Unfinished};
use vici::Client;

/// Where charon listens, by its own default.
const SOCKET: &str = "/var/run/charon.vici";

/// How often charon is looked at while something is missing, and while nothing is.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(10);

/// A charon of ours that answers nothing for so long is killed and started again, and one that answers only in part after
/// the longer time: it may be computing the keys of many peers.
const HUNG: Duration = Duration::from_secs(60);
const STUCK: Duration = Duration::from_secs(900);

/// How long the node with the higher address leaves it to a new peer to begin: both beginning at once costs twice the
/// work, and each message "initial contact" may end the other's connection.
const YIELD: Duration = Duration::from_secs(5);

/// How long it leaves that to a peer that has begun and has not said yet for which connection. Not for ever: anybody can
/// begin with that peer's address.
const YIELD_LONGEST: Duration = Duration::from_secs(60);

/// How long a full look waits for charon.
const LOOK: Duration = Duration::from_secs(1);

/// What charon has, and what it should have.
pub(crate) struct Charon {
    socket: PathBuf,
    /// `None` if somebody else starts charon.
    process: Option<Process>,
    network: Dual<IpNet>,
    is_needed: bool,
    /// The process that answered last.
    serving: Option<i32>,
    /// The reconciler believes that charon runs.
    runs: bool,
    /// What went wrong when charon was reached last.
    problem: Option<String>,
    /// Since when it takes connections and answers nothing.
    silent: Option<Instant>,
    /// Since when no look has come to its end.
    stuck: Option<Instant>,
    wanted: BTreeMap<IkeKey, IkeConnection>,
    /// Wanted connections that the peer is to begin, and since when charon knows them and can answer.
    yielded: BTreeMap<IkeKey, Option<Instant>>,
    /// Connections to end.
    unwanted: BTreeMap<IkeKey, IkeConnection>,
    /// Names of connections that were ended and may still have keys.
    lingering: BTreeSet<String>,
    loaded: BTreeMap<IkeKey, IkeConnection>,
    /// The reconciler believes that these are up.
    up: BTreeSet<IkeKey>,
    failed: BTreeMap<IkeKey, String>,
    job: JoinSet<Result<Found, Unfinished>>,
    /// Something has changed since the running job began.
    changed: bool,
    next: Instant,
    events: VecDeque<KernelEvent>,
}

impl Charon {
    /// `socket` is where a charon listens that somebody else starts; `pid_file` where it is kept which one
    /// was started here.
    pub(crate) fn new(socket: Option<PathBuf>, pid_file: Option<PathBuf>) -> Charon {
        Charon {
            process: socket.is_none().then(|| Process::new(pid_file)),
            socket: socket.unwrap_or_else(|| SOCKET.into()),
            network: Dual::default(),
            is_needed: false,
            serving: None,
            runs: false,
            problem: None,
            silent: None,
            stuck: None,
            wanted: BTreeMap::new(),
            yielded: BTreeMap::new(),
            unwanted: BTreeMap::new(),
            lingering: BTreeSet::new(),
            loaded: BTreeMap::new(),
            up: BTreeSet::new(),
            failed: BTreeMap::new(),
            job: JoinSet::new(),
            changed: false,
            next: Instant::now(),
            events: VecDeque::new(),
        }
    }

    fn change(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Put(Object::IkeDaemon((), _)) => {
                self.is_needed = true;
                if self.runs {
                    return Outcome::Done;
                }
            }
            Op::Del(Object::IkeDaemon((), _)) => {
                (self.is_needed, self.runs) = (false, false);
                let serving = self.serving;
                self.process
                    .iter_mut()
                    .for_each(|process| process.stop(serving));
                return Outcome::Done;
            }
            Op::Put(Object::IkeConnection(key, wanted)) => {
                self.unwanted.remove(key);
                if self.wanted.get(key) == Some(wanted) && self.up.contains(key) {
                    return Outcome::Done;
                }
                self.up.remove(key);
                if self.wanted.insert(*key, wanted.clone()).as_ref() != Some(wanted) {
                    self.failed.remove(key);
                    if wanted.local_id > wanted.remote {
                        self.yielded.insert(*key, None);
                    } else {
                        self.yielded.remove(key);
                    }
                }
            }
            Op::Del(Object::IkeConnection(key, observed)) => {
                self.wanted.remove(key);
                self.yielded.remove(key);
                self.up.remove(key);
                self.failed.remove(key);
                self.unwanted.insert(*key, observed.clone());
            }
            Op::Put(_) | Op::Del(_) => {
                return Outcome::Refused(Failure::errno(libc::EINVAL).of(op));
            }
        }
        self.changed = true;
        Outcome::UnderWay
    }

    fn inside(&self, key: &IkeKey) -> bool {
        [key.local, key.remote].iter().all(|net| {
            let network = self.network.get(Family::of_net(net));
            network.is_some_and(|network| network.contains(net))
        })
    }

    fn is_idle(&self) -> bool {
        !self.is_needed
            && self.wanted.is_empty()
            && self.unwanted.is_empty()
            && self.lingering.is_empty()
    }

    /// Begins a look, if one is due and none runs.
    fn start(&mut self) {
        let due = self.changed || Instant::now() >= self.next;
        if self.is_idle() || !due || !self.job.is_empty() {
            return;
        }
        self.changed = false;
        let now = Instant::now();
        self.next = now + LATER;
        self.yielded
            .retain(|_, since| since.is_none_or(|since| now - since < YIELD_LONGEST));
        let yielded = self.yielded.iter().map(|(key, since)| {
            let in_any_case = since.is_none_or(|since| now - since < YIELD);
            (*key, in_any_case)
        });
        let plan = Plan {
            socket: self.socket.clone(),
            wanted: self.wanted.clone(),
            unwanted: self.unwanted.keys().copied().collect(),
            loaded: self.loaded.clone(),
            yielded: yielded.collect(),
            lingering: self.lingering.clone(),
            up: self.up.clone(),
        };
        self.job.spawn(sync::sync(plan));
    }

    fn ended(&mut self, found: Result<Found, Unfinished>) {
        match found {
            Ok(found) => self.found(found),
            Err(unfinished) => self.unreachable(unfinished),
        }
    }

    fn unreachable(&mut self, Unfinished { error, answers }: Unfinished) {
        let unheard = matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        );
        if unheard {
            (self.silent, self.stuck) = (None, None);
        } else {
            self.end_hung(answers);
        }
        let started = match &mut self.process {
            Some(process) if unheard && self.is_needed => process.start(),
            _ => Ok(()),
        };
        let socket = self.socket.display();
        let problem = started
            .err()
            .unwrap_or_else(|| format!("charon cannot be reached at {socket}: {error}"));
        self.next = Instant::now() + SOON;
        if unheard {
            // It has forgotten everything.
            self.loaded.clear();
            self.lingering.clear();
            for key in std::mem::take(&mut self.unwanted) {
                let (key, connection) = key;
                let gone = Object::IkeConnection(key, connection);
                self.events.push_back(KernelEvent::Gone(gone));
            }
            for key in std::mem::take(&mut self.up) {
                self.gone(key);
            }
        }
        if std::mem::take(&mut self.runs) {
            let gone = Object::IkeDaemon((), false);
            self.events.push_back(KernelEvent::Gone(gone));
        }
        if self.problem.as_ref() != Some(&problem) && self.is_needed {
            self.refuse(Op::Put(Object::IkeDaemon((), false)), &problem);
            self.problem = Some(problem);
        }
    }

    /// Kills a charon of ours that has not answered for long: it agrees on no new keys, and those in use end.
    fn end_hung(&mut self, answers: bool) {
        let now = Instant::now();
        let stuck = *self.stuck.get_or_insert(now);
        let silent = if answers {
            self.silent = None;
            now
        } else {
            *self.silent.get_or_insert(now)
        };
        let is_hung = silent.elapsed() >= HUNG || stuck.elapsed() >= STUCK;
        if !is_hung || !self.is_needed {
            return;
        }
        (self.silent, self.stuck) = (None, None);
        let serving = self.serving;
        if let Some(process) = &mut self.process {
            process.kill(serving);
        }
    }

    fn gone(&mut self, key: IkeKey) {
        if let Some(connection) = self.wanted.get(&key) {
            let gone = Object::IkeConnection(key, connection.clone());
            self.events.push_back(KernelEvent::Gone(gone));
        }
    }

    fn found(&mut self, found: Found) {
        self.loaded = found.loaded;
        self.lingering = found.lingering;
        for (key, since) in &mut self.yielded {
            if since.is_none() && self.loaded.get(key) == self.wanted.get(key) {
                *since = Some(Instant::now());
            }
        }
        self.serving = found.process;
        (self.problem, self.silent, self.stuck) = (None, None, None);
        self.process.iter_mut().for_each(Process::works);
        if self.is_needed && !std::mem::replace(&mut self.runs, true) {
            let daemon = Object::IkeDaemon((), false);
            self.events.push_back(KernelEvent::Saw(daemon));
        }
        if !self.changed {
            // What was to end when this look began has ended.
            for (key, connection) in std::mem::take(&mut self.unwanted) {
                let gone = Object::IkeConnection(key, connection);
                self.events.push_back(KernelEvent::Gone(gone));
            }
        }
        for key in self.up.clone() {
            if !found.up.contains(&key) {
                self.up.remove(&key);
                self.gone(key);
            }
        }
        for key in found.up {
            // It may have changed meanwhile.
            let wanted = self.wanted.get(&key);
            let same = wanted.filter(|wanted| self.loaded.get(&key) == Some(*wanted));
            if let Some(wanted) = same.cloned()
                && self.up.insert(key)
            {
                let up = Object::IkeConnection(key, wanted);
                self.events.push_back(KernelEvent::Saw(up));
            }
        }
        for (key, why) in &found.failed {
            if self.failed.get(key) != Some(why)
                && let Some(wanted) = self.wanted.get(key).cloned()
            {
                self.refuse(Op::Put(Object::IkeConnection(*key, wanted)), why);
            }
        }
        self.failed = found.failed;
        if found.is_part {
            self.next = Instant::now();
        } else if self.up.len() < self.wanted.len() || !self.lingering.is_empty() {
            self.next = Instant::now() + SOON;
        }
    }

    fn refuse(&mut self, op: Op, why: &str) {
        let error = Failure::because(libc::EHOSTUNREACH, why).of(&op);
        self.events.push_back(KernelEvent::Refused(op, error));
    }
}

/// Returns what is known of a connection that an earlier run of the daemon set up: its name.
fn by_name(name: &str) -> Option<(IkeKey, IkeConnection)> {
    let key = IkeConnection::key_of(name)?;
    let local = name.split('-').next()?.parse().ok()?;
    let remote = name.rsplit('-').next()?.parse().ok()?;
    let connection = IkeConnection {
        local,
        local_id: local,
        remote,
        esp: "".into(),
        encap: false,
        psk: Psk("".into()),
    };
    Some((key, connection))
}

impl Door for Charon {
    fn set_scope(&mut self, scope: &Scope) {
        self.network = scope.network;
    }

    async fn observe(&mut self, each: &mut dyn FnMut(Object)) -> Result<(), KernelError> {
        for key in &self.up {
            if let Some(connection) = self.wanted.get(key) {
                each(Object::IkeConnection(*key, connection.clone()));
            }
        }
        // What an earlier run left in a charon that still runs.
        let look = async {
            let mut client = Client::connect(&self.socket).await?;
            let names = sync::names(&mut client).await?;
            io::Result::Ok((client.process(), names))
        };
        let looked = tokio::time::timeout(LOOK, look).await;
        let (serving, names) = looked.ok().and_then(Result::ok).unwrap_or_default();
        self.serving = serving.or(self.serving);
        let process = self.process.as_ref();
        if self.runs {
            each(Object::IkeDaemon((), false));
        } else if process.is_some_and(|process| process.was_left(serving)) {
            each(Object::IkeDaemon((), true));
        }
        for (key, connection) in names.iter().filter_map(|name| by_name(name)) {
            if self.inside(&key) && !self.wanted.contains_key(&key) {
                each(Object::IkeConnection(key, connection));
            }
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
            if self.is_idle() && self.job.is_empty() {
                return std::future::pending().await;
            }
            tokio::select! {
                Some(ended) = self.job.join_next() => {
                    self.ended(ended.unwrap_or_else(|error| {
                        let error = io::Error::other(error);
                        Err(Unfinished { error, answers: false })
                    }));
                }
                () = tokio::time::sleep_until(self.next), if self.job.is_empty() => {}
            }
        }
    }
}
