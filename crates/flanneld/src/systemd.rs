//! What systemd is told, where it asked: readiness, a line of status, and that the main loop lives.

use std::time::Duration;

use sd_notify::NotifyState;

/// Ready: the devices are up and `subnet.env` is written.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Sends a line of status.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// On the way out.
pub fn stopping(why: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(why)]);
}

/// The main loop turns.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`alive`] must be called: half of what `WatchdogSec` allows. `None` without a watchdog.
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    // Without a service manager there is nobody to tell.
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager ($NOTIFY_SOCKET)");
    }
}
