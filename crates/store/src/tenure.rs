//! Two living nodes that publish the same public address.
//!
//! Only Kubernetes' annotations are kept so; the other stores drive [`crate::own_lease`]. A write that this
//! daemon did not make is answered with its own value, once a minute at most.

use std::time::Duration;

use tokio::time::Instant;

const ANSWER_EVERY: Duration = Duration::from_secs(60);

/// When this daemon last defended its lease.
#[derive(Debug)]
pub(crate) struct Tenure {
    answered: Option<Instant>,
}

/// What to do about somebody else's write to our key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// Say so, and write our value again.
    Answer,
    /// Said and answered lately: let it be.
    Endure,
}

impl Tenure {
    /// The lease is new, and nobody else's.
    pub(crate) fn created() -> Tenure {
        Tenure { answered: None }
    }

    /// Somebody else wrote our key, under our public address.
    pub(crate) fn foreign_write(&mut self) -> Reaction {
        let now = Instant::now();
        if self
            .answered
            .is_some_and(|at| now.duration_since(at) < ANSWER_EVERY)
        {
            return Reaction::Endure;
        }
        self.answered = Some(now);
        Reaction::Answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn a_foreign_write_is_answered_once_a_minute() {
        let mut settled = Tenure::created();
        assert_eq!(settled.foreign_write(), Reaction::Answer);
        assert_eq!(settled.foreign_write(), Reaction::Endure);
        sleep(ANSWER_EVERY).await;
        assert_eq!(settled.foreign_write(), Reaction::Answer);
    }
}
