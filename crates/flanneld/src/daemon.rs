//! The daemon that has its subnet: follows the store, the kernel, the host and the files of this node.

mod data_path;
mod host_watch;
mod key_watch;
mod network_change;
mod outputs;
mod traffic_tasks;

use std::rc::Rc;
use std::time::Duration;

use dataplane::KernelEvent;
use model::{Host, NetConfig};
use store::{AnyStore, Store, StoreEvent};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

use crate::allowance::Allowance;
use crate::node::NodeError;
use crate::options::Options;
use crate::status::{Question, Status};
use crate::subnet_file::SubnetFileError;
use crate::withdraw::{Former, withdrawn};
use crate::{backends_file, subnet_file, teardown, traffic};
use host_watch::HostWatch;
use key_watch::KeyWatch;
use network_change::{Advance, NetworkChange};
use outputs::Outputs;

pub(crate) use data_path::DataPath;
pub(crate) use traffic_tasks::TrafficTasks;

/// How often the daemon wakes because the kernel reports a change: more changes are taken in together.
const WAKES: (u32, Duration) = (200, Duration::from_millis(10));

/// Changes of the kernel that are taken in before the kernel is written.
const EVENTS_A_PASS: usize = 4096;

/// A daemon that has its subnet.
pub(crate) struct Daemon {
    options: Rc<Options>,
    store: AnyStore,
    status: Status,
    path: DataPath,
    change: NetworkChange,
    host: HostWatch,
    keys: KeyWatch,
    outputs: Outputs,
    wakes: Allowance,
}

impl Daemon {
    /// Returns a daemon whose devices are about to be made; `configured` is the network configuration with the families
    /// that have no subnet here, too.
    pub(crate) fn new(path: DataPath, store: AnyStore, configured: NetConfig) -> Daemon {
        let options = Rc::clone(&path.options);
        let status = path.status.clone();
        Daemon {
            change: NetworkChange::new(Rc::clone(&options), configured),
            host: HostWatch::new(Rc::clone(&options)),
            keys: KeyWatch::new(Rc::clone(&options)),
            outputs: Outputs::new(Rc::clone(&options), status.clone()),
            wakes: Allowance::new(WAKES.0, WAKES.1),
            options,
            store,
            status,
            path,
        }
    }

    /// Follows the store and the kernel until it is dropped. Announces the node as soon as its devices are up:
    /// `subnet.env`, the CNI configuration, the store.
    ///
    /// # Errors
    /// The lease is lost, or `subnet.env` cannot be written.
    pub(crate) async fn run(&mut self) -> Result<(), NodeError> {
        let mut network = self.options.network.clone();
        let mut questions = self.status.questions();
        if self.options.cni_conf.is_some() {
            self.status.set_cni_installed(false);
        }
        self.path.report_network();
        // It may have changed while a subnet was waited for.
        self.follow_host().await;
        self.advance().await;
        self.path.pass(false).await;
        loop {
            self.follow_config().await;
            self.advance().await;
            self.announce()?;
            let due = self.due();
            let may_wake = self.wakes.next();
            let kernel_event = async {
                tokio::time::sleep_until(may_wake).await;
                self.path.reconciler.event().await
            };
            let repairing = tokio::select! {
                event = kernel_event => self.take_kernel_events(event).await,
                event = self.store.next_event() => {
                    if let Some(reason) = self.take_store_event(event).await {
                        return Err(self.lease_lost(reason));
                    }
                    false
                }
                Some(question) = next(&mut questions) => {
                    self.answer(question);
                    continue;
                }
                config = changed(&mut network) => {
                    self.take_config(Ok(config));
                    false
                }
                () = tokio::time::sleep_until(due) => false,
            };
            let now = Instant::now();
            if now >= self.host.due() {
                self.follow_host().await;
            }
            let keys_due = self.keys.due(self.path.cluster.generations());
            if keys_due.is_some_and(|due| now >= due) {
                self.follow_keys().await;
            }
            self.path.pass(repairing).await;
        }
    }

    /// Returns when there is something to do although nothing changes.
    fn due(&self) -> Instant {
        let generations = self.path.cluster.generations();
        let all = [
            self.outputs.due(),
            generations.due(Instant::now()),
            self.change.due(),
            self.keys.due(generations),
        ];
        let first = self.path.reconciler.due().min(self.host.due());
        all.into_iter().flatten().fold(first, Instant::min)
    }

    /// Answers the status socket; an asker that is gone is no failure.
    fn answer(&mut self, question: Question) {
        match question {
            Question::PeerStates(reply) => drop(reply.send(self.path.peer_states())),
            Question::Peers(reply) => drop(reply.send(self.path.peers())),
            Question::Alive(reply) => drop(reply.send(())),
            Question::ProbeView(reply) => drop(reply.send(self.path.probe_view())),
        }
    }

    /// Takes in what the store reports. Returns why the lease is lost, if it is.
    async fn take_store_event(&mut self, event: StoreEvent) -> Option<String> {
        self.status.set_store_unreachable(!event.complete);
        self.path.take_leases(event.leases, event.complete).await;
        if let Some(config) = event.config
            && self.options.network.is_none()
        {
            self.take_config(config);
        }
        event.revoked
    }

    /// Takes in the network configuration as it is to be, or why that cannot be read.
    fn take_config(&mut self, config: Result<NetConfig, String>) {
        self.change.take(config, self.path.cluster.counts().0);
        self.change.report(&self.status);
    }

    /// Takes in what the kernel reports, and whatever else it has to report just now. Returns whether
    /// something of ours was changed by somebody else.
    async fn take_kernel_events(&mut self, first: KernelEvent) -> bool {
        self.wakes.take(Instant::now());
        let reconciler = &mut self.path.reconciler;
        let mut next = Some(first);
        let mut repairing = false;
        for taken in 1.. {
            let Some(event) = next else { break };
            if event == KernelEvent::HostChanged {
                self.host.may_differ();
            }
            repairing |= reconciler.note(event);
            if taken > EVENTS_A_PASS {
                break;
            }
            next = tokio::select! {
                biased;
                event = reconciler.event() => Some(event),
                () = std::future::ready(()) => None,
            };
        }
        repairing
    }

    /// Follows the host's interface until it is as it is known here: what changes before the kernel's filter has the
    /// new devices causes no notification.
    async fn follow_host(&mut self) {
        self.host.begin(&mut self.path);
        while let Some(host) = self.host.look(&mut self.path) {
            self.apply_backends(host).await;
        }
    }

    /// Follows the files of this node's keys.
    async fn follow_keys(&mut self) {
        if let Some(host) = self.keys.look(&mut self.path) {
            self.apply_backends(host).await;
        }
    }

    /// Applies a changed configuration.
    async fn follow_config(&mut self) {
        if let Some(host) = self.change.follow(&mut self.path).await {
            self.apply_backends(host).await;
        }
        self.change.report(&self.status);
    }

    /// Continues a change of the backend, as far as it can.
    async fn advance(&mut self) {
        match self.change.advance(&mut self.path).await {
            Advance::Apply => {
                let host = self.path.cluster.host().clone();
                self.apply_backends(host).await;
            }
            Advance::Publish => self.publish().await,
            Advance::Nothing => {}
        }
        self.status.set_change(self.path.cluster.change_report());
    }

    /// Has everything follow a change of the backends in use.
    async fn apply_backends(&mut self, host: Host) {
        self.path.apply_backends(host).await;
        self.publish().await;
        self.path.report_network();
        self.outputs.follow_backends(&self.path);
    }

    /// Publishes what this node serves, if that has changed.
    async fn publish(&mut self) {
        if let Some(attrs) = self.path.unpublished() {
            self.store.publish(attrs).await;
        }
    }

    /// Announces the node, or withdraws the announcement.
    fn announce(&mut self) -> Result<(), SubnetFileError> {
        let looked = self.outputs.announce(&mut self.path, &mut self.store)?;
        if looked && self.host.is_connected() {
            // A device that goes down takes its routes along without a notification.
            self.host.follow_connected(&mut self.path);
        }
        Ok(())
    }

    /// Withdraws the files that name a subnet that is this node's no longer.
    fn lease_lost(&self, reason: String) -> NodeError {
        let (assigned, own) = (
            *self.store.status().assigned().borrow(),
            self.path.lease.key,
        );
        if let Some(former) = Former::new(&self.options, Some(own)) {
            // Its keeper would put the CNI configuration back.
            self.path.traffic.stop_writing();
            self.outputs.abort();
            former.withdraw_if(assigned);
        }
        let lease = own.to_string();
        NodeError::LeaseLost { lease, reason }
    }

    /// Takes the network down: first nobody is to place pods here, then what carries their packets
    /// goes.
    ///
    /// # Errors
    /// Something is left in the kernel.
    pub(crate) async fn tear_down(mut self) -> Result<(), NodeError> {
        self.path.traffic.abort();
        self.outputs.withdraw_cni_conf();
        if let Some(node) = self.store.node() {
            node.network_removed().await;
        }
        let (options, subnet_file) = (&self.options, &self.options.subnet_file);
        let former = subnet_file::former_networks(subnet_file);
        let (config, own) = (self.path.config(), &self.path.lease.key);
        if options.machine.is_this_host()
            && let Err(error) = traffic::remove(&options.traffic, config, own, former).await
        {
            warn!("the traffic rules are not removed: {error}");
        }
        let scope = self.path.scope.clone();
        // Its commands are not to run along with those that remove what they made.
        drop(self.path);
        let left = teardown::clear_kernel(scope, options).await;
        teardown::remove_file("-subnet-file", subnet_file);
        let _ = std::fs::remove_file(withdrawn(subnet_file));
        let _ = std::fs::remove_file(backends_file::path(subnet_file));
        if left > 0 {
            return Err(NodeError::Left(left));
        }
        Ok(())
    }
}

/// The next question; waits for ever if somebody else answers them.
async fn next(questions: &mut Option<mpsc::Receiver<Question>>) -> Option<Question> {
    match questions {
        Some(questions) => questions.recv().await,
        None => std::future::pending().await,
    }
}

/// The next network configuration that was set; waits for ever if the store has it.
async fn changed(network: &mut Option<watch::Receiver<NetConfig>>) -> NetConfig {
    if let Some(network) = network
        && network.changed().await.is_ok()
    {
        return network.borrow_and_update().clone();
    }
    std::future::pending().await
}
