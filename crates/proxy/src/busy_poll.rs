//! Looking for the next packet for some moments before sleeping.
//!
//! Waking a thread takes longer than carrying a small packet. So while packets follow each other closely, as
//! requests and their answers do, a thread looks for the next one instead of sleeping, and lets others run in
//! between. The time adapts as in the kernel's own halt polling: it grows while sleeps turn out to be short, and a
//! single long one ends it, so that rare packets cost no processor time.
//!
//! Where another task has work for the processor, yielding to it costs this thread its turn, and a thread that is
//! woken gets the processor sooner. So a yield that takes long ends the looking for a while.

use std::time::{Duration, Instant};

/// The longest time for which a thread looks.
const LONGEST: Duration = Duration::from_micros(100);

/// The time after the first short sleep.
const SHORTEST: Duration = Duration::from_micros(20);

/// A yield that takes longer shows that another task needs the processor: the scheduler gives it a millisecond or more.
const CONTENDED: Duration = Duration::from_micros(200);

/// How long a thread then only sleeps.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How long a thread looks for the next packet before it sleeps.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    /// Zero: not at all.
    window: Duration,
    /// When there was nothing for the first time since the last packet.
    idle_since: Option<Instant>,
    /// Until when it only sleeps.
    sleeps_until: Option<Instant>,
}

impl BusyPoll {
    pub(crate) fn new() -> BusyPoll {
        BusyPoll {
            window: Duration::ZERO,
            idle_since: None,
            sleeps_until: None,
        }
    }

    /// Notes that there was a packet.
    pub(crate) fn found(&mut self) {
        self.idle_since = None;
    }

    /// Lets others run and returns true, if the thread should then look again; returns false if it should sleep.
    pub(crate) fn yields(&mut self) -> bool {
        let before = Instant::now();
        let again = self.looks_again_at(before);
        if again {
            std::thread::yield_now();
            self.yielded(before, Instant::now());
        }
        again
    }

    /// Notes that the thread has slept, and was woken.
    pub(crate) fn woken(&mut self) {
        self.woken_at(Instant::now());
    }

    fn looks_again_at(&mut self, now: Instant) -> bool {
        let since = *self.idle_since.get_or_insert(now);
        now.saturating_duration_since(since) < self.window
    }

    fn yielded(&mut self, before: Instant, after: Instant) {
        if after.saturating_duration_since(before) >= CONTENDED {
            self.window = Duration::ZERO;
            self.sleeps_until = Some(after + BACK_OFF);
        }
    }

    fn woken_at(&mut self, now: Instant) {
        let since = self.idle_since.take().unwrap_or(now);
        let idle = now.saturating_duration_since(since);
        let backs_off = self.sleeps_until.is_some_and(|until| now < until);
        self.window = if idle >= LONGEST || backs_off {
            Duration::ZERO
        } else {
            (self.window * 2).clamp(SHORTEST, LONGEST)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    #[test]
    fn rare_packets_are_slept_for() {
        let mut poll = BusyPoll::new();
        let start = Instant::now();
        for second in 0..5 {
            let now = start + Duration::from_secs(second);
            poll.found();
            assert!(!poll.looks_again_at(now));
            poll.woken_at(now + Duration::from_millis(900));
        }
    }

    #[test]
    fn packets_that_follow_closely_are_looked_for() {
        let mut poll = BusyPoll::new();
        let start = Instant::now();
        assert!(!poll.looks_again_at(start));
        poll.woken_at(start + 50 * MICROSECOND);
        poll.found();
        let idle = start + 60 * MICROSECOND;
        assert!(poll.looks_again_at(idle));
        assert!(poll.looks_again_at(idle + SHORTEST / 2));
        assert!(!poll.looks_again_at(idle + SHORTEST));
        // Short sleeps lengthen it, up to a limit.
        for _ in 0..20 {
            poll.woken_at(idle + SHORTEST);
            assert!(poll.looks_again_at(idle));
        }
        poll.found();
        assert!(poll.looks_again_at(idle));
        assert!(!poll.looks_again_at(idle + LONGEST));
        // One long sleep ends it.
        poll.woken_at(idle + Duration::from_millis(5));
        poll.found();
        assert!(!poll.looks_again_at(idle + Duration::from_millis(6)));
    }

    #[test]
    fn a_packet_that_was_found_begins_the_time_again() {
        let mut poll = BusyPoll::new();
        let start = Instant::now();
        assert!(!poll.looks_again_at(start));
        poll.woken_at(start + 50 * MICROSECOND);
        let mut now = start;
        for _ in 0..100 {
            assert!(poll.looks_again_at(now));
            now += SHORTEST / 2;
            assert!(poll.looks_again_at(now));
            poll.found();
        }
    }

    #[test]
    fn who_needs_the_processor_gets_it() {
        let mut poll = BusyPoll::new();
        let start = Instant::now();
        let wakes_soon = |poll: &mut BusyPoll, now: Instant| {
            poll.found();
            poll.looks_again_at(now);
            poll.woken_at(now + 10 * MICROSECOND);
            poll.found();
            poll.looks_again_at(now + 20 * MICROSECOND)
        };
        assert!(wakes_soon(&mut poll, start));
        let now = start + 20 * MICROSECOND;
        poll.yielded(now, now + 10 * MICROSECOND);
        assert!(poll.looks_again_at(now + 10 * MICROSECOND));
        let late = now + CONTENDED;
        poll.yielded(now, late);
        // A packet that came meanwhile does not change that.
        poll.found();
        assert!(!poll.looks_again_at(late));
        poll.woken_at(late + 10 * MICROSECOND);
        assert!(!wakes_soon(&mut poll, late + BACK_OFF / 2));
        assert!(wakes_soon(&mut poll, late + BACK_OFF));
    }
}
