//! What must be known before a subnet is taken: the configuration, the host, who we are, and who ran
//! here before.

use std::collections::BTreeMap;
use std::time::Duration;

use backend::{Backend, BackendError, Identity, Need};
use dataplane::{AnyKernel, Dataplane, KernelError, Scope};
use ipnet::IpNet;
use model::object::ROUTE_PROTOCOL;
use model::{Dual, Host, IfName, LeaseAttrs, Mac, NetConfig, Object, SubnetKey};
use store::{
    AccessError, AnyStore, DirectoryStore, EtcdSettings, EtcdStore, KubeSettings,
    KubeSettingsError, KubeStore, NodeName, ProxyVariables, SettingsError, Store, Timing, Trouble,
    Who,
};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::generations::published_by;
use crate::identity::{Answer, Answers};
use crate::iface;
use crate::iface::{Lost, NoIface};
use crate::lock::{Lock, Waiting};
use crate::machine::Machine;
use crate::options::{Options, StoreChoice};
use crate::status::Status;

/// How often a configuration that no backend can be built from is read again.
const CONFIG_AGAIN: Duration = Duration::from_secs(1);

/// A command that fails is run again after a second, then after twice as long each time, up to this.
const COMMAND_AGAIN_AT_MOST: Duration = Duration::from_secs(30);

/// How often the host is looked at while it lacks an interface or an address.
const HOST_AGAIN: Duration = Duration::from_secs(1);

/// After this many looks the configuration is read again: it may want other address families.
const HOST_LOOKS: u32 = 10;

/// How long a better address than the one found is waited for: a check for duplicates takes one or
/// two seconds, and so does a router's answer at boot.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked for.
const ADDRESS_AGAIN: Duration = Duration::from_millis(200);

/// What is known before the lease is taken.
pub(crate) struct Settled {
    pub(crate) config: NetConfig,
    pub(crate) host: Host,
    pub(crate) identity: Identity,
    /// What this node published before.
    pub(crate) own: Option<LeaseAttrs>,
    pub(crate) lock: Lock,
}

impl Settled {
    /// Returns what the backend of the configuration published before.
    pub(crate) fn published(&self) -> Option<LeaseAttrs> {
        published_by(self.own.as_ref()?, &self.config.backend.kind)
    }
}

/// Returns a configuration, and a host and a backend that go with it. A configuration that the
/// backend refuses is read again until somebody fixes it; an interface, an address or a default
/// route that is missing is waited for, and so is the end of another daemon of the same network.
pub(crate) async fn settle(
    options: &mut Options,
    store: &mut AnyStore,
    previous: Option<SubnetKey>,
    status: &Status,
) -> Result<Settled, BackendError> {
    let mut waiting = Waiting::default();
    let mut told = String::new();
    let given = options.public_ip;
    let mut search = HostSearch::default();
    let (mut answers, mut answer_again) = (Answers::default(), CONFIG_AGAIN);
    loop {
        let mut config = match &mut options.network {
            Some(given) => given.borrow_and_update().clone(),
            None => store.config().await,
        };
        options.overrule(&mut config);
        let assigned = match store.node() {
            Some(node) => node.assigned_ip().await,
            None => Dual::default(),
        };
        options.public_ip = Dual::from_fn(|family| {
            let ip = assigned.get(family).or(given.get(family));
            ip.copied()
        });
        let Some(host) = search.run(options, &config, store, status).await else {
            continue;
        };
        let need = backend::need(&config);
        let mac_of = |name: &IfName| device_mac(&*options.machine, name);
        let answer = answers.find(&need, &options.keys, mac_of).await;
        let Answer { identity, warnings } = match answer {
            Ok(answer) => answer,
            Err(problem) => {
                if problem != told {
                    warn!("{problem}; trying again until it succeeds");
                    told = problem;
                }
                tokio::time::sleep(answer_again).await;
                if matches!(need, Need::Command { .. }) {
                    answer_again = (answer_again * 2).min(COMMAND_AGAIN_AT_MOST);
                }
                continue;
            }
        };
        let who = Who {
            public_ip: host.public_ip,
            previous,
            devices: identity.published_names(),
            made: backend::made_names(&config, &host),
        };
        // As `acquire` is asked later: for another pool, the store would read all leases again.
        let pool = pool(&*options.machine, &config, &host);
        let own = store.own(&pool, &who).await;
        let own = own.map(|own| own.attrs);
        let published = own
            .as_ref()
            .and_then(|own| published_by(own, &config.backend.kind));
        match backend::new(&config, &host, &identity, published.as_ref()) {
            Ok(backend) => {
                let networks = config.pools.map(|_, pool| pool.network);
                let devices: Vec<IfName> = backend.devices().iter().map(|own| own.name).collect();
                let lock = if options.machine.is_this_host() {
                    Lock::take(&networks, &devices, status, &mut waiting).await
                } else {
                    Some(Lock::none())
                };
                let Some(lock) = lock else {
                    continue;
                };
                for key in &config.unknown {
                    warn!("network configuration: key {key} is unknown and ignored");
                }
                for warning in backend.warnings() {
                    warn!("network configuration: {warning}");
                }
                warnings.iter().for_each(|warning| warn!("{warning}"));
                report_unserved(&*backend, None, status);
                info!(
                    "using interface {} (MTU {}){}",
                    host.iface,
                    host.mtu,
                    addresses(&host.public_ip)
                );
                return Ok(Settled {
                    config,
                    host,
                    identity,
                    own,
                    lock,
                });
            }
            Err(error) if !error.is_in_config() => return Err(error),
            Err(error) => {
                let text = error.to_string();
                if text != told {
                    warn!(
                        "network configuration: {text}; reading it again every second until it can be used"
                    );
                    told = text;
                }
                tokio::time::sleep(CONFIG_AGAIN).await;
            }
        }
    }
}

/// Reports the families that are not served, once for each reason.
pub(crate) fn report_unserved(backend: &dyn Backend, lost: Option<&Lost>, status: &Status) {
    let missing = backend.missing().iter();
    let missing = missing.map(|(family, why)| format!("{family} is not served: {why}"));
    let lost = lost.map(|Lost { family, reason }| {
        format!("{family} is not served: {reason}; keeping what is there")
    });
    let unserved: Vec<String> = missing.chain(lost).collect();
    if !status.set_unserved(&unserved) {
        return;
    }
    for text in unserved {
        warn!("{text}");
    }
}

/// How often the Event about an interface that stays missing counts up.
const EVENT_AGAIN: Duration = Duration::from_secs(600);

/// The search for an interface that can be used.
#[derive(Default)]
struct HostSearch {
    /// The problem that was logged last.
    logged: Option<String>,
    /// When an Event about it is due again.
    event_due: Option<Instant>,
    /// Until when a better address is waited for.
    retry: Option<Instant>,
}

impl HostSearch {
    /// Looks for the host's interface until it can be used, with one log line for each problem.
    /// Returns `None` when the configuration is to be read again.
    async fn run(
        &mut self,
        options: &Options,
        config: &NetConfig,
        store: &mut AnyStore,
        status: &Status,
    ) -> Option<Host> {
        let mut looks = 0;
        while looks < HOST_LOOKS {
            let found = iface::find(
                &*options.machine,
                &options.iface,
                &options.public_ip,
                config,
            );
            match found {
                Ok((host, may_improve)) => {
                    let now = Instant::now();
                    let until = *self.retry.get_or_insert(now + ADDRESS_PATIENCE);
                    if !may_improve || now >= until {
                        if self.logged.take().is_some() {
                            info!("interface {} can be used now", host.iface);
                        }
                        status.set_host_problem(None);
                        return Some(host);
                    }
                    tokio::time::sleep(ADDRESS_AGAIN).await;
                }
                Err(problem) => {
                    looks += 1;
                    let text = problem.to_string();
                    status.set_host_problem(Some(text.clone()));
                    let changed = self.logged.as_ref() != Some(&text);
                    let now = Instant::now();
                    if changed || self.event_due.is_none_or(|due| due <= now) {
                        self.event_due = Some(now + EVENT_AGAIN);
                        if let Some(node) = store.node() {
                            node.report(interface_missing(&problem));
                        }
                    }
                    if changed {
                        warn!("{text}; waiting for it");
                        self.logged = Some(text);
                    }
                    tokio::time::sleep(HOST_AGAIN).await;
                }
            }
        }
        None
    }
}

/// What an administrator is told when there is no interface to use.
fn interface_missing(problem: &NoIface) -> Trouble {
    Trouble {
        reason: "InterfaceMissing",
        message: problem.to_string(),
        node: None,
    }
}

/// Returns the configuration to take a subnet by: without those that this host itself needs.
pub(crate) fn pool(machine: &dyn Machine, config: &NetConfig, host: &Host) -> NetConfig {
    let connected = connected(machine, config).into_keys();
    config.avoiding(&host.underlay).clear_of(connected)
}

/// Returns the networks inside the flannel network to which this host's interfaces are connected, and which
/// interface each. A kernel that does not answer shows none; the next look does.
pub(crate) fn connected(machine: &dyn Machine, config: &NetConfig) -> BTreeMap<IpNet, IfName> {
    let networks = config.pools.map(|_, pool| pool.network);
    match machine.connected(&networks) {
        Ok(mut found) => {
            found.retain(|_, dev| !iface::is_flannels(dev));
            found
        }
        Err(error) => {
            debug!("{error}");
            BTreeMap::new()
        }
    }
}

/// Whether the kernel holds routes that carry our mark: then it was us who ran here last.
pub(crate) async fn ran_here(kernel: &mut AnyKernel, scope: &Scope) -> Result<bool, KernelError> {
    let mut ours = false;
    kernel.set_scope(scope.clone());
    let mut look = |object| match object {
        Object::NextHop(..) => ours = true,
        Object::Route(_, route) => ours |= route.protocol == ROUTE_PROTOCOL,
        _ => {}
    };
    kernel.observe(&mut look).await?;
    Ok(ours)
}

/// Returns the MAC of one of our devices. A kernel that does not answer has none; later operations report
/// the error.
pub(crate) fn device_mac(machine: &dyn Machine, name: &IfName) -> Option<Mac> {
    machine.standing(name).ok()??.mac
}

pub(crate) fn scope(
    config: &NetConfig,
    own: &SubnetKey,
    host: &Host,
    devices: Vec<IfName>,
) -> Scope {
    Scope {
        devices,
        iface: host.iface,
        network: config.pools.map(|_, pool| pool.network),
        own: *own.nets(),
        take_over: false,
    }
}

pub(crate) fn addresses(ips: &Dual<std::net::IpAddr>) -> String {
    ips.iter()
        .map(|(_, ip)| format!(", public address {ip}"))
        .collect()
}

/// Opens the store that the flags name.
///
/// # Errors
/// Settings that no waiting mends: a certificate that cannot be read, an endpoint that is none.
pub fn open_store(options: &Options) -> anyhow::Result<AnyStore> {
    let timing = Timing {
        margin: options.renew_margin,
        ..Timing::default()
    };
    let env = |name: &str| options.environment.get(name);
    options.store.open_in(timing, env)
}

impl StoreChoice {
    /// Opens the store, with the variables of this process. Nothing is sent yet.
    ///
    /// # Errors
    /// Settings that no waiting fixes.
    pub fn open(&self, timing: Timing) -> anyhow::Result<AnyStore> {
        self.open_in(timing, |name| std::env::var(name).ok())
    }

    /// Opens the store; `env` returns variables. Nothing is sent yet.
    ///
    /// # Errors
    /// Settings that no waiting fixes.
    pub fn open_in(
        &self,
        timing: Timing,
        env: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<AnyStore> {
        match self {
            StoreChoice::Etcd(settings) => {
                let settings = EtcdSettings {
                    timing,
                    proxies: ProxyVariables::read(env),
                    ..(**settings).clone()
                };
                Ok(EtcdStore::new(settings)?.into())
            }
            StoreChoice::Kube(settings) => {
                let mut settings = KubeSettings {
                    timing,
                    ..(**settings).clone()
                };
                if settings.node == NodeName::Unknown {
                    settings.node = NodeName::from_env(&env);
                }
                Ok(KubeStore::new(settings, env)?.into())
            }
            StoreChoice::Directory(path) => Ok(DirectoryStore::new(path, timing).into()),
        }
    }
}

/// Whether a store's setting is wrong as written on the command line, and not a file that it names.
pub fn wrong_flag(error: &anyhow::Error) -> bool {
    use SettingsError::{Endpoint, Login, NoEndpoint, Prefix};
    let etcd = error
        .downcast_ref()
        .is_some_and(|error| matches!(error, Endpoint { .. } | NoEndpoint | Prefix(_) | Login(_)));
    let kube = error.downcast_ref().is_some_and(|error| match error {
        KubeSettingsError::Prefix(..)
        | KubeSettingsError::NoNode
        | KubeSettingsError::Name { .. } => true,
        KubeSettingsError::Access(error) => {
            matches!(error, AccessError::Url { .. } | AccessError::NoPod)
        }
    });
    etcd || kube
}
