//! Faults that last are logged once, not once a second.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

const REMIND: Duration = Duration::from_secs(60);

/// The fault that was last logged of each thing. Holds only hashes.
#[derive(Debug, Default)]
pub(crate) struct FaultLog(HashMap<u64, u64>);

impl FaultLog {
    /// Returns whether `fault` of `thing` is new, and therefore to be logged.
    pub(crate) fn is_new(&mut self, thing: impl Hash, fault: impl Hash) -> bool {
        let fault = hash(fault);
        self.0.insert(hash(thing), fault) != Some(fault)
    }

    /// Records that the thing has no fault, or is gone: a later fault is new again.
    pub(crate) fn cleared(&mut self, thing: impl Hash) {
        if !self.0.is_empty() {
            self.0.remove(&hash(thing));
        }
    }
}

/// How many reasons are remembered.
const REASONS: usize = 16;

/// The reasons for which something waits: each is logged when it is new and once a minute, however
/// they alternate. Reasons of the same words are one reason: an API server lists what it does not accept in
/// another order each time.
#[derive(Debug, Default)]
pub(crate) struct RetryLog(Vec<(u64, Instant)>);

impl RetryLog {
    /// Returns whether to log `reason` now.
    pub(crate) fn is_due(&mut self, reason: &str) -> bool {
        let now = Instant::now();
        self.0.retain(|(_, at)| now.duration_since(*at) < REMIND);
        let reason = words(reason);
        if self.0.iter().any(|(known, _)| *known == reason) {
            return false;
        }
        if self.0.len() == REASONS {
            self.0.remove(0);
        }
        self.0.push((reason, now));
        true
    }
}

/// Returns a number that depends on the words of a text and not on their order.
fn words(text: &str) -> u64 {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']'));
    let words = words.filter(|word| !word.is_empty());
    words.map(hash).fold(0, u64::wrapping_add)
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_logged_until_it_changes() {
        let mut log = FaultLog::default();
        assert!(log.is_new("a", "bad"));
        assert!(!log.is_new("a", "bad"));
        assert!(log.is_new("b", "bad"));
        assert!(log.is_new("a", "worse"));
        log.cleared("a");
        assert!(log.is_new("a", "worse"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_repeated_once_a_minute() {
        let mut waiting = RetryLog::default();
        let mut said = 0;
        for second in 0..180 {
            let reason = if second % 2 == 0 {
                "unreachable"
            } else {
                "no config"
            };
            said += u32::from(waiting.is_due(reason));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(said, 6);
    }

    #[tokio::test]
    async fn the_order_of_the_words_does_not_count() {
        let mut log = RetryLog::default();
        assert!(log.is_due("invalid: [a: no name, b: no name]"));
        assert!(!log.is_due("invalid: [b: no name, a: no name]"));
        assert!(log.is_due("invalid: [a: no name]"));
        assert!(log.is_due("invalid: [a: no name, c: no name]"));
    }
}
