//! The daemon from its start to its end: find out who and where we are, take a subnet, then follow
//! the store and the kernel.

use std::process::ExitCode;
use std::time::Duration;

use backend::Identity;
use dataplane::{Kernel, KernelEvent};
use ipnet::IpNet;
use model::{Host, Lease, NetConfig, Owner};
use store::{AnyStore, Claim, Store, StoreEvent, Trouble};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::allowance::Allowance;
use crate::announce::{Announcement, Step};
use crate::cluster::Cluster;
use crate::iface::{Look, NoIface};
use crate::lock::Lock;
use crate::options::Options;
use crate::reconcile::{Reconciler, RepairLog, tell_each};
use crate::report::{NetworkReport, PeersReport};
use crate::settle::{
    Settled, addresses, connected, interface_missing, pool, ran_here, report_unserved, scope,
    settle,
};
use crate::status::{Question, Status};
use crate::traffic::Guarding;
use crate::withdraw::{Former, when_stale, withdrawn};
use crate::{cni_conf, forwarding, iface, status_socket, subnet_file, systemd, teardown, traffic};

/// How many leases are taken in before the kernel is written: enough to be quick, few enough that a
/// large cluster's first listing does not stand in memory as work to do.
const LEASES_A_PASS: usize = 1024;

/// How soon the host's interface is looked at again after a look that failed, and how often without any
/// notification.
const HOST_RETRY: Duration = Duration::from_secs(5);
const HOST_AUDIT: Duration = Duration::from_secs(120);

/// How often `subnet.env` is looked at: somebody may have deleted or changed it.
const FILE_EVERY: Duration = Duration::from_secs(2);

/// How often the log says that it was written again.
const FILE_LINE_EVERY: Duration = Duration::from_secs(60);

/// How often the daemon wakes because the kernel reports a change: more changes are taken in together.
const WAKES: (u32, Duration) = (200, Duration::from_millis(10));

/// Changes of the kernel that are taken in before the kernel is written.
const EVENTS_A_PASS: usize = 4096;

/// How often the host's interface is looked at because it may have changed.
const HOST_LOOKS: (u32, Duration) = (20, Duration::from_millis(500));

/// A daemon that has its subnet.
pub struct Daemon {
    options: Options,
    config: NetConfig,
    /// What the backend was told of this node when it started.
    identity: Identity,
    lease: Lease,
    store: AnyStore,
    cluster: Cluster,
    reconciler: Reconciler<Kernel>,
    status: Status,
    announcement: Announcement,
    /// What keeps the traffic rules in place.
    keepers: Vec<AbortHandle>,
    /// What keeps forged packets out.
    guard: Option<Guarding>,
    /// What keeps the CNI configuration in place, while the node is announced.
    cni_conf: Option<AbortHandle>,
    /// Keeps other daemons from the same network and devices.
    _lock: Lock,
    /// Whether an interface of this host has a network that a lease might name.
    is_connected: bool,
    repairs: RepairLog,
    wakes: Allowance,
    /// The host's interface may have changed since it was looked at.
    host_may_differ: bool,
    host_looks: Allowance,
    /// When it is looked at again without a notification.
    host_due: Instant,
    /// When `subnet.env` is looked at again.
    file_due: Instant,
    /// When the log may say again that it was written.
    file_line_due: Instant,
}

impl Daemon {
    /// Reads the configuration, chooses interface and identity, takes a subnet and begins to make
    /// the devices. Waits for what is not there yet: the store, its configuration, the interface.
    ///
    /// # Errors
    /// What waiting does not fix: a full pool, flags that contradict each other.
    pub async fn start(
        mut options: Options,
        mut store: AnyStore,
        mut kernel: Kernel,
        status: Status,
    ) -> anyhow::Result<Daemon> {
        let previous = subnet_file::previous(&options.subnet_file);
        let former = subnet_file::former_networks(&options.subnet_file);
        // Asked before the file may be withdrawn.
        let after_another = subnet_file::is_anothers(&options.subnet_file);
        let assigned = store.status().assigned();
        let stale = when_stale(Former::new(&options, previous), assigned);
        let acquired = async {
            let settled = settle(&mut options, &mut store, previous, &status).await?;
            warn_of_overlap(&settled.config, &settled.host);
            let claim = Claim {
                attrs: settled.backend.publish(),
                previous,
            };
            let pool = pool(&settled.config, &settled.host);
            let lease = store.acquire(&pool, &claim).await?;
            anyhow::Ok((settled, lease))
        };
        let acquired = tokio::select! {
            biased;
            acquired = acquired => acquired,
            never = stale => match never {},
        };
        // Also if there is no subnet for this node: the old one may be another node's.
        if let Some(former) = Former::new(&options, previous) {
            former.withdraw_if(*store.status().assigned().borrow());
        }
        let (settled, mut lease) = acquired?;
        let Settled {
            mut config,
            host,
            identity,
            mut backend,
            lock,
        } = settled;
        if config.families().count() > lease.key.nets().iter().count() {
            // The other family has no subnet here: no device, no rules, and no offer to the peers.
            config = config.of_families_in(&lease.key);
            backend = backend::new(&config, &host, &identity, Some(&lease.attrs))?;
            report_unserved(&*backend, None, &status);
            let attrs = backend.publish();
            if attrs != lease.attrs {
                lease.attrs = attrs.clone();
                store.publish(attrs).await;
            }
        }
        info!("lease {} acquired, backend {}", lease.key, backend.kind());

        let objects = backend.node(&lease, &host);
        let ports = traffic::tunnel_ports(&objects);
        let guard = Guarding::start(&config, &host, ports, former.clone(), &status).await;
        // Their programs run while the kernel's objects are made here.
        let rules = traffic::start(&options.traffic, &config, &lease.key, former, &status);
        let forwarding = forwarding::start(&config, &host.iface, options.traffic.resync);
        let mut scope = scope(&config, &lease.key, &host, &*backend);
        scope.take_over = after_another && !ran_here(&mut kernel, &scope).await?;
        let mut reconciler = Reconciler::new(kernel, scope);
        reconciler.set_encrypted(backend.encrypts());
        reconciler.set(Owner::Node, objects);
        reconciler.set(Owner::Network, options.traffic.blackholes(&lease.key));
        reconciler.pass().await;
        let keepers = vec![rules.settled().await, forwarding];
        Ok(Daemon {
            cluster: Cluster::new(&config, lease.key, backend, host),
            options,
            config,
            identity,
            lease,
            store,
            reconciler,
            status,
            announcement: Announcement::new(Instant::now()),
            keepers,
            guard,
            cni_conf: None,
            is_connected: false,
            _lock: lock,
            repairs: RepairLog::default(),
            wakes: Allowance::new(WAKES.0, WAKES.1),
            host_may_differ: true,
            host_looks: Allowance::new(HOST_LOOKS.0, HOST_LOOKS.1),
            host_due: Instant::now(),
            file_due: Instant::now(),
            file_line_due: Instant::now(),
        })
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
        self.pass(false).await;
        loop {
            self.announce().await?;
            let mut due = self.reconciler.due();
            if let Some(step) = self.announcement.due() {
                due = due.min(step);
            }
            if self.announcement.is_made() {
                due = due.min(self.file_due);
            }
            due = due.min(self.host_due);
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
                            self.keepers.iter().for_each(AbortHandle::abort);
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
        let backend = self.cluster.backend();
        let devices = backend.devices();
        self.status.set_network(NetworkReport {
            networks: texts(self.config.pools.iter().map(|(_, pool)| pool.network)),
            subnets: texts(self.lease.key.nets().iter().map(|(_, net)| net)),
            public_ips: self
                .lease
                .attrs
                .public_ip
                .iter()
                .map(|(_, ip)| *ip)
                .collect(),
            backend: backend.kind().to_string(),
            mtu: backend.mtu(),
            interface: self.cluster.host().iface.to_string(),
            devices: texts(devices.iter().map(|device| device.name)),
        });
    }

    /// Whether a stop is to take the network down.
    pub fn tears_down(&self) -> bool {
        self.options.teardown
    }

    /// Takes the network down: first nobody is to place pods here, then what carries their packets
    /// goes.
    pub async fn tear_down(mut self) {
        self.keepers.iter().for_each(AbortHandle::abort);
        self.guard.iter().for_each(Guarding::abort);
        self.withdraw_cni_conf();
        if let Some(node) = self.store.node() {
            node.network_removed().await;
        }
        let former = subnet_file::former_networks(&self.options.subnet_file);
        let removed =
            traffic::remove(&self.options.traffic, &self.config, &self.lease.key, former).await;
        if let Err(error) = removed {
            warn!("the traffic rules are not removed: {error}");
        }
        let cluster = &self.cluster;
        let scope = scope(
            &self.config,
            &self.lease.key,
            cluster.host(),
            cluster.backend(),
        );
        // Its commands are not to run beside those that remove what they made.
        drop(self.reconciler);
        let journals = subnet_file::command_journals(&self.options.subnet_file);
        let left = teardown::clear_kernel(scope, self.options.plain_routes, journals).await;
        if left > 0 {
            warn!("{left} objects are left in the kernel: `flannelctl cleanup` shows them");
        }
        teardown::remove_file("-subnet-file", &self.options.subnet_file);
        let _ = std::fs::remove_file(status_socket::path(&self.options.subnet_file));
        let _ = std::fs::remove_file(withdrawn(&self.options.subnet_file));
    }

    /// Announces the node when its devices are up, withdraws the announcement when they are
    /// missing for long, and keeps `subnet.env` as it was announced.
    async fn announce(&mut self) -> anyhow::Result<()> {
        let problem = self.reconciler.device_problem();
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
                    self.cluster.backend().kind()
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
        if self.announcement.is_made() && now >= self.file_due {
            self.file_due = now + FILE_EVERY;
            self.restore_subnet_file();
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
        self.status
            .set_device_problem(self.reconciler.device_problem());
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
        let mut found = connected(&self.config);
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
                    warn!("{text}; keeping what is there");
                    self.report(interface_missing(&problem));
                }
                return false;
            }
        };
        if is_partial {
            self.host_due = Instant::now() + HOST_RETRY;
        }
        if self.status.set_host_problem(None) {
            info!("interface {} is usable again", host.iface);
        }
        report_unserved(self.cluster.backend(), lost.as_ref(), &self.status);
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
        let backend =
            match backend::new(&self.config, &host, &self.identity, Some(&self.lease.attrs)) {
                Ok(backend) => backend,
                Err(error) => {
                    warn!(
                        "after a change of interface {}: {error}; keeping what is there",
                        host.iface
                    );
                    return false;
                }
            };
        info!(iface = %host.iface, mtu = host.mtu, "the host's interface changed{}", addresses(&host.public_ip));
        report_unserved(&*backend, lost.as_ref(), &self.status);
        self.reconciler
            .set_scope(scope(&self.config, &self.lease.key, &host, &*backend));
        let objects = backend.node(&self.lease, &host);
        if let Some(guard) = &self.guard {
            guard.follow(&self.config, &host, traffic::tunnel_ports(&objects));
        }
        self.reconciler.set(Owner::Node, objects);
        let attrs = backend.publish();
        self.cluster
            .rebuild(self.lease.key, backend, host, &mut self.reconciler);
        if attrs != self.lease.attrs {
            self.lease.attrs = attrs.clone();
            self.store.publish(attrs).await;
        }
        self.report_network();
        if self.announcement.is_made()
            && let Err(error) = self.write_subnet_file()
        {
            self.report_file_problem(Some(error.to_string()));
        }
        true
    }

    fn same_host(&self) -> Result<Look, NoIface> {
        iface::find_again(
            self.cluster.host(),
            &self.options.iface,
            &self.options.public_ip,
            &self.config,
        )
    }

    fn write_subnet_file(&self) -> anyhow::Result<()> {
        if subnet_file::write(&self.options.subnet_file, &self.subnet_env())? {
            let mtu = self.cluster.backend().mtu();
            info!("wrote {} (MTU {mtu})", self.options.subnet_file.display());
        }
        Ok(())
    }

    /// Writes `subnet.env` again if somebody deleted or changed it.
    fn restore_subnet_file(&mut self) {
        let written = subnet_file::write(&self.options.subnet_file, &self.subnet_env());
        let now = Instant::now();
        let problem = match written {
            Ok(wrote) => {
                if wrote && now >= self.file_line_due {
                    self.file_line_due = now + FILE_LINE_EVERY;
                    warn!(
                        "wrote {} again: somebody had deleted or changed it",
                        self.options.subnet_file.display()
                    );
                }
                None
            }
            Err(error) => Some(error.to_string()),
        };
        self.report_file_problem(problem);
    }

    fn report_file_problem(&mut self, problem: Option<String>) {
        if self.status.set_file_problem(problem.clone())
            && let Some(problem) = problem
        {
            warn!("{problem}; trying again every {} s", FILE_EVERY.as_secs());
        }
    }

    fn subnet_env(&self) -> String {
        subnet_file::render(
            &self.config,
            &self.lease.key,
            self.cluster.backend().mtu(),
            self.options.traffic.rules.masquerade,
        )
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

/// Warns of a network that contains addresses which the hosts themselves use.
fn warn_of_overlap(config: &NetConfig, host: &Host) {
    for (_, pool) in config.pools.iter() {
        let overlaps = |net: &&IpNet| pool.network.contains(*net) || net.contains(&pool.network);
        // A route to everywhere, or a wide one of a provider, is no conflict for what lies within.
        let conflicts = host.underlay.iter().filter(overlaps);
        let conflicts: Vec<String> = conflicts.map(IpNet::to_string).take(3).collect();
        if !conflicts.is_empty() {
            warn!(
                "the network {} overlaps what interface {} uses itself ({}): leases that cover it are \
                 refused; give the nodes and the pods different networks",
                pool.network,
                host.iface,
                conflicts.join(", ")
            );
        }
    }
}
