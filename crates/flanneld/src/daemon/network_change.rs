//! Changes of the network configuration while packets flow: from the configuration that the store shows to the moment
//! when the last former backend goes.

use std::rc::Rc;

use backend::{Backend, BackendError};
use model::state::Progress;
use model::{Family, Host, IfName, NetConfig, Owner, Slot};
use tokio::time::Instant;
use tracing::{info, warn};

use super::data_path::DataPath;
use crate::config_change::{self, Effect, Wanted};
use crate::generations::{Generation, networks, published_by};
use crate::identity::{Answer, Asked};
use crate::options::Options;
use crate::settle::{device_mac, report_unserved};
use crate::status::Status;
use crate::trial;

/// The configuration in force, the one that the store shows, and how far the change from one to the other is.
pub(super) struct NetworkChange {
    options: Rc<Options>,
    /// The configuration in force, with the families that have no subnet here, too.
    configured: NetConfig,
    /// What the store shows, and is not in force yet.
    wanted: Wanted,
    /// A command that belongs to it.
    asked: Asked,
    /// The backends that this node sends by, as of the last [`NetworkChange::advance`].
    usable: Vec<Slot>,
}

/// Whether a step of a change is to be followed by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advance {
    /// No.
    Nothing,
    /// What this node publishes may have changed.
    Publish,
    /// The backends in use, or what they are used for, have changed.
    Apply,
}

impl NetworkChange {
    /// Returns a state without any change under way; `configured` is in force.
    pub(super) fn new(options: Rc<Options>, configured: NetConfig) -> NetworkChange {
        NetworkChange {
            options,
            configured,
            wanted: Wanted::new(),
            asked: Asked::default(),
            usable: Vec::new(),
        }
    }

    /// Returns when a configuration that waits is tried.
    pub(super) fn due(&self) -> Option<Instant> {
        self.wanted.due()
    }

    /// Takes in what the store shows as the network configuration. `nodes`: how many there are.
    pub(super) fn take(&mut self, config: Result<NetConfig, String>, nodes: usize) {
        match config {
            Ok(mut config) => {
                self.options.overrule(&mut config);
                let in_force = config == self.configured;
                self.wanted.take(config, in_force, nodes);
            }
            Err(reason) => self.wanted.refuse(format!(
                "network configuration: {reason}; the one that was read before stays in force"
            )),
        }
    }

    /// Reports what keeps the configuration that the store shows from being in force: once.
    pub(super) fn report(&self, status: &Status) {
        let problem = self.wanted.problem().cloned();
        if status.set_config_problem(problem.clone()) {
            match problem {
                Some(problem) => warn!("{problem}"),
                None => info!("the network configuration is in force"),
            }
        }
    }

    /// Takes a changed configuration into `path`, if one is due. Returns the host that the backends are then to be
    /// applied for.
    pub(super) async fn follow(&mut self, path: &mut DataPath) -> Option<Host> {
        if self.wanted.due().is_none() {
            self.asked = Asked::default();
        }
        let wanted = self.wanted.due_now(Instant::now())?;
        match self.prepare(&wanted, path).await {
            Err(NotNow::CommandRuns) => {
                self.wanted.prepares();
                None
            }
            Ok(Some(newer)) => {
                self.wanted.done();
                self.configured = wanted;
                Some(put_in_force(newer, path).await)
            }
            Ok(None) => {
                self.wanted.done();
                None
            }
            Err(NotNow::Because { reason, may_pass }) => {
                let reason = format!("the changed network configuration is not applied: {reason}");
                self.wanted.failed(wanted, reason, may_pass);
                None
            }
        }
    }

    /// Builds the backend of a changed configuration; `None` if nothing changes.
    async fn prepare(
        &mut self,
        wanted: &NetConfig,
        path: &mut DataPath,
    ) -> Result<Option<Generation>, NotNow> {
        let own = path.lease.key;
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
        let host = path.cluster.host();
        let (need, options) = (backend::need(&config), &self.options.keys);
        let Answer {
            mut identity,
            warnings,
        } = match path.cluster.generations().answered(&need) {
            Some(identity) => identity.clone().into(),
            None => {
                let mac_of = |name: &IfName| device_mac(&*self.options.machine, name);
                let answer = self.asked.find(&need, options, mac_of).await;
                let answer = answer.ok_or(NotNow::CommandRuns)?;
                answer.map_err(NotNow::passing)?
            }
        };
        for generation in path.cluster.generations().all() {
            identity.keep_carrier_of(&generation.identity);
        }
        let published = published_by(&path.lease.attrs, &config.backend.kind);
        let backend = backend::new(&config, host, &identity, published.as_ref());
        let mut backend = backend.map_err(|e| {
            if e.is_in_config() {
                NotNow::for_good(e.to_string())
            } else {
                NotNow::passing(e.to_string())
            }
        })?;
        backend.set_own(&own);
        if let Some((family, why)) = lost_family(&*backend, path) {
            return Err(NotNow::passing(format!(
                "{family} would not be served any more: {why}"
            )));
        }
        let devices: Vec<IfName> = backend.devices().iter().map(|own| own.name).collect();
        path.lock
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
        let now = Instant::now();
        Ok(Some(Generation::new(config, identity, backend, now)))
    }

    /// Continues a change of the backend, as far as it can.
    pub(super) async fn advance(&mut self, path: &mut DataPath) -> Advance {
        let now = Instant::now();
        if path.cluster.follow_connections(&mut path.reconciler) {
            // Nothing else may wake the daemon for seconds, in which packets would leave unencrypted.
            path.pass(false).await;
        }
        let ready = make_ready(path);
        let generations = path.cluster.generations();
        let usable = generations.usable(now);
        let mut changed = false;
        if generations.has_several() {
            changed |= ready || self.usable != usable;
            changed |= end_hopeless_trial(path, now);
            changed |= self.give_up(path, now);
            changed |= retire(path, now);
        }
        self.usable = usable;
        if changed {
            Advance::Apply
        } else if path.cluster.generations().has_several() {
            Advance::Publish
        } else {
            Advance::Nothing
        }
    }

    /// Gives up a new backend that the kernel refuses. Returns whether so.
    fn give_up(&mut self, path: &mut DataPath, now: Instant) -> bool {
        if !path.cluster.generations().is_hopeless(now) {
            return false;
        }
        let Some(newest) = path.cluster.generations_mut().give_up() else {
            return false;
        };
        let owner = Owner::Generation(newest.slot);
        let why = not_ready(path, owner);
        path.reconciler.set(owner, []);
        let kept = path.cluster.generations().newest().config.backend.clone();
        let before = NetConfig {
            backend: kept,
            ..self.configured.clone()
        };
        let wanted = std::mem::replace(&mut self.configured, before);
        let reason = format!(
            "the backend {} cannot be used here: {why}; {} stays in use, and the change is tried again",
            newest.backend.kind(),
            path.cluster.generations().newest().backend.kind()
        );
        self.wanted.failed(wanted, reason, true);
        self.report(&path.status);
        true
    }
}

/// Returns why what a backend needs is not there.
fn not_ready(path: &mut DataPath, owner: Owner) -> String {
    match path.reconciler.progress(owner) {
        Progress::Refused(refused) => format!("{}: {}", refused.op, refused.refusal.reason),
        Progress::Pending | Progress::Installed => "its devices do not come up".to_owned(),
    }
}

/// Ends the trial of a backend that the kernel refuses. Returns whether so.
fn end_hopeless_trial(path: &mut DataPath, now: Instant) -> bool {
    if !path.cluster.generations().is_trial_hopeless(now) {
        return false;
    }
    let Some(trial) = path.cluster.generations_mut().end_trial() else {
        return false;
    };
    let owner = Owner::Generation(trial.slot);
    warn!(
        "-backend {}: {}; it is not tried until flanneld is restarted or the network's backend changes",
        trial.backend.kind(),
        not_ready(path, owner)
    );
    path.reconciler.set(owner, []);
    true
}

/// Begins or ends the trial of another backend, after a change of the network's.
async fn follow_trial(path: &mut DataPath) {
    let options = Rc::clone(&path.options);
    let Some(wanted) = &options.trial else {
        return;
    };
    let generations = path.cluster.generations_mut();
    let pointless = trial::refusal(wanted, &generations.newest().config.backend);
    if pointless.is_some() {
        generations.retire_trial();
    }
    if path.cluster.generations().trial().is_some() {
        return;
    }
    let (lease, host) = (&path.lease, path.cluster.host().clone());
    let newest = path.cluster.generations().newest();
    let built = trial::prepare(wanted, newest, &lease.attrs, &host, &options).await;
    let built = match built {
        Ok(mut built) => {
            built.set_own(&lease.key);
            trial::lock(&built, &mut path.lock).await.map(|()| built)
        }
        Err(reason) => Err(reason),
    };
    match built {
        Ok(built) => path.cluster.generations_mut().add_trial(built),
        Err(reason) => warn!("{reason}"),
    }
}

/// Returns a family that the newest backend in use serves and `backend` does not, and why not.
fn lost_family<'a>(
    backend: &'a dyn Backend,
    path: &DataPath,
) -> Option<&'a (Family, BackendError)> {
    let missing = path.cluster.generations().newest().backend.missing();
    let served = |family: &Family| !missing.iter().any(|(of, _)| of == family);
    backend.missing().iter().find(|(of, _)| served(of))
}

/// Puts the backend of a changed configuration first among those in use. Returns the host that they are to be applied
/// for.
async fn put_in_force(newer: Generation, path: &mut DataPath) -> Host {
    let (before, after) = (path.config().clone(), newer.config.clone());
    if let Some(slot) = path.cluster.generations_mut().add(newer) {
        path.reconciler.set(Owner::Generation(slot), []);
    }
    for generation in path.cluster.generations_mut().all_mut() {
        generation.config.pools = after.pools;
        generation.config.nftables = after.nftables;
    }
    follow_trial(path).await;
    let host = path.cluster.host().clone();
    if let Err(error) = path.rebuild_backends(&host) {
        warn!("a backend that was in use stays as it was: {error}");
    }
    path.follow_traffic(&before, &after).await;
    let newest = &path.cluster.generations().newest().backend;
    report_unserved(&**newest, None, &path.status);
    host
}

/// Takes in which backends have their devices now. Returns whether one has them for the first time.
fn make_ready(path: &mut DataPath) -> bool {
    let mut changed = false;
    for generation in path.cluster.generations_mut().all_mut() {
        let owner = Owner::Generation(generation.slot);
        if !generation.ready && path.reconciler.progress(owner) == Progress::Installed {
            generation.ready = true;
            changed = true;
        }
    }
    changed
}

/// Ends the use of former backends that no other node needs. Returns whether it did.
fn retire(path: &mut DataPath, now: Instant) -> bool {
    let lags = !path.complete || path.cluster.lags();
    let nodes = path.cluster.counts().0;
    let generations = path.cluster.generations_mut();
    let newest = generations.newest().backend.kind();
    let former = generations.former().iter();
    let former: Vec<String> = former.map(|own| own.backend.kind().to_string()).collect();
    let gone = generations.retire(lags, nodes, now);
    if gone.is_empty() {
        return false;
    }
    for slot in gone {
        path.reconciler.set(Owner::Generation(slot), []);
    }
    info!(
        "every node has changed to {newest}: {} is not served any more",
        former.join(", ")
    );
    true
}

/// Why a changed configuration is not in force.
enum NotNow {
    /// A command must end first.
    CommandRuns,
    Because {
        reason: String,
        /// It may be applied later.
        may_pass: bool,
    },
}

impl NotNow {
    fn for_good(reason: String) -> NotNow {
        NotNow::Because {
            reason,
            may_pass: false,
        }
    }

    fn passing(reason: String) -> NotNow {
        NotNow::Because {
            reason,
            may_pass: true,
        }
    }
}
