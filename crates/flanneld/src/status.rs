//! What the daemon reports of itself: to `/readyz`, to `/metrics`, to systemd, to a program that embeds it. Written by
//! the main loop, read from any thread.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use model::Lease;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use crate::metrics::{self, Histogram, Snapshot};
use crate::probes::{Probes, Probing, View};
use crate::report::{Counts, NetworkReport, NodeReport, PeerStatus, PeersReport};

/// How long the store may be unreachable before the node is called not ready: its packets still flow, but
/// it learns of no change.
pub const STORE_PATIENCE: Duration = Duration::from_secs(30);

/// How long routes may be missing before the node is called not ready.
pub const ROUTES_PATIENCE: Duration = Duration::from_secs(30);

/// How often the main loop is asked for the peers' states, and how long its answer is waited for.
const PEER_STATES_EVERY: Duration = Duration::from_secs(1);
const PEER_STATES_LIMIT: Duration = Duration::from_secs(2);

/// How often the prober follows the nodes' addresses, and how long the main loop may take for them.
const PROBE_VIEW_EVERY: Duration = Duration::from_secs(1);
const PROBE_VIEW_LIMIT: Duration = Duration::from_secs(10);

/// The daemon's state, shared between the main loop and what reports it.
#[derive(Clone, Default)]
pub struct Status(Arc<Shared>);

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    /// Notified after every change; carries nothing, so that a reader that is late costs nothing.
    changed: watch::Sender<()>,
}

/// Access to the state; the readers are notified when it ends.
struct Change<'a> {
    inner: MutexGuard<'a, Inner>,
    changed: &'a watch::Sender<()>,
}

impl Deref for Change<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Change<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.changed.send_replace(());
    }
}

/// How far a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It waits for what is missing, takes a subnet, or makes its devices.
    #[default]
    Starting,
    /// Its devices are up, and it is announced: pods can be placed here.
    Announced,
    /// Devices have been missing for so long that the announcement was withdrawn.
    Withdrawn,
    /// It does nothing any more.
    Ended,
}

/// What a node is at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// How far it is.
    pub phase: Phase,
    /// Its subnet, and what it publishes; absent until it has one.
    pub lease: Option<Lease>,
    /// Bytes of the largest packet of a pod, once there is a subnet.
    pub mtu: Option<u32>,
    /// What keeps it from working as announced; empty when all works.
    pub problems: Vec<String>,
    /// What is not served although the node works, such as one address family of two.
    pub degraded: Option<String>,
    /// Whether the store answers.
    pub store_reachable: bool,
    /// How many other nodes are in use.
    pub peers: usize,
    /// How many leases of other nodes cannot be used.
    pub refused_leases: usize,
}

impl NodeStatus {
    /// Whether pods can be placed here and all works.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Announced && self.problems.is_empty()
    }
}

/// What the status socket asks the main loop, which alone knows the peers.
pub enum Question {
    /// How many of the other nodes are in each state.
    PeerStates(oneshot::Sender<BTreeMap<PeerStatus, usize>>),
    /// The other nodes.
    Peers(oneshot::Sender<PeersReport>),
    /// The addresses that probes need.
    #[allow(
        private_interfaces,
        reason = "of this crate's main loop and prober alone"
    )]
    ProbeView(oneshot::Sender<View>),
    /// Whether the main loop turns.
    Alive(oneshot::Sender<()>),
}

/// Whether a text says for how many seconds something has lasted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figures {
    Seconds,
    Without,
}

/// Questions that wait at most; more are not answered.
const QUESTIONS: usize = 16;

struct Inner {
    began: Instant,
    began_at: SystemTime,
    store: String,
    ask: mpsc::Sender<Question>,
    /// Until the main loop takes it.
    questions: Option<mpsc::Receiver<Question>>,
    started: bool,
    store_unreachable_since: Option<Instant>,
    device_problem: Option<String>,
    routes_missing_since: Option<Instant>,
    file_problem: Option<String>,
    host_problem: Option<String>,
    rules_problem: Option<String>,
    cni_problem: Option<String>,
    unserved: Vec<String>,
    config_problem: Option<String>,
    change: Option<String>,
    store_waits: store::StoreStatus,
    network: Option<NetworkReport>,
    lease: Option<Lease>,
    phase: Phase,
    probes: Option<Probes>,
    rules_in_place: bool,
    guard_in_place: bool,
    /// Whether the CNI configuration is in its place; `None` if it is not ours to put there.
    cni_installed: Option<bool>,
    peer_states: BTreeMap<PeerStatus, usize>,
    peer_states_at: Option<Instant>,
    numbers: Numbers,
}

/// The figures of `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// Leases of other nodes that are in use.
    pub peers: usize,
    /// Leases of other nodes that cannot be used.
    pub refused_leases: usize,
    /// Routes that should be there.
    pub routes: usize,
    /// Operations that the kernel refused and are still needed.
    pub parked: usize,
    /// Changes whenever a node may have changed.
    pub cluster_version: u64,
    /// Kernel objects written since the start.
    pub written: u64,
    /// Kernel objects deleted since the start.
    pub deleted: u64,
    /// Kernel objects put right because somebody else had changed them, since the start.
    pub repaired: u64,
    /// Full looks at the kernel that no notification asked for, since the start.
    pub audits: u64,
    /// Sets of traffic rules written because somebody else had changed them, since the start.
    pub rules_repaired: u64,
    /// Operations refused by the kernel since the start, by kind of object and errno.
    pub refusals: BTreeMap<(&'static str, i32), u64>,
    /// Repaired objects since the start, by kind of object.
    pub repairs: BTreeMap<&'static str, u64>,
    /// How long the passes over the kernel took.
    pub passes: Histogram,
}

impl Default for Inner {
    fn default() -> Inner {
        let (ask, questions) = mpsc::channel(QUESTIONS);
        Inner {
            began: Instant::now(),
            began_at: SystemTime::now(),
            store: String::new(),
            ask,
            questions: Some(questions),
            started: false,
            store_unreachable_since: None,
            device_problem: None,
            routes_missing_since: None,
            file_problem: None,
            host_problem: None,
            rules_problem: None,
            cni_problem: None,
            unserved: Vec::new(),
            config_problem: None,
            change: None,
            store_waits: store::StoreStatus::default(),
            network: None,
            lease: None,
            phase: Phase::Starting,
            probes: None,
            rules_in_place: false,
            guard_in_place: false,
            cni_installed: None,
            peer_states: BTreeMap::new(),
            peer_states_at: None,
            numbers: Numbers::default(),
        }
    }
}

impl Status {
    fn read(&self) -> MutexGuard<'_, Inner> {
        // What is in there is figures and texts: whole after every step.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> Change<'_> {
        Change {
            inner: self.read(),
            changed: &self.0.changed,
        }
    }

    /// Returns what is notified after every change.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Has subscribers look again.
    pub(crate) fn touch(&self) {
        self.0.changed.send_replace(());
    }

    /// Whether the main loop runs.
    pub(crate) fn takes_questions(&self) -> bool {
        let inner = self.read();
        inner.questions.is_none() && !inner.ask.is_closed()
    }

    /// Returns what the node is now.
    pub fn node(&self) -> NodeStatus {
        // Seconds that count up would make every look another status.
        let (problems, degraded) = (self.problems_with(Figures::Without), self.degraded());
        let inner = self.read();
        NodeStatus {
            phase: inner.phase,
            lease: inner.lease.clone(),
            mtu: inner.network.as_ref().map(|network| network.mtu),
            problems,
            degraded,
            store_reachable: inner.store_unreachable_since.is_none(),
            peers: inner.numbers.peers,
            refused_leases: inner.numbers.refused_leases,
        }
    }

    /// Records how far the node is. The end is for good.
    pub(crate) fn set_phase(&self, phase: Phase) {
        let mut inner = self.change();
        if inner.phase != Phase::Ended {
            inner.phase = phase;
        }
    }

    /// Records what the store is, for a person.
    pub fn set_store(&self, name: String) {
        self.change().store = name;
    }

    /// Returns the questions of the status socket, once: to whoever answers them from then on.
    pub fn questions(&self) -> Option<mpsc::Receiver<Question>> {
        self.change().questions.take()
    }

    /// Asks the main loop. Returns `None` if it is not running yet, or too busy to answer within `limit`.
    pub async fn ask<T>(
        &self,
        limit: Duration,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Option<T> {
        let ask = {
            let inner = self.read();
            if inner.questions.is_some() {
                return None;
            }
            inner.ask.clone()
        };
        let (reply, answer) = oneshot::channel();
        ask.try_send(question(reply)).ok()?;
        tokio::time::timeout(limit, answer).await.ok()?.ok()
    }

    /// Returns what the status socket says of this node.
    pub fn report(&self) -> NodeReport {
        let (problems, degraded) = (self.problems(), self.degraded());
        let inner = self.read();
        let n = &inner.numbers;
        NodeReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: crate::version::COMMIT.map(ToOwned::to_owned),
            pid: std::process::id(),
            uptime_seconds: inner.began.elapsed().as_secs(),
            ready: problems.is_empty(),
            problems,
            degraded,
            store: inner.store.clone(),
            store_reachable: inner.store_unreachable_since.is_none(),
            network: inner.network.clone(),
            counts: Counts {
                peers: n.peers as u64,
                refused_leases: n.refused_leases as u64,
                routes: n.routes as u64,
                pending_operations: n.parked as u64,
                repairs: n.repaired,
                rules_repairs: n.rules_repaired,
                repairs_by_kind: n
                    .repairs
                    .iter()
                    .map(|(k, n)| ((*k).to_owned(), *n))
                    .collect(),
            },
            mesh: inner.probes.as_ref().map(Probes::report),
        }
    }

    /// Records that the subnet file is written and the devices are up.
    pub fn set_started(&self) {
        self.change().started = true;
        self.set_phase(Phase::Announced);
    }

    /// Whether the store answers.
    pub fn set_store_unreachable(&self, away: bool) {
        let mut inner = self.change();
        match away {
            true => drop(
                inner
                    .store_unreachable_since
                    .get_or_insert_with(Instant::now),
            ),
            false => inner.store_unreachable_since = None,
        }
    }

    /// Records why a device of ours, or its address, is missing, if one is.
    pub fn set_device_problem(&self, problem: Option<String>) {
        self.change().device_problem = problem;
    }

    /// Records whether routes are missing that should be there.
    pub fn set_routes_missing(&self, missing: bool) {
        let since = &mut self.change().routes_missing_since;
        if missing {
            since.get_or_insert_with(Instant::now);
        } else {
            *since = None;
        }
    }

    /// Records what keeps `subnet.env` from being written again, if anything. Returns whether that
    /// is new.
    pub fn set_file_problem(&self, problem: Option<String>) -> bool {
        let mut inner = self.change();
        let new = inner.file_problem != problem;
        inner.file_problem = problem;
        new
    }

    /// What is wrong with the host's interface, if anything. Returns whether that is news.
    pub fn set_host_problem(&self, problem: Option<String>) -> bool {
        let mut inner = self.change();
        let news = inner.host_problem != problem;
        inner.host_problem = problem;
        news
    }

    /// What is wrong with the traffic rules, if anything.
    pub fn set_rules_problem(&self, problem: Option<String>) {
        self.change().rules_problem = problem;
    }

    /// What keeps the CNI configuration from its place, if anything. Returns whether that is news.
    pub fn set_cni_problem(&self, problem: Option<String>) -> bool {
        let mut inner = self.change();
        let news = inner.cni_problem != problem;
        inner.cni_problem = problem;
        news
    }

    /// Records what this node is in the network.
    pub fn set_network(&self, network: NetworkReport, lease: Lease) {
        let mut inner = self.change();
        inner.network = Some(network);
        inner.lease = Some(lease);
    }

    /// Starts the prober, which from then on follows the nodes' addresses, until the returned value is dropped. Must be
    /// called on a `LocalSet`.
    pub(crate) fn start_probes(&self, port: u16) -> Option<Probing> {
        match Probes::start(port) {
            Ok((probes, probing)) => {
                self.change().probes = Some(probes.clone());
                tokio::task::spawn_local(follow_nodes(self.clone(), probes));
                Some(probing)
            }
            Err(error) => {
                warn!("the other nodes are not probed: {error}");
                None
            }
        }
    }

    /// Returns the other nodes, with what probes of them show; none if the main loop is too busy to answer within
    /// `limit`.
    pub async fn peers(&self, limit: Duration) -> PeersReport {
        let report = self.ask(limit, Question::Peers).await;
        let mut report = report.unwrap_or_default();
        self.add_probes(&mut report);
        report
    }

    /// Adds to each node what probes of it show.
    pub(crate) fn add_probes(&self, report: &mut PeersReport) {
        let probes = self.read().probes.clone();
        if let Some(probes) = probes {
            probes.annotate(&mut report.peers);
        }
    }

    /// Records whether the traffic rules are as they should be.
    pub fn set_rules_in_place(&self, in_place: bool) {
        self.change().rules_in_place = in_place;
    }

    /// Records whether forged packets are dropped.
    pub fn set_guard_in_place(&self, in_place: bool) {
        self.change().guard_in_place = in_place;
    }

    /// Records whether the CNI configuration is in its place.
    pub fn set_cni_installed(&self, installed: bool) {
        self.change().cni_installed = Some(installed);
    }

    /// Asks the main loop again how many peers are in each state, at most once a second.
    pub async fn refresh_peer_states(&self) {
        let read = self.read().peer_states_at;
        if read.is_some_and(|read| read.elapsed() < PEER_STATES_EVERY) {
            return;
        }
        // Set first: many that ask at once are one question.
        self.change().peer_states_at = Some(Instant::now());
        if let Some(states) = self.ask(PEER_STATES_LIMIT, Question::PeerStates).await {
            self.change().peer_states = states;
        }
    }

    /// Returns the figures in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let ready = self.problems().is_empty();
        let inner = self.read();
        metrics::render(&Snapshot {
            ready,
            began_at: inner.began_at,
            store_up: inner.store_unreachable_since.is_none(),
            store: &inner.store_waits,
            network: inner.network.as_ref(),
            rules_in_place: inner.rules_in_place,
            guard_in_place: inner.guard_in_place,
            cni_installed: inner.cni_installed,
            peer_states: &inner.peer_states,
            probes: inner.probes.as_ref().map(Probes::figures),
            numbers: &inner.numbers,
        })
    }

    /// Records where the store reports what it waits for.
    pub fn set_store_waits(&self, waits: store::StoreStatus) {
        self.change().store_waits = waits;
    }

    /// Records which families of the network the backend does not serve, and why. Returns whether that
    /// is new.
    pub fn set_unserved(&self, unserved: &[String]) -> bool {
        let mut inner = self.change();
        let new = inner.unserved != unserved;
        inner.unserved = unserved.to_vec();
        new
    }

    /// Records why the network configuration that the store shows is not in force, if it is not. Returns whether
    /// that is new.
    pub fn set_config_problem(&self, problem: Option<String>) -> bool {
        let mut inner = self.change();
        let new = inner.config_problem != problem;
        inner.config_problem = problem;
        new
    }

    /// Records how far a change of the backend is, while there is one.
    pub fn set_change(&self, change: Option<String>) {
        self.change().change = change;
    }

    /// Returns what cannot be served although the node works: one family of two.
    pub fn degraded(&self) -> Option<String> {
        let inner = self.read();
        let all: Vec<String> = inner
            .store_waits
            .degraded()
            .into_iter()
            .chain(inner.unserved.clone())
            .chain(inner.config_problem.clone())
            .chain(inner.change.clone())
            .collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Changes the figures.
    pub fn update(&self, change: impl FnOnce(&mut Numbers)) {
        change(&mut self.change().numbers);
    }

    /// Returns what is wrong with what this node announces, each with one word and without figures that change: for
    /// events.
    pub fn troubles(&self) -> Vec<(&'static str, String)> {
        let inner = self.read();
        let lasts = inner.routes_missing_since;
        let lasts = lasts.is_some_and(|since| since.elapsed() > ROUTES_PATIENCE);
        let routes = "routes to other nodes are missing: the kernel refuses them; flannelctl peers shows why";
        let all = [
            ("DeviceMissing", inner.device_problem.clone()),
            ("InterfaceMissing", inner.host_problem.clone()),
            ("RoutesMissing", lasts.then(|| routes.to_owned())),
            ("SubnetFileMissing", inner.file_problem.clone()),
            ("TrafficRulesMissing", inner.rules_problem.clone()),
            ("CniConfigurationMissing", inner.cni_problem.clone()),
        ];
        let all = all.into_iter();
        all.filter_map(|(reason, text)| Some((reason, text?)))
            .collect()
    }

    /// Returns why the node is not ready; empty when it is.
    pub fn problems(&self) -> Vec<String> {
        self.problems_with(Figures::Seconds)
    }

    fn problems_with(&self, figures: Figures) -> Vec<String> {
        let lasting = |since: Instant| match figures {
            Figures::Seconds => format!(" for {} s", since.elapsed().as_secs()),
            Figures::Without => String::new(),
        };
        let inner = self.read();
        let mut problems = Vec::new();
        if !inner.started {
            let waits = inner.store_waits.get();
            let known = inner.host_problem.is_some() || inner.device_problem.is_some();
            // What is known is listed below.
            if let Some(reason) = waits {
                problems.push(format!("starting: {reason}"));
            } else if !known {
                problems.push("starting: no subnet yet".to_owned());
            }
        }
        if let Some(since) = inner
            .store_unreachable_since
            .filter(|since| since.elapsed() > STORE_PATIENCE)
        {
            problems.push(format!("the store has been unreachable{}", lasting(since)));
        }
        problems.extend(inner.device_problem.clone());
        if let Some(since) = inner
            .routes_missing_since
            .filter(|since| since.elapsed() > ROUTES_PATIENCE)
        {
            problems.push(format!(
                "routes to other nodes have been missing{}: the kernel refuses them",
                lasting(since)
            ));
        }
        problems.extend(inner.file_problem.clone());
        problems.extend(inner.host_problem.clone());
        problems.extend(inner.rules_problem.clone());
        problems.extend(inner.cni_problem.clone());
        problems
    }
}

/// Has the prober follow the nodes' addresses: asks the main loop for them after they have changed.
async fn follow_nodes(status: Status, probes: Probes) {
    loop {
        let version = status.read().numbers.cluster_version;
        if version != probes.version()
            && let Some(view) = status.ask(PROBE_VIEW_LIMIT, Question::ProbeView).await
        {
            probes.set_view(view);
        }
        tokio::time::sleep(PROBE_VIEW_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_comes_and_goes() {
        let status = Status::default();
        assert_eq!(status.problems(), ["starting: no subnet yet"]);
        status.set_started();
        assert!(status.problems().is_empty());
        status.set_device_problem(Some("flannel.1 is missing".to_owned()));
        assert_eq!(status.problems(), ["flannel.1 is missing"]);
        let missing = ("DeviceMissing", "flannel.1 is missing".to_owned());
        assert_eq!(status.troubles(), [missing]);
        status.set_device_problem(None);
        status.set_routes_missing(true);
        assert!(status.problems().is_empty(), "a retry may do");
        status.change().routes_missing_since = Instant::now().checked_sub(ROUTES_PATIENCE * 2);
        status.set_routes_missing(true);
        assert!(status.problems()[0].contains("routes to other nodes"));
        status.set_routes_missing(false);
        status.set_store_unreachable(true);
        assert!(status.problems().is_empty(), "a short outage");
        status.change().store_unreachable_since = Instant::now().checked_sub(STORE_PATIENCE * 2);
        assert!(status.problems()[0].starts_with("the store has been unreachable"));
        status.set_store_unreachable(false);
        assert!(status.problems().is_empty());
    }
}
