//! What devices carry: the kernel's counters, and how fast they rise.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// The counters of this network namespace's devices, by name.
pub(super) type Counters = BTreeMap<String, Counter>;

/// What one device has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counter {
    received: Side,
    sent: Side,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Side {
    bytes: u64,
    packets: u64,
    /// Dropped, or faulty.
    lost: u64,
}

/// How fast one direction's counters rise, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) bytes: f64,
    pub(super) packets: f64,
    pub(super) lost: f64,
}

/// Reads the counters; none if the kernel does not show them.
pub(super) fn read() -> Counters {
    parse(&fs::read_to_string("/proc/self/net/dev").unwrap_or_default())
}

fn parse(text: &str) -> Counters {
    let device = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_whitespace()
            .map(|number| number.parse().unwrap_or_default())
            .collect();
        let side = |from: usize| {
            let at = |column: usize| numbers.get(from + column).copied().unwrap_or_default();
            Side {
                bytes: at(0),
                packets: at(1),
                lost: at(2) + at(3),
            }
        };
        let counter = Counter {
            received: side(0),
            sent: side(8),
        };
        Some((name.trim().to_owned(), counter))
    };
    text.lines().filter_map(device).collect()
}

/// Returns how fast the counters of a device rise, received and sent; `None` if it was created anew in between.
pub(super) fn rates(before: &Counter, after: &Counter, past: Duration) -> Option<(Rate, Rate)> {
    let seconds = past.as_secs_f64().max(0.001);
    let rate = |before: &Side, after: &Side| {
        let each = |before: u64, after: u64| Some(after.checked_sub(before)? as f64 / seconds);
        Some(Rate {
            bytes: each(before.bytes, after.bytes)?,
            packets: each(before.packets, after.packets)?,
            lost: each(before.lost, after.lost)?,
        })
    };
    let received = rate(&before.received, &after.received)?;
    Some((received, rate(&before.sent, &after.sent)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
flannel.1: 1000 10 0 1 0 0 0 0 3000 30 2 3 0 0 0 0
    lo:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
";

    #[test]
    fn counters_become_rates_and_a_new_device_has_none() {
        let before = parse(TEXT);
        assert_eq!(before.len(), 2);
        let after = parse(&TEXT.replace(": 1000 10", ": 3000 20"));
        let (before, after) = (before["flannel.1"], after["flannel.1"]);
        let two = Duration::from_secs(2);
        let (received, sent) = rates(&before, &after, two).unwrap();
        assert_eq!((received.bytes, received.packets), (1000.0, 5.0));
        assert_eq!(sent, Rate::default());
        assert_eq!(rates(&after, &before, two), None);
    }
}
