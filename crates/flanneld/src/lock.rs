//! One daemon for each network and each device of a host: two of them would undo each other's work.
//!
//! The lock is a set of abstract unix sockets, one for each device and each address range. The kernel keeps
//! their names for each network namespace, which is what the devices and routes belong to, whatever
//! files a container sees; and a name is free again as soon as its process has ended, however it ended.
//! So a restart is not delayed, and whoever waits is woken by the end of a connection.
//!
//! Anybody on the host can bind such a name, or fill the queue of one. So a holder counts only if root or this
//! process's own user could have made it, and if it can be waited for.

mod owner;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use ipnet::IpNet;
use model::{Dual, IfName};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::socket_peer::is_root_or_own_user;
use crate::status::Status;
use owner::Owner;

/// How long after the end of a holder's connection the lock is tried again.
const SOON: Duration = Duration::from_millis(10);

/// How long after a connection to the holder could not be made the lock is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a connection to the holder may take.
const CONNECT: Duration = Duration::from_secs(1);

/// The lock is tried again after this time also if the holder's end was not seen.
const LATEST: Duration = Duration::from_secs(5);

/// How long a holder is waited for that takes no connection, until it is looked for in `/proc`.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How long a holder is waited for that does not listen, which a flanneld does.
const MUTE: Duration = Duration::from_secs(5);

/// How long a holder is waited for whose queue is full and whose user is unknown.
const UNKNOWN: Duration = Duration::from_secs(30);

/// The lock on a network and its devices, for as long as it is not dropped.
pub(crate) struct Lock {
    sockets: BTreeMap<String, UnixListener>,
    /// Nobody else can run on this machine.
    is_alone: bool,
    /// What was found about the holders of what is to be locked, too.
    waiting: Waiting,
}

impl Lock {
    /// Takes the lock. While another daemon has a part of it, waits until that one ends and returns `None`:
    /// what was read before is old then.
    pub(crate) async fn take(
        networks: &Dual<IpNet>,
        devices: &[IfName],
        status: &Status,
        waiting: &mut Waiting,
    ) -> Option<Lock> {
        match waiting.try_all(&names(networks, devices)).await {
            Ok(sockets) => {
                if waiting.logged.take().is_some() {
                    info!("no other flanneld is waited for any more");
                    status.set_host_problem(None);
                }
                return Some(Lock {
                    sockets,
                    is_alone: false,
                    waiting: Waiting::default(),
                });
            }
            Err(Obstacle::Daemon(text)) => {
                let remedy = "waiting until it ends; a second network on one host needs its own Network and VNI";
                waiting.report(text, remedy, status);
                waiting.wait().await;
            }
            Err(Obstacle::Silent(text, pause)) => {
                waiting.report(text, "waiting for an answer for a while", status);
                tokio::time::sleep(pause).await;
            }
            Err(Obstacle::Changing) => tokio::time::sleep(AGAIN).await,
        }
        None
    }

    /// Returns the lock of a machine on which nobody else can run.
    pub(crate) fn none() -> Lock {
        Lock {
            sockets: BTreeMap::new(),
            is_alone: true,
            waiting: Waiting::default(),
        }
    }

    /// Takes the lock on these networks and devices, too. Waits for nobody.
    ///
    /// # Errors
    /// Another daemon has a part of it, or may have: which.
    pub(crate) async fn extend(
        &mut self,
        networks: &Dual<IpNet>,
        devices: &[IfName],
    ) -> Result<(), String> {
        if self.is_alone {
            return Ok(());
        }
        let mut missing = names(networks, devices);
        missing.retain(|name| !self.sockets.contains_key(name));
        match self.waiting.try_all(&missing).await {
            Ok(sockets) => {
                self.sockets.extend(sockets);
                Ok(())
            }
            Err(Obstacle::Daemon(text) | Obstacle::Silent(text, _)) => Err(text),
            Err(Obstacle::Changing) => Err("another flanneld has just ended on this host".into()),
        }
    }

    /// Gives up everything but these networks and devices.
    pub(crate) fn reduce(&mut self, networks: &Dual<IpNet>, devices: &[IfName]) {
        let kept = names(networks, devices);
        self.sockets.retain(|name, _| kept.contains(name));
    }
}

/// Why a name cannot be had.
#[derive(Debug, PartialEq, Eq)]
enum Obstacle {
    /// Another daemon has it, as this text says.
    Daemon(String),
    /// Somebody has it who takes no connection, as this text says: try again after this time.
    Silent(String, Duration),
    /// It was bound or released just now: try again soon.
    Changing,
}

/// What was found about the holders of names.
#[derive(Default)]
pub(crate) struct Waiting {
    /// Who is waited for, as the log said last.
    logged: Option<String>,
    /// The connection to the holder that is waited for. There is one only: nobody accepts it, so a new one
    /// for each attempt would fill the holder's queue.
    holder: Option<Holder>,
    /// Since when the holder of a name takes no connection.
    silent: BTreeMap<String, Instant>,
    /// The names without which this daemon goes on, as the log said.
    ignored: BTreeSet<String>,
}

/// A daemon that has a name.
struct Holder {
    name: String,
    /// Its process, as far as this process can see it.
    pid: Option<i32>,
    connection: UnixStream,
}

impl Holder {
    /// Returns whether it still has the name.
    fn lives(&self) -> bool {
        let read = self.connection.try_read(&mut [0]);
        matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }
}

impl Waiting {
    fn report(&mut self, text: String, remedy: &str, status: &Status) {
        if self.logged.as_ref() != Some(&text) {
            warn!("{text}: {remedy}");
        }
        status.set_host_problem(Some(format!("waiting: {text}")));
        self.logged = Some(text);
    }

    /// Waits for the end of the holder.
    async fn wait(&self) {
        match &self.holder {
            Some(holder) => {
                let _ = tokio::time::timeout(LATEST, holder.connection.readable()).await;
                tokio::time::sleep(SOON).await;
            }
            None => tokio::time::sleep(LATEST).await,
        }
    }

    /// Takes every name, or none and says what keeps it from one.
    async fn try_all(
        &mut self,
        names: &[String],
    ) -> Result<BTreeMap<String, UnixListener>, Obstacle> {
        let mut sockets = BTreeMap::new();
        for name in names {
            match bind(name) {
                Ok(socket) => {
                    self.ignored.remove(name);
                    self.silent.remove(name);
                    sockets.insert(name.clone(), socket);
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    if let Some(stranger) = self.stranger(name).await? {
                        // Anybody on the host may use the name; only another daemon counts.
                        if self.ignored.insert(name.clone()) {
                            warn!("the lock on {name} is held by {stranger}; going on without it");
                        }
                    }
                }
                // The lock is a help, and no condition for a network.
                Err(error) => debug!("the lock on {name} cannot be taken: {error}"),
            }
        }
        Ok(sockets)
    }

    /// Returns who has `name` if that is no daemon, and the obstacle if it may be one.
    async fn stranger(&mut self, name: &str) -> Result<Option<String>, Obstacle> {
        if let Some(holder) = self.holder.take_if(|holder| holder.name == name)
            && holder.lives()
        {
            let text = serves(holder.pid, name);
            self.holder = Some(holder);
            return Err(Obstacle::Daemon(text));
        }
        match connect(name).await {
            Ok((connection, true)) => {
                self.silent.remove(name);
                // The kernel says 0 for a process that our process namespace does not show.
                let pid = connection.peer_cred().ok().and_then(|peer| peer.pid());
                let pid = pid.filter(|pid| *pid > 0);
                self.holder = Some(Holder {
                    name: name.to_owned(),
                    pid,
                    connection,
                });
                Err(Obstacle::Daemon(serves(pid, name)))
            }
            Ok((_, false)) => Ok(Some("a program that is not flanneld's user".to_owned())),
            Err(error) => {
                let now = Instant::now();
                let since = *self.silent.entry(name.to_owned()).or_insert(now);
                let silent_for = now - since;
                if silent_for < LOOK_AFTER {
                    return Err(Obstacle::Changing);
                }
                let owner = owner::find(&text(name));
                judge(name, &error, owner.as_ref(), owner::own_user(), silent_for)
            }
        }
    }
}

/// Decides about a holder that has taken no connection for some time: returns who it is if it is no daemon.
fn judge(
    name: &str,
    error: &io::Error,
    owner: Option<&Owner>,
    own_user: Option<u32>,
    silent_for: Duration,
) -> Result<Option<String>, Obstacle> {
    let listens = error.kind() != ErrorKind::ConnectionRefused;
    let who = owner.map_or_else(
        || "a process that cannot be seen from here".to_owned(),
        Owner::to_string,
    );
    match owner {
        Some(owner) if !owner.is_root_or(own_user) => {
            return Ok(Some(format!("{who}, which is not flanneld's user")));
        }
        // Somebody filled its queue.
        Some(owner) if listens => return Err(Obstacle::Daemon(serves(Some(owner.pid), name))),
        Some(_) | None => {}
    }
    let limit = if listens { UNKNOWN } else { MUTE };
    if silent_for >= limit {
        return Ok(Some(format!("{who}, which takes no connection ({error})")));
    }
    let text = format!("the lock on {name} is held by {who}, which takes no connection ({error})");
    Err(Obstacle::Silent(text, LATEST.min(limit - silent_for)))
}

fn serves(pid: Option<i32>, name: &str) -> String {
    let pid = pid.map(|pid| format!(" (pid {pid})"));
    format!(
        "another flanneld{} serves {name} on this host",
        pid.unwrap_or_default()
    )
}

fn names(networks: &Dual<IpNet>, devices: &[IfName]) -> Vec<String> {
    let networks = networks.iter().map(|(_, net)| format!("network {net}"));
    let devices = devices.iter().map(|dev| format!("device {dev}"));
    let mut names: Vec<String> = networks.chain(devices).collect();
    // In one order everywhere.
    names.sort_unstable();
    names.dedup();
    names
}

fn bind(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(text(name))?)
}

fn text(name: &str) -> String {
    format!("flannel-rs {name}")
}

/// Connects to the holder of `name`. Nobody accepts the connection: that it exists is enough to see the
/// holder's end. Returns also whether it is a program of a user who could be running a daemon.
async fn connect(name: &str) -> io::Result<(UnixStream, bool)> {
    let connect = UnixStream::connect(format!("\0{}", text(name)));
    let connection = tokio::time::timeout(CONNECT, connect).await??;
    let is_daemons = is_root_or_own_user(&connection)?;
    Ok((connection, is_daemons))
}

#[cfg(test)]
mod tests;
