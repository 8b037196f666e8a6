//! The signals that end a test of a cluster: not at once, since something has to be removed.

use anyhow::Result;
use tokio::signal::unix::{self, SignalKind, signal};

/// The signals that end a test.
pub(super) struct Signals {
    interrupt: unix::Signal,
    term: unix::Signal,
    /// The terminal is gone; `None` if the program was started with nohup.
    hangup: Option<unix::Signal>,
}

impl Signals {
    pub(super) fn new() -> Result<Signals> {
        let hangup = if ignores_hangup() {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        };
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hangup,
        })
    }

    /// Waits for any of them.
    pub(super) async fn any(&mut self) {
        let Signals {
            interrupt,
            term,
            hangup,
        } = self;
        let hangup = async {
            match hangup {
                Some(hangup) => {
                    hangup.recv().await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = term.recv() => {}
            () = hangup => {}
        }
    }

    /// Waits for SIGINT or SIGTERM. The terminal's end is reported by the shell and by the kernel: its second report
    /// must not end what the first one began.
    pub(super) async fn person_ends(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

/// Whether this program was started with SIGHUP ignored.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_end_of_the_terminal_ends_a_test_and_not_its_cleaning() {
        if ignores_hangup() {
            return;
        }
        let soon = Duration::from_secs(60);
        let mut signals = Signals::new().unwrap();
        raise(Signal::SIGHUP).unwrap();
        timeout(soon, signals.any()).await.unwrap();
        raise(Signal::SIGHUP).unwrap();
        let moment = Duration::from_millis(100);
        assert!(timeout(moment, signals.person_ends()).await.is_err());
        raise(Signal::SIGTERM).unwrap();
        timeout(soon, signals.person_ends()).await.unwrap();
    }
}
