//! Keys of a store that are no leases: each is logged when it is new, but a store full of them costs
//! one line.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::retry::StoreStatus;

/// So many new ones at once are logged one by one, and then one in so long; of more only the number.
const BURST: usize = 64;
const PER_LINE: Duration = Duration::from_secs(2);
/// How long the number of those that came too fast is not logged.
const SUMMARY_AFTER: Duration = Duration::from_secs(60);

/// What is wrong with which keys. Holds only hashes: a store full of garbage costs few bytes a key.
#[derive(Debug)]
pub(crate) struct SkipLog {
    /// What the keys are in messages: `etcd: keys below /coreos.com/network/subnets/`.
    place: String,
    status: StoreStatus,
    known: HashMap<u64, Known>,
    round: u16,
    listing: bool,
    /// How many are new since something was logged, and the lines of the first ones.
    new: usize,
    lines: Vec<String>,
    /// Until when they are only counted.
    due: Option<Instant>,
    tokens: f64,
    filled: Instant,
}

#[derive(Debug)]
struct Known {
    fault: u64,
    /// The listing that showed it last.
    round: u16,
}

impl SkipLog {
    /// Creates a log for the keys in `place`; `status` shows how many are skipped.
    pub(crate) fn new(place: String, status: StoreStatus) -> SkipLog {
        SkipLog {
            place,
            status,
            known: HashMap::new(),
            round: 0,
            listing: false,
            new: 0,
            lines: Vec::new(),
            due: None,
            tokens: BURST as f64,
            filled: Instant::now(),
        }
    }

    /// Begins a listing: nothing is logged before its end.
    pub(crate) fn begin_listing(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.listing = true;
    }

    /// Ends a listing. What it did not show is not there any more.
    pub(crate) fn end_listing(&mut self) {
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        self.listing = false;
        self.flush();
    }

    /// Logs what is new, at the end of whatever was read at once.
    pub(crate) fn flush(&mut self) {
        if self.listing {
            return;
        }
        self.status.set_skipped_keys(self.known.len());
        let now = Instant::now();
        if self.new == 0 || self.due.is_some_and(|due| now < due) {
            return;
        }
        let since = now.duration_since(self.filled).as_secs_f64() / PER_LINE.as_secs_f64();
        self.tokens = (self.tokens + since).min(BURST as f64);
        self.filled = now;
        if self.new as f64 <= self.tokens {
            self.tokens -= self.new as f64;
            for line in &self.lines {
                warn!("{line}; fix or delete it: other nodes are unaffected");
            }
        } else if self.new > BURST || self.due.is_some() {
            let (new, all) = (self.new, self.known.len());
            let (place, first) = (&self.place, self.lines.first());
            warn!(
                "{place}: {new} are no leases and are skipped ({all} in all), the first one: {}; fix or delete them: \
                 other nodes are unaffected",
                first.map_or("", String::as_str)
            );
        } else {
            self.due = Some(now + SUMMARY_AFTER);
            return;
        }
        (self.new, self.due) = (0, None);
        self.lines = Vec::new();
    }

    /// Records that a key is there as it was: it still is what it is known to be.
    pub(crate) fn unchanged(&mut self, key: impl Hash) {
        if !self.known.is_empty()
            && let Some(known) = self.known.get_mut(&hash(key))
        {
            known.round = self.round;
        }
    }

    /// Records that `key` is no lease because of `fault`. If that is new, [`SkipLog::flush`] logs `line`.
    pub(crate) fn skip(&mut self, key: impl Hash, fault: &str, line: impl FnOnce() -> String) {
        let (fault, round) = (hash(fault), self.round);
        let before = self.known.insert(hash(key), Known { fault, round });
        if before.is_some_and(|before| before.fault == fault) {
            return;
        }
        self.new += 1;
        if self.lines.len() < BURST {
            self.lines.push(line());
        }
    }

    /// Records that `key` is a lease, or is gone: a later fault is new again.
    pub(crate) fn is_well(&mut self, key: impl Hash) {
        if !self.known.is_empty() {
            self.known.remove(&hash(key));
        }
    }

    /// Returns when [`SkipLog::flush`] is due.
    pub(crate) fn timer(&self) -> Option<Instant> {
        self.due
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

    fn log() -> SkipLog {
        SkipLog::new("here".into(), StoreStatus::default())
    }

    /// Skips some keys. Returns how many of them were not known, and how many were only counted.
    fn skip(log: &mut SkipLog, keys: std::ops::Range<usize>) -> (usize, usize) {
        let before = log.new;
        for n in keys {
            log.skip(n, "bad", || format!("key {n}: bad"));
        }
        let new = log.new - before;
        log.flush();
        (new, log.new)
    }

    #[tokio::test(start_paused = true)]
    async fn new_ones_are_logged_one_by_one_until_they_are_too_many() {
        let mut log = log();
        assert_eq!(skip(&mut log, 0..40), (40, 0));
        assert_eq!(skip(&mut log, 0..40), (0, 0), "they are known");
        assert_eq!(log.tokens, 24.0);
        for n in 40..64 {
            assert_eq!(skip(&mut log, n..n + 1), (1, 0));
        }
        assert_eq!(skip(&mut log, 100..150), (50, 50), "too fast");
        let due = log.timer().unwrap();
        tokio::time::sleep_until(due).await;
        log.flush();
        assert_eq!((log.new, log.timer()), (0, None));
        assert_eq!(skip(&mut log, 200..201), (1, 0), "a later one has its line");
        assert_eq!(log.status.skipped_keys(), 115);
    }

    #[tokio::test(start_paused = true)]
    async fn very_many_at_once_are_one_line_and_a_later_one_has_its_own() {
        let mut log = log();
        log.begin_listing();
        assert_eq!(skip(&mut log, 0..3000), (3000, 3000), "not before its end");
        assert_eq!(log.lines.len(), BURST);
        log.end_listing();
        assert_eq!((log.new, log.tokens), (0, 64.0), "one line");
        assert_eq!(log.status.skipped_keys(), 3000);
        assert_eq!(skip(&mut log, 3000..3001), (1, 0));
        assert_eq!(log.tokens, 63.0);
        // Listed again: half are gone, half of the others are as they were.
        log.begin_listing();
        (0..750_usize).for_each(|n| log.unchanged(n));
        assert_eq!(skip(&mut log, 750..1500), (0, 0));
        log.end_listing();
        assert_eq!(log.status.skipped_keys(), 1500);
        log.is_well(7_usize);
        log.flush();
        assert_eq!(log.status.skipped_keys(), 1499);
        assert_eq!(skip(&mut log, 7..8), (1, 0), "bad again");
    }
}
