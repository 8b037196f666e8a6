//! One daemon for each network and each device of a host: two of them would undo each other's work.
//!
//! The lock is a set of abstract unix sockets, one for each device and each address range. The kernel keeps
//! their names for each network namespace, which is what the devices and routes belong to, whatever
//! files a container sees; and a name is free again as soon as its process has ended, however it ended.
//! So a restart is not delayed, and whoever waits is woken by the end of a connection.

use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use ipnet::IpNet;
use model::{Dual, IfName};
use tokio::net::UnixStream;
use tracing::{debug, info, warn};

use crate::socket_peer::is_root_or_own_user;
use crate::status::Status;

/// How long after the end of a holder's connection the lock is tried again.
const SOON: Duration = Duration::from_millis(10);

/// How long after a connection to the holder could not be made the lock is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a connection to the holder may take.
const CONNECT: Duration = Duration::from_secs(1);

/// The lock is tried again after this time also if the holder's end was not seen.
const LATEST: Duration = Duration::from_secs(5);

/// The lock on a network and its devices, for as long as it is not dropped.
pub(crate) struct Lock {
    _sockets: Vec<UnixListener>,
}

/// The one that has a name.
struct Holder {
    name: String,
    /// Its process, as far as this process can see it.
    pid: Option<i32>,
    connection: UnixStream,
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
        match try_all(&names(networks, devices)).await {
            Ok(sockets) => {
                if waiting.0.take().is_some() {
                    info!("the other flanneld has ended");
                    status.set_host_problem(None);
                }
                return Some(Lock { _sockets: sockets });
            }
            Err(Some(holder)) => {
                waiting.report(&holder, status);
                // Ends when the holder does.
                let _ = tokio::time::timeout(LATEST, holder.connection.readable()).await;
                tokio::time::sleep(SOON).await;
            }
            Err(None) => tokio::time::sleep(AGAIN).await,
        }
        None
    }
}

/// Who is waited for, as the log said last.
#[derive(Default)]
pub(crate) struct Waiting(Option<String>);

impl Waiting {
    fn report(&mut self, holder: &Holder, status: &Status) {
        let pid = holder.pid.map(|pid| format!(" (pid {pid})"));
        let text = format!(
            "another flanneld{} serves {} on this host",
            pid.unwrap_or_default(),
            holder.name
        );
        if self.0.as_ref() != Some(&text) {
            warn!(
                "{text}: waiting until it ends; a second network on one host needs its own Network and VNI"
            );
        }
        status.set_host_problem(Some(format!("waiting: {text}")));
        self.0 = Some(text);
    }
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

/// Takes every name, or none and returns who has one. `Err(None)`: it was let go just now.
async fn try_all(names: &[String]) -> Result<Vec<UnixListener>, Option<Holder>> {
    let mut sockets = Vec::new();
    for name in names {
        match bind(name) {
            Ok(socket) => sockets.push(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse => match holder(name).await {
                Ok(Some(holder)) => return Err(Some(holder)),
                // Anybody on the host may use the name; only another daemon counts.
                Ok(None) => warn!(
                    "the lock on {name} is held by a program that is not flanneld's user; \
                     going on without it"
                ),
                Err(error) => {
                    debug!("the holder of the lock on {name}: {error}");
                    return Err(None);
                }
            },
            // The lock is a help, and no condition for a network.
            Err(error) => debug!("the lock on {name} cannot be taken: {error}"),
        }
    }
    Ok(sockets)
}

fn bind(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(text(name))?)
}

fn text(name: &str) -> String {
    format!("flannel-rs {name}")
}

/// Returns who holds `name`; `None` if it is a program of a user who could not be running a daemon.
async fn holder(name: &str) -> io::Result<Option<Holder>> {
    // Nobody accepts the connection: that it exists is enough to see its end.
    let connect = UnixStream::connect(format!("\0{}", text(name)));
    let connection = tokio::time::timeout(CONNECT, connect).await??;
    let is_daemons = is_root_or_own_user(&connection)?;
    // The kernel says 0 for a process that our process namespace does not show.
    let pid = connection.peer_cred()?.pid().filter(|pid| *pid > 0);
    Ok(is_daemons.then(|| Holder {
        name: name.to_owned(),
        pid,
        connection,
    }))
}
