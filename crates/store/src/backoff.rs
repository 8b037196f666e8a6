//! How long to wait before the next try.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(50);
/// Short, because what changed during an outage should be seen within 2 s of its end.
const LONGEST: Duration = Duration::from_millis(1500);

/// Doubling, jittered waits: thousands of nodes lose the same store at the same moment, and must
/// not come back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    step: Duration,
    /// When the last wait ended, and the next try began.
    tried: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            step: FIRST,
            tried: None,
        }
    }
}

impl Backoff {
    /// The next wait: between half of the present step and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(LONGEST);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Waits. The steps are from try to try: a try that took long has waited already.
    pub(crate) async fn wait(&mut self) {
        let spent = self.tried.map_or(Duration::ZERO, |tried| tried.elapsed());
        tokio::time::sleep(self.next().saturating_sub(spent)).await;
        self.tried = Some(Instant::now());
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

    #[tokio::test(start_paused = true)]
    async fn a_try_that_took_long_is_followed_by_the_next_at_once() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.wait().await;
        }
        tokio::time::sleep(LONGEST).await;
        let ended = Instant::now();
        backoff.wait().await;
        assert!(ended.elapsed() < Duration::from_millis(2));
        let ended = Instant::now();
        backoff.wait().await;
        assert!(ended.elapsed() >= LONGEST / 2);
    }
}
