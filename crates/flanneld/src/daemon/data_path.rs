//! What carries packets between this node and the others: the backends in use, the peers, the kernel's objects and
//! the tasks beside them.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant as Clock;

use backend::{Backend, BackendError};
use dataplane::{AnyKernel, Scope};
use model::state::Progress;
use model::{Host, Lease, LeaseAttrs, NetConfig, Owner, Slot};
use store::LeaseStates;
use tokio::time::Instant;
use tracing::{debug, info};

use super::traffic_tasks::TrafficTasks;
use crate::cluster::Cluster;
use crate::generations::{Generation, networks, published_by};
use crate::lock::Lock;
use crate::options::Options;
use crate::probes::View;
use crate::reconcile::{Reconciler, RepairLog, tell_each};
use crate::report::{NetworkReport, PeerStatus, PeersReport};
use crate::settle::scope;
use crate::status::Status;
use crate::{backends_file, subnet_file};

/// How many leases are taken in before the kernel is written: enough to be quick, few enough that the first listing of
/// a large cluster is not held in memory as work to do.
const LEASES_A_PASS: usize = 1000;

/// The backends in use, the peers, and the kernel that holds what they need.
pub(crate) struct DataPath {
    pub(crate) options: Rc<Options>,
    pub(crate) lease: Lease,
    pub(crate) cluster: Cluster,
    pub(crate) reconciler: Reconciler<AnyKernel>,
    pub(crate) scope: Scope,
    pub(crate) traffic: TrafficTasks,
    /// Keeps other daemons from the same network and devices.
    pub(crate) lock: Lock,
    pub(crate) status: Status,
    pub(crate) repairs: RepairLog,
    /// All leases are known, and the store is reachable.
    pub(crate) complete: bool,
    /// All leases were known once.
    pub(crate) knows_peers: bool,
}

impl DataPath {
    /// The configuration in force, for the families that have a subnet here.
    pub(super) fn config(&self) -> &NetConfig {
        &self.cluster.generations().newest().config
    }

    /// Takes in leases of other nodes. `complete`: the store is reachable, and these and the earlier ones are all.
    pub(super) async fn take_leases(&mut self, leases: LeaseStates, complete: bool) {
        if !complete {
            self.reconciler.set_may_delete(false);
        }
        if let Some(Some(own)) = leases.get(&self.lease.key) {
            let generations = self.cluster.generations_mut();
            generations.published(&own.attrs, Instant::now());
        }
        let each = tell_each(leases.len());
        let mut leases = leases.into_iter().peekable();
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
        self.reconciler.set_may_delete(complete);
        self.complete = complete;
        if complete && !self.knows_peers {
            self.cluster.shrink();
        }
        // Before the first complete listing, nodes are missing in it.
        self.knows_peers |= complete;
        self.follow_sources();
    }

    /// Writes to the kernel what differs. `repairing`: somebody else has changed an object of ours.
    pub(super) async fn pass(&mut self, repairing: bool) {
        self.cluster.report_conflicts(&self.reconciler);
        let began = Clock::now();
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
        let cluster_version = self.cluster.version();
        self.status.update(|n| {
            n.cluster_version = cluster_version;
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

    /// Returns why a device of ours, or its address, is missing; `None` while all exist that already carry packets.
    pub(super) fn device_problem(&mut self) -> Option<String> {
        let problem = self.reconciler.device_problem()?;
        let generations = self.cluster.generations();
        if !generations.has_several() {
            return Some(problem);
        }
        let leading = generations.leading().slot;
        let all = generations.all().iter();
        let needed = all.filter(|own| own.ready || own.slot == leading);
        let slots: Vec<Slot> = needed.map(|own| own.slot).collect();
        let missing = slots.into_iter().any(|slot| {
            let progress = self.reconciler.progress(Owner::Generation(slot));
            progress != Progress::Installed
        });
        missing.then_some(problem)
    }

    /// Builds every backend again, for this host. A former one that cannot be built stays as it is.
    ///
    /// # Errors
    /// The newest cannot be built: all stay as they are.
    pub(super) fn rebuild_backends(&mut self, host: &Host) -> Result<(), BackendError> {
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
        let newest = self.cluster.generations().newest_at();
        let all = self.cluster.generations_mut().all_mut().iter_mut();
        for (number, (generation, backend)) in all.zip(built).enumerate() {
            match backend {
                Ok(backend) => {
                    generation.rebuilt(generation.config.clone(), backend, &self.lease.key);
                }
                Err(error) if number == newest => return Err(error),
                Err(error) => debug!("{}: {error}", generation.backend.kind()),
            }
        }
        Ok(())
    }

    /// Has kernel, peers and tasks follow a change of the backends in use: what carries packets is replaced before it
    /// goes. What this node publishes may have changed.
    pub(super) async fn apply_backends(&mut self, host: Host) {
        let own = self.lease.key;
        let generations = self.cluster.generations_mut();
        let kept = generations.kept(Instant::now());
        backends_file::write(&self.options.subnet_file, &kept);
        let node = generations.node(&self.lease, &host);
        let (several, devices) = (generations.has_several(), generations.devices());
        let config = generations.newest().config.clone();
        // While the network changes to encryption, routes without it are still needed.
        self.reconciler.set_encrypted(generations.all_encrypt());
        let scope = Scope {
            take_over: self.scope.take_over,
            ..scope(&config, &own, &host, devices.clone())
        };
        if scope != self.scope {
            self.scope = scope.clone();
            self.reconciler.set_scope(scope);
        }
        let objects = node.iter().flat_map(|(_, objects)| objects);
        self.traffic.follow_node(&config, &host, objects);
        if several {
            // Peers get routes of their own before the one to the whole network moves.
            self.cluster
                .rebuild(own, host.clone(), &mut self.reconciler);
            self.pass(false).await;
        }
        for (slot, objects) in node {
            self.reconciler.set(Owner::Generation(slot), objects);
        }
        self.pass(false).await;
        if !several {
            // Peers' policies that let unencrypted packets in end here.
            self.cluster.rebuild(own, host, &mut self.reconciler);
            self.pass(false).await;
        }
        self.follow_sources();
        self.lock.reduce(&networks(&config), &devices);
    }

    /// Has the traffic rules and the guard follow a change of the configuration.
    pub(super) async fn follow_traffic(&mut self, before: &NetConfig, after: &NetConfig) {
        let (options, host) = (&self.options.traffic, self.cluster.host());
        let tasks = &mut self.traffic;
        let moved = tasks
            .follow_config(before, after, options, &self.lease, host, &self.status)
            .await;
        if moved {
            self.follow_sources();
        }
    }

    /// Has the check of the tunnels' sources follow the peers, once they are known.
    fn follow_sources(&self) {
        if self.knows_peers {
            self.traffic.follow_sources(&self.lease, &self.cluster);
        }
    }

    /// Takes in what this node serves now. Returns what to publish, if that has changed.
    pub(super) fn unpublished(&mut self) -> Option<LeaseAttrs> {
        let attrs = self.cluster.generations().publish();
        if attrs == self.lease.attrs {
            return None;
        }
        self.lease.attrs = attrs.clone();
        Some(attrs)
    }

    /// Passes on what this node is in the network.
    pub(super) fn report_network(&self) {
        let generations = self.cluster.generations();
        let public_ips = self.lease.attrs.public_ip.iter();
        let network = NetworkReport {
            networks: texts(self.config().pools.iter().map(|(_, pool)| pool.network)),
            subnets: texts(self.lease.key.nets().iter().map(|(_, net)| net)),
            public_ips: public_ips.map(|(_, ip)| *ip).collect(),
            backend: generations.leading().backend.kind().to_string(),
            mtu: generations.mtu(),
            interface: self.cluster.host().iface.to_string(),
            devices: texts(generations.devices().iter()),
        };
        self.status.set_network(network, self.lease.clone());
    }

    /// Returns how many other nodes are in each state.
    pub(super) fn peer_states(&mut self) -> BTreeMap<PeerStatus, usize> {
        self.cluster.peer_states(&mut self.reconciler)
    }

    /// Returns what probes need of this node and the others.
    pub(super) fn probe_view(&self) -> View {
        self.cluster.probe_view(&self.lease)
    }

    /// Returns the other nodes.
    pub(super) fn peers(&mut self) -> PeersReport {
        let peers = self.cluster.peers(&mut self.reconciler);
        PeersReport { peers }
    }

    /// Returns what belongs into `subnet.env`.
    pub(super) fn subnet_env_text(&self) -> String {
        subnet_file::render(
            self.config(),
            &self.lease.key,
            self.cluster.generations().mtu(),
            self.options.traffic.rules.masquerade,
        )
    }
}

fn texts(items: impl Iterator<Item = impl ToString>) -> Vec<String> {
    items.map(|item| item.to_string()).collect()
}
