//! When and how to answer writes of others to the own key.

use std::time::Duration;

use super::terms::{Signature, Time, WriterId};

/// Foreign writes within this time of each other belong together.
const MEMORY: Duration = Duration::from_secs(60);
/// The least time between two answers to questions.
const QUESTIONS: Duration = Duration::from_millis(300);
/// The most time between two corrections.
const SLOWEST: Duration = Duration::from_secs(10);

/// How long a signature stays after the last answer: longer than a supervisor waits before it starts a newcomer
/// again, which then sees at once that somebody lives here.
const SIGNED: Duration = Duration::from_secs(15);

/// Which answer is due to other writers, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ConflictPolicy {
    /// When the present answer is due; `None`: none is due.
    due: Option<Time>,
    /// The answer is to say who gives it.
    signed: bool,
    answered: Option<Time>,
    /// Foreign writes since the last quiet time.
    foreign: u32,
    last_foreign: Option<Time>,
}

impl ConflictPolicy {
    /// A newcomer asked: answer soon, and say who answers.
    pub(super) fn asked(&mut self, now: Time) {
        let due = self.answered.map_or(now, |at| now.max(at + QUESTIONS));
        self.due = Some(self.due.map_or(due, |at| at.min(due)));
        self.signed = true;
    }

    /// Somebody wrote something else. The first answer follows at once and is unsigned: a person is
    /// the likelier cause. The next ones are slower, and signed: another daemon may be the cause.
    pub(crate) fn overwritten(&mut self, now: Time) {
        if self.last_foreign.is_none_or(|at| now >= at + MEMORY) {
            self.foreign = 0;
        }
        self.foreign += 1;
        self.last_foreign = Some(now);
        let pause = match self.foreign {
            1 => Duration::ZERO,
            n => Duration::from_millis(250 << n.min(8)).min(SLOWEST),
        };
        let due = self.answered.map_or(now, |at| now.max(at + pause));
        self.due = Some(self.due.map_or(due, |at| at.min(due)));
        self.signed |= self.foreign > 1;
    }

    /// What the node wants to publish has changed: write at once.
    pub(super) fn hurry(&mut self, now: Time) {
        self.due = self.due.map(|_| now);
    }

    /// When a signature is taken off again.
    pub(super) fn tidy(&self, now: Time) -> Time {
        self.answered.map_or(now, |at| at + SIGNED)
    }

    /// When an answer is due.
    pub(crate) fn due(&self) -> Option<Time> {
        self.due
    }

    /// How to sign what is written now.
    pub(super) fn signature(&self, writer: WriterId) -> Option<Signature> {
        (self.due.is_some() && self.signed).then_some(Signature::Holder(writer))
    }

    /// The own value was written.
    pub(crate) fn written(&mut self, now: Time) {
        if self.due.take().is_some() {
            self.answered = Some(now);
        }
        self.signed = false;
    }
}
