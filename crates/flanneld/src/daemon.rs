//! The daemon from its start to its end: find out who and where we are, take a subnet, then follow
//! the store and the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use backend::{Backend, BackendError, Identity};
use dataplane::{Kernel, KernelEvent, Scope};
use ipnet::IpNet;
use model::state::Progress;
use model::{Family, Host, IfName, Lease, NetConfig, Owner, Slot};
use store::{AnyStore, Store, StoreEvent, Trouble};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::allowance::Allowance;
use crate::announce::{Announcement, Step};
use crate::cluster::Cluster;
use crate::config_change::{Effect, Wanted};
use crate::few_lines::FewLines;
use crate::generations::{Generation, networks, published_by};
use crate::identity::{Answer, Answers};
use crate::iface::{Look, NoIface};
use crate::lock::Lock;
use crate::options::Options;
use crate::reconcile::{Reconciler, RepairLog, tell_each};
use crate::report::{NetworkReport, PeersReport};
use crate::settle::{addresses, connected, device_mac, interface_missing, report_unserved, scope};
use crate::status::{Question, Status};
use crate::subnet_env::SubnetEnv;
use crate::traffic::{Guarding, SourceCheck};
use crate::withdraw::{Former, withdrawn};
use crate::{
    backends_file, cni_conf, config_change, identity, iface, status_socket, subnet_file, systemd,
    teardown, traffic,
};

/// How many leases are taken in before the kernel is written: enough to be quick, few enough that a
/// large cluster's first listing does not stand in memory as work to do.
const LEASES_A_PASS: usize = 1024;

/// How soon the host's interface is looked at again after a look that failed, and how often without any
/// notification.
const HOST_RETRY: Duration = Duration::from_secs(5);
const HOST_AUDIT: Duration = Duration::from_secs(120);

/// How many lines of one kind about the host's interface are written at once.
const HOST_LINES: u32 = 4;

/// How often the files of this node's keys are read: somebody may have replaced one.
const KEYS_EVERY: Duration = Duration::from_secs(2);

/// How often a trouble that lasts is reported again.
const TROUBLE_AGAIN: Duration = Duration::from_secs(600);

/// How often the daemon wakes because the kernel reports a change: more changes are taken in together.
const WAKES: (u32, Duration) = (200, Duration::from_millis(10));

/// Changes of the kernel that are taken in before the kernel is written.
const EVENTS_A_PASS: usize = 4096;

/// How often the host's interface is looked at because it may have changed.
const HOST_LOOKS: (u32, Duration) = (20, Duration::from_millis(500));

/// What a daemon is made of.
pub(crate) struct Parts {
    pub(crate) options: Options,
    pub(crate) configured: NetConfig,
    pub(crate) lease: Lease,
    pub(crate) store: AnyStore,
    pub(crate) cluster: Cluster,
    pub(crate) reconciler: Reconciler<Kernel>,
    pub(crate) scope: Scope,
    pub(crate) status: Status,
    pub(crate) rules: AbortHandle,
    pub(crate) forwarding: AbortHandle,
    pub(crate) guard: Option<Guarding>,
    pub(crate) source_check: Option<SourceCheck>,
    pub(crate) ports: BTreeSet<u16>,
    pub(crate) lock: Lock,
}

/// A daemon that has its subnet.
pub struct Daemon {
    options: Options,
    /// The configuration in force, with the families that have no subnet here, too.
    configured: NetConfig,
    /// What the store shows, and is not in force yet.
    wanted: Wanted,
    lease: Lease,
    store: AnyStore,
    cluster: Cluster,
    reconciler: Reconciler<Kernel>,
    scope: Scope,
    status: Status,
    announcement: Announcement,
    /// What keeps the traffic rules in place.
    rules: AbortHandle,
    /// What checks that the host forwards packets.
    forwarding: AbortHandle,
    /// What keeps forged packets out.
    guard: Option<Guarding>,
    /// What keeps out packets that no node sends.
    source_check: Option<SourceCheck>,
    /// The UDP ports of the tunnels.
    ports: BTreeSet<u16>,
    /// The backends that this node sends by, as far as it knows.
    usable: Vec<Slot>,
    /// What keeps the CNI configuration in place, while the node is announced.
    cni_conf: Option<AbortHandle>,
    /// Keeps other daemons from the same network and devices.
    lock: Lock,
    /// Whether an interface of this host has a network that a lease might name.
    is_connected: bool,
    /// Troubles that last, and when each is reported again.
    reported: BTreeMap<&'static str, Instant>,
    repairs: RepairLog,
    wakes: Allowance,
    /// The host's interface may have changed since it was looked at.
    host_may_differ: bool,
    host_looks: Allowance,
    /// When it is looked at again without a notification.
    host_due: Instant,
    host_lines: HostLines,
    subnet_env: SubnetEnv,
    /// When the files of this node's keys are read again, and what is wrong with them, as the log says.
    keys_due: Instant,
    keys_problem: Option<String>,
    /// All leases are known, and the store is reachable.
    complete: bool,
    /// All leases were known once.
    knows_peers: bool,
}

/// The lines about an interface that comes and goes.
struct HostLines {
    lost: FewLines,
    found: FewLines,
    changed: FewLines,
}

impl Default for HostLines {
    fn default() -> Self {
        let lines = || FewLines::new(HOST_LINES);
        HostLines {
            lost: lines(),
            found: lines(),
            changed: lines(),
        }
    }
}

impl Daemon {
    /// Returns a daemon that has its subnet and has begun to make its devices.
    pub(crate) fn new(parts: Parts) -> Daemon {
        let Parts {
            options,
            configured,
            lease,
            store,
            cluster,
            reconciler,
            scope,
            status,
            rules,
            forwarding,
            guard,
            source_check,
            ports,
            lock,
        } = parts;
        Daemon {
            subnet_env: SubnetEnv::new(options.subnet_file.clone()),
            options,
            configured,
            wanted: Wanted::new(),
            lease,
            store,
            cluster,
            reconciler,
            scope,
            status,
            announcement: Announcement::new(Instant::now()),
            rules,
            forwarding,
            guard,
            source_check,
            ports,
            usable: Vec::new(),
            cni_conf: None,
            lock,
            is_connected: false,
            reported: BTreeMap::new(),
            repairs: RepairLog::default(),
            wakes: Allowance::new(WAKES.0, WAKES.1),
            host_may_differ: true,
            host_looks: Allowance::new(HOST_LOOKS.0, HOST_LOOKS.1),
            host_due: Instant::now(),
            keys_due: Instant::now(),
            keys_problem: None,
            host_lines: HostLines::default(),
            complete: false,
            knows_peers: false,
        }
    }

    /// Follows the store and the kernel until the lease is lost. Announces the node as soon as its
    /// devices are up: `subnet.env`, the CNI configuration, the store, the service manager.
    ///
    /// # Errors
    /// `subnet.env` cannot be written.
    pub async fn run(&mut self) -> anyhow::Result<ExitCode> {
        let watchdog = systemd::watchdog_period();
        let mut bark = Instant::now();
        let mut questions = self.status.questions();
        if self.options.cni_conf.is_some() {
            self.status.set_cni_installed(false);
        }
        self.report_network();
        // It may have changed while a subnet was waited for.
        self.host_changed().await;
        self.advance().await;
        self.pass(false).await;
        loop {
            self.follow_config().await;
            self.advance().await;
            self.announce().await?;
            let mut due = self.reconciler.due();
            if let Some(step) = self.announcement.due() {
                due = due.min(step);
            }
            if self.announcement.is_made() {
                due = due.min(self.subnet_env.due());
            }
            let now = Instant::now();
            let changes = self.cluster.generations().due(now);
            due = changes
                .into_iter()
                .chain(self.wanted.due())
                .fold(due, Instant::min);
            due = due.min(self.host_due);
            if self.has_keys() {
                due = due.min(self.keys_due);
            }
            if self.host_may_differ {
                due = due.min(self.host_looks.next());
            }
            if let Some(period) = watchdog {
                if Instant::now() >= bark {
                    systemd::alive();
                    bark = Instant::now() + period;
                }
                due = due.min(bark);
            }
            let may_wake = self.wakes.next();
            let kernel_event = async {
                tokio::time::sleep_until(may_wake).await;
                self.reconciler.event().await
            };
            let repairing = tokio::select! {
                event = kernel_event => self.kernel_news(event).await,
                event = self.store.next_event() => {
                    if let Some(reason) = self.store_event(event).await {
                        let assigned = *self.store.status().assigned().borrow();
                        if let Some(former) = Former::new(&self.options, Some(self.lease.key)) {
                            // The keeper would put the CNI configuration back.
                            self.rules.abort();
                            self.forwarding.abort();
                            self.cni_conf.iter().for_each(AbortHandle::abort);
                            former.withdraw_if(assigned);
                        }
                        error!("lease {} is lost: {reason}; stopping, so that the supervisor starts a new daemon", self.lease.key);
                        systemd::stopping("the lease is lost");
                        return Ok(ExitCode::FAILURE);
                    }
                    false
                }
                Some(question) = next(&mut questions) => {
                    self.answer(question);
                    continue;
                }
                () = tokio::time::sleep_until(due) => false,
            };
            let now = Instant::now();
            if now >= self.host_due || (self.host_may_differ && now >= self.host_looks.next()) {
                self.host_changed().await;
            }
            if now >= self.keys_due && self.has_keys() {
                self.follow_keys().await;
            }
            self.pass(repairing).await;
        }
    }

    /// Answers the status socket; an asker that is gone is no failure.
    fn answer(&mut self, question: Question) {
        match question {
            Question::PeerStates(reply) => {
                let states = self.cluster.peer_states(&mut self.reconciler);
                drop(reply.send(states));
            }
            Question::Peers(reply) => {
                let peers = self.cluster.peers(&mut self.reconciler);
                drop(reply.send(PeersReport { peers }));
            }
        }
    }

    /// Passes on what this node is in the network.
    fn report_network(&self) {
        let generations = self.cluster.generations();
        let public_ips = self.lease.attrs.public_ip.iter();
        self.status.set_network(NetworkReport {
            networks: texts(self.config().pools.iter().map(|(_, pool)| pool.network)),
            subnets: texts(self.lease.key.nets().iter().map(|(_, net)| net)),
            public_ips: public_ips.map(|(_, ip)| *ip).collect(),
            backend: generations.leading().backend.kind().to_string(),
            mtu: generations.mtu(),
            interface: self.cluster.host().iface.to_string(),
            devices: texts(generations.devices().iter()),
        });
    }

    /// The configuration in force, for the families that have a subnet here.
    fn config(&self) -> &NetConfig {
        &self.cluster.generations().newest().config
    }

    /// Whether a stop is to take the network down.
    pub fn tears_down(&self) -> bool {
        self.options.teardown
    }

    /// Takes the network down: first nobody is to place pods here, then what carries their packets
    /// goes.
    pub async fn tear_down(mut self) {
        self.rules.abort();
        self.forwarding.abort();
        self.guard.iter().for_each(Guarding::abort);
        self.source_check.iter().for_each(SourceCheck::abort);
        self.withdraw_cni_conf();
        if let Some(node) = self.store.node() {
            node.network_removed().await;
        }
        let former = subnet_file::former_networks(&self.options.subnet_file);
        let removed = traffic::remove(
            &self.options.traffic,
            self.config(),
            &self.lease.key,
            former,
        )
        .await;
        if let Err(error) = removed {
            warn!("the traffic rules are not removed: {error}");
        }
        // Its commands are not to run beside those that remove what they made.
        drop(self.reconciler);
        let left = teardown::clear_kernel(self.scope, &self.options).await;
        if left > 0 {
            warn!("{left} objects are left in the kernel: `flannelctl cleanup` shows them");
        }
        teardown::remove_file("-subnet-file", &self.options.subnet_file);
        let _ = std::fs::remove_file(status_socket::path(&self.options.subnet_file));
        let _ = std::fs::remove_file(withdrawn(&self.options.subnet_file));
        let _ = std::fs::remove_file(backends_file::path(&self.options.subnet_file));
    }

    /// Announces the node when its devices are up, withdraws the announcement when they are
    /// missing for long, and keeps `subnet.env` as it was announced.
    async fn announce(&mut self) -> anyhow::Result<()> {
        let problem = self.device_problem();
        let now = Instant::now();
        match self.announcement.observe(problem.is_none(), now) {
            Step::Announce => {
                self.write_subnet_file()?;
                if let Some(conf) = self.options.cni_conf.clone() {
                    self.cni_conf = Some(cni_conf::start(conf, self.status.clone()));
                }
                self.status.set_started();
                self.set_network(true);
                systemd::ready(&format!(
                    "subnet {}, backend {}",
                    self.lease.key,
                    self.cluster.generations().leading().backend.kind()
                ));
            }
            Step::Report => {
                let message = problem.unwrap_or_default();
                warn!("{message}; this node is not announced as ready before it is there");
                systemd::status(&message);
                self.report(device_missing(message));
            }
            Step::Withdraw => {
                let message = problem.unwrap_or_default();
                warn!("{message}; this node is no longer announced as ready");
                systemd::status(&message);
                self.withdraw_cni_conf();
                self.set_network(false);
                self.report(device_missing(message));
            }
            Step::Nothing => {}
        }
        if self.announcement.is_made() && now >= self.subnet_env.due() {
            let text = self.subnet_env_text();
            self.subnet_env.restore(&text, &self.status);
            self.report_troubles(now);
            if self.is_connected {
                // A device that goes down takes its routes along without a notification.
                self.follow_connected();
            }
        }
        Ok(())
    }

    /// Says on this machine's Node, if the store has one, whether pods can be placed here.
    fn set_network(&mut self, available: bool) {
        if let Some(node) = self.store.node() {
            node.set_network(available);
        }
    }

    /// Reports what keeps this node from working as it announces: when it begins, and while it lasts.
    fn report_troubles(&mut self, now: Instant) {
        let troubles = self.status.troubles();
        self.reported
            .retain(|reason, _| troubles.iter().any(|(lasting, _)| lasting == reason));
        for (reason, message) in troubles {
            let again = self.reported.get(reason).copied();
            if again.is_none_or(|again| again <= now) {
                self.reported.insert(reason, now + TROUBLE_AGAIN);
                self.report(Trouble {
                    reason,
                    message,
                    node: None,
                });
            }
        }
    }

    /// Reports a trouble on this machine's Node, if the store has one.
    fn report(&mut self, trouble: Trouble) {
        if let Some(node) = self.store.node() {
            node.report(trouble);
        }
    }

    fn withdraw_cni_conf(&mut self) {
        if let Some(keeper) = self.cni_conf.take() {
            keeper.abort();
        }
        if let Some(conf) = &self.options.cni_conf {
            cni_conf::remove(conf);
            self.status.set_cni_installed(false);
        }
    }

    async fn pass(&mut self, repairing: bool) {
        self.cluster.report_conflicts(&self.reconciler);
        let began = std::time::Instant::now();
        let pass = self.reconciler.pass().await;
        if repairing {
            self.repairs.add(&pass, began.elapsed());
        }
        let problem = self.device_problem();
        self.status.set_device_problem(problem);
        self.status
            .set_routes_missing(self.reconciler.routes_missing() > 0);
        let (peers, refused_leases) = self.cluster.counts();
        let (routes, parked) = (
            self.reconciler.routes_desired(),
            self.reconciler.refused_len(),
        );
        let reconciler = &self.reconciler;
        self.status.update(|n| {
            n.passes.observe(began.elapsed());
            if repairing {
                for (kind, count) in reconciler.last_done() {
                    *n.repairs.entry(kind).or_default() += count;
                }
            }
            // Some arrive between two passes.
            if n.refusals != *reconciler.refusals() {
                n.refusals.clone_from(reconciler.refusals());
            }
            (n.peers, n.refused_leases, n.routes, n.parked) =
                (peers, refused_leases, routes, parked);
            n.written += pass.put as u64;
            n.deleted += pass.deleted as u64;
            n.audits = reconciler.audits();
            n.repaired += if repairing {
                (pass.put + pass.deleted) as u64
            } else {
                0
            };
        });
    }

    /// Takes in what the store told. Returns why the lease is lost, if it is.
    async fn store_event(&mut self, event: StoreEvent) -> Option<String> {
        self.status.set_store_unreachable(!event.complete);
        if !event.complete {
            self.reconciler.set_may_delete(false);
        }
        if let Some(Some(own)) = event.leases.get(&self.lease.key) {
            let generations = self.cluster.generations_mut();
            generations.published(&own.attrs, Instant::now());
        }
        let each = tell_each(event.leases.len());
        let mut leases = event.leases.into_iter().peekable();
        let (mut added, mut removed) = (0, 0);
        while leases.peek().is_some() {
            let some = leases.by_ref().take(LEASES_A_PASS);
            let changes = self.cluster.take(some, each, &mut self.reconciler);
            (added, removed) = (added + changes.0, removed + changes.1);
            if leases.peek().is_some() {
                self.pass(false).await;
            }
        }
        if !each {
            info!(added, removed, "subnets of other nodes changed");
        }
        self.reconciler.set_may_delete(event.complete);
        self.complete = event.complete;
        // Before the first complete listing, nodes are missing in it.
        self.knows_peers |= event.complete;
        self.follow_sources();
        if let Some(config) = event.config {
            self.take_config(config);
        }
        event.revoked
    }

    /// Takes in what the kernel told, and whatever else it has to tell just now. Returns whether
    /// something of ours was changed by somebody else.
    async fn kernel_news(&mut self, first: KernelEvent) -> bool {
        self.wakes.take(Instant::now());
        let mut next = Some(first);
        let mut repairing = false;
        for _ in 0..EVENTS_A_PASS {
            let Some(event) = next else { break };
            self.host_may_differ |= event == KernelEvent::HostChanged;
            repairing |= self.reconciler.note(event);
            next = tokio::select! {
                biased;
                event = self.reconciler.event() => Some(event),
                () = std::future::ready(()) => None,
            };
        }
        if let Some(event) = next {
            self.host_may_differ |= event == KernelEvent::HostChanged;
            repairing |= self.reconciler.note(event);
        }
        repairing
    }

    /// Follows the host's interface until it is as we know it: what changes before the kernel is
    /// told that it still concerns us is announced to nobody.
    async fn host_changed(&mut self) {
        self.host_looks.take(Instant::now());
        self.host_may_differ = false;
        self.host_due = Instant::now() + HOST_AUDIT.mul_f64(0.5 + fastrand::f64());
        self.follow_connected();
        while self.follow_host().await {}
    }

    /// Refuses the leases of networks to which this host's interfaces are connected.
    fn follow_connected(&mut self) {
        let mut found = connected(self.config());
        let own = *self.lease.key.nets();
        found.retain(|net, _| own.iter().all(|(_, own)| !own.contains(net)));
        self.is_connected = !found.is_empty();
        self.cluster.set_connected(found, &mut self.reconciler);
    }

    /// If the host's interface is not what it was: new tunnels, a new public address, another MTU.
    /// Returns whether so.
    async fn follow_host(&mut self) -> bool {
        let Look {
            host,
            lost,
            is_partial,
        } = match self.same_host() {
            Ok(found) => found,
            Err(problem) => {
                // No notification follows if the look itself failed, or if another interface gets the addresses.
                self.host_due = Instant::now() + HOST_RETRY;
                let text = problem.to_string();
                if self.status.set_host_problem(Some(text.clone())) {
                    if let Some(more) = self.host_lines.lost.next() {
                        warn!("{text}; keeping what is there{more}");
                    }
                    self.report(interface_missing(&problem));
                }
                return false;
            }
        };
        if is_partial {
            self.host_due = Instant::now() + HOST_RETRY;
        }
        if self.status.set_host_problem(None)
            && let Some(more) = self.host_lines.found.next()
        {
            info!("interface {} is usable again{more}", host.iface);
        }
        let newest = &self.cluster.generations().newest().backend;
        report_unserved(&**newest, lost.as_ref(), &self.status);
        if host == *self.cluster.host() {
            return false;
        }
        let underlay_only = Host {
            underlay: self.cluster.host().underlay.clone(),
            ..host.clone()
        };
        if underlay_only == *self.cluster.host() {
            self.cluster.set_host(host, &mut self.reconciler);
            return false;
        }
        if let Err(error) = self.rebuild_backends(&host) {
            warn!(
                "after a change of interface {}: {error}; keeping what is there",
                host.iface
            );
            return false;
        }
        if let Some(more) = self.host_lines.changed.next() {
            info!(iface = %host.iface, mtu = host.mtu, "the host's interface changed{}{more}", addresses(&host.public_ip));
        }
        let newest = &self.cluster.generations().newest().backend;
        report_unserved(&**newest, lost.as_ref(), &self.status);
        self.apply_backends(host).await;
        true
    }

    /// Whether a backend in use has keys in files of this node.
    fn has_keys(&self) -> bool {
        let mut all = self.cluster.generations().all().iter();
        all.any(|generation| matches!(generation.identity, Identity::WgKey { .. }))
    }

    /// Follows the files of this node's keys. A new key is in use before the others learn of it: they begin a session
    /// with it as soon as they know it.
    async fn follow_keys(&mut self) {
        self.keys_due = Instant::now() + KEYS_EVERY;
        let (mut changed, mut problem) = (false, None);
        let options = &self.options.wireguard;
        for generation in self.cluster.generations_mut().all_mut() {
            match identity::again(&generation.identity, options) {
                Ok(now) if now == generation.identity => {}
                Ok(now) => {
                    generation.identity = now;
                    changed = true;
                }
                Err(error) => problem = Some(error),
            }
        }
        if problem != self.keys_problem {
            match &problem {
                Some(problem) => warn!("{problem}; the keys that were read before stay in use"),
                None => info!("the files of the WireGuard keys are as they should be again"),
            }
            self.keys_problem = problem;
        }
        if changed {
            let host = self.cluster.host().clone();
            match self.rebuild_backends(&host) {
                Ok(()) => {
                    info!("this node's WireGuard keys changed");
                    self.apply_backends(host).await;
                }
                Err(error) => warn!("this node's new WireGuard keys are not used: {error}"),
            }
        }
    }

    /// Builds every backend again, for this host. A former one that cannot be built stays as it is.
    ///
    /// # Errors
    /// The newest cannot be built: all stay as they are.
    fn rebuild_backends(&mut self, host: &Host) -> Result<(), BackendError> {
        let own = &self.lease.attrs;
        let all = self.cluster.generations().all().iter();
        let built = all.map(|generation| {
            let published = published_by(own, &generation.backend.kind());
            let Generation {
                config, identity, ..
            } = generation;
            backend::new(config, host, identity, published.as_ref())
        });
        let built: Vec<Result<Box<dyn Backend>, BackendError>> = built.collect();
        let all = self.cluster.generations_mut().all_mut().iter_mut();
        for (number, (generation, backend)) in all.zip(built).enumerate() {
            match backend {
                Ok(backend) => {
                    generation.rebuilt(generation.config.clone(), backend, &self.lease.key);
                }
                Err(error) if number == 0 => return Err(error),
                Err(error) => debug!("{}: {error}", generation.backend.kind()),
            }
        }
        Ok(())
    }

    fn same_host(&self) -> Result<Look, NoIface> {
        iface::find_again(
            self.cluster.host(),
            &self.options.iface,
            &self.options.public_ip,
            self.config(),
        )
    }

    /// Why a device of ours, or its address, is missing; `None` while all are there that carry packets already.
    fn device_problem(&mut self) -> Option<String> {
        let problem = self.reconciler.device_problem()?;
        let generations = self.cluster.generations();
        if !generations.is_changing() || generations.newest().ready {
            return Some(problem);
        }
        let ready = generations.all().iter().filter(|own| own.ready);
        let slots: Vec<Slot> = ready.map(|own| own.slot).collect();
        let missing = slots.into_iter().any(|slot| {
            let progress = self.reconciler.progress(Owner::Generation(slot));
            progress != Progress::Installed
        });
        missing.then_some(problem)
    }

    /// Takes in what the store shows as the network configuration.
    fn take_config(&mut self, config: Result<NetConfig, String>) {
        match config {
            Ok(mut config) => {
                self.options.overrule(&mut config);
                let in_force = config == self.configured;
                let nodes = self.cluster.counts().0;
                self.wanted.take(config, in_force, nodes);
            }
            Err(reason) => self.wanted.refuse(format!(
                "network configuration: {reason}; the one that was read before stays in force"
            )),
        }
        self.report_config();
    }

    /// Reports what keeps the configuration that the store shows from being in force: once.
    fn report_config(&self) {
        let problem = self.wanted.problem().cloned();
        if self.status.set_config_problem(problem.clone()) {
            match problem {
                Some(problem) => warn!("{problem}"),
                None => info!("the network configuration is in force"),
            }
        }
    }

    /// Applies a changed configuration.
    async fn follow_config(&mut self) {
        let Some(wanted) = self.wanted.due_now(Instant::now()) else {
            return;
        };
        match self.prepare(&wanted).await {
            Ok(Some(newer)) => {
                self.wanted.done();
                self.change_to(wanted, newer).await;
            }
            Ok(None) => self.wanted.done(),
            Err(NotNow { reason, may_pass }) => {
                let reason = format!("the changed network configuration is not applied: {reason}");
                self.wanted.failed(wanted, reason, may_pass);
            }
        }
        self.report_config();
    }

    /// Builds the backend of a changed configuration; `None` if nothing changes.
    async fn prepare(&mut self, wanted: &NetConfig) -> Result<Option<Generation>, NotNow> {
        let own = self.lease.key;
        let steps = match config_change::effect(&self.configured, wanted, Some(&own)) {
            Effect::Nothing => return Ok(None),
            Effect::Restart(why) => return Err(NotNow::for_good(why)),
            Effect::Live(steps) => steps,
        };
        let config = if wanted.families().count() > own.nets().iter().count() {
            wanted.of_families_in(&own)
        } else {
            wanted.clone()
        };
        let host = self.cluster.host();
        let (need, options) = (backend::need(&config), &self.options.wireguard);
        let answer = Answers::default().find(&need, options, device_mac).await;
        let Answer {
            mut identity,
            warnings,
        } = answer.map_err(NotNow::passing)?;
        for generation in self.cluster.generations().all() {
            identity.keep_carrier_of(&generation.identity);
        }
        let published = published_by(&self.lease.attrs, &config.backend.kind);
        let backend = backend::new(&config, host, &identity, published.as_ref());
        let mut backend = backend.map_err(|e| {
            if e.is_in_config() {
                NotNow::for_good(e.to_string())
            } else {
                NotNow::passing(e.to_string())
            }
        })?;
        backend.set_own(&own);
        let missing = self.cluster.generations().newest().backend.missing();
        let served = |family: &Family| !missing.iter().any(|(of, _)| of == family);
        let lost = backend.missing().iter().find(|(of, _)| served(of));
        if let Some((family, why)) = lost {
            return Err(NotNow::passing(format!(
                "{family} would not be served any more: {why}"
            )));
        }
        let devices: Vec<IfName> = backend.devices().iter().map(|own| own.name).collect();
        self.lock
            .extend(&networks(&config), &devices)
            .await
            .map_err(NotNow::passing)?;
        for key in &config.unknown {
            warn!("network configuration: key {key} is unknown and ignored");
        }
        for warning in backend.warnings() {
            warn!("network configuration: {warning}");
        }
        warnings.iter().for_each(|warning| warn!("{warning}"));
        info!("the network configuration changed: {}", steps.join("; "));
        Ok(Some(Generation::new(
            config,
            identity,
            backend,
            Instant::now(),
        )))
    }

    /// Puts a changed configuration in force.
    async fn change_to(&mut self, wanted: NetConfig, newer: Generation) {
        let (before, after) = (self.config().clone(), newer.config.clone());
        self.configured = wanted;
        if let Some(slot) = self.cluster.generations_mut().add(newer) {
            self.reconciler.set(Owner::Generation(slot), []);
        }
        for generation in self.cluster.generations_mut().all_mut() {
            generation.config.pools = after.pools;
            generation.config.nftables = after.nftables;
        }
        let host = self.cluster.host().clone();
        if let Err(error) = self.rebuild_backends(&host) {
            warn!("a backend that was in use stays as it was: {error}");
        }
        self.follow_traffic(&before, &after).await;
        let newest = &self.cluster.generations().newest().backend;
        report_unserved(&**newest, None, &self.status);
        self.apply_backends(host).await;
    }

    /// Has the check of the tunnels' sources follow the peers and this node.
    fn follow_sources(&self) {
        if let Some(check) = &self.source_check
            && self.knows_peers
        {
            let host = self.cluster.host();
            let all = self.cluster.generations().all().iter();
            let backends = all.map(|one| (one.backend.kind(), one.backend.node(&self.lease, host)));
            let backends: Vec<_> = backends.collect();
            let backends = backends
                .iter()
                .map(|(kind, of)| (kind.clone(), of.as_slice()));
            check.follow(backends, self.cluster.published());
        }
    }

    /// Has the traffic rules and the guard follow a change of the networks, or of the program that writes the rules.
    async fn follow_traffic(&mut self, before: &NetConfig, after: &NetConfig) {
        let moved = networks(before) != networks(after);
        if !moved && before.nftables == after.nftables {
            return;
        }
        let former: Vec<IpNet> = networks(before).iter().map(|(_, net)| *net).collect();
        self.rules.abort();
        let rules = traffic::start(
            &self.options.traffic,
            after,
            &self.lease.key,
            former.clone(),
            &self.status,
        );
        self.rules = rules.task();
        if moved {
            self.guard.iter().for_each(Guarding::abort);
            let host = self.cluster.host();
            let ports = self.ports.clone();
            self.guard = Guarding::start(after, host, ports, former, &self.status).await;
            self.source_check.iter().for_each(SourceCheck::abort);
            self.source_check = SourceCheck::start(&self.options.traffic, after);
            self.follow_sources();
        }
    }

    /// Has everything follow a change of the backends in use: what carries packets is replaced before it goes.
    async fn apply_backends(&mut self, host: Host) {
        let own = self.lease.key;
        let generations = self.cluster.generations_mut();
        let kept = generations.kept(Instant::now());
        backends_file::write(&self.options.subnet_file, &kept);
        let node = generations.node(&self.lease, &host);
        let (changing, devices) = (generations.is_changing(), generations.devices());
        let networks = networks(&generations.newest().config);
        // While the network changes to encryption, routes without it are still needed.
        let encrypted = generations.newest().backend.encrypts() && !changing;
        self.reconciler.set_encrypted(encrypted);
        let scope = Scope {
            take_over: self.scope.take_over,
            ..scope(&generations.newest().config, &own, &host, devices.clone())
        };
        if scope != self.scope {
            self.scope = scope.clone();
            self.reconciler.set_scope(scope);
        }
        self.ports = traffic::tunnel_ports(node.iter().flat_map(|(_, objects)| objects));
        if let Some(guard) = &self.guard {
            guard.follow(self.config(), &host, self.ports.clone());
        }
        if changing {
            // Peers get routes of their own before the one to the whole network moves.
            self.cluster
                .rebuild(own, host.clone(), &mut self.reconciler);
            self.pass(false).await;
        }
        for (slot, objects) in node {
            self.reconciler.set(Owner::Generation(slot), objects);
        }
        self.pass(false).await;
        if !changing {
            self.cluster.rebuild(own, host, &mut self.reconciler);
        }
        self.follow_sources();
        self.lock.reduce(&networks, &devices);
        self.publish().await;
        self.report_network();
        if self.announcement.is_made()
            && let Err(error) = self.write_subnet_file()
        {
            self.subnet_env
                .report(Some(error.to_string()), &self.status);
        }
    }

    /// Publishes what this node serves, if that has changed.
    async fn publish(&mut self) {
        let attrs = self.cluster.generations().publish();
        if attrs != self.lease.attrs {
            self.lease.attrs = attrs.clone();
            self.store.publish(attrs).await;
        }
    }

    /// Goes on with a change of the backend, as far as it can.
    async fn advance(&mut self) {
        let now = Instant::now();
        let ready = self.make_ready();
        let generations = self.cluster.generations();
        let usable = generations.usable(now);
        let mut changed = false;
        if generations.is_changing() {
            changed |= ready || self.usable != usable;
            changed |= self.give_up(now);
            changed |= self.retire(now);
        }
        self.usable = usable;
        if changed {
            let host = self.cluster.host().clone();
            self.apply_backends(host).await;
        } else if self.cluster.generations().is_changing() {
            self.publish().await;
        }
        self.status.set_change(self.cluster.change_report());
    }

    /// Takes in which backends have their devices now. Returns whether one has them for the first time.
    fn make_ready(&mut self) -> bool {
        let mut changed = false;
        for generation in self.cluster.generations_mut().all_mut() {
            let owner = Owner::Generation(generation.slot);
            if !generation.ready && self.reconciler.progress(owner) == Progress::Installed {
                generation.ready = true;
                changed = true;
            }
        }
        changed
    }

    /// Gives up a new backend that the kernel refuses. Returns whether so.
    fn give_up(&mut self, now: Instant) -> bool {
        if !self.cluster.generations().is_hopeless(now) {
            return false;
        }
        let Some(newest) = self.cluster.generations_mut().give_up() else {
            return false;
        };
        let owner = Owner::Generation(newest.slot);
        let why = match self.reconciler.progress(owner) {
            Progress::Refused(refused) => format!("{}: {}", refused.op, refused.refusal.reason),
            Progress::Pending | Progress::Installed => "its devices do not come up".to_owned(),
        };
        self.reconciler.set(owner, []);
        let kept = self.cluster.generations().newest().config.backend.clone();
        let before = NetConfig {
            backend: kept,
            ..self.configured.clone()
        };
        let wanted = std::mem::replace(&mut self.configured, before);
        let reason = format!(
            "the backend {} cannot be used here: {why}; {} stays in use, and the change is tried again",
            newest.backend.kind(),
            self.cluster.generations().newest().backend.kind()
        );
        self.wanted.failed(wanted, reason, true);
        self.report_config();
        true
    }

    /// Ends the use of former backends that no other node needs. Returns whether it did.
    fn retire(&mut self, now: Instant) -> bool {
        let lags = !self.complete || self.cluster.lags();
        let nodes = self.cluster.counts().0;
        let generations = self.cluster.generations_mut();
        let kinds = generations.kinds();
        let gone = generations.retire(lags, nodes, now);
        if gone.is_empty() {
            return false;
        }
        for slot in gone {
            self.reconciler.set(Owner::Generation(slot), []);
        }
        let mut kinds = kinds.iter();
        let newest = kinds.next().map(ToString::to_string).unwrap_or_default();
        let former: Vec<String> = kinds.map(ToString::to_string).collect();
        info!(
            "every node has changed to {newest}: {} is not served any more",
            former.join(", ")
        );
        true
    }

    fn write_subnet_file(&self) -> anyhow::Result<()> {
        let mtu = self.cluster.generations().mtu();
        self.subnet_env.write(&self.subnet_env_text(), mtu)
    }

    fn subnet_env_text(&self) -> String {
        subnet_file::render(
            self.config(),
            &self.lease.key,
            self.cluster.generations().mtu(),
            self.options.traffic.rules.masquerade,
        )
    }
}

/// Why a changed configuration is not in force.
struct NotNow {
    reason: String,
    /// It may be applied later.
    may_pass: bool,
}

impl NotNow {
    fn for_good(reason: String) -> NotNow {
        NotNow {
            reason,
            may_pass: false,
        }
    }

    fn passing(reason: String) -> NotNow {
        NotNow {
            reason,
            may_pass: true,
        }
    }
}

fn texts(items: impl Iterator<Item = impl ToString>) -> Vec<String> {
    items.map(|item| item.to_string()).collect()
}

/// The next question; waits for ever if somebody else answers them.
async fn next(questions: &mut Option<mpsc::Receiver<Question>>) -> Option<Question> {
    match questions {
        Some(questions) => questions.recv().await,
        None => std::future::pending().await,
    }
}

fn device_missing(message: String) -> Trouble {
    Trouble {
        reason: "DeviceMissing",
        message,
        node: None,
    }
}
