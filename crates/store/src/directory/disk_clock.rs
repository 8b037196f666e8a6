//! The clock of the file system: leases of machines that share a directory are judged by it.
//!
//! A machine may start with a clock that is hours off. The times of files on a shared file system
//! come from its server, so that all machines can agree on those.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::clock;

/// Clocks that differ by less than this many milliseconds count as equal: file systems store
/// times in steps of up to two seconds.
const EQUAL: i64 = 10_000;
/// Not measured yet.
const UNKNOWN: i64 = i64::MIN;

/// Computes the time of the file system from the last measurement and the time since.
#[derive(Debug)]
pub(super) struct DiskClock {
    /// The file system's time when this machine started, in milliseconds of the epoch.
    origin: AtomicI64,
    /// The same by this machine's clock, at the last measurement.
    machine: AtomicI64,
}

impl Default for DiskClock {
    fn default() -> DiskClock {
        DiskClock {
            origin: AtomicI64::new(UNKNOWN),
            machine: AtomicI64::new(UNKNOWN),
        }
    }
}

impl DiskClock {
    /// Takes in the time of a file that was written just now, in milliseconds of the epoch. Returns by how
    /// many milliseconds this machine's clock is ahead of it; 0 if the two agree.
    pub(super) fn measured(&self, file_ms: i64) -> i64 {
        self.set(file_ms, machine_ms(), uptime_ms())
    }

    fn set(&self, file: i64, machine: i64, uptime: i64) -> i64 {
        let ahead = machine.saturating_sub(file);
        let ahead = if ahead.abs() < EQUAL { 0 } else { ahead };
        let origin = machine.saturating_sub(ahead).saturating_sub(uptime);
        self.origin.store(origin, Ordering::Relaxed);
        self.machine
            .store(machine.saturating_sub(uptime), Ordering::Relaxed);
        ahead
    }

    /// Whether this machine's clock was set since the last measurement, or there was none.
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale_at(machine_ms(), uptime_ms())
    }

    fn is_stale_at(&self, machine: i64, uptime: i64) -> bool {
        let known = self.machine.load(Ordering::Relaxed);
        let now = machine.saturating_sub(uptime);
        known == UNKNOWN || now.saturating_sub(known).abs() > 1000
    }

    /// Returns the file system's time in milliseconds of the epoch.
    pub(super) fn now_ms(&self) -> u64 {
        let now = match self.origin.load(Ordering::Relaxed) {
            UNKNOWN => machine_ms(),
            origin => origin.saturating_add(uptime_ms()),
        };
        u64::try_from(now).unwrap_or(0)
    }

    /// Returns the file system's time in seconds of the epoch.
    pub(super) fn now(&self) -> u64 {
        self.now_ms() / 1000
    }
}

fn machine_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn uptime_ms() -> i64 {
    i64::try_from(clock::now().as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_systems_time_counts_and_small_differences_do_not() {
        let clock = DiskClock::default();
        let (machine, uptime) = (machine_ms(), uptime_ms());
        assert!(clock.is_stale_at(machine, uptime));
        assert_eq!(clock.set(machine - 900, machine, uptime), 0);
        assert!(!clock.is_stale_at(machine + 5000, uptime + 5000));
        assert!(
            clock.is_stale_at(machine + 9000, uptime + 5000),
            "it was set"
        );
        assert!(clock.now_ms().abs_diff(u64::try_from(machine).unwrap()) < 5000);
        // Two hours ahead; then as a machine that starts in 1970.
        let hours = 7_200_000;
        assert_eq!(clock.set(machine - hours, machine, uptime), hours);
        let disk = u64::try_from(machine - hours).unwrap();
        assert!(clock.now_ms().abs_diff(disk) < 5000);
        assert_eq!(clock.set(machine, 5000, uptime), 5000 - machine);
        assert!(clock.now_ms().abs_diff(u64::try_from(machine).unwrap()) < 5000);
    }
}
