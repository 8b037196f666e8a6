//! Two living nodes that publish the same public address.
//!
//! A node knows its own lease from an earlier run by its public address, and takes it over. If the
//! run that wrote it has not ended, because another machine was given the same address, both now
//! write the same key. Nothing in the value that other programs read can tell them apart, but each of
//! them sees a write of its key that it did not make. Then
//!
//! * the daemon that took the lease over moments ago gives way: the write is the answer of one
//!   that was there before;
//! * any other one says so and writes its own value again, which is that answer. It does so once a
//!   minute at most: what it cannot win it does not fight over.
//!
//! How long "moments" are is random, so that two daemons which start again and again end with one
//! that stays.

use std::net::IpAddr;
use std::time::Duration;

use model::{Dual, SubnetKey};
use tokio::time::Instant;
use tracing::warn;

use crate::claim::addresses;

const SHORTEST: Duration = Duration::from_millis(1000);
const LONGEST: Duration = Duration::from_millis(5000);
const ANSWER_EVERY: Duration = Duration::from_secs(60);

/// How this daemon came by its lease, and whether it has defended it lately.
#[derive(Debug)]
pub(crate) struct Tenure {
    yields_until: Option<Instant>,
    answered: Option<Instant>,
}

/// What to do about somebody else's write to our key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// The lease is the other's.
    Yield,
    /// Say so, and write our value again.
    Answer,
    /// Said and answered lately: let it be.
    Endure,
}

impl Tenure {
    /// The lease is new, and nobody else's.
    pub(crate) fn created() -> Tenure {
        Tenure {
            yields_until: None,
            answered: None,
        }
    }

    /// The lease was there already, and looked like ours.
    pub(crate) fn adopted() -> Tenure {
        let moments = SHORTEST + (LONGEST - SHORTEST).mul_f64(fastrand::f64());
        Tenure {
            yields_until: Some(Instant::now() + moments),
            answered: None,
        }
    }

    /// Somebody else wrote our key, under our public address.
    pub(crate) fn foreign_write(&mut self) -> Reaction {
        let now = Instant::now();
        if self.yields_until.is_some_and(|until| now < until) {
            return Reaction::Yield;
        }
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

/// Why we give our lease up: a node with another address holds it.
pub(crate) fn taken_by(key: &SubnetKey, theirs: &Dual<IpAddr>) -> String {
    format!("{key} belongs to {} now", addresses(theirs))
}

/// Why we give our lease up: [`Reaction::Yield`].
pub(crate) fn outranked(key: &SubnetKey, ours: &Dual<IpAddr>) -> String {
    format!(
        "another living node publishes our public address {} and holds {key}: give one of the two another address \
         (--public-ip)",
        addresses(ours)
    )
}

/// Says that we answer: [`Reaction::Answer`].
pub(crate) fn say_answer(key: &SubnetKey, ours: &Dual<IpAddr>) {
    warn!(
        "somebody else wrote our lease {key}: another node with our public address {}, or a person; writing it again",
        addresses(ours)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn the_newcomer_yields_and_the_other_answers_once() {
        let mut newcomer = Tenure::adopted();
        assert_eq!(newcomer.foreign_write(), Reaction::Yield);
        let mut settled = Tenure::created();
        assert_eq!(settled.foreign_write(), Reaction::Answer);
        assert_eq!(settled.foreign_write(), Reaction::Endure);
        sleep(ANSWER_EVERY).await;
        assert_eq!(settled.foreign_write(), Reaction::Answer);
        assert_eq!(
            newcomer.foreign_write(),
            Reaction::Answer,
            "it has been here long enough"
        );
    }
}
