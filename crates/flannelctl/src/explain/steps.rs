//! The steps, what was found at each, and those that need nothing but lease and daemon.

use flanneld::report::{NodeReport, PeerReport, PeerStatus, PeersReport};
use serde::Serialize;
use serde_json::json;

use super::ends::{End, Ends};
use crate::check::report::Level;
use crate::check::scene::Scene;
use crate::output::{Ink, line};

/// What the daemon says, or why it says nothing.
pub(crate) type Daemon = Result<(NodeReport, PeersReport), String>;

/// One step.
#[derive(Serialize)]
pub(super) struct Step {
    level: Level,
    name: &'static str,
    text: String,
    /// The command that asks the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

/// All of them, in the order in which a packet takes them.
pub(super) struct Steps {
    title: String,
    done: Vec<Step>,
}

impl Steps {
    pub(super) fn new(ends: &Ends) -> Steps {
        let (local, far) = (ends.local.address, ends.far);
        let title = if ends.swapped {
            format!("{far} to {local}, looked at from the receiving node")
        } else {
            format!("{local} to {far}")
        };
        Steps {
            title,
            done: Vec::new(),
        }
    }

    pub(super) fn ok(&mut self, name: &'static str, text: impl Into<String>) {
        self.add(Level::Ok, name, text.into(), None, None);
    }

    /// As it should be, with the command that shows it.
    pub(super) fn shown(&mut self, name: &'static str, text: impl Into<String>, command: String) {
        self.add(Level::Ok, name, text.into(), Some(command), None);
    }

    /// Something that may do harm, but not to this packet as far as can be seen.
    pub(super) fn warn(
        &mut self,
        name: &'static str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Level::Warn, name, text.into(), None, Some(remedy.into()));
    }

    /// Here the packet is lost.
    pub(super) fn fail(
        &mut self,
        name: &'static str,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.add(Level::Fail, name, text.into(), None, Some(remedy.into()));
    }

    pub(super) fn skip(&mut self, name: &'static str, text: impl Into<String>) {
        self.add(Level::Skip, name, text.into(), None, None);
    }

    fn add(
        &mut self,
        level: Level,
        name: &'static str,
        text: String,
        command: Option<String>,
        remedy: Option<String>,
    ) {
        self.done.push(Step {
            level,
            name,
            text,
            command,
            remedy,
        });
    }

    /// The first step at which the packet is lost.
    pub(super) fn broken(&self) -> Option<&Step> {
        self.done.iter().find(|step| step.level == Level::Fail)
    }

    /// Whether nothing was found to be wrong at a step of this name.
    pub(super) fn is_good(&self, name: &str) -> bool {
        let mut of_name = self.done.iter().filter(|step| step.name == name);
        of_name.all(|step| step.level != Level::Fail)
    }

    /// Writes them, for people or as JSON.
    pub(super) fn print(&self, as_json: bool) {
        let broken = self.broken();
        if as_json {
            let object = json!({
                "way": self.title,
                "steps": self.done,
                "broken": broken.map(|step| step.name),
            });
            return line(&format!("{object:#}"));
        }
        let ink = Ink::of_stdout();
        line(&ink.bold(&self.title));
        for step in &self.done {
            let mark = match step.level {
                Level::Ok => ink.good("ok  "),
                Level::Warn => ink.bold("warn"),
                Level::Fail => ink.bad("FAIL"),
                Level::Skip => "skip".into(),
            };
            line(&format!("{mark}  {:<11} {}", step.name, step.text));
            if let Some(command) = &step.command {
                line(&format!("{:18}$ {command}", ""));
            }
            if let Some(remedy) = &step.remedy {
                line(&format!("{:18}-> {remedy}", ""));
            }
        }
        match broken {
            None => line("nothing is broken on this node"),
            Some(step) => line(&format!(
                "{} {}: {}",
                ink.bad("broken:"),
                step.name,
                step.text
            )),
        }
    }
}

/// Whether flanneld runs and is ready. Packets flow without it.
pub(super) fn flanneld(steps: &mut Steps, daemon: &Daemon) {
    const NAME: &str = "flanneld";
    match daemon {
        Ok((report, _)) if report.ready => {
            steps.ok(NAME, format!("version {}, ready", report.version));
        }
        Ok((report, _)) => steps.warn(
            NAME,
            format!("not ready: {}", report.problems.join("; ")),
            "fix what it names; the steps below show what that breaks",
        ),
        Err(why) => steps.warn(
            NAME,
            format!("does not answer, so that nothing is repaired: {why}"),
            "systemctl start flanneld, or look at its pod",
        ),
    }
}

/// What the daemon reports of the peer with this lease.
pub(super) fn reported<'a>(daemon: &'a Daemon, remote: &End) -> Option<&'a PeerReport> {
    let (_, peers) = daemon.as_ref().ok()?;
    let lease = remote.lease.as_ref()?;
    let mut nets = lease.key.nets().iter().map(|(_, net)| net.to_string());
    let first = nets.next()?;
    peers
        .peers
        .iter()
        .find(|peer| peer.subnets.contains(&first))
}

/// The other node's lease. Returns whether it can be used.
pub(super) fn lease(
    steps: &mut Steps,
    ends: &Ends,
    remote: &End,
    scene: &Scene,
    daemon: &Daemon,
) -> bool {
    const NAME: &str = "lease";
    let Some(lease) = &remote.lease else {
        let networks = scene.stored.config.as_ref().map(|config| config.pools);
        let network = networks.and_then(|pools| pools.get(ends.family).map(|pool| pool.network));
        let inside = network.is_some_and(|network| network.contains(&remote.address));
        if inside {
            steps.fail(
                NAME,
                format!("no lease covers {}", remote.address),
                "start flanneld on the node of that container; if it runs, `flannelctl status` there says what it waits for",
            );
        } else {
            steps.fail(
                NAME,
                format!("{} is outside the flannel network", remote.address),
                "the address of a Service is translated on the way (kube-proxy): give the address of a container behind it",
            );
        }
        return false;
    };
    let attrs = match &lease.attrs {
        Ok(attrs) => attrs,
        Err(why) => {
            steps.fail(
                NAME,
                format!("lease {} cannot be read: {why}", lease.key),
                "restart that node's flanneld, which writes it again",
            );
            return false;
        }
    };
    if let Some(peer) = reported(daemon, remote) {
        let reason = peer.reason.clone().unwrap_or_default();
        match peer.state {
            PeerStatus::Refused | PeerStatus::Unusable => {
                steps.fail(
                    NAME,
                    format!("lease {} is {}: {reason}", lease.key, peer.state.name()),
                    "fix or delete that lease; its node's flanneld publishes it again when it is restarted",
                );
                return false;
            }
            PeerStatus::Failing => {
                steps.fail(
                    NAME,
                    format!(
                        "the kernel refuses what lease {} needs: {reason}",
                        lease.key
                    ),
                    "try that command by hand; the kernel's answer names what is missing",
                );
                return true;
            }
            PeerStatus::Pending | PeerStatus::Installed => {}
        }
    } else if daemon.is_ok() {
        steps.warn(
            NAME,
            format!("flanneld does not know lease {} yet", lease.key),
            "wait a moment; if it lasts, look at flanneld's store in `flannelctl status`",
        );
    }
    let ips: Vec<String> = attrs
        .public_ip
        .iter()
        .map(|(_, ip)| ip.to_string())
        .collect();
    let kind = attrs.backend_type.as_ref().map(ToString::to_string);
    steps.ok(
        NAME,
        format!(
            "{} of the node {}, backend {}",
            lease.key,
            ips.join(", "),
            kind.unwrap_or_default()
        ),
    );
    true
}
