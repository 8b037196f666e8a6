//! How long to wait before the next attempt.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(50);
/// Short, because changes made during an outage should be seen within 2 s of its end. A server that does
/// not exist, or that refuses at once, is not burdened by it.
const LONGEST: Duration = Duration::from_millis(1500);
/// An attempt that takes longer has reached a server that is overloaded,
const SLOW: Duration = Duration::from_secs(3);
/// and then the wait may grow to this,
const LONGEST_WHEN_SLOW: Duration = Duration::from_secs(30);
/// as far as the number of nodes calls for: 30 s for 5,000 of them, 1.5 s for 250.
const PER_NODE: Duration = Duration::from_millis(6);

/// Growing, jittered waits: thousands of nodes lose the same store at the same moment, and must not come
/// back at the same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    step: Duration,
    /// When the attempt began that is under way.
    began: Option<Instant>,
    /// How many nodes share the store, where that is known.
    nodes: Option<usize>,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            step: FIRST,
            began: None,
            nodes: None,
        }
    }
}

impl Backoff {
    /// Sets how many nodes share the store.
    pub(crate) fn shared_by(&mut self, nodes: usize) {
        self.nodes = Some(nodes);
    }

    /// Returns the next wait: between half of the present step and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let slow = self.began.is_some_and(|began| began.elapsed() >= SLOW);
        let step = self.step;
        self.step = (step * 2).min(self.longest(slow));
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    fn longest(&self, slow: bool) -> Duration {
        if !slow {
            return LONGEST;
        }
        match self.nodes {
            Some(nodes) => PER_NODE
                .saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX))
                .clamp(LONGEST, LONGEST_WHEN_SLOW),
            None => LONGEST_WHEN_SLOW,
        }
    }

    /// Waits. An attempt that took long counts for nothing: it is followed by a wait, too, for otherwise
    /// the slower a server is the harder it is hit.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
        self.began = Some(Instant::now());
    }

    /// Records a success: the next wait is the shortest again.
    pub(crate) fn reset(&mut self) {
        *self = Backoff {
            nodes: self.nodes,
            ..Backoff::default()
        };
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

    /// The waits after attempts that took `attempt` each.
    async fn waits(nodes: Option<usize>, attempt: Duration) -> Vec<Duration> {
        let mut backoff = Backoff::default();
        if let Some(nodes) = nodes {
            backoff.shared_by(nodes);
        }
        let mut waits = Vec::new();
        for _ in 0..40 {
            let ended = Instant::now();
            backoff.wait().await;
            waits.push(ended.elapsed());
            tokio::time::sleep(attempt).await;
        }
        waits.split_off(20)
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_took_long_is_followed_by_a_wait_that_differs() {
        let slow = Duration::from_secs(10);
        for (nodes, attempt, longest) in [
            (None, slow, LONGEST_WHEN_SLOW),
            (Some(5000), slow, LONGEST_WHEN_SLOW),
            (Some(1000), slow, Duration::from_secs(6)),
            (Some(3), slow, LONGEST),
            // There is no server, so none is overloaded.
            (Some(5000), Duration::from_millis(1200), LONGEST),
        ] {
            let waits = waits(nodes, attempt).await;
            let limits = longest / 2..=longest + Duration::from_millis(2);
            assert!(
                waits.iter().all(|w| limits.contains(w)),
                "{nodes:?} {attempt:?}: {waits:?}"
            );
            assert!(waits.iter().any(|w| *w != waits[0]), "no jitter");
        }
    }
}
