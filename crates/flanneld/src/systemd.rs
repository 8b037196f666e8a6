//! What systemd is told, where it asked: readiness, a line of status, and that the main loop lives.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::sleep;

use crate::node::StatusChanges;
use crate::status::{Phase, Question, Status};

/// How long an answer of the main loop may take: if it hangs, the service manager ends this process before.
const LATEST_ANSWER: Duration = Duration::from_secs(3600);

/// How soon the main loop is asked again while it does not run, as before there is a subnet.
const NOT_RUNNING: Duration = Duration::from_secs(1);

/// Reports what a node is, until it ends: that it is ready, what it waits for, and that its main loop turns. Returns at
/// once without a service manager that wants to know.
pub async fn follow(status: Status) {
    if !is_there() {
        return;
    }
    tokio::join!(follow_status(status.clone()), follow_loop(status));
}

async fn follow_status(status: Status) {
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
            Phase::Announced if !was_announced => ready(&text),
            Phase::Ended => return,
            _ if text != told && !text.is_empty() => self::status(&text),
            _ => {}
        }
        was_announced |= now.phase == Phase::Announced;
        told = text;
    }
}

async fn follow_loop(status: Status) {
    let Some(period) = watchdog_period() else {
        return;
    };
    while status.node().phase != Phase::Ended {
        // However late the answer is, it is passed on at once.
        if status.ask(LATEST_ANSWER, Question::Alive).await.is_some() {
            alive();
            sleep(period).await;
        } else {
            sleep(period.min(NOT_RUNNING)).await;
        }
    }
}

/// Whether a service manager is to be told anything.
fn is_there() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Ready: the devices are up and `subnet.env` is written.
fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Sends a line of status.
fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// On the way out.
pub fn stopping(why: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(why)]);
}

/// The main loop turns.
fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] must be called: half of what `WatchdogSec` allows. `None` without a watchdog.
fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    // Without a service manager there is nobody to tell.
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager ($NOTIFY_SOCKET)");
    }
}
