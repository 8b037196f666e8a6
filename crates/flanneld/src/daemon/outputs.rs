//! What this node announces: `subnet.env`, the CNI configuration, its condition in the store.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use store::{AnyStore, Trouble};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::warn;

use super::data_path::DataPath;
use crate::announce::{Announcement, Step};
use crate::cni_conf;
use crate::options::Options;
use crate::status::{Phase, Status};
use crate::subnet_env::SubnetEnv;
use crate::subnet_file::SubnetFileError;

/// How often a trouble that lasts is reported again.
const TROUBLE_AGAIN: Duration = Duration::from_secs(600);

/// What is announced, and what keeps it as it was announced.
pub(super) struct Outputs {
    options: Rc<Options>,
    status: Status,
    announcement: Announcement,
    subnet_env: SubnetEnv,
    /// Keeps the CNI configuration in place, while the node is announced.
    cni_conf: Option<AbortHandle>,
    /// Troubles that last, and when each is reported again.
    reported: BTreeMap<&'static str, Instant>,
}

impl Outputs {
    /// Returns the outputs of a node that is not announced yet.
    pub(super) fn new(options: Rc<Options>, status: Status) -> Outputs {
        Outputs {
            announcement: Announcement::new(Instant::now()),
            subnet_env: SubnetEnv::new(options.subnet_file.clone()),
            cni_conf: None,
            reported: BTreeMap::new(),
            options,
            status,
        }
    }

    /// Returns when [`Outputs::announce`] has something to do although nothing changes.
    pub(super) fn due(&self) -> Option<Instant> {
        let file = self.announcement.is_made().then(|| self.subnet_env.due());
        self.announcement.due().into_iter().chain(file).min()
    }

    /// Announces the node when its devices are up, withdraws the announcement when they are missing for long, and
    /// keeps `subnet.env` as it was announced. Returns whether it looked at the file, which it does at intervals.
    ///
    /// # Errors
    /// `subnet.env` cannot be written for the first time.
    pub(super) fn announce(
        &mut self,
        path: &mut DataPath,
        store: &mut AnyStore,
    ) -> Result<bool, SubnetFileError> {
        let problem = path.device_problem();
        let now = Instant::now();
        match self.announcement.observe(problem.is_none(), now) {
            Step::Announce => {
                self.write_subnet_env(path)?;
                if let Some(conf) = self.options.cni_conf.clone() {
                    self.cni_conf = Some(cni_conf::start(conf, self.status.clone()));
                }
                self.status.set_started();
                set_network(store, true);
            }
            Step::Report => {
                let message = problem.unwrap_or_default();
                warn!("{message}; this node is not announced as ready before it is there");
                report(store, "DeviceMissing", message);
            }
            Step::Withdraw => {
                let message = problem.unwrap_or_default();
                warn!("{message}; this node is no longer announced as ready");
                self.status.set_phase(Phase::Withdrawn);
                self.withdraw_cni_conf();
                set_network(store, false);
                report(store, "DeviceMissing", message);
            }
            Step::Nothing => {}
        }
        if !self.announcement.is_made() || now < self.subnet_env.due() {
            return Ok(false);
        }
        let text = path.subnet_env_text();
        self.subnet_env.restore(&text, &self.status);
        self.report_troubles(store, now);
        Ok(true)
    }

    /// Writes `subnet.env` again after a change of the backends, if the node is announced.
    pub(super) fn follow_backends(&mut self, path: &DataPath) {
        if self.announcement.is_made()
            && let Err(error) = self.write_subnet_env(path)
        {
            self.subnet_env
                .report(Some(error.to_string()), &self.status);
        }
    }

    fn write_subnet_env(&self, path: &DataPath) -> Result<(), SubnetFileError> {
        let mtu = path.cluster.generations().mtu();
        self.subnet_env.write(&path.subnet_env_text(), mtu)
    }

    /// Leaves the CNI configuration as it is from now on.
    pub(super) fn abort(&self) {
        self.cni_conf.iter().for_each(AbortHandle::abort);
    }

    /// Removes the CNI configuration.
    pub(super) fn withdraw_cni_conf(&mut self) {
        if let Some(keeper) = self.cni_conf.take() {
            keeper.abort();
        }
        if let Some(conf) = &self.options.cni_conf {
            cni_conf::remove(conf);
            self.status.set_cni_installed(false);
        }
    }

    /// Reports what keeps this node from working as it announces: when it begins, and while it lasts.
    fn report_troubles(&mut self, store: &mut AnyStore, now: Instant) {
        let troubles = self.status.troubles();
        self.reported
            .retain(|reason, _| troubles.iter().any(|(lasting, _)| lasting == reason));
        for (reason, message) in troubles {
            let again = self.reported.get(reason).copied();
            if again.is_none_or(|again| again <= now) {
                self.reported.insert(reason, now + TROUBLE_AGAIN);
                report(store, reason, message);
            }
        }
    }
}

/// Says on this machine's Node, if the store has one, whether pods can be placed here.
fn set_network(store: &mut AnyStore, available: bool) {
    if let Some(node) = store.node() {
        node.set_network(available);
    }
}

/// Reports a trouble on this machine's Node, if the store has one.
fn report(store: &mut AnyStore, reason: &'static str, message: String) {
    if let Some(node) = store.node() {
        node.report(Trouble {
            reason,
            message,
            node: None,
        });
    }
}
