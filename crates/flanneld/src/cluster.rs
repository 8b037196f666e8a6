//! The other nodes: which of their leases are used, and what the kernel must hold for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::Dataplane;
use ipnet::IpNet;
use model::roster::{Roster, RosterChange};
use model::state::Progress;
use model::subnet::first;
use model::{BackendType, Dual, Family, Host, IfName, Lease, Object, Owner, SubnetKey};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::generations::{Generations, networks};
use crate::probes::{Target, View};
use crate::reconcile::Reconciler;
use crate::report::{PeerReport, PeerStatus};
use crate::traffic::tunnel_ports;

/// How many peers a message names.
const NAMED: usize = 5;

/// The other nodes' leases, and the backends that say what they mean for this kernel.
pub struct Cluster {
    roster: Roster,
    generations: Generations,
    host: Host,
    /// By which backend each peer is reached, while there are several.
    reached_by: BTreeMap<SubnetKey, BackendType>,
    /// Peers that need an older backend than the newest, or may.
    lagging: BTreeSet<SubnetKey>,
    /// Peers with which keys must be agreed on before they are reached by a newer backend.
    awaiting: BTreeSet<SubnetKey>,
    /// The changes of charon's connections that were taken in.
    connection_changes: u64,
    /// Peers that are reached encrypted: never again without, as long as the newest backend encrypts.
    sealed: BTreeSet<SubnetKey>,
    /// Accepted leases that the backend cannot use, or not in every family. Logged once.
    unusable: BTreeMap<SubnetKey, Unusable>,
    /// Objects that two owners want, as the log says.
    conflicts: BTreeSet<String>,
    /// Grows whenever a node, this one included, may have changed.
    version: u64,
}

/// Why an accepted lease is not used, or only in part.
struct Unusable {
    reason: String,
    /// The other family works.
    served: bool,
}

impl Cluster {
    /// Returns a cluster without peers; `own` is this node's lease.
    pub(crate) fn new(own: SubnetKey, mut generations: Generations, host: Host) -> Cluster {
        generations.set_own(&own);
        let newest = generations.newest();
        let (config, kind) = (&newest.config, newest.backend.kind());
        let mut roster = Roster::new(config, kind, generations.claims());
        roster.set_network(networks(config), generations.kinds(), generations.claims());
        roster.set_own(own, host.public_ip);
        roster.set_underlay(host.underlay.clone());
        Cluster {
            roster,
            generations,
            host,
            reached_by: BTreeMap::new(),
            lagging: BTreeSet::new(),
            awaiting: BTreeSet::new(),
            connection_changes: 0,
            sealed: BTreeSet::new(),
            unusable: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            version: 1,
        }
    }

    /// Takes in leases as the store reports them, and changes what the kernel should hold accordingly.
    /// Logs each subnet if `each`; returns how many were added or changed, and removed.
    pub fn take<D: Dataplane>(
        &mut self,
        leases: impl Iterator<Item = (SubnetKey, Option<Lease>)>,
        each: bool,
        reconciler: &mut Reconciler<D>,
    ) -> (usize, usize) {
        let (mut added, mut removed) = (0, 0);
        self.version += 1;
        for (key, lease) in leases {
            let before = self.roster.id(&key);
            let old = before.and_then(|_| self.roster.accepted(&key)).cloned();
            let changes = match lease {
                Some(lease) => self.roster.put(lease),
                None => self.roster.remove(&key),
            };
            for change in changes {
                match change {
                    RosterChange::Accept(lease) => {
                        let known = old.as_ref().is_some_and(|old| old.key == lease.key);
                        self.install_peer(known, &lease, each, reconciler);
                        added += 1;
                    }
                    RosterChange::Drop(dropped) => {
                        let id = if dropped == key {
                            before
                        } else {
                            self.roster.id(&dropped)
                        };
                        let lease = old
                            .as_ref()
                            .filter(|old| old.key == dropped)
                            .or_else(|| self.roster.lease(&dropped));
                        let text = lease.map(described).unwrap_or_else(|| dropped.to_string());
                        self.remove_peer(id, &dropped, &text, each, reconciler);
                        removed += 1;
                    }
                    other => report(other),
                }
            }
        }
        (added, removed)
    }

    /// Takes less memory, at the cost of a look at every lease.
    pub(crate) fn shrink(&mut self) {
        self.roster.shrink();
    }

    /// Works out again what every peer needs, after a change of the backends or of the host.
    pub fn rebuild<D: Dataplane>(
        &mut self,
        own: SubnetKey,
        host: Host,
        reconciler: &mut Reconciler<D>,
    ) {
        self.version += 1;
        self.host = host;
        self.reached_by.clear();
        self.lagging.clear();
        self.awaiting.clear();
        let newest = self.generations.newest();
        if !newest.backend.encrypts() {
            self.sealed.clear();
        }
        let networks = networks(&newest.config);
        let (kinds, claims) = (self.generations.kinds(), self.generations.claims());
        let mut changes = self.roster.set_network(networks, kinds, claims);
        changes.extend(self.roster.set_own(own, self.host.public_ip));
        changes.extend(self.roster.set_underlay(self.host.underlay.clone()));
        for change in changes {
            match change {
                RosterChange::Drop(key) => {
                    self.unusable.remove(&key);
                    if let Some(id) = self.roster.id(&key) {
                        reconciler.set(Owner::Peer(id), []);
                    }
                }
                // Installed below with all others.
                RosterChange::Accept(_) => {}
                other => report(other),
            }
        }
        if !self.generations.has_several() {
            let roster = &self.roster;
            self.sealed.retain(|key| roster.accepted(key).is_some());
        }
        // One copy at a time: all together take a quarter of what the daemon does.
        for id in self.roster.ids() {
            if let Some(lease) = self.roster.accepted_at(id).cloned() {
                self.install_peer(true, &lease, false, reconciler);
            }
        }
    }

    /// Has peers with which keys have been agreed on reached by the backend that needs them. Returns whether the kernel is
    /// to be written for that.
    pub(crate) fn follow_connections<D: Dataplane>(
        &mut self,
        reconciler: &mut Reconciler<D>,
    ) -> bool {
        let changes = reconciler.connection_changes();
        if std::mem::replace(&mut self.connection_changes, changes) == changes {
            return false;
        }
        let awaiting = self.awaiting.clone();
        for key in &awaiting {
            if let Some(lease) = self.roster.accepted(key).cloned() {
                self.install_peer(true, &lease, false, reconciler);
            }
        }
        self.awaiting != awaiting
    }

    /// The same host, but for what must stay reachable past the tunnel: leases that cover it are
    /// refused.
    pub fn set_host<D: Dataplane>(&mut self, host: Host, reconciler: &mut Reconciler<D>) {
        let changes = self.roster.set_underlay(host.underlay.clone());
        self.version += 1;
        self.host = host;
        self.follow(changes, reconciler);
    }

    /// Sets the networks to which the kernel has routes of its own, and through which interface: leases
    /// of these are refused.
    pub fn set_connected<D: Dataplane>(
        &mut self,
        connected: BTreeMap<IpNet, IfName>,
        reconciler: &mut Reconciler<D>,
    ) {
        let changes = self.roster.set_connected(connected);
        self.version += u64::from(!changes.is_empty());
        self.follow(changes, reconciler);
    }

    /// Follows what the roster decided when something other than a lease changed.
    fn follow<D: Dataplane>(&mut self, changes: Vec<RosterChange>, reconciler: &mut Reconciler<D>) {
        for change in changes {
            match change {
                RosterChange::Accept(lease) => self.install_peer(false, &lease, true, reconciler),
                RosterChange::Drop(key) => {
                    let text = self.roster.lease(&key).map(described);
                    let text = text.unwrap_or_else(|| key.to_string());
                    self.remove_peer(self.roster.id(&key), &key, &text, true, reconciler);
                }
                other => report(other),
            }
        }
    }

    /// Logs, once each, the objects that two owners want: only one of them gets what it needs.
    pub fn report_conflicts<D: Dataplane>(&mut self, reconciler: &Reconciler<D>) {
        let name = |owner| match owner {
            Owner::Node | Owner::Generation(_) => "this node".to_owned(),
            Owner::Network => "the network as a whole".to_owned(),
            Owner::Peer(id) => match self.roster.key_of(id) {
                Some(key) => format!("lease {key}"),
                None => "a lease that is gone".to_owned(),
            },
        };
        let conflicts = reconciler.conflicts().into_iter();
        let found: BTreeSet<String> = conflicts
            .map(|conflict| {
                let (holder, loser) = (name(conflict.holder), name(conflict.loser));
                format!(
                    "{holder} and {loser} both need `{}`: {loser} does not get it",
                    conflict.object
                )
            })
            .collect();
        for line in found.difference(&self.conflicts) {
            warn!("{line}; delete the lease that is wrong");
        }
        self.conflicts = found;
    }

    /// The backends in use.
    pub(crate) fn generations(&self) -> &Generations {
        &self.generations
    }

    /// The backends in use. Whoever changes them calls [`Cluster::rebuild`].
    pub(crate) fn generations_mut(&mut self) -> &mut Generations {
        &mut self.generations
    }

    /// Whether a peer needs an older backend than the newest, or may.
    pub(crate) fn lags(&self) -> bool {
        !self.lagging.is_empty()
    }

    /// Returns how far a change of the backend is, while there is one.
    pub(crate) fn change_report(&self) -> Option<String> {
        let drops_nothing = "ipsec lets unencrypted packets in meanwhile".to_owned();
        let all = [
            self.trial_report(),
            self.network_change_report(),
            self.generations
                .lets_plaintext_in()
                .then_some(drops_nothing),
        ];
        let all: Vec<String> = all.into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Returns whom this node reaches by a backend that it tries.
    fn trial_report(&self) -> Option<String> {
        let trial = self.generations.trial()?.backend.kind();
        let reached = self.reached_by.iter().filter(|(_, kind)| **kind == trial);
        let reached: Vec<&SubnetKey> = reached.map(|(key, _)| key).collect();
        let reached = if reached.is_empty() {
            "no other node that tries it, too, is reached by it".to_owned()
        } else {
            format!("reached by it: {}", some(reached.into_iter()))
        };
        Some(format!("this node tries {trial} (-backend); {reached}"))
    }

    fn network_change_report(&self) -> Option<String> {
        if !self.generations.is_changing() {
            return None;
        }
        let newest = self.generations.newest();
        let older = self.generations.former().iter();
        let older: Vec<BackendType> = older.map(|own| own.backend.kind()).collect();
        let change = format!(
            "the backend changes from {} to {}",
            list(older.iter()),
            newest.backend.kind()
        );
        let mut waits: Vec<String> = Vec::new();
        if !newest.ready {
            waits.push("its devices are not there yet".into());
        }
        let unchanged = self.lagging.difference(&self.awaiting);
        let unchanged: Vec<&SubnetKey> = unchanged.collect();
        if !unchanged.is_empty() {
            let unchanged = some(unchanged.into_iter());
            waits.push(format!("not changed yet: {unchanged}"));
        }
        if !self.awaiting.is_empty() {
            let awaiting = some(self.awaiting.iter());
            waits.push(format!("no keys agreed on yet with: {awaiting}"));
        }
        let encrypts = |kind: &BackendType| {
            let mut all = self.generations.all().iter();
            all.any(|own| own.backend.kind() == *kind && own.backend.encrypts())
        };
        if newest.backend.encrypts() {
            let clear = self.reached_by.iter().filter(|(_, kind)| !encrypts(kind));
            let clear: Vec<&SubnetKey> = clear.map(|(key, _)| key).collect();
            if !clear.is_empty() {
                waits.push(format!(
                    "reached without encryption: {}",
                    some(clear.into_iter())
                ));
            }
        }
        Some(if waits.is_empty() {
            change
        } else {
            format!("{change}; {}", waits.join("; "))
        })
    }

    /// The host as it was when the backend was built.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns every address that a node publishes, also in leases that are not used here.
    pub fn published(&self) -> BTreeSet<IpAddr> {
        let addresses = self.roster.all().map(|lease| lease.attrs.public_ip);
        let all = addresses.flat_map(|ips| Family::ALL.map(|family| ips.get(family).copied()));
        all.flatten().collect()
    }

    /// Returns all leases of other nodes, and how far this node is with each, in the order of their subnets.
    pub fn peers<D: Dataplane>(&self, reconciler: &mut Reconciler<D>) -> Vec<PeerReport> {
        let accepted = self.roster.all_accepted().map(|lease| {
            let (state, reason) = self.progress(lease, reconciler);
            (lease, state, reason)
        });
        let accepted: Vec<_> = accepted.collect();
        let refused = self.roster.refused().filter_map(|(key, reason)| {
            let lease = self.roster.lease(key)?;
            Some((lease, PeerStatus::Refused, Some(reason.to_string())))
        });
        let mut all: Vec<_> = accepted.into_iter().chain(refused).collect();
        all.sort_by_key(|(lease, ..)| lease.key);
        let report = |(lease, state, reason): (&Lease, PeerStatus, Option<String>)| PeerReport {
            subnets: lease
                .key
                .nets()
                .iter()
                .map(|(_, net)| net.to_string())
                .collect(),
            public_ips: lease.attrs.public_ip.iter().map(|(_, ip)| *ip).collect(),
            backend: lease
                .attrs
                .backend_type
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            reached_by: self.reached_by.get(&lease.key).map(ToString::to_string),
            state,
            reason,
            probe: None,
        };
        all.into_iter().map(report).collect()
    }

    /// How far this node is with an accepted lease, and why no further.
    fn progress<D: Dataplane>(
        &self,
        lease: &Lease,
        reconciler: &mut Reconciler<D>,
    ) -> (PeerStatus, Option<String>) {
        let unusable = self.unusable.get(&lease.key);
        if let Some(unusable) = unusable.filter(|unusable| !unusable.served) {
            return (PeerStatus::Unusable, Some(unusable.reason.clone()));
        }
        let fault = unusable.map(|unusable| unusable.reason.clone());
        let Some(id) = self.roster.id(&lease.key) else {
            return (PeerStatus::Pending, fault);
        };
        match reconciler.progress(Owner::Peer(id)) {
            Progress::Installed => (PeerStatus::Installed, fault),
            Progress::Pending => (PeerStatus::Pending, fault),
            Progress::Refused(refused) => {
                let reason = format!("{}: {}", refused.op, refused.refusal.reason);
                (PeerStatus::Failing, Some(reason))
            }
        }
    }

    /// Returns a number that changes whenever [`Cluster::probe_view`] may.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Returns what probes need: the addresses of this node, whose lease is `own`, and of the others.
    pub(crate) fn probe_view(&self, own: &Lease) -> View {
        let leading = self.generations.leading();
        let objects = leading.backend.node(own, &self.host);
        // While the backend changes, some nodes have a device and others not.
        let has_device = !self.generations.is_changing();
        let overlay = own.key.nets().map(|_, net| first(net).addr());
        let is_there = |ip: &IpAddr| {
            let mut all = objects.iter();
            has_device
                && all
                    .any(|object| matches!(object, Object::Addr(key, ()) if key.net.addr() == *ip))
        };
        let direct = leading.config.backend.bool("DirectRouting", false);
        let kind = leading.backend.kind().to_string();
        let unusable = |lease: &Lease| {
            let unusable = self.unusable.get(&lease.key);
            unusable.is_some_and(|unusable| !unusable.served)
        };
        let targets = self.roster.all_accepted().filter(|lease| !unusable(lease));
        View {
            version: self.version,
            underlay: self.host.addr,
            overlay: Dual::from_fn(|family| overlay.get(family).copied().filter(is_there)),
            mtu: self.generations.mtu(),
            tunnel: carrier(kind, &tunnel_ports(&objects), direct.unwrap_or_default()),
            targets: targets
                .map(|lease| Target::new(lease.key, lease.attrs.public_ip))
                .collect(),
        }
    }

    /// Returns how many leases of other nodes are in each state.
    pub fn peer_states<D: Dataplane>(
        &self,
        reconciler: &mut Reconciler<D>,
    ) -> BTreeMap<PeerStatus, usize> {
        let mut states = BTreeMap::from([(PeerStatus::Refused, self.roster.refused_len())]);
        for lease in self.roster.all_accepted() {
            let (state, _) = self.progress(lease, reconciler);
            *states.entry(state).or_default() += 1;
        }
        states
    }

    /// How many peers are in use, and how many leases cannot be used.
    pub fn counts(&self) -> (usize, usize) {
        let unusable = self.unusable.values().filter(|u| !u.served).count();
        (
            self.roster.accepted_len() - unusable,
            self.roster.refused_len() + unusable,
        )
    }

    fn install_peer<D: Dataplane>(
        &mut self,
        known: bool,
        lease: &Lease,
        each: bool,
        reconciler: &mut Reconciler<D>,
    ) {
        let Some(id) = self.roster.id(&lease.key) else {
            return;
        };
        let sealed = self.sealed.contains(&lease.key);
        let holds = |object: &Object| reconciler.holds(object);
        let served = self
            .generations
            .serve(lease, &self.host, sealed, &holds, Instant::now());
        let plan = served.plan;
        reconciler.set(Owner::Peer(id), plan.objects);
        if served.awaits_connection {
            self.awaiting.insert(lease.key);
        } else {
            self.awaiting.remove(&lease.key);
        }
        if served.lags {
            self.lagging.insert(lease.key);
        } else {
            self.lagging.remove(&lease.key);
        }
        self.reached_by.remove(&lease.key);
        let by = served
            .by
            .and_then(|number| self.generations.all().get(number));
        if let Some(by) = by {
            if by.backend.encrypts() {
                self.sealed.insert(lease.key);
            }
            if self.generations.has_several() {
                self.reached_by.insert(lease.key, by.backend.kind());
            }
        }
        if served.kept_from_plaintext {
            let reason =
                "it offers no encryption any more, and was reached encrypted before".to_owned();
            if self.unusable.get(&lease.key).map(|u| &u.reason) != Some(&reason) {
                warn!(
                    "lease {} is not used: {reason}; change its node to {}",
                    lease.key,
                    self.generations.newest().backend.kind()
                );
            }
            let unusable = Unusable {
                reason,
                served: false,
            };
            self.unusable.insert(lease.key, unusable);
            return;
        }
        if plan.faults.is_empty() {
            self.unusable.remove(&lease.key);
        } else {
            let faults = list(plan.faults.iter());
            let used = if plan.served {
                "used in part"
            } else {
                "not used"
            };
            if self.unusable.get(&lease.key).map(|u| &u.reason) != Some(&faults) {
                warn!("lease {} is {used}: {faults}", lease.key);
            }
            let unusable = Unusable {
                reason: faults,
                served: plan.served,
            };
            self.unusable.insert(lease.key, unusable);
            if !plan.served {
                return;
            }
        }
        match (each, known) {
            (false, _) => debug!("subnet {}", described(lease)),
            (true, false) => info!("subnet added: {}", described(lease)),
            (true, true) => info!("subnet changed: {}", described(lease)),
        }
    }

    fn remove_peer<D: Dataplane>(
        &mut self,
        id: Option<u32>,
        key: &SubnetKey,
        text: &str,
        each: bool,
        reconciler: &mut Reconciler<D>,
    ) {
        self.unusable.remove(key);
        self.lagging.remove(key);
        self.awaiting.remove(key);
        // While the backend changes, a lease that is written again finds the encryption that it had.
        if !self.generations.has_several() {
            self.sealed.remove(key);
        }
        self.reached_by.remove(key);
        if let Some(id) = id {
            reconciler.set(Owner::Peer(id), []);
        }
        if each {
            info!("subnet removed: {text}");
        } else {
            debug!("subnet removed: {text}");
        }
    }
}

/// Logs what the roster says that changes nothing in the kernel.
fn report(change: RosterChange) {
    match change {
        RosterChange::Refuse { key, reason } => warn!("lease {key} is not used: {reason}"),
        RosterChange::Note(note) => warn!("{note}"),
        RosterChange::Accept(_) | RosterChange::Drop(_) => {}
    }
}

/// `10.1.4.0/24 via 192.168.2.45`
fn described(lease: &Lease) -> String {
    let nets = list(lease.key.nets().iter().map(|(_, net)| net));
    let ips = list(lease.attrs.public_ip.iter().map(|(_, ip)| ip));
    format!("{nets} via {ips}")
}

fn list(items: impl Iterator<Item = impl ToString>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    items.join(", ")
}

/// Names the first of them.
fn some<'a>(keys: impl ExactSizeIterator<Item = &'a SubnetKey>) -> String {
    let more = keys.len().saturating_sub(NAMED);
    let named = list(keys.take(NAMED));
    if more > 0 {
        format!("{named} and {more} more")
    } else {
        named
    }
}

/// Names what carries packets between nodes, for messages: `vxlan (UDP 8472)`. `direct`: DirectRouting is on.
fn carrier(kind: String, ports: &BTreeSet<u16>, direct: bool) -> String {
    let mut how: Vec<String> = ports.iter().map(|port| format!("UDP {port}")).collect();
    if direct {
        how.push("without a tunnel to nodes on the same link".to_owned());
    }
    if how.is_empty() {
        kind
    } else {
        format!("{kind} ({})", how.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_packets_is_named_with_its_ports_and_without_a_tunnel() {
        let text = |ports: &[u16], direct| {
            carrier("vxlan".to_owned(), &ports.iter().copied().collect(), direct)
        };
        assert_eq!(text(&[], false), "vxlan");
        assert_eq!(text(&[8472], false), "vxlan (UDP 8472)");
        assert_eq!(
            text(&[8472], true),
            "vxlan (UDP 8472, without a tunnel to nodes on the same link)"
        );
    }
}
