//! The task that follows a directory: list it, be notified of changes, and look now and then whether
//! there were some that were not notified.

use std::convert::Infallible;

use model::LeaseAttrs;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::leases::{Leases, OwnDriver};
use super::worker::Fault;
use crate::backoff::Backoff;
use crate::clock::sleep_until_some;
use crate::retry::StoreStatus;
use crate::store_task::Follow;

/// What follows a directory.
struct Follower {
    leases: Leases,
    own: OwnDriver,
    desired: watch::Receiver<Option<LeaseAttrs>>,
    status: StoreStatus,
}

impl Follow for Leases {
    async fn follow(
        self,
        own: OwnDriver,
        desired: watch::Receiver<Option<LeaseAttrs>>,
        status: StoreStatus,
    ) {
        let follower = Follower {
            leases: self,
            own,
            desired,
            status,
        };
        follower.run().await;
    }
}

impl Follower {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            match self.session(&mut backoff).await {
                Ok(never) => match never {},
                Err(Fault(reason)) => {
                    self.leases.worker().set_unreachable(&reason);
                    self.status.set(Some(reason));
                }
            }
            self.leases.close();
            backoff.wait().await;
        }
    }

    /// Runs until the directory cannot be read.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<Infallible, Fault> {
        let Follower { leases, own, .. } = self;
        leases.ensure_open(own).await?;
        let mut poll_at = next_poll(leases);
        if let Some(desired) = self.desired.borrow_and_update().clone() {
            own.publish(desired);
        }
        own.retry();
        loop {
            leases.finish_listing(own).await?;
            if leases.is_listed() {
                leases.worker().set_reachable();
                self.status.activity().heard();
                self.status.set(None);
            }
            leases.queue().flush();
            own.work(leases).await?;
            leases.queue().flush();
            backoff.reset();
            let timers = [own.timer(), leases.replica().timer()];
            tokio::select! {
                changes = leases.changes() => leases.take_in_changes(changes?, own).await?,
                () = sleep_until(poll_at) => {
                    leases.poll(own).await?;
                    poll_at = next_poll(leases);
                }
                () = sleep_until_some(timers.into_iter().flatten().min()) => {
                    own.timer_expired();
                    leases.timer_expired(own).await?;
                }
                Ok(()) = self.desired.changed() => {
                    if let Some(desired) = self.desired.borrow_and_update().clone() {
                        own.publish(desired);
                    }
                }
            }
        }
    }
}

fn next_poll(leases: &Leases) -> Instant {
    Instant::now() + leases.timing().poll.mul_f64(0.75 + fastrand::f64() / 2.0)
}
