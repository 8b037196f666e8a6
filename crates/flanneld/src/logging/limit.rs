//! How many lines of one kind are written: whoever can change a lease or an annotation could
//! otherwise fill every node's disk.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines about one subject: so many at once, then one in so long.
const OF_SUBJECT: Allowance = Allowance {
    burst: 15.0,
    every: Duration::from_secs(6),
};

/// Lines that one place in the code writes, about any subject.
const OF_PLACE: Allowance = Allowance {
    burst: 200.0,
    every: Duration::from_millis(500),
};

/// More subjects than these are not kept: all begin again with a full allowance.
const SUBJECTS: usize = 4096;

thread_local! {
    /// How many lines were left out before the one that is about to be written.
    static LEFT_OUT: Cell<u32> = const { Cell::new(0) };
}

/// Takes the number of lines that were left out before the one being written.
pub(super) fn take_left_out() -> u32 {
    LEFT_OUT.take()
}

/// Leaves out lines above the allowance of their subject or place. Lines of -v are all written.
#[derive(Default)]
pub(super) struct Limit(Mutex<Buckets>);

impl<S: Subscriber> Layer<S> for Limit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut message = Beginning::default();
        event.record(&mut message);
        let place = (metadata.file(), metadata.line());
        let subject = hash((place, subject(&message.0)));
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match buckets.take(hash(place), subject, Instant::now()) {
            Some(left_out) => {
                LEFT_OUT.set(left_out);
                true
            }
            None => false,
        }
    }
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What a line is about: its first four words, which name the key and not what is wrong with it
/// (`lease 10.1.2.0-24 is not`, `subnet changed: 10.1.2.0/24 via`).
fn subject(text: &str) -> &str {
    let end = text.match_indices(' ').nth(3).map(|(space, _)| space);
    &text[..end.unwrap_or(text.len())]
}

/// The beginning of a line's message.
#[derive(Default)]
struct Beginning(String);

impl Visit for Beginning {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Ends with an error once it is long enough.
            let _ = write!(self, "{value:?}");
        }
    }
}

impl Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const ENOUGH: usize = 200;
        self.0.extend(text.chars().take(ENOUGH));
        if self.0.len() > ENOUGH {
            Err(fmt::Error)
        } else {
            Ok(())
        }
    }
}

struct Allowance {
    burst: f64,
    every: Duration,
}

/// A token bucket.
struct Bucket {
    tokens: f64,
    at: Instant,
    left_out: u32,
}

impl Bucket {
    fn new(allowance: &Allowance, now: Instant) -> Bucket {
        Bucket {
            tokens: allowance.burst,
            at: now,
            left_out: 0,
        }
    }

    /// Whether there is a token.
    fn fill(&mut self, allowance: &Allowance, now: Instant) -> bool {
        let new = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + new / allowance.every.as_secs_f64()).min(allowance.burst);
        self.tokens >= 1.0
    }
}

#[derive(Default)]
struct Buckets {
    places: HashMap<u64, Bucket>,
    subjects: HashMap<u64, Bucket>,
}

impl Buckets {
    /// Returns how many lines were left out before this one, or `None` if it is to be left out.
    fn take(&mut self, place: u64, subject: u64, now: Instant) -> Option<u32> {
        if self.subjects.len() >= SUBJECTS && !self.subjects.contains_key(&subject) {
            self.subjects.clear();
        }
        let of_place = self.places.entry(place);
        let of_place = of_place.or_insert_with(|| Bucket::new(&OF_PLACE, now));
        let of_subject = self.subjects.entry(subject);
        let of_subject = of_subject.or_insert_with(|| Bucket::new(&OF_SUBJECT, now));
        if !of_subject.fill(&OF_SUBJECT, now) {
            of_subject.left_out += 1;
            return None;
        }
        if !of_place.fill(&OF_PLACE, now) {
            of_place.left_out += 1;
            return None;
        }
        of_subject.tokens -= 1.0;
        of_place.tokens -= 1.0;
        let left_out = std::mem::take(&mut of_subject.left_out);
        Some(left_out.saturating_add(std::mem::take(&mut of_place.left_out)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subject_does_not_fill_the_log() {
        let start = Instant::now();
        let mut buckets = Buckets::default();
        let at = |ms| start + Duration::from_millis(ms);
        let written = (0..110).filter(|n| buckets.take(1, 7, at(n * 50)).is_some());
        assert_eq!(written.count(), 15);
        assert_eq!(buckets.take(1, 8, at(5500)), Some(0), "another subject");
        assert_eq!(buckets.take(1, 7, at(12_000)), Some(95));
        assert_eq!(buckets.take(1, 7, at(12_001)), Some(0));
        assert_eq!(buckets.take(1, 7, at(12_002)), None);
    }

    #[test]
    fn one_place_does_not_either() {
        let start = Instant::now();
        let mut buckets = Buckets::default();
        let written = (0..10_000).filter(|n| buckets.take(1, *n, start).is_some());
        assert_eq!(written.count(), 200);
        assert!(buckets.subjects.len() <= SUBJECTS);
        assert_eq!(buckets.take(2, 0, start), Some(0), "another place");
        assert_eq!(
            buckets.take(1, 0, start + Duration::from_secs(1)),
            Some(9_800)
        );
    }

    #[test]
    fn a_subject_is_a_key() {
        for (text, wanted) in [
            (
                "subnet changed: 10.1.2.0/24 via 10.0.0.1",
                "subnet changed: 10.1.2.0/24 via",
            ),
            (
                "lease 10.1.2.0-24 is not used: its backend is x",
                "lease 10.1.2.0-24 is not",
            ),
            (
                "etcd: lease 10.1.2.0-24: not a lease value: x",
                "etcd: lease 10.1.2.0-24: not",
            ),
            (
                "repaired the kernel's state in 3.1 ms",
                "repaired the kernel's state",
            ),
            ("waiting: x", "waiting: x"),
            ("", ""),
            ("ä: ü ö ß é", "ä: ü ö ß"),
        ] {
            assert_eq!(subject(text), wanted);
        }
    }
}
