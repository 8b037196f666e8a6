//! How often something may be done: so many times at once, then once in so long.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket. Kept as the time at which it is full again.
#[derive(Debug)]
pub struct Allowance {
    burst: u32,
    every: Duration,
    full_at: Instant,
}

impl Allowance {
    /// `burst` times at once, then once `every` so long.
    pub fn new(burst: u32, every: Duration) -> Allowance {
        Allowance {
            burst,
            every,
            full_at: Instant::now(),
        }
    }

    /// Returns when it may be done next; a time that is past if it may be done now.
    pub fn next(&self) -> Instant {
        let first = self.every * self.burst.saturating_sub(1);
        self.full_at.checked_sub(first).unwrap_or(self.full_at)
    }

    /// Counts that it is done now.
    pub fn take(&mut self, now: Instant) {
        self.take_as(now, 1);
    }

    /// Counts that it is done now, and that it cost as much as `times`.
    pub fn take_as(&mut self, now: Instant, times: u32) {
        self.full_at = self.full_at.max(now) + self.every * times;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_one_at_a_time() {
        let second = Duration::from_secs(1);
        let mut allowance = Allowance::new(3, second);
        let mut waited = Vec::new();
        let start = Instant::now();
        for _ in 0..5 {
            tokio::time::sleep_until(allowance.next()).await;
            waited.push(start.elapsed().as_secs());
            allowance.take(Instant::now());
        }
        assert_eq!(waited, [0, 0, 0, 1, 2]);
        tokio::time::sleep(10 * second).await;
        let start = Instant::now();
        for _ in 0..3 {
            assert!(allowance.next() <= start);
            allowance.take(start);
        }
        assert_eq!(allowance.next(), start + second);
    }
}
