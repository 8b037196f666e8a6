//! Follows the host's interface: another address, another MTU, another interface with the same addresses.

use std::rc::Rc;
use std::time::Duration;

use model::Host;
use tokio::time::Instant;
use tracing::{info, warn};

use super::data_path::DataPath;
use crate::allowance::Allowance;
use crate::few_lines::FewLines;
use crate::iface::{self, Look, NoIface};
use crate::options::Options;
use crate::settle::{addresses, connected, report_unserved};

/// How soon the host's interface is looked at again after a look that failed, and how often without any
/// notification.
const RETRY: Duration = Duration::from_secs(5);
const AUDIT: Duration = Duration::from_secs(120);

/// How many lines of one kind about the host's interface are written at once.
const LINES: u32 = 4;

/// How often the host's interface is looked at because it may have changed.
const LOOKS: (u32, Duration) = (20, Duration::from_millis(500));

/// When the host's interface is looked at, and what the log says about it.
pub(super) struct HostWatch {
    options: Rc<Options>,
    /// It may have changed since it was looked at.
    may_differ: bool,
    looks: Allowance,
    /// When it is looked at again without a notification.
    due: Instant,
    /// An interface of this host has a network that a lease might name.
    is_connected: bool,
    lost: FewLines,
    found: FewLines,
    changed: FewLines,
}

impl HostWatch {
    /// Returns a watch that looks at once.
    pub(super) fn new(options: Rc<Options>) -> HostWatch {
        HostWatch {
            options,
            may_differ: true,
            looks: Allowance::new(LOOKS.0, LOOKS.1),
            due: Instant::now(),
            is_connected: false,
            lost: FewLines::new(LINES),
            found: FewLines::new(LINES),
            changed: FewLines::new(LINES),
        }
    }

    /// Takes in that the interface may have changed.
    pub(super) fn may_differ(&mut self) {
        self.may_differ = true;
    }

    /// Returns when the interface is to be looked at.
    pub(super) fn due(&self) -> Instant {
        if self.may_differ {
            self.due.min(self.looks.next())
        } else {
            self.due
        }
    }

    /// Whether an interface of this host has a network that a lease might name.
    pub(super) fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Begins a look: what changes from now on is looked at again.
    pub(super) fn begin(&mut self, path: &mut DataPath) {
        self.looks.take(Instant::now());
        self.may_differ = false;
        self.due = Instant::now() + AUDIT.mul_f64(0.5 + fastrand::f64());
        self.follow_connected(path);
    }

    /// Refuses the leases of networks to which this host's interfaces are connected.
    pub(super) fn follow_connected(&mut self, path: &mut DataPath) {
        let mut found = connected(&*self.options.machine, path.config());
        let own = *path.lease.key.nets();
        found.retain(|net, _| own.iter().all(|(_, own)| !own.contains(net)));
        self.is_connected = !found.is_empty();
        path.cluster.set_connected(found, &mut path.reconciler);
    }

    /// Looks at the interface. If it is not what it was, builds the backends for it and returns the host that they are
    /// to be applied for: another look is then due, since what changes until the kernel's filter knows the new
    /// devices causes no notification.
    pub(super) fn look(&mut self, path: &mut DataPath) -> Option<Host> {
        let Options {
            iface,
            public_ip,
            machine,
            ..
        } = &*self.options;
        let (before, config) = (path.cluster.host(), path.config());
        let found = iface::find_again(&**machine, before, iface, public_ip, config);
        let Look {
            host,
            lost,
            is_partial,
        } = match found {
            Ok(found) => found,
            Err(problem) => {
                self.failed(&problem, path);
                return None;
            }
        };
        if is_partial {
            self.due = Instant::now() + RETRY;
        }
        if path.status.set_host_problem(None)
            && let Some(more) = self.found.next()
        {
            info!("interface {} is usable again{more}", host.iface);
        }
        let newest = &path.cluster.generations().newest().backend;
        report_unserved(&**newest, lost.as_ref(), &path.status);
        if host == *path.cluster.host() {
            return None;
        }
        let underlay_only = Host {
            underlay: path.cluster.host().underlay.clone(),
            ..host.clone()
        };
        if underlay_only == *path.cluster.host() {
            path.cluster.set_host(host, &mut path.reconciler);
            return None;
        }
        if let Err(error) = path.rebuild_backends(&host) {
            warn!(
                "after a change of interface {}: {error}; keeping what is there",
                host.iface
            );
            return None;
        }
        if let Some(more) = self.changed.next() {
            info!(iface = %host.iface, mtu = host.mtu, "the host's interface changed{}{more}", addresses(&host.public_ip));
        }
        let newest = &path.cluster.generations().newest().backend;
        report_unserved(&**newest, lost.as_ref(), &path.status);
        Some(host)
    }

    /// Reports that the interface cannot be used.
    fn failed(&mut self, problem: &NoIface, path: &DataPath) {
        // No notification follows if the look itself failed, or if another interface gets the addresses.
        self.due = Instant::now() + RETRY;
        let text = problem.to_string();
        // The Event about it is one of [`crate::status::Status::troubles`].
        if path.status.set_host_problem(Some(text.clone()))
            && let Some(more) = self.lost.next()
        {
            warn!("{text}; keeping what is there{more}");
        }
    }
}
