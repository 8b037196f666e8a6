//! The changes of a node's status, as a subscriber sees them.

use tokio::sync::watch;

use crate::status::{NodeStatus, Phase, Status};

/// The changes of a node's status. Between two calls of [`StatusChanges::next`] at most the latest is kept.
pub struct StatusChanges {
    status: Status,
    changed: watch::Receiver<()>,
    last: Option<NodeStatus>,
}

impl StatusChanges {
    pub(crate) fn new(status: Status) -> StatusChanges {
        StatusChanges {
            changed: status.changed(),
            status,
            last: None,
        }
    }

    /// Returns the present status at first, then the next one that differs from the one returned before. `None` after
    /// [`Phase::Ended`]. Cancel-safe.
    pub async fn next(&mut self) -> Option<NodeStatus> {
        loop {
            if self
                .last
                .as_ref()
                .is_some_and(|last| last.phase == Phase::Ended)
            {
                return None;
            }
            self.changed.mark_unchanged();
            let now = self.status.node();
            if self.last.as_ref() != Some(&now) {
                self.last = Some(now.clone());
                return Some(now);
            }
            // The sender lives as long as `status`.
            self.changed.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_reader_sees_the_latest_status_and_the_end() {
        let status = Status::default();
        let mut changes = StatusChanges::new(status.clone());
        assert_eq!(changes.next().await.unwrap().phase, Phase::Starting);
        for round in 0..1000 {
            status.set_device_problem(Some(format!("round {round}")));
        }
        let seen = changes.next().await.unwrap();
        assert!(seen.problems[0].contains("round 999"), "{seen:?}");
        // What changes nothing that is shown wakes nobody for long.
        status.set_device_problem(Some("round 999".to_owned()));
        let next = tokio::spawn(async move {
            let end = changes.next().await;
            (end, changes.next().await)
        });
        status.set_phase(Phase::Ended);
        let (end, after) = next.await.unwrap();
        assert_eq!(end.unwrap().phase, Phase::Ended);
        assert_eq!(after, None);
        status.set_started();
        assert_eq!(status.node().phase, Phase::Ended, "the end is for good");
    }

    #[tokio::test]
    async fn a_reader_that_panics_harms_nobody() {
        let status = Status::default();
        let mut theirs = StatusChanges::new(status.clone());
        let reader = tokio::spawn(async move {
            theirs.next().await;
            panic!("on purpose");
        });
        assert!(reader.await.is_err());
        let mut changes = StatusChanges::new(status.clone());
        status.set_started();
        assert_eq!(changes.next().await.unwrap().phase, Phase::Announced);
    }
}
