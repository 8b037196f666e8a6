//! Traffic rules and the guard beside the main loop: a task of its own, since writing them may have to wait for
//! another program that holds iptables' lock, and packets must not.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use dataplane::guard::{GuardKeeper, SourcesKeeper, remove_sources};
use dataplane::rules::{BridgeFilter, Change, Mode, RulesError, RulesKeeper, bridge_filter};
use ipnet::IpNet;
use model::guard::{Guard, Sources};
use model::object::{Route, RouteKey, RouteTo};
use model::rules::RuleFlags;
use model::{BackendType, Host, NetConfig, Object, SubnetKey, TrafficRules};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use crate::few_lines::FewLines;
use crate::status::Status;

/// How many repairs of one kind are logged at once.
const REPAIR_LINES: u32 = 3;

/// How long the start waits for the rules. They are kept trying for afterwards.
const PATIENCE: Duration = Duration::from_secs(5);

/// Priority of the route that drops what is for the own subnet and has no better route: any route of
/// the bridge's comes before it.
const LAST_RESORT: u32 = 65_535;

/// What the flags say about traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrafficOptions {
    /// Which rules are wanted.
    pub rules: RuleFlags,
    /// `-iptables-resync`.
    pub resync: Duration,
    /// `-ip-blackhole-route`.
    pub blackhole: bool,
    /// `-check-tunnel-sources`.
    pub check_sources: bool,
}

impl TrafficOptions {
    /// The routes that drop packets to containers that do not exist, so that they do not wander back
    /// to the default gateway.
    pub fn blackholes(&self, own: &SubnetKey) -> Vec<Object> {
        let subnets = own.nets().iter().filter(|_| self.blackhole);
        let blackhole = |(_, net): (_, &IpNet)| {
            let key = RouteKey::with_metric(*net, LAST_RESORT);
            Object::Route(key, Route::ours(RouteTo::Blackhole))
        };
        subnets.map(blackhole).collect()
    }
}

/// The rules' first reading and writing, under way.
pub struct Traffic {
    task: AbortHandle,
    first: oneshot::Receiver<()>,
    /// Whether packets would go out wrong without them.
    needed: bool,
}

impl Traffic {
    /// Returns what ends the task, without waiting for the rules.
    pub fn task(self) -> AbortHandle {
        self.task
    }

    /// Waits until the rules are in place or could not be put there, if the node's packets depend on
    /// them; but not for ever: the network comes up without them too. Returns what ends the task.
    pub async fn first_try(self) -> AbortHandle {
        if self.needed {
            // The task's end is as good as its word.
            let _ = tokio::time::timeout(PATIENCE, self.first).await;
        }
        self.task
    }
}

/// Removes the rules, those of the `former` networks too. Nobody may keep them any more.
///
/// # Errors
/// The programs that hold them refuse.
pub async fn remove(
    options: &TrafficOptions,
    config: &NetConfig,
    own: &SubnetKey,
    former: Vec<IpNet>,
) -> Result<(), RulesError> {
    let none = RuleFlags {
        masquerade: false,
        masquerade_ipv6: false,
        forward: false,
        ..options.rules
    };
    let desired = TrafficRules::new(config, own, none).and_formerly(former);
    let mut keeper = RulesKeeper::new(mode(config), desired, options.resync);
    let removed = keeper.ensure().await.map(drop);
    if let Some((_, pool)) = config.pools.iter().next()
        && let Err(error) = remove_sources(&pool.network)
    {
        warn!("the check of the tunnel's sources is not removed: {error}");
    }
    match guard_keeper(config, Guard::default(), Vec::new()) {
        Some(guard) => removed.and(guard.remove().await),
        None => removed,
    }
}

/// The UDP ports on which the devices among `objects` receive their tunnel's packets.
pub fn tunnel_ports<'a>(objects: impl IntoIterator<Item = &'a Object>) -> BTreeSet<u16> {
    let port = |object: &Object| match object {
        Object::Link(_, link) => link.kind.port(),
        Object::PacketLoop(_, packet_loop) => Some(packet_loop.listen.port()),
        Object::WgDevice(_, device) => Some(device.port),
        _ => None,
    };
    objects.into_iter().filter_map(port).collect()
}

/// The keeper of the table that drops forged packets. `former` are the networks of this node whose
/// table is to go.
fn guard_keeper(config: &NetConfig, guard: Guard, former: Vec<IpNet>) -> Option<GuardKeeper> {
    let (_, pool) = config.pools.iter().next()?;
    Some(GuardKeeper::new(guard, &pool.network, former))
}

/// What the guard of a node with this address drops.
fn guard(config: &NetConfig, host: &Host, ports: BTreeSet<u16>) -> Guard {
    let networks = config.pools.map(|_, pool| pool.network);
    Guard::new(&networks, &host.public_ip, ports)
}

/// The task that keeps forged packets out.
pub struct Guarding {
    desired: watch::Sender<Guard>,
    task: AbortHandle,
}

impl Guarding {
    /// Begins to keep forged packets out, in a task on the current thread: the table is in place when this
    /// returns, before any device is made. Must be called on a `LocalSet`.
    pub async fn start(
        config: &NetConfig,
        host: &Host,
        ports: BTreeSet<u16>,
        former: Vec<IpNet>,
        status: &Status,
    ) -> Option<Guarding> {
        let first = guard(config, host, ports);
        let mut keeper = guard_keeper(config, first.clone(), former)?;
        let (desired, mut wanted) = watch::channel(first);
        let mut log = GuardLog::new(status);
        let ensured = keeper.ensure().await.map(|_| false);
        log.report(ensured, keeper.uses_iptables());
        let keeping = async move {
            loop {
                let mut follows = false;
                tokio::select! {
                    () = keeper.changed() => {}
                    Ok(()) = wanted.changed() => {
                        follows = keeper.set_desired(wanted.borrow_and_update().clone());
                    }
                }
                let repaired = keeper.ensure().await.map(|wrote| wrote && !follows);
                log.report(repaired, keeper.uses_iptables());
            }
        };
        let task = tokio::task::spawn_local(keeping).abort_handle();
        Some(Guarding { desired, task })
    }

    /// The node has other addresses, or its tunnels other ports.
    pub fn follow(&self, config: &NetConfig, host: &Host, ports: BTreeSet<u16>) {
        let wanted = guard(config, host, ports);
        self.desired.send_if_modified(|desired| {
            let differs = *desired != wanted;
            *desired = wanted;
            differs
        });
    }

    /// Ends the task; the table stays.
    pub fn abort(&self) {
        self.task.abort();
    }
}

/// Several changes of the peers' addresses are written together.
const GATHER: Duration = Duration::from_millis(100);

/// The task that keeps out what no node sends (`-check-tunnel-sources`).
pub struct SourceCheck {
    desired: watch::Sender<Option<Sources>>,
    task: AbortHandle,
}

impl SourceCheck {
    /// Prepares the check, in a task on the current thread; it begins with the first [`SourceCheck::follow`]. If it is
    /// not asked for, one of an earlier run is removed. Must be called on a `LocalSet`.
    pub fn start(options: &TrafficOptions, config: &NetConfig) -> Option<SourceCheck> {
        let (_, pool) = config.pools.iter().next()?;
        if !options.check_sources {
            if let Err(error) = remove_sources(&pool.network) {
                // Where there is no nf_tables there is none.
                debug!("the check of the tunnel's sources: {error}");
            }
            return None;
        }
        let network = pool.network;
        let (desired, mut wanted) = watch::channel(None::<Sources>);
        let keeping = async move {
            let Ok(first) = wanted
                .wait_for(Option::is_some)
                .await
                .map(|first| first.clone())
            else {
                return;
            };
            let Some(first) = first else { return };
            let mut keeper = SourcesKeeper::new(&network, first);
            let mut fault = None;
            loop {
                report_sources(keeper.ensure(), &mut fault);
                tokio::select! {
                    () = keeper.changed() => {}
                    Ok(()) = wanted.changed() => tokio::time::sleep(GATHER).await,
                }
                if let Some(sources) = wanted.borrow_and_update().clone() {
                    keeper.set_desired(sources);
                }
            }
        };
        let task = tokio::task::spawn_local(keeping).abort_handle();
        Some(SourceCheck { desired, task })
    }

    /// Checks packets for these backends, each with its objects; `peers` are the addresses that all nodes publish. To be
    /// called once they are all known: others are kept out.
    pub fn follow<'a>(
        &self,
        backends: impl Iterator<Item = (BackendType, &'a [Object])>,
        peers: BTreeSet<IpAddr>,
    ) {
        let mut sources = Sources {
            ports: BTreeSet::new(),
            ipip: false,
            peers,
        };
        for (kind, objects) in backends {
            match kind {
                BackendType::Vxlan | BackendType::Udp => {
                    sources.ports.extend(tunnel_ports(objects));
                }
                BackendType::Ipip => sources.ipip = true,
                // WireGuard knows its peers by their keys; the others have no tunnel.
                _ => {}
            }
        }
        self.desired.send_if_modified(|desired| {
            let differs = desired.as_ref() != Some(&sources);
            *desired = Some(sources);
            differs
        });
    }

    /// Ends the task; the table stays.
    pub fn abort(&self) {
        self.task.abort();
    }
}

/// Reports a fault of the check once, and its end.
fn report_sources(ensured: Result<bool, RulesError>, fault: &mut Option<String>) {
    match ensured {
        Ok(repaired) => {
            if fault.take().is_some() {
                info!("the sources of tunnel packets are checked now");
            } else if repaired {
                info!("repaired the check of the tunnel's sources");
            }
        }
        Err(error) => {
            let text = error.to_string();
            if fault.as_ref() != Some(&text) {
                warn!(
                    "-check-tunnel-sources: the sources of tunnel packets are not checked: {text}; the kernel needs nf_tables (modprobe nf_tables); retrying"
                );
                *fault = Some(text);
            }
        }
    }
}

/// What the log says of the guard.
struct GuardLog {
    status: Status,
    fault: Option<String>,
    repairs: FewLines,
    iptables: bool,
}

impl GuardLog {
    fn new(status: &Status) -> GuardLog {
        GuardLog {
            status: status.clone(),
            fault: None,
            repairs: FewLines::new(REPAIR_LINES),
            iptables: false,
        }
    }

    /// Reports a fault of the guard once, and its end.
    fn report(&mut self, ensured: Result<bool, RulesError>, iptables: bool) {
        self.status.set_guard_in_place(ensured.is_ok());
        match ensured {
            Ok(repaired) => {
                if self.fault.take().is_some() {
                    info!("forged router advertisements and tunnel packets are dropped now");
                } else if repaired && iptables == self.iptables {
                    if let Some(more) = self.repairs.next() {
                        info!("repaired the rules against forged packets{more}");
                    }
                    self.status.update(|n| n.rules_repaired += 1);
                }
                if iptables && !self.iptables {
                    info!(
                        "this kernel has no nf_tables: legacy iptables drops forged router advertisements and tunnel packets"
                    );
                }
                self.iptables = iptables;
            }
            Err(error) => {
                let text = error.to_string();
                if self.fault.as_ref() != Some(&text) {
                    warn!(
                        "forged router advertisements and tunnel packets are not dropped: {text}; the kernel needs nf_tables (modprobe nf_tables) or legacy iptables, until then set net.ipv6.conf.default.accept_ra=0 and keep pods from the tunnel's port by another firewall; retrying"
                    );
                    self.fault = Some(text);
                }
            }
        }
    }
}

fn mode(config: &NetConfig) -> Mode {
    match config.nftables {
        true => Mode::Nftables,
        false => Mode::Iptables,
    }
}

/// Begins to keep the rules, in a task on the current thread, and to remove those of the `former`
/// networks of this node. Must be called on a `LocalSet`.
pub fn start(
    options: &TrafficOptions,
    config: &NetConfig,
    own: &SubnetKey,
    former: Vec<IpNet>,
    status: &Status,
) -> Traffic {
    let desired = TrafficRules::new(config, own, options.rules).and_formerly(former);
    let (done, first) = oneshot::channel();
    let needed = desired.masquerades();
    let watches_bridge = !desired.is_empty();
    let keeper = RulesKeeper::new(mode(config), desired, options.resync);
    let reporter = Reporter {
        status: status.clone(),
        needed,
        told: None,
        anothers: BTreeSet::new(),
        first: true,
        repairs: FewLines::new(REPAIR_LINES),
    };
    let task = tokio::task::spawn_local(async move {
        if watches_bridge {
            tokio::join!(keep(keeper, reporter, done), check_bridge());
        } else {
            keep(keeper, reporter, done).await;
        }
    });
    Traffic {
        task: task.abort_handle(),
        first,
        needed,
    }
}

async fn keep(mut keeper: RulesKeeper, mut reporter: Reporter, done: oneshot::Sender<()>) {
    let mut done = Some(done);
    loop {
        let began = Instant::now();
        let ensured = keeper.ensure().await;
        reporter.report(ensured, began.elapsed());
        if let Some(done) = done.take() {
            // Nobody may be waiting.
            let _ = done.send(());
        }
        keeper.changed().await;
    }
}

/// Says what the keeper did: once what is wrong, and once that it is right again.
struct Reporter {
    status: Status,
    needed: bool,
    /// The fault that the log tells of.
    told: Option<String>,
    /// The networks of another flannel that the log tells of.
    anothers: BTreeSet<IpNet>,
    first: bool,
    repairs: FewLines,
}

impl Reporter {
    /// Rules of other networks stay: their flannel may only be stopped. But it may be gone, too.
    fn tell_of_another(&mut self, networks: BTreeSet<IpNet>) {
        if networks == self.anothers {
            return;
        }
        if !networks.is_empty() {
            let named: Vec<String> = networks.iter().map(IpNet::to_string).collect();
            info!(
                "traffic rules of {} stand on this host and are left to the flannel that they belong to; if there is no such flannel any more, stop flanneld, run flannelctl cleanup --yes, and start it again",
                named.join(", ")
            );
        }
        self.anothers = networks;
    }

    fn report(&mut self, ensured: Result<Change, RulesError>, took: Duration) {
        let first = std::mem::take(&mut self.first);
        self.status.set_rules_in_place(ensured.is_ok());
        match ensured {
            Ok(change) => {
                change.notes.iter().for_each(|note| info!("using {note}"));
                self.tell_of_another(change.anothers);
                if self.told.take().is_some() {
                    info!("the traffic rules are in place again");
                }
                let written = change.written.join(", ");
                let ms = took.as_secs_f64() * 1e3;
                match (written.is_empty(), first) {
                    (true, _) => debug!("the traffic rules are in place ({ms:.1} ms)"),
                    (false, true) => info!("traffic rules: {written}"),
                    (false, false) => {
                        if let Some(more) = self.repairs.next() {
                            info!("repaired the traffic rules in {ms:.1} ms: {written}{more}");
                        }
                    }
                }
                self.status.set_rules_problem(None);
                self.status.update(|n| {
                    n.rules_repaired += if first {
                        0
                    } else {
                        change.written.len() as u64
                    }
                });
            }
            Err(error) => {
                let text = error.to_string();
                if self.told.as_ref() != Some(&text) {
                    warn!("traffic rules: {text}; trying again and again");
                    self.told = Some(text.clone());
                }
                let problem = format!("the traffic rules are not in place: {text}");
                self.status
                    .set_rules_problem(Some(problem).filter(|_| self.needed));
            }
        }
    }
}

async fn check_bridge() {
    match bridge_filter().await {
        BridgeFilter::There => {}
        BridgeFilter::Loaded => info!("loaded the kernel module br_netfilter"),
        BridgeFilter::Missing(why) => warn!(
            "br_netfilter is not there and cannot be loaded ({why}): packets between containers of this node do not meet iptables, so Kubernetes services whose backend is on the same node, and network policies between its pods, do not work; modprobe br_netfilter mends it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_resort_is_one_route_per_family() {
        let own: SubnetKey = "10.1.5.0-24&fd00:0:0:5::-64".parse().unwrap();
        let mut options = TrafficOptions {
            rules: RuleFlags {
                masquerade: false,
                masquerade_ipv6: false,
                fully_random: true,
                forward: false,
            },
            resync: Duration::from_secs(5),
            blackhole: false,
            check_sources: false,
        };
        assert!(options.blackholes(&own).is_empty());
        options.blackhole = true;
        let commands: Vec<String> = options
            .blackholes(&own)
            .into_iter()
            .map(|object| model::Op::Put(object).to_string())
            .collect();
        assert_eq!(
            commands,
            [
                "ip route replace blackhole 10.1.5.0/24 proto 241 metric 65535",
                "ip route replace blackhole fd00:0:0:5::/64 proto 241 metric 65535"
            ]
        );
    }

    #[test]
    fn a_fault_is_told_once_and_costs_readiness_only_where_packets_depend_on_it() {
        let missing = || RulesError::Missing {
            program: "nft".into(),
            cure: "install it",
        };
        for needed in [true, false] {
            let status = Status::default();
            status.set_started();
            let mut reporter = Reporter {
                status: status.clone(),
                needed,
                told: None,
                anothers: BTreeSet::new(),
                first: true,
                repairs: FewLines::new(REPAIR_LINES),
            };
            reporter.report(Err(missing()), Duration::ZERO);
            assert_eq!(status.problems().len(), usize::from(needed));
            assert!(reporter.told.is_some());
            reporter.report(Ok(Change::default()), Duration::ZERO);
            assert!(status.problems().is_empty() && reporter.told.is_none());
        }
    }
}
