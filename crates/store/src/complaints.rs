//! Faults that last are said once, not once a second.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

const REMIND: Duration = Duration::from_secs(60);

/// What was last said of each thing. Holds only hashes: a store full of garbage costs 16 bytes a key.
#[derive(Debug, Default)]
pub(crate) struct Complaints(HashMap<u64, u64>);

impl Complaints {
    /// Whether `fault` of `thing` is new, and therefore to be said.
    pub(crate) fn is_new(&mut self, thing: impl Hash, fault: impl Hash) -> bool {
        let fault = hash(fault);
        self.0.insert(hash(thing), fault) != Some(fault)
    }

    /// The thing is well, or gone: a later fault is new again.
    pub(crate) fn settled(&mut self, thing: impl Hash) {
        if !self.0.is_empty() {
            self.0.remove(&hash(thing));
        }
    }
}

/// The one reason for which something waits: said when it changes, and once a minute.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Option<(String, Instant)>);

impl Waiting {
    /// Whether to say `reason` now.
    pub(crate) fn is_due(&mut self, reason: &str) -> bool {
        let now = Instant::now();
        let due = match &self.0 {
            Some((said, at)) => said != reason || now.duration_since(*at) >= REMIND,
            None => true,
        };
        if due {
            self.0 = Some((reason.into(), now));
        }
        due
    }
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
    fn a_fault_is_said_until_it_changes() {
        let mut said = Complaints::default();
        assert!(said.is_new("a", "bad"));
        assert!(!said.is_new("a", "bad"));
        assert!(said.is_new("b", "bad"));
        assert!(said.is_new("a", "worse"));
        said.settled("a");
        assert!(said.is_new("a", "worse"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_repeated_once_a_minute() {
        let mut waiting = Waiting::default();
        let mut said = 0;
        for second in 0..180 {
            said += u32::from(waiting.is_due(if second < 90 { "away" } else { "no config" }));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(said, 4);
    }
}
