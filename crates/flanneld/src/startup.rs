//! From the settings to a daemon that has its subnet: find out who and where we are, take a subnet, begin to
//! make the devices.

use std::rc::Rc;

use backend::{Backend, BackendError};
use dataplane::AnyKernel;
use ipnet::IpNet;
use model::{BackendConfig, BackendType, Host, IfName, Lease, LeaseAttrs, NetConfig, Owner};
use store::{AnyStore, Claim, Store};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backends_file::Kept;
use crate::cluster::Cluster;
use crate::daemon::{Daemon, DataPath, TrafficTasks};
use crate::generations::{Generation, Generations, networks, published_by};
use crate::identity::{Answer, Answers};
use crate::lock::Lock;
use crate::node::NodeError;
use crate::options::Options;
use crate::reconcile::{Reconciler, RepairLog};
use crate::settle::{Settled, device_mac, pool, ran_here, report_unserved, scope, settle};
use crate::status::Status;
use crate::traffic::{Guarding, SourceCheck};
use crate::withdraw::{Former, when_stale};
use crate::{backends_file, config_change, forwarding, subnet_file, traffic, trial};

/// A node that has its subnet; nothing is in the kernel yet.
pub(crate) struct Acquired {
    options: Options,
    store: AnyStore,
    kernel: AnyKernel,
    status: Status,
    /// The networks of the run before.
    former_networks: Vec<IpNet>,
    /// Another flannel ran here before.
    after_another: bool,
    configured: NetConfig,
    host: Host,
    lock: Lock,
    generations: Generations,
    lease: Lease,
}

/// Reads the configuration, chooses interface and identity and takes a subnet. Waits for what is not there yet: the
/// store, its configuration, the interface.
///
/// # Errors
/// What waiting does not fix: a full pool, settings that contradict each other.
pub(crate) async fn acquire(
    mut options: Options,
    mut store: AnyStore,
    kernel: AnyKernel,
    status: Status,
) -> Result<Acquired, NodeError> {
    let previous = subnet_file::previous(&options.subnet_file);
    let former_networks = subnet_file::former_networks(&options.subnet_file);
    // Asked before the file may be withdrawn.
    let after_another = subnet_file::is_anothers(&options.subnet_file);
    let former_backends = backends_file::read(&options.subnet_file);
    let assigned = store.status().assigned();
    let stale = when_stale(Former::new(&options, previous), assigned);
    let acquired = async {
        let mut settled = settle(&mut options, &mut store, previous, &status).await?;
        warn_of_overlap(&settled.config, &settled.host);
        let identity = &settled.identity;
        let (config, host) = (&settled.config, &settled.host);
        let newest = backend::new(config, host, identity, settled.published().as_ref())?;
        let generations = backends_in_use(newest, former_backends, &mut settled, &options).await;
        let claim = Claim {
            attrs: generations.publish(),
            previous,
        };
        let pool = pool(&*options.machine, &settled.config, &settled.host);
        let lease = store.acquire(&pool, &claim).await?;
        Ok::<_, NodeError>((settled, generations, lease))
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
    let (settled, mut generations, mut lease) = acquired?;
    let Settled {
        config: configured,
        host,
        lock,
        ..
    } = settled;
    if configured.families().count() > lease.key.nets().iter().count() {
        // The other family has no subnet here: no device, no rules, and no offer to the peers.
        narrow(&mut generations, &host, &lease)?;
        report_unserved(&*generations.newest().backend, None, &status);
        let attrs = generations.publish();
        if attrs != lease.attrs {
            lease.attrs = attrs.clone();
            store.publish(attrs).await;
        }
    }
    Ok(Acquired {
        options,
        store,
        kernel,
        status,
        former_networks,
        after_another,
        configured,
        host,
        lock,
        generations,
        lease,
    })
}

/// Begins to make the devices of a node that has its subnet, and to keep its traffic rules. Must be called on a
/// `LocalSet`.
///
/// # Errors
/// The kernel does not show what it holds.
pub(crate) async fn build(acquired: Acquired) -> Result<Daemon, NodeError> {
    let Acquired {
        options,
        store,
        mut kernel,
        status,
        former_networks,
        after_another,
        configured,
        host,
        lock,
        mut generations,
        lease,
    } = acquired;
    let config = generations.newest().config.clone();
    info!(
        "lease {} acquired, backend {}",
        lease.key,
        generations.newest().backend.kind()
    );

    let node = generations.node(&lease, &host);
    let objects = node.iter().flat_map(|(_, objects)| objects);
    let ports = traffic::tunnel_ports(objects);
    let mut traffic = TrafficTasks::new(ports);
    let mut rules = None;
    if options.machine.is_this_host() {
        traffic.guard = Guarding::start(
            &config,
            &host,
            traffic.ports.clone(),
            former_networks.clone(),
            &status,
        )
        .await;
        traffic.source_check = SourceCheck::start(&options.traffic, &config);
        // Their programs run while the kernel's objects are made here.
        rules = Some(traffic::start(
            &options.traffic,
            &config,
            &lease.key,
            former_networks,
            &status,
        ));
        traffic.forwarding = Some(forwarding::start(
            &config,
            &host.iface,
            options.traffic.resync,
        ));
    }
    let mut scope = scope(&config, &lease.key, &host, generations.devices());
    scope.take_over = after_another && !ran_here(&mut kernel, &scope).await?;
    backends_file::write(&options.subnet_file, &generations.kept(Instant::now()));
    let mut reconciler = Reconciler::new(kernel, scope.clone());
    reconciler.set_encrypted(generations.all_encrypt());
    for (slot, objects) in node {
        reconciler.set(Owner::Generation(slot), objects);
    }
    reconciler.set(Owner::Network, options.traffic.blackholes(&lease.key));
    reconciler.pass().await;
    if let Some(rules) = rules {
        traffic.rules = Some(rules.first_try().await);
    }
    let path = DataPath {
        cluster: Cluster::new(lease.key, generations, host),
        options: Rc::new(options),
        lease,
        reconciler,
        scope,
        traffic,
        lock,
        status,
        repairs: RepairLog::default(),
        complete: false,
        knows_peers: false,
    };
    Ok(Daemon::new(path, store, configured))
}

/// Returns the backend of the configuration, and those that an earlier run had in use beside or before it: other
/// nodes may still send by them.
async fn backends_in_use(
    newest: Box<dyn Backend>,
    former: Vec<Kept>,
    settled: &mut Settled,
    options: &Options,
) -> Generations {
    let trial = options.trial.as_ref();
    let mac_of = |name: &IfName| device_mac(&*options.machine, name);
    let now = Instant::now();
    let own = settled.own.clone().unwrap_or_default();
    let (config, host) = (&settled.config, &settled.host);
    let mut first = Generation::new(config.clone(), settled.identity.clone(), newest, now);
    let served = |own_lease: &LeaseAttrs, generation: &mut Generation| {
        let kind = generation.backend.kind();
        let kept = former.iter().find(|kept| kept.backend.kind == kind);
        if generation.is_offered_by(own_lease) {
            generation.is_served(kept.is_none_or(|kept| kept.known), now);
        }
    };
    served(&own, &mut first);
    let mut generations = Generations::new(first);
    let beside = |kind: &BackendType| {
        config_change::can_be_beside(kind) && config_change::can_be_beside(&config.backend.kind)
    };
    for Kept { backend, .. } in former.clone() {
        let kind = backend.kind.clone();
        let is_tried = trial.is_some_and(|trial| trial.kind == kind);
        if !beside(&kind) || is_tried {
            continue;
        }
        let config = NetConfig {
            backend,
            ..config.clone()
        };
        let published = published_by(&own, &kind);
        let need = backend::need(&config);
        let answer = Answers::default().find(&need, &options.keys, mac_of).await;
        let built = answer.and_then(|Answer { identity, .. }| {
            let built = backend::new(&config, host, &identity, published.as_ref());
            Ok((identity, built.map_err(|error| error.to_string())?))
        });
        let (identity, backend) = match built {
            Ok(built) => built,
            Err(reason) => {
                warn!(
                    "the backend {kind}, which was in use before, is not served any more: {reason}"
                );
                continue;
            }
        };
        let devices: Vec<IfName> = backend.devices().iter().map(|own| own.name).collect();
        if let Err(reason) = settled.lock.extend(&networks(&config), &devices).await {
            warn!("the backend {kind}, which was in use before, is not served any more: {reason}");
            continue;
        }
        let mut older = Generation::new(config, identity, backend, now);
        served(&own, &mut older);
        generations.add_former(older);
    }
    if let Some(trial) = trial {
        try_beside(trial, &mut generations, settled, options).await;
    }
    generations
}

/// Adds the backend that this node tries, if it can.
async fn try_beside(
    trial: &BackendConfig,
    generations: &mut Generations,
    settled: &mut Settled,
    options: &Options,
) {
    let own = settled.own.clone().unwrap_or_default();
    let newest = generations.newest();
    let built = trial::prepare(trial, newest, &own, &settled.host, options).await;
    let built = match built {
        Ok(built) => trial::lock(&built, &mut settled.lock).await.map(|()| built),
        Err(reason) => Err(reason),
    };
    match built {
        Ok(built) => {
            info!(
                "this node tries {} beside {}: other nodes that try it are reached by it",
                built.backend.kind(),
                generations.newest().backend.kind()
            );
            generations.add_trial(built);
        }
        Err(reason) => warn!("{reason}"),
    }
}

/// Restricts the backends to the families of the lease.
fn narrow(generations: &mut Generations, host: &Host, lease: &Lease) -> Result<(), BackendError> {
    for generation in generations.all_mut() {
        let config = generation.config.of_families_in(&lease.key);
        let published = published_by(&lease.attrs, &generation.backend.kind());
        let backend = backend::new(&config, host, &generation.identity, published.as_ref())?;
        generation.rebuilt(config, backend, &lease.key);
    }
    Ok(())
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
