//! The task that follows etcd: list, watch, list again where that is needed, and never give up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use model::LeaseAttrs;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use super::client::{Client, Watch};
use super::failure::Failure;
use super::keyspace::Keyspace;
use super::leases::{Leases, OwnDriver};
use super::proto::{WatchCreate, WatchResponse};
use crate::backoff::Backoff;
use crate::clock::sleep_until_some;
use crate::event_queue::EventQueue;
use crate::reachability::Reachability;
use crate::retry::StoreStatus;
use crate::store_task::Follow;

/// etcd confirms a watch at once.
const CONFIRM: Duration = Duration::from_secs(10);
/// A connection that lasted for so long was a good one.
const LASTING: Duration = Duration::from_secs(5);
/// After about so long without a word etcd is asked whether it still has the history that is known: behind a
/// grpc-proxy no connection ends when etcd is restored or begins anew, and the proxy waits for a revision that may
/// be long in coming.
const QUIET: Duration = Duration::from_secs(300);
/// The kind of a watch's event that says that a key was deleted.
const DELETE: i32 = 1;

/// What follows etcd.
struct Follower {
    client: Arc<Client>,
    keys: Keyspace,
    queue: Arc<EventQueue>,
    leases: Leases,
    own: OwnDriver,
    desired: watch::Receiver<Option<LeaseAttrs>>,
    status: StoreStatus,
    reachability: Reachability,
    /// No watch could be opened last time.
    unwatched: bool,
}

/// Why a watch ended.
enum End {
    /// What is known no longer joins up with what etcd shows.
    ListAgain(&'static str),
    /// The connection comes from an address that this node has given up: nothing would come back
    /// over it, and no error would show that.
    Moved,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        match failure {
            Failure::Compacted => End::ListAgain("its history was compacted"),
            failure => End::Failed(failure),
        }
    }
}

impl Follow for Leases {
    async fn follow(
        self,
        own: OwnDriver,
        desired: watch::Receiver<Option<LeaseAttrs>>,
        status: StoreStatus,
    ) {
        let follower = Follower {
            client: self.client().clone(),
            keys: self.keys().clone(),
            queue: self.queue().clone(),
            leases: self,
            own,
            desired,
            status,
            reachability: Reachability::new("etcd"),
            unwatched: false,
        };
        follower.run().await;
    }
}

impl Follower {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        // etcd has been listed again since a watch last lasted.
        let mut listed_again = false;
        loop {
            let mut joined = None;
            let end = match self.session(&mut joined).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            if joined.is_some() {
                self.client.activity().watch_restarted();
            }
            let lasted = joined.is_some_and(|at: Instant| at.elapsed() >= LASTING);
            if lasted {
                backoff.reset();
                listed_again = false;
            }
            match end {
                End::ListAgain(why) => {
                    // etcd has answered: what an outage made the wait to be is no reason to wait once more.
                    if !std::mem::replace(&mut listed_again, true) {
                        backoff.reset();
                    }
                    info!("etcd: {why}: listing all leases again");
                    self.leases.list_again(&mut self.own);
                }
                // The end of a connection is no outage yet: the next one may follow at once.
                End::Failed(failure) if lasted => debug!("etcd: {}", failure.reason()),
                End::Moved => debug!("etcd: this node has another address: reconnecting"),
                End::Failed(failure) => {
                    self.status.set(Some(failure.to_string()));
                    let reason = failure.reason();
                    self.reachability.set_unreachable(&self.queue, &reason);
                }
            }
            let replica = self.leases.replica();
            replica.history_mut().rewind();
            backoff.shared_by(replica.len());
            backoff.wait().await;
        }
    }

    /// Runs from one connection to its end.
    async fn session(&mut self, joined: &mut Option<Instant>) -> Result<Infallible, End> {
        self.leases.list(&mut self.own).await?;
        if std::mem::replace(&mut self.unwatched, true) {
            // The lease is to live on where etcd answers everything but watches.
            self.own.retry();
            self.work().await?;
        }
        let mut watch = self.open_watch().await?;
        self.unwatched = false;
        *joined = Some(Instant::now());
        self.reachability
            .set_reachable(&self.queue, &watch.endpoint().to_string());
        self.status.set(None);
        self.publish_desired();
        self.own.retry();
        let mut ask_at = quiet_until();
        loop {
            self.work().await?;
            self.queue.flush();
            let timers = [self.own.timer(), self.leases.replica().timer()];
            tokio::select! {
                answer = self.client.next(&mut watch) => {
                    let answer = answer?;
                    self.take_in(answer).await?;
                    ask_at = quiet_until();
                }
                () = sleep_until(ask_at) => {
                    self.check_quiet().await?;
                    ask_at = quiet_until();
                }
                () = sleep_until_some(timers.into_iter().flatten().min()) => {
                    self.leases.replica().timer_expired();
                    self.own.timer_expired();
                }
                Ok(()) = self.desired.changed() => {
                    if self.publish_desired() {
                        self.client.leave(watch.connection()).await;
                        return Err(End::Moved);
                    }
                }
            }
        }
    }

    /// Has published what the daemon wants. Returns whether that changes the public address.
    fn publish_desired(&mut self) -> bool {
        let desired = self.desired.borrow_and_update().clone();
        desired.is_some_and(|desired| self.own.publish(desired))
    }

    /// Opens the watch behind the position, waits until etcd has confirmed it, and makes sure that it is
    /// the etcd that is known.
    async fn open_watch(&mut self) -> Result<Watch, End> {
        let (key, range_end) = self.keys.subnets();
        let create = WatchCreate {
            key,
            range_end,
            start_revision: self.leases.replica().history().revision().saturating_add(1),
            progress_notify: true,
            fragment: true,
        };
        let mut watch = self.client.watch(create).await?;
        let first = match timeout(CONFIRM, self.client.next(&mut watch)).await {
            Ok(first) => first?,
            Err(_) => {
                self.client.leave(watch.connection()).await;
                return Err(Failure::Unreachable(format!(
                    "{}: the watch is not confirmed",
                    watch.endpoint()
                ))
                .into());
            }
        };
        if !self.leases.is_known_on(watch.connection()) {
            self.check_history().await?;
            self.leases.set_known_on(watch.connection());
        }
        self.take_in(first).await?;
        Ok(watch)
    }

    /// After an interruption: does etcd still have the history that is known?
    async fn check_history(&mut self) -> Result<(), End> {
        let broken = self.leases.history_break().await?;
        self.unbroken(broken)
    }

    /// The watch has shown nothing for long: is it one of the history that is known?
    async fn check_quiet(&mut self) -> Result<(), End> {
        match self.leases.history_break().await {
            // What was compacted away is past: etcd has come further, and had nothing for us.
            Err(Failure::Compacted) => Ok(()),
            broken => self.unbroken(broken?),
        }
    }

    /// Ends the session if etcd has another history than the one that is known.
    fn unbroken(&mut self, broken: Option<&'static str>) -> Result<(), End> {
        match broken {
            Some(why) => {
                self.leases.data_lost(&mut self.own);
                Err(End::ListAgain(why))
            }
            None => Ok(()),
        }
    }

    /// Carries out what the own lease needs.
    async fn work(&mut self) -> Result<(), End> {
        self.own.work(&mut self.leases).await?;
        match self.leases.broken() {
            Some(why) => Err(End::ListAgain(why)),
            None => Ok(()),
        }
    }

    /// Takes in what a watch shows.
    async fn take_in(&mut self, answer: WatchResponse) -> Result<(), End> {
        let header = answer.header.clone().unwrap_or_default();
        if !self.leases.replica().history().is_same_cluster(&header) {
            self.leases.data_lost(&mut self.own);
            return Err(End::ListAgain("it is another cluster than before"));
        }
        if answer.compact_revision > 0 {
            return Err(End::ListAgain("its history was compacted"));
        }
        if answer.canceled {
            return Err(Failure::Refused(format!("the watch: {}", answer.cancel_reason)).into());
        }
        let mut reached = 0;
        for event in &answer.events {
            let Some(kv) = &event.kv else { continue };
            reached = reached.max(kv.mod_revision);
            let history = self.leases.replica().history_mut();
            if event.kind == DELETE {
                history.deleted(kv);
                self.leases.deleted(kv, &mut self.own);
            } else {
                history.put(kv);
                self.leases.written(kv, &mut self.own);
            }
        }
        self.leases.replica().log_skipped();
        if answer.events.is_empty() && !answer.created {
            // A sign of life: there was nothing for us up to here.
            reached = header.revision;
        }
        if !answer.fragment && !answer.created {
            self.leases.replica().history_mut().reach(reached);
        }
        Ok(())
    }
}

/// When to ask etcd if its watch shows nothing; all nodes do not ask at once.
fn quiet_until() -> Instant {
    Instant::now() + QUIET.mul_f64(0.8 + fastrand::f64() * 0.4)
}
