//! The daemon from its start to its end: find out who and where we are, take a subnet, then follow
//! the store and the kernel.

use std::process::ExitCode;

use dataplane::{Kernel, KernelEvent};
use model::roster::Roster;
use model::{Host, Lease, NetConfig, Owner};
use store::{AnyStore, Claim, News, Store};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::cluster::Cluster;
use crate::iface::{NoIface, View};
use crate::options::Options;
use crate::reconcile::{Reconciler, log_repair, tell_each};
use crate::settle::{addresses, build, interface_missing, ran_here, scope, settle};
use crate::status::Status;
use crate::withdraw::{Former, when_stale, withdrawn};
use crate::{cni_conf, forwarding, iface, subnet_file, systemd, teardown, traffic};

/// How many leases are taken in before the kernel is written: enough to be quick, few enough that a
/// large cluster's first listing does not stand in memory as work to do.
const LEASES_A_PASS: usize = 1024;

/// A daemon that has its subnet.
pub struct Daemon {
    options: Options,
    config: NetConfig,
    lease: Lease,
    store: AnyStore,
    cluster: Cluster,
    reconciler: Reconciler<Kernel>,
    status: Status,
    /// What keeps files and rules in place.
    keepers: Vec<AbortHandle>,
}

impl Daemon {
    /// Reads the configuration, chooses interface and identity, takes a subnet, makes the devices
    /// and writes `subnet.env`. Waits for what is not there yet: the store, its configuration.
    ///
    /// # Errors
    /// What waiting does not mend: no such interface, a full pool, a file that cannot be written.
    pub async fn start(
        mut options: Options,
        mut store: AnyStore,
        mut kernel: Kernel,
        status: Status,
    ) -> anyhow::Result<Daemon> {
        let previous = subnet_file::previous(&options.subnet_file);
        let former = subnet_file::former_networks(&options.subnet_file);
        let assigned = store.waits().assigned();
        let stale = when_stale(Former::new(&options, previous), assigned);
        let acquired = async {
            let (config, host, backend) = settle(&mut options, &mut store, previous).await?;
            let claim = Claim {
                attrs: backend.lease_attrs(),
                previous,
            };
            let lease = store.acquire(&config, &claim).await?;
            anyhow::Ok((config, host, backend, lease))
        };
        let (mut config, host, mut backend, mut lease) = tokio::select! {
            biased;
            acquired = acquired => acquired?,
            never = stale => match never {},
        };
        if let Some(former) = Former::new(&options, previous) {
            former.withdraw_if(*store.waits().assigned().borrow());
        }
        if config.families().count() > lease.key.nets().iter().count() {
            // The other family has no subnet here: no device, no rules, and no offer to the peers.
            config = config.of_families_in(&lease.key);
            backend = build(&config, &host, Some(&lease))?;
            let attrs = backend.lease_attrs();
            if attrs != lease.attrs {
                lease.attrs = attrs.clone();
                store.publish(attrs).await;
            }
        }
        info!("lease {} acquired, backend {}", lease.key, backend.kind());

        let objects = backend.node(&lease, &host);
        let ports = traffic::tunnel_ports(&objects);
        let guard = traffic::start_guard(&config, &host, ports, former.clone(), &status);
        // Their programs run while the kernel's objects are made here.
        let rules = traffic::start(&options.traffic, &config, &lease.key, former, &status);
        let forwarding = forwarding::start(&config, &host.iface, options.traffic.resync);
        let mut scope = scope(&config, &lease.key, &host, &*backend);
        scope.take_over = previous.is_some() && !ran_here(&mut kernel, &scope).await?;
        let mut roster = Roster::new(&config, backend.kind(), backend.identities());
        roster.set_own(lease.key, host.public_ip);
        let mut reconciler = Reconciler::new(kernel, scope);
        reconciler.set(Owner::Node, objects);
        reconciler.set(Owner::Network, options.traffic.blackholes(&lease.key));
        reconciler.pass().await;
        let mut keepers = vec![rules.settled().await, forwarding];
        keepers.extend(guard);

        let mut daemon = Daemon {
            cluster: Cluster::new(roster, backend, host),
            options,
            config,
            lease,
            store,
            reconciler,
            status,
            keepers,
        };
        daemon.write_subnet_file()?;
        if let Some(conf) = daemon.options.cni_conf.clone() {
            let keeper = cni_conf::start(conf, daemon.status.clone());
            daemon.keepers.push(keeper);
        }
        daemon.status.set_started();
        daemon.store.network(true).await;
        systemd::ready(&format!(
            "subnet {}, backend {}",
            daemon.lease.key,
            daemon.cluster.backend().kind()
        ));
        Ok(daemon)
    }

    /// Follows the store and the kernel until the lease is lost.
    ///
    /// # Errors
    /// `subnet.env` has to change and cannot be written.
    pub async fn run(&mut self) -> anyhow::Result<ExitCode> {
        let watchdog = systemd::watchdog_period();
        let mut bark = Instant::now();
        // It may have changed while a subnet was waited for.
        self.host_changed().await?;
        self.pass(false).await;
        loop {
            let mut due = self.reconciler.due();
            if let Some(period) = watchdog {
                if Instant::now() >= bark {
                    systemd::alive();
                    bark = Instant::now() + period;
                }
                due = due.min(bark);
            }
            let repairing = tokio::select! {
                event = self.reconciler.event() => self.kernel_news(event).await?,
                news = self.store.news() => {
                    if let Some(reason) = self.store_news(news).await {
                        let assigned = *self.store.waits().assigned().borrow();
                        if let Some(former) = Former::new(&self.options, Some(self.lease.key)) {
                            // The keeper would put the CNI configuration back.
                            self.keepers.iter().for_each(AbortHandle::abort);
                            former.withdraw_if(assigned);
                        }
                        error!("lease {} is lost: {reason}; stopping, so that the supervisor starts a new daemon", self.lease.key);
                        systemd::stopping("the lease is lost");
                        return Ok(ExitCode::FAILURE);
                    }
                    false
                }
                () = tokio::time::sleep_until(due) => false,
            };
            self.pass(repairing).await;
        }
    }

    /// Whether a stop is to take the network down.
    pub fn tears_down(&self) -> bool {
        self.options.teardown
    }

    /// Takes the network down: first nobody is to place pods here, then what carries their packets
    /// goes.
    pub async fn tear_down(mut self) {
        self.keepers.iter().for_each(AbortHandle::abort);
        if let Some(conf) = &self.options.cni_conf {
            cni_conf::remove(conf);
        }
        self.store.network(false).await;
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
        let left = teardown::clear_kernel(scope, self.options.plain_routes).await;
        if left > 0 {
            warn!("{left} objects are left in the kernel: `flannelctl cleanup` shows them");
        }
        teardown::remove_file("-subnet-file", &self.options.subnet_file);
        let _ = std::fs::remove_file(withdrawn(&self.options.subnet_file));
    }

    async fn pass(&mut self, repairing: bool) {
        let began = std::time::Instant::now();
        let pass = self.reconciler.pass().await;
        if repairing {
            log_repair(&pass, began.elapsed());
        }
        self.status
            .set_devices_missing(!self.reconciler.devices_in_sync());
        let (peers, refused_leases) = self.cluster.counts();
        let (routes, parked) = (
            self.reconciler.routes_desired(),
            self.reconciler.refused_len(),
        );
        self.status.update(|n| {
            (n.peers, n.refused_leases, n.routes, n.parked) =
                (peers, refused_leases, routes, parked);
            n.written += pass.put as u64;
            n.deleted += pass.deleted as u64;
            n.refused += pass.refused as u64;
            n.repaired += if repairing {
                (pass.put + pass.deleted) as u64
            } else {
                0
            };
        });
    }

    /// Takes in what the store told. Returns why the lease is lost, if it is.
    async fn store_news(&mut self, news: News) -> Option<String> {
        self.status.set_store_away(!news.complete);
        if !news.complete {
            self.reconciler.set_may_delete(false);
        }
        let each = tell_each(news.leases.len());
        let mut leases = news.leases.into_iter().peekable();
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
        self.reconciler.set_may_delete(news.complete);
        news.revoked
    }

    /// Takes in what the kernel told, and whatever else it has to tell just now. Returns whether
    /// something of ours was changed by somebody else.
    async fn kernel_news(&mut self, first: KernelEvent) -> anyhow::Result<bool> {
        let mut next = Some(first);
        let (mut repairing, mut host_changed) = (false, false);
        while let Some(event) = next {
            host_changed |= event == KernelEvent::HostChanged;
            repairing |= self.reconciler.note(event);
            next = tokio::select! {
                biased;
                event = self.reconciler.event() => Some(event),
                () = std::future::ready(()) => None,
            };
        }
        if host_changed {
            self.host_changed().await?;
        }
        Ok(repairing)
    }

    /// Follows the host's interface until it is as we know it: what changes before the kernel is
    /// told that it still concerns us is announced to nobody.
    async fn host_changed(&mut self) -> anyhow::Result<()> {
        while self.follow_host().await? {}
        Ok(())
    }

    /// If the host's interface is not what it was: new tunnels, a new public address, another MTU.
    /// Returns whether so.
    async fn follow_host(&mut self) -> anyhow::Result<bool> {
        let host = match self.same_host() {
            Ok(host) => host,
            Err(problem) => {
                let text = problem.to_string();
                if self.status.set_host_problem(Some(text.clone())) {
                    warn!("{text}; keeping what is there");
                    self.store.report(interface_missing(&problem)).await;
                }
                return Ok(false);
            }
        };
        if self.status.set_host_problem(None) {
            info!("interface {} is usable again", host.iface);
        }
        if host == *self.cluster.host() {
            return Ok(false);
        }
        let backend = match build(&self.config, &host, Some(&self.lease)) {
            Ok(backend) => backend,
            Err(error) => {
                warn!(
                    "after a change of interface {}: {error}; keeping what is there",
                    host.iface
                );
                return Ok(false);
            }
        };
        info!(iface = %host.iface, mtu = host.mtu, "the host's interface changed{}", addresses(&host.public_ip));
        self.reconciler
            .set_scope(scope(&self.config, &self.lease.key, &host, &*backend));
        self.reconciler
            .set(Owner::Node, backend.node(&self.lease, &host));
        let attrs = backend.lease_attrs();
        self.cluster
            .rebuild(self.lease.key, backend, host, &mut self.reconciler);
        if attrs != self.lease.attrs {
            self.lease.attrs = attrs.clone();
            self.store.publish(attrs).await;
        }
        self.write_subnet_file()?;
        Ok(true)
    }

    fn same_host(&self) -> Result<Host, NoIface> {
        let view = View::of_interfaces().map_err(|error| NoIface::Kernel(error.to_string()))?;
        iface::again(
            self.cluster.host(),
            &self.options.public_ip,
            &self.config,
            &view,
        )
    }

    fn write_subnet_file(&self) -> anyhow::Result<()> {
        let mtu = self.cluster.backend().mtu();
        let text = subnet_file::render(
            &self.config,
            &self.lease.key,
            mtu,
            self.options.traffic.rules.masquerade,
        );
        if subnet_file::write(&self.options.subnet_file, &text)? {
            info!("wrote {} (MTU {mtu})", self.options.subnet_file.display());
        }
        Ok(())
    }
}
