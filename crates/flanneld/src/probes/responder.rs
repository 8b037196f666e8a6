//! How many probes are answered: a known node gets so many answers, and all nodes together so many.

use std::time::Duration;

use super::packet;

/// Probes of one node that are answered at once, and in each second after that. `flannelctl connectivity` sends a few
/// dozen in a row.
const EACH: Rate = Rate {
    burst: 60,
    per_second: 20,
};

/// Probes of all nodes: 5,000 nodes send some 170 a second, and more while they look for a fault.
const ALL: Rate = Rate {
    burst: 2000,
    per_second: 1000,
};

/// Bytes that count as one more probe: packets of full size count as small ones, so that they are not the first that
/// stay without an answer.
const BYTES: usize = 2048;

#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    per_second: u32,
}

/// A token bucket: the time at which it is full again, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bucket {
    full_at: u64,
}

impl Bucket {
    fn level_after(self, now: Duration, rate: Rate, cost: u32) -> Option<Bucket> {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let each = u64::from(1000 / rate.per_second.max(1));
        let full_at = self.full_at.max(now) + each * u64::from(cost);
        (full_at <= now + each * u64::from(rate.burst)).then_some(Bucket { full_at })
    }
}

/// What is left to all nodes together.
#[derive(Debug, Default)]
pub(super) struct Responder {
    all: Bucket,
    /// Requests that were answered since the start.
    pub(super) answered: u64,
    /// Requests that were not: of an unknown sender, or too many.
    pub(super) refused: u64,
}

impl Responder {
    /// Returns whether a request of `len` bytes is answered; `own` is what is left to its sender, `None` for a sender
    /// that is no node.
    pub(super) fn admits(&mut self, now: Duration, own: Option<&mut Bucket>, len: usize) -> bool {
        let cost = 1 + (len / BYTES) as u32;
        let admitted = own.and_then(|own| {
            let left = own.level_after(now, EACH, cost)?;
            let all = self.all.level_after(now, ALL, cost)?;
            Some((own, left, all))
        });
        match admitted.filter(|_| len <= packet::LONGEST) {
            Some((own, left, all)) => {
                (*own, self.all) = (left, all);
                self.answered += 1;
                true
            }
            None => {
                self.refused += 1;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_from_one_node_takes_nothing_from_another() {
        let mut responder = Responder::default();
        let (mut flooded, mut other) = (Bucket::default(), Bucket::default());
        let at = |ms| Duration::from_millis(ms);
        let answered = (0..10_000)
            .filter(|ms| responder.admits(at(*ms), Some(&mut flooded), packet::HEADER))
            .count();
        assert!((200..300).contains(&answered), "{answered}");
        assert!(responder.admits(at(10_000), Some(&mut other), packet::HEADER));
        assert!(!responder.admits(at(10_000), None, packet::HEADER));
        assert_eq!(responder.answered, answered as u64 + 1);
        // Long ones count for more.
        let answered = (0..10_000)
            .filter(|_| responder.admits(at(20_000), Some(&mut other), 9000))
            .count();
        assert_eq!(answered, 12);
    }
}
