//! How long to wait before the next try.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
/// Short, because what changed during an outage should be seen within 2 s of its end.
const LONGEST: Duration = Duration::from_millis(1500);

/// Doubling, jittered waits: thousands of nodes lose the same store at the same moment, and must
/// not come back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Backoff(FIRST)
    }
}

impl Backoff {
    /// The next wait: between half of the present step and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.0;
        self.0 = (step * 2).min(LONGEST);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Waits.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    /// It worked: start from the beginning the next time.
    pub(crate) fn reset(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_differ() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2);
        assert!(waits.iter().all(|w| *w <= LONGEST));
        let late = &waits[20..];
        assert!(late.iter().all(|w| *w >= LONGEST / 2));
        assert!(late.iter().any(|w| *w != late[0]), "no jitter");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
