//! What the probes of one way to one node have shown: how long answers take, and how many are missing.

use std::time::Duration;

/// Lost probes in a row after which the way counts as broken.
pub(super) const BROKEN_AFTER: u8 = 3;

/// Probes that [`Track::loss`] looks back on.
const WINDOW: u8 = 32;

/// The record of one way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Track {
    /// A moving average.
    rtt_us: u32,
    least_us: u32,
    /// The last probes, the latest in the lowest bit; 1 is lost.
    history: u32,
    probes: u8,
    failures: u8,
    ever: bool,
}

impl Track {
    /// Nothing was probed yet.
    pub(super) const NEW: Track = Track {
        rtt_us: 0,
        least_us: 0,
        history: 0,
        probes: 0,
        failures: 0,
        ever: false,
    };

    /// Records an answer.
    pub(super) fn answered(&mut self, rtt: Duration) {
        let us = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        if self.ever {
            // A quarter of the difference, as TCP's estimate moves by an eighth: probes are rare.
            let moved = (u64::from(self.rtt_us) * 3 + u64::from(us)) / 4;
            self.rtt_us = u32::try_from(moved).unwrap_or(u32::MAX);
            self.least_us = self.least_us.min(us);
        } else {
            (self.rtt_us, self.least_us, self.ever) = (us, us, true);
        }
        self.push(0);
        self.failures = 0;
    }

    /// Records a probe without an answer.
    pub(super) fn lost(&mut self) {
        self.push(1);
        self.failures = self.failures.saturating_add(1);
    }

    fn push(&mut self, bit: u32) {
        self.history = self.history << 1 | bit;
        self.probes = (self.probes + 1).min(WINDOW);
    }

    /// Returns whether it has been probed.
    pub(super) fn is_probed(&self) -> bool {
        self.probes > 0
    }

    /// Returns whether anything was answered since the daemon's start.
    pub(super) fn was_ever_answered(&self) -> bool {
        self.ever
    }

    /// Returns whether the last probe was answered.
    pub(super) fn is_good(&self) -> bool {
        self.probes > 0 && self.failures == 0
    }

    /// Returns whether probes fail, and not yet often enough for a judgement.
    pub(super) fn is_suspect(&self) -> bool {
        (1..BROKEN_AFTER).contains(&self.failures)
    }

    /// Returns whether so many failed in a row that the way counts as broken.
    pub(super) fn is_broken(&self) -> bool {
        self.failures >= BROKEN_AFTER
    }

    /// Returns whether none of the last 16 probes was lost.
    pub(super) fn is_clean(&self) -> bool {
        self.probes > 0 && self.history & 0xffff == 0
    }

    /// Returns the average time of an answer; `None` before the first one.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.ever.then(|| Duration::from_micros(self.rtt_us.into()))
    }

    /// Returns the shortest time of an answer; `None` before the first one.
    pub(super) fn least(&self) -> Option<Duration> {
        self.ever
            .then(|| Duration::from_micros(self.least_us.into()))
    }

    /// Returns the share of the last 32 probes without an answer; `None` before the first probe.
    pub(super) fn loss(&self) -> Option<f64> {
        let mask = u32::MAX >> (32 - u32::from(self.probes.clamp(1, WINDOW)));
        let lost = (self.history & mask).count_ones();
        (self.probes > 0).then(|| f64::from(lost) / f64::from(self.probes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_follow_and_old_losses_are_forgotten() {
        let mut track = Track::NEW;
        assert_eq!((track.rtt(), track.loss()), (None, None));
        track.answered(Duration::from_micros(100));
        track.answered(Duration::from_micros(500));
        assert_eq!(track.rtt(), Some(Duration::from_micros(200)));
        assert_eq!(track.least(), Some(Duration::from_micros(100)));
        track.lost();
        track.lost();
        assert_eq!(track.loss(), Some(0.5));
        assert!(track.is_suspect() && !track.is_broken());
        track.lost();
        assert!(track.is_broken() && !track.is_suspect());
        for _ in 0..32 {
            track.answered(Duration::from_micros(100));
        }
        assert_eq!(track.loss(), Some(0.0));
        for _ in 0..300 {
            track.lost();
        }
        assert_eq!(track.loss(), Some(1.0));
        assert!(track.was_ever_answered() && track.is_broken());
    }
}
