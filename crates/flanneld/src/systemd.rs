//! What systemd is told, where it asked: readiness, a line of status, and that the main loop lives.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::sleep;
use tracing::warn;

use crate::node::StatusChanges;
use crate::status::{Phase, Question, Status};

/// How long an answer of the main loop may take: if it hangs, the service manager ends this process before.
const LATEST_ANSWER: Duration = Duration::from_secs(3600);

/// How soon the main loop is asked again while it does not run, as before there is a subnet.
const NOT_RUNNING: Duration = Duration::from_secs(1);

/// Whether the last notification could not be sent: the log says so once.
static FAILS: AtomicBool = AtomicBool::new(false);

/// Reports what a node is, until it ends: that it is ready, what it waits for, and that its main loop turns. Returns at
/// once without a service manager that wants to know.
pub async fn follow(status: Status) {
    if let Some(manager) = Manager::from_environment() {
        tokio::join!(
            follow_status(&manager, status.clone()),
            follow_loop(&manager, status)
        );
    }
}

/// Reports that this process is about to end. A service manager that has no room for the message does not get it: it
/// sees the end.
pub fn stopping(why: &str) {
    if let Some(manager) = Manager::from_environment() {
        manager.notify_now(&[NotifyState::Stopping, NotifyState::Status(why)]);
    }
}

async fn follow_status(manager: &Manager, status: Status) {
    let mut changes = StatusChanges::new(status.clone());
    let (mut was_announced, mut told) = (false, String::new());
    while let Some(now) = changes.next().await {
        let text = match (&now.lease, now.problems.is_empty()) {
            (Some(lease), true) => {
                let network = status.report().network;
                let backend = network.map(|network| network.backend);
                format!(
                    "subnet {}, backend {}",
                    lease.key,
                    backend.unwrap_or_default()
                )
            }
            (_, _) => now.problems.join("; "),
        };
        match now.phase {
            // The devices are up and `subnet.env` is written.
            Phase::Announced if !was_announced => {
                let ready = [NotifyState::Ready, NotifyState::Status(&text)];
                manager.notify(&ready).await;
            }
            Phase::Ended => return,
            _ if text != told && !text.is_empty() => {
                manager.notify(&[NotifyState::Status(&text)]).await;
            }
            _ => {}
        }
        was_announced |= now.phase == Phase::Announced;
        told = text;
    }
}

async fn follow_loop(manager: &Manager, status: Status) {
    let Some(period) = watchdog_period() else {
        return;
    };
    while status.node().phase != Phase::Ended {
        // However late the answer is, it is passed on at once.
        if status.ask(LATEST_ANSWER, Question::Alive).await.is_some() {
            manager.notify(&[NotifyState::Watchdog]).await;
            sleep(period).await;
        } else {
            sleep(period.min(NOT_RUNNING)).await;
        }
    }
}

/// Returns how often the service manager must be notified that the main loop turns: half of what `WatchdogSec` allows.
/// `None` without a watchdog.
fn watchdog_period() -> Option<Duration> {
    let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
    limit.map(|limit| limit / 2)
}

/// The service manager's socket. Nothing blocks on it: a manager that hangs reads no messages, and must not stop this
/// node.
struct Manager {
    /// A path, or `@` and an abstract name.
    address: OsString,
}

impl Manager {
    fn from_environment() -> Option<Manager> {
        let address = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())?;
        Some(Manager { address })
    }

    fn connect(&self) -> io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        match self.address.as_bytes().strip_prefix(b"@") {
            Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => socket.connect(&self.address)?,
        }
        Ok(socket)
    }

    /// Sends a message as soon as the manager has room for it.
    async fn notify(&self, states: &[NotifyState<'_>]) {
        let send = async {
            let socket = tokio::net::UnixDatagram::from_std(self.connect()?)?;
            socket.send(message(states).as_bytes()).await
        };
        report(send.await);
    }

    /// Sends a message if the manager has room for it now.
    fn notify_now(&self, states: &[NotifyState<'_>]) {
        let socket = self.connect();
        report(socket.and_then(|socket| socket.send(message(states).as_bytes())));
    }
}

/// Returns the text of a message: one line for each state, whatever is in it.
fn message(states: &[NotifyState<'_>]) -> String {
    let line = |state: &NotifyState<'_>| state.to_string().replace(char::is_control, " ") + "\n";
    states.iter().map(line).collect()
}

fn report(sent: io::Result<usize>) {
    match sent {
        Ok(_) => FAILS.store(false, Ordering::Relaxed),
        Err(error) if !FAILS.swap(true, Ordering::Relaxed) => {
            warn!(%error, "cannot notify the service manager ($NOTIFY_SOCKET)");
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_manager_that_does_not_read_stops_nothing_and_learns_of_readiness_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
        let manager = Manager {
            address: path.into(),
        };
        while manager.connect().unwrap().send(b"X_FULL=1\n").is_ok() {}
        manager.notify_now(&[NotifyState::Stopping]);
        let status = Status::default();
        let followed = status.clone();
        let following = tokio::spawn(async move { follow_status(&manager, followed).await });
        status.set_started();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!following.is_finished());
        let mut buffer = [0; 4096];
        loop {
            let read = timeout(LIMIT, socket.recv(&mut buffer)).await;
            let len = read.unwrap().unwrap();
            if buffer[..len].starts_with(b"READY=1\n") {
                break;
            }
        }
        status.set_phase(Phase::Ended);
        timeout(LIMIT, following).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_abstract_name_is_reached_and_a_text_stays_one_line() {
        let name = format!("flannel-rs-{}-{:x}", std::process::id(), fastrand::u64(..));
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let manager = Manager {
            address: format!("@{name}").into(),
        };
        manager
            .notify(&[NotifyState::Status("a\nREADY=1"), NotifyState::Watchdog])
            .await;
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"STATUS=a READY=1\nWATCHDOG=1\n");
    }
}
