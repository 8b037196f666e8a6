//! When refused operations are retried.

use std::time::Duration;

use tokio::time::Instant;

/// When to offer refused operations again: 50 ms, doubling up to 30 s, jittered.
pub(super) struct Retry {
    /// When the next one is due.
    pub(super) at: Instant,
    wait: Duration,
}

impl Retry {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(30);

    /// Takes in that something was refused again.
    pub(super) fn failed(&mut self, now: Instant) {
        self.at = now + self.wait.mul_f64(0.75 + fastrand::f64() / 2.0);
        self.wait = (self.wait * 2).min(Self::LONGEST);
    }

    /// Begins with the shortest pause again.
    pub(super) fn soon(&mut self) {
        self.wait = Self::FIRST;
    }
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            at: Instant::now() + Self::FIRST,
            wait: Self::FIRST,
        }
    }
}
