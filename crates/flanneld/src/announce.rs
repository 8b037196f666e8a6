//! When this node is announced as able to carry its pods' packets, and when no longer. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How long devices may be missing before an announcement is withdrawn.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long they may be missing at the start before that is reported.
const FIRST_REPORT: Duration = Duration::from_secs(2);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Nothing,
    /// Say that this node is ready.
    Announce,
    /// Say, for the first time, why it is not announced.
    Report,
    /// Say that this node is not, or no longer, ready.
    Withdraw,
}

/// Whether the node is announced. An announcement that an earlier run made counts as one: it is
/// withdrawn if the devices do not come up.
#[derive(Debug)]
pub(crate) struct Announcement {
    /// This run has announced the node, and not withdrawn it.
    made: bool,
    withdrawn: bool,
    reported: bool,
    /// Since when devices are missing.
    missing_since: Option<Instant>,
}

impl Announcement {
    /// Starts with nothing announced by this run.
    pub(crate) fn new(now: Instant) -> Announcement {
        Announcement {
            made: false,
            withdrawn: false,
            reported: false,
            missing_since: Some(now),
        }
    }

    /// Takes in whether every device is up with its addresses. Returns what is to be done.
    pub(crate) fn observe(&mut self, up: bool, now: Instant) -> Step {
        if up {
            self.missing_since = None;
            if self.made {
                return Step::Nothing;
            }
            (self.made, self.withdrawn) = (true, false);
            return Step::Announce;
        }
        let since = *self.missing_since.get_or_insert(now);
        if now >= since + PATIENCE && !self.withdrawn {
            (self.made, self.withdrawn, self.reported) = (false, true, true);
            return Step::Withdraw;
        }
        if now >= since + FIRST_REPORT && !self.made && !self.reported {
            self.reported = true;
            return Step::Report;
        }
        Step::Nothing
    }

    /// Returns when [`Announcement::observe`] has something to do although nothing changes.
    pub(crate) fn due(&self) -> Option<Instant> {
        let since = self.missing_since.filter(|_| !self.withdrawn)?;
        if self.made || self.reported {
            Some(since + PATIENCE)
        } else {
            Some(since + FIRST_REPORT)
        }
    }

    /// Whether this run has announced the node.
    pub(crate) fn is_made(&self) -> bool {
        self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_withdrawn_after_a_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut announcement = Announcement::new(start);
        for (second, up, step) in [
            (0, false, Step::Nothing),
            (2, false, Step::Report),
            (3, false, Step::Nothing),
            (4, true, Step::Announce),
            (5, true, Step::Nothing),
            (10, false, Step::Nothing),
            (20, true, Step::Nothing),
            (30, false, Step::Nothing),
            (59, false, Step::Nothing),
            (60, false, Step::Withdraw),
            (99, false, Step::Nothing),
            (100, true, Step::Announce),
        ] {
            assert_eq!(
                announcement.observe(up, at(second)),
                step,
                "second {second}"
            );
            assert_eq!(
                announcement.is_made(),
                (4..60).contains(&second) || second == 100
            );
        }
    }

    #[test]
    fn what_an_earlier_run_announced_is_withdrawn() {
        let start = Instant::now();
        let mut announcement = Announcement::new(start);
        while announcement.due().is_some() {
            let now = announcement.due().unwrap();
            let step = announcement.observe(false, now);
            assert_ne!(step, Step::Nothing, "woken for nothing");
        }
        assert!(announcement.withdrawn && !announcement.made);
        assert_eq!(
            announcement.observe(true, start + PATIENCE * 3),
            Step::Announce
        );
    }
}
