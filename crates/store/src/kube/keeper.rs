//! The task that keeps our Node as it should be: its annotations through [`crate::own_lease`], its
//! condition through [`super::condition`].

use std::sync::Arc;
use std::time::Duration;

use model::Lease;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::condition::ConditionKeeper;
use super::failure::Failure;
use super::own::{DesiredNode, NodeMark, condition};
use super::own_sight::Seen;
use super::publisher::{Publisher, Reassigned};
use crate::backoff::Backoff;
use crate::clock::{self, sleep_until_some};
use crate::own_lease::Event;
use crate::own_lease::driver::Driver;
use crate::retry::Retry;
use crate::retry_log::RetryLog;

/// How long to wait, more or less, after the API server has refused a write.
const AGAIN: Duration = Duration::from_secs(20);

/// Our Node, what it should say, and what is being done for that.
pub(super) struct Keeper {
    publisher: Publisher,
    driver: Driver<NodeMark>,
    condition: ConditionKeeper,
    /// A write failed: whether it took effect is not known.
    unknown: bool,
    /// When a failed request is tried again.
    retry_at: Option<Instant>,
    backoff: Backoff,
    log: RetryLog,
    /// [`Seen::deletions`] and [`Seen::history`] that are taken in.
    counts: (u64, u64),
}

impl Keeper {
    /// Has our Node publish the lease for the first time; waits while that fails.
    ///
    /// # Errors
    /// The Node has other subnets now.
    pub(super) async fn publish(
        mut publisher: Publisher,
        retry: &mut Retry,
    ) -> Result<Keeper, Reassigned> {
        let mut driver = publisher.driver().ok_or(Reassigned)?;
        loop {
            let failure = driver.work(&mut publisher).await.err();
            if publisher.reassigned().is_some() || publisher.own().is_none() {
                return Err(Reassigned);
            }
            let Some(failure) = failure else { break };
            let text = format!(
                "cannot publish on Node {}: {failure}",
                publisher.client().name()
            );
            retry.wait(&text, failure.is_away()).await;
            driver.retry();
        }
        Ok(Keeper {
            publisher,
            driver,
            condition: ConditionKeeper::default(),
            unknown: false,
            retry_at: None,
            backoff: Backoff::default(),
            log: RetryLog::default(),
            counts: (0, 0),
        })
    }

    /// Returns our Node's name.
    pub(super) fn name(&self) -> &Arc<str> {
        self.publisher.client().name()
    }

    /// Returns our lease as it is published.
    pub(super) fn lease(&self) -> Lease {
        self.publisher.lease()
    }

    /// Keeps the Node for as long as the store exists.
    pub(super) async fn run(
        mut self,
        mut desired: watch::Receiver<DesiredNode>,
        mut seen: watch::Receiver<Seen>,
    ) {
        loop {
            let wanted = desired.borrow_and_update().clone();
            self.condition.desire(wanted.network);
            if let Some(attrs) = wanted.attrs {
                self.publisher.desire(attrs, &mut self.driver);
            }
            let condition_at = self.work().await;
            tokio::select! {
                Ok(()) = desired.changed() => {}
                Ok(()) = seen.changed() => {
                    let shown = seen.borrow_and_update().clone();
                    self.observe(shown);
                }
                () = sleep_until_some(self.driver.timer()) => self.driver.timer_expired(),
                () = sleep_until_some(condition_at) => {}
                () = sleep_until_some(self.retry_at) => {
                    self.retry_at = None;
                    self.driver.retry();
                }
            }
        }
    }

    fn observe(&mut self, seen: Seen) {
        let counts = (seen.deletions, seen.history);
        if counts != self.counts {
            let same_history = seen.history == self.counts.1;
            self.counts = counts;
            let gone = self.publisher.gone();
            self.driver.observe(Event::Observed(gone));
            if !same_history {
                self.publisher.history_lost();
            }
        }
        let Some(own) = seen.own else { return };
        // An answer may have shown a later state than the watch, and a server may lag behind.
        if self.publisher.is_current(&own) {
            let look = self.publisher.observe(*own, &mut self.driver);
            self.driver.observe(Event::Observed(look));
            self.unknown = false;
        }
        if let Some(why) = self.publisher.reassigned() {
            self.driver.observe(Event::Reassigned(why));
        }
    }

    /// Writes what differs. Returns when the condition is to be written.
    async fn work(&mut self) -> Option<Instant> {
        match self.try_work().await {
            Ok(condition_at) => {
                if self.retry_at.is_none() {
                    self.backoff.reset();
                }
                condition_at
            }
            Err(failure) => {
                self.unknown = true;
                let pause = self.pause_after(&failure);
                self.retry_at = Some(Instant::now() + pause);
                None
            }
        }
    }

    async fn try_work(&mut self) -> Result<Option<Instant>, Failure> {
        // Sends nothing after a failure, but may report that the lease is lost.
        self.driver.work(&mut self.publisher).await?;
        if self.retry_at.is_some() {
            return Ok(None);
        }
        if self.unknown {
            let look = self.publisher.look(&mut self.driver).await?;
            self.driver.observe(Event::Observed(look));
            self.unknown = false;
            self.driver.work(&mut self.publisher).await?;
        }
        let Some(own) = self.publisher.own() else {
            return Ok(None);
        };
        let now = clock::now();
        match self.condition.due(own, now) {
            Some((at, available)) if at <= now => {
                let own = own.clone();
                let client = self.publisher.client().clone();
                let own = match client.set_condition(own, condition(available)).await {
                    Err(Failure::NotFound(_)) => {
                        let gone = self.publisher.gone();
                        self.driver.observe(Event::Observed(gone));
                        return Ok(None);
                    }
                    own => own?,
                };
                debug!(
                    "Node {}: NetworkUnavailable is {}",
                    client.name(),
                    if available { "False" } else { "True" }
                );
                self.condition.due(&own, now);
                self.publisher.wrote(own);
                Ok(None)
            }
            Some((at, _)) => Ok(Some(clock::timer(at))),
            None => Ok(None),
        }
    }

    fn pause_after(&mut self, failure: &Failure) -> Duration {
        match failure {
            Failure::Busy(wait, _) => *wait,
            failure if failure.is_away() => self.backoff.next(),
            failure => {
                let text = failure.to_string();
                if self.log.is_due(&text) {
                    warn!(
                        "cannot publish on Node {}: {text}; retrying",
                        self.publisher.client().name()
                    );
                }
                AGAIN.mul_f64(0.5 + fastrand::f64())
            }
        }
    }
}
