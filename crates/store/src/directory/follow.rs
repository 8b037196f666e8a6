//! The task that follows a directory: list it, be told of changes, and look now and then whether
//! there were some that nobody told of.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use model::{Lease, LeaseAttrs, NetConfig, SubnetKey};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::entry::Entry;
use super::file_id::FileId;
use super::files::Place;
use super::listing::Listing;
use super::notify::{Changes, Notify};
use crate::backoff::Backoff;
use crate::event_queue::EventQueue;
use crate::lease_index::LeaseIndex;
use crate::own_lease::{Action, Event, OwnLease, Policy, Time, Who};
use crate::reachability::Reachability;
use crate::retry::{Retry, StoreStatus};
use crate::retry_log::{FaultLog, RetryLog};
use crate::{AcquireError, Timing, clock};

/// Every so many polls all files are looked at, whether or not the directory changed.
const THOROUGH: u32 = 30;
/// A write of the own lease that failed is tried again after about so long.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// How an acquisition ended.
pub(super) type Acquired = Result<Lease, AcquireError>;

/// The file system failed, or what should be there is not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Fault(pub String);

/// What is remembered of a key's file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// [`FileId::digest`] of its state when it was read.
    pub state: Option<NonZeroU64>,
    /// Seconds of the epoch; `None`: never.
    pub expires: Option<NonZeroU64>,
}

impl Seen {
    /// A lease that was read.
    pub(super) fn lease(id: FileId, expires: Option<u64>) -> Seen {
        // A lease that ended when the epoch began might as well have ended a second later.
        Seen {
            state: Some(id.digest()),
            expires: expires.map(|end| NonZeroU64::MIN.saturating_add(end.saturating_sub(1))),
        }
    }

    /// A lease that was read so soon after it was written that a later write may leave the same times: it
    /// is read once more, and nothing is new if it says the same.
    pub(super) fn unsettled(id: FileId, entry: &Entry) -> Seen {
        let mut hasher = DefaultHasher::new();
        (id.unsettled(), entry.render()).hash(&mut hasher);
        Seen {
            state: NonZeroU64::new(hasher.finish()),
            ..Seen::lease(id, entry.expires)
        }
    }

    /// Something that is no lease, or was not read.
    pub(super) fn taken(id: Option<FileId>) -> Seen {
        Seen {
            state: id.map(|id| id.digest()),
            expires: None,
        }
    }
}

/// What is known of the directory, and the work on it.
pub(super) struct Follower {
    pub place: Arc<Place>,
    pub timing: Timing,
    pub queue: Arc<EventQueue>,
    pub catalog: LeaseIndex<Seen>,
    pub fault_log: FaultLog,
    pub who: Who,
    pub config: NetConfig,
    pub own: OwnLease<FileId>,
    /// What the own lease asked for and is not done yet.
    pub todo: VecDeque<Action<FileId>>,
    /// When the own lease wants to be asked again.
    pub wake: Option<Time>,
    /// When a failed request may be tried again.
    pub retry: Option<Instant>,
    pub waiting: RetryLog,
    status: StoreStatus,
    pub listing: Option<Listing>,
    /// Everything has been read; this was the directory's state before.
    pub listed: Option<FileId>,
    /// What the daemon wants to have published.
    desired: watch::Receiver<Option<LeaseAttrs>>,
    pub reachability: Reachability,
    notify: Option<Notify>,
    /// Files that may be half written, and when to look at them again.
    pub doubtful: BTreeSet<SubnetKey>,
    pub doubts_end: Option<Instant>,
    /// The directory lost its files: what is missing was not given up by its owner.
    pub lost: bool,
    /// When missing files of a directory that lost some count as gone.
    sweep_at: Option<Instant>,
    polls: u32,
}

impl Follower {
    pub(super) fn new(
        place: Arc<Place>,
        timing: Timing,
        queue: Arc<EventQueue>,
        desired: watch::Receiver<Option<LeaseAttrs>>,
        (config, who, status): (NetConfig, Who, StoreStatus),
    ) -> Follower {
        Follower {
            place,
            timing,
            catalog: LeaseIndex::new(queue.clone()),
            queue,
            fault_log: FaultLog::default(),
            own: OwnLease::new(who.clone(), clock::writer_id(), Policy::default()),
            who,
            config,
            todo: VecDeque::new(),
            wake: None,
            retry: None,
            waiting: RetryLog::default(),
            status,
            listing: None,
            listed: None,
            desired,
            reachability: Reachability::new("the store directory"),
            notify: None,
            doubtful: BTreeSet::new(),
            doubts_end: None,
            lost: false,
            sweep_at: None,
            polls: 0,
        }
    }

    /// Whether it looks for the lease of `who`, under `config`.
    pub(super) fn is_for(&self, config: &NetConfig, who: &Who) -> bool {
        self.config == *config
            && self.who == *who
            && self.own.key().is_none()
            && !self.own.is_over()
    }

    /// The lease that the directory holds for this node. Reads only as far as it takes to find one.
    pub(super) async fn find_own(&mut self) -> Option<Lease> {
        let mut retry = Retry::reporting_to(&self.status);
        loop {
            if let Some(entry) = self.own.found() {
                retry.over();
                return Some(Lease {
                    key: entry.key,
                    attrs: entry.attrs.clone()?,
                    seniority: entry.seniority,
                });
            }
            if self.is_listed() {
                retry.over();
                return None;
            }
            if let Err(fault) = self.read_some(false).await {
                retry.wait(&fault.to_string(), true).await;
            }
        }
    }

    /// Takes a subnet; waits while the directory cannot be read or written.
    pub(super) async fn acquire(&mut self, attrs: LeaseAttrs) -> Acquired {
        let mut retry = Retry::reporting_to(&self.status);
        self.tell(Event::Want(attrs));
        loop {
            match self.work().await {
                Ok(Some(acquired)) => {
                    retry.over();
                    return acquired;
                }
                Ok(None) => match self.wake {
                    Some(at) => self.wait_for_answer(at).await,
                    // It always has something to do, or to wait for.
                    None => self.tell(Event::Retry),
                },
                Err(fault) => {
                    retry.wait(&fault.to_string(), true).await;
                    self.tell(Event::Retry);
                }
            }
        }
    }

    async fn wait_for_answer(&mut self, at: Time) {
        sleep_until(clock::timer(at)).await;
        self.tell(Event::Tick);
    }

    fn is_listed(&self) -> bool {
        self.listing.is_none() && self.listed.is_some()
    }

    /// Reads some files, if there are any left. Returns whether all are read.
    pub(super) async fn read_some(&mut self, anew: bool) -> Result<bool, Fault> {
        if self.listing.is_none() && (anew || self.listed.is_none()) {
            self.join().await?;
        }
        self.read_batch().await?;
        Ok(self.is_listed())
    }

    /// Follows the directory for ever.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            match self.session(&mut backoff).await {
                Ok(never) => match never {},
                Err(Fault(reason)) => {
                    self.reachability.away(&self.queue, &reason);
                    self.status.set(Some(reason));
                }
            }
            self.notify = None;
            backoff.wait().await;
        }
    }

    async fn session(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, Fault> {
        if self.notify.is_none() {
            self.join().await?;
        }
        let mut poll_at = self.next_poll();
        self.publish_desired();
        self.tell(Event::Retry);
        loop {
            while self.listing.is_some() {
                self.read_batch().await?;
            }
            self.present();
            self.work_or_retry().await;
            self.queue.flush();
            backoff.reset();
            let timers = [self.wake.map(clock::timer), self.doubts_end, self.retry];
            let timer = timers.into_iter().flatten().min();
            tokio::select! {
                changes = changes(self.notify.as_ref()) => {
                    let changes = changes.map_err(|e| self.fault(&e))?;
                    self.look_at(changes).await?;
                }
                () = sleep_until(poll_at) => {
                    self.poll().await?;
                    poll_at = self.next_poll();
                }
                () = until(timer) => self.timers().await?,
                Ok(()) = self.desired.changed() => self.publish_desired(),
            }
        }
    }

    async fn timers(&mut self) -> Result<(), Fault> {
        let now = Instant::now();
        if self.retry.take_if(|at| *at <= now).is_some() {
            self.tell(Event::Retry);
        } else {
            self.tell(Event::Tick);
        }
        self.look_again().await
    }

    /// Hands on what the daemon wants to have published.
    fn publish_desired(&mut self) {
        let desired = self.desired.borrow_and_update().clone();
        if let Some(desired) = desired {
            self.tell(Event::Publish(desired));
        }
    }

    fn present(&mut self) {
        if self.listed.is_some() {
            let root = self.place.root().display().to_string();
            self.reachability.back(&self.queue, &root);
            self.status.set(None);
        }
        self.queue.flush();
    }

    fn next_poll(&self) -> Instant {
        Instant::now() + self.timing.poll.mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// Makes sure that there is a directory, asks to be told of changes in it, and begins to read
    /// it; in this order, so that no change falls between.
    pub(super) async fn join(&mut self) -> Result<(), Fault> {
        let before = self.listed;
        let (made, now, ahead) = self
            .files(move |place| match place.stat() {
                // Gone with all else: not mounted, rather than emptied.
                (Err(e), false) if before.is_some() => Err(e),
                _ => {
                    std::fs::create_dir_all(place.root())?;
                    let ahead = place.measure_clock();
                    Ok((place.prepare()?, place.stat().0?, ahead))
                }
            })
            .await?;
        self.report_clock(ahead);
        let subnets = self.place.subnets();
        self.lost |= before.is_some_and(|before| made || !now.same_inode(&before));
        if self.lost {
            warn!(
                "{} is another directory than before; publishing our lease again",
                subnets.display()
            );
            self.tell(Event::HistoryLost);
        } else if made {
            info!("{}: made, as it was not there", subnets.display());
        }
        self.notify = match Notify::new(&subnets) {
            Ok(notify) => Some(notify),
            Err(e) => {
                if self.fault_log.is_new("inotify", e.to_string()) {
                    warn!(
                        "{}: cannot be told of changes ({e}; fs.inotify.max_user_instances?): looking every {} s",
                        subnets.display(),
                        self.timing.poll.as_secs()
                    );
                }
                None
            }
        };
        self.list_anew();
        Ok(())
    }

    /// Reads the files that are said to have changed.
    async fn look_at(&mut self, changes: Changes) -> Result<(), Fault> {
        if changes.moved {
            self.notify = None;
            self.lost = true;
            return self.join().await;
        }
        if changes.lost_some {
            self.list_anew();
            return Ok(());
        }
        let keys = changes
            .names
            .iter()
            .filter_map(|name| self.key_of(name))
            .collect();
        self.read(keys).await
    }

    /// Looks again at files that may have been half written.
    async fn look_again(&mut self) -> Result<(), Fault> {
        if self.doubts_end.is_some_and(|end| Instant::now() >= end) {
            self.doubts_end = None;
            let doubtful = std::mem::take(&mut self.doubtful);
            self.read(doubtful.into_iter().collect()).await?;
        }
        Ok(())
    }

    /// Has anything changed that nobody told of? And whose time is over?
    async fn poll(&mut self) -> Result<(), Fault> {
        let thorough = self.polls.is_multiple_of(THOROUGH);
        let ((dir, config), ahead) = self
            .files(move |place| {
                let stat = place.stat();
                let due = stat.0.is_ok() && (thorough || place.clock.is_stale());
                Ok((stat, due.then(|| place.measure_clock()).flatten()))
            })
            .await?;
        self.report_clock(ahead);
        let Some(before) = self.listed else {
            self.list_anew();
            return Ok(());
        };
        match dir {
            Ok(dir) if dir.same_inode(&before) => {
                self.polls += 1;
                if dir != before || self.polls.is_multiple_of(THOROUGH) {
                    self.list_anew();
                }
            }
            Err(e) if !config => return Err(self.fault(&e)),
            _ => {
                self.notify = None;
                self.join().await?;
            }
        }
        self.end_what_is_over();
        if self.sweep_at.is_some_and(|at| Instant::now() >= at) {
            self.sweep_at = None;
            self.catalog.sweep();
        }
        Ok(())
    }

    /// Logs by how many milliseconds this machine's clock is ahead of the file system's, once.
    fn report_clock(&mut self, ahead: Option<i64>) {
        let Some(ahead) = ahead else { return };
        if ahead == 0 {
            self.fault_log.settled("clock");
        } else if self.fault_log.is_new("clock", ahead > 0) {
            let word = if ahead > 0 { "ahead of" } else { "behind" };
            warn!(
                "this machine's clock is {} s {word} that of {}; leases are judged by the latter: set the clock",
                ahead.unsigned_abs() / 1000,
                self.place.root().display()
            );
        }
    }

    fn end_what_is_over(&mut self) {
        let now = self.place.clock.now();
        let over = self
            .catalog
            .iter()
            .filter(|(_, seen)| seen.expires.is_some_and(|end| end.get() <= now));
        let over: Vec<SubnetKey> = over.map(|(key, _)| key).collect();
        for key in over {
            if self.own.key() != Some(key) {
                info!("lease {key}: not renewed by its owner, its time is over");
                self.catalog.gone(&key);
            }
        }
    }

    /// Everything has been read: what was not shown is gone. Unless all were lost: then their
    /// owners are about to publish them again.
    pub(super) fn end_of_listing(&mut self) {
        if self.lost {
            self.sweep_at = Some(Instant::now() + self.timing.grace);
        } else if self.sweep_at.is_none() {
            self.catalog.sweep();
        }
    }
}

/// The next changes; for ever if nobody tells of any.
async fn changes(notify: Option<&Notify>) -> io::Result<Changes> {
    match notify {
        Some(notify) => notify.changes().await,
        None => std::future::pending().await,
    }
}

/// Sleeps until then; for ever if there is no such time.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
