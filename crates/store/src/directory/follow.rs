//! The task that follows a directory: list it, be told of changes, and look now and then whether
//! there were some that nobody told of.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;

use model::{Dual, LeaseAttrs, SubnetKey};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::entry;
use super::file_id::FileId;
use super::files::Place;
use super::holding::Holding;
use super::listing::Listing;
use super::notify::{Changes, Notify};
use crate::Timing;
use crate::backoff::Backoff;
use crate::catalog::Catalog;
use crate::claim::Candidate;
use crate::complaints::Complaints;
use crate::feed::Feed;
use crate::presence::Presence;

/// Every so many polls all files are looked at, whether or not the directory changed.
const THOROUGH: u32 = 30;

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
    pub feed: Arc<Feed>,
    pub catalog: Catalog<Seen>,
    pub complaints: Complaints,
    /// Our public addresses: leases with them are ours.
    pub public_ip: Dual<IpAddr>,
    pub candidates: Vec<Candidate<FileId>>,
    pub listing: Option<Listing>,
    /// Everything has been read; this was the directory's state before.
    pub listed: Option<FileId>,
    pub holding: Option<Holding>,
    pub wish: watch::Receiver<Option<LeaseAttrs>>,
    pub presence: Presence,
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
        feed: Arc<Feed>,
        wish: watch::Receiver<Option<LeaseAttrs>>,
    ) -> Follower {
        Follower {
            place,
            timing,
            catalog: Catalog::new(feed.clone()),
            feed,
            complaints: Complaints::default(),
            public_ip: Dual::default(),
            candidates: Vec::new(),
            listing: None,
            listed: None,
            holding: None,
            wish,
            presence: Presence::new("the store directory"),
            notify: None,
            doubtful: BTreeSet::new(),
            doubts_end: None,
            lost: false,
            sweep_at: None,
            polls: 0,
        }
    }

    /// Follows the directory for ever.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            match self.session(&mut backoff).await {
                Ok(never) => match never {},
                Err(Fault(reason)) => self.presence.away(&self.feed, &reason),
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
        loop {
            while self.listing.is_some() {
                self.read_batch().await?;
            }
            self.do_chores().await?;
            self.present();
            backoff.reset();
            let chore = [self.next_chore(), self.doubts_end]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                changes = changes(self.notify.as_ref()) => {
                    let changes = changes.map_err(|e| self.fault(&e))?;
                    self.look_at(changes).await?;
                }
                () = sleep_until(poll_at) => {
                    self.poll().await?;
                    poll_at = self.next_poll();
                }
                () = until(chore) => self.look_again().await?,
                Ok(()) = self.wish.changed() => {}
            }
        }
    }

    fn present(&mut self) {
        if self.listed.is_some() {
            let root = self.place.root().display().to_string();
            self.presence.back(&self.feed, &root);
        }
        self.feed.flush();
    }

    fn next_poll(&self) -> Instant {
        Instant::now() + self.timing.poll.mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// Makes sure that there is a directory, asks to be told of changes in it, and begins to read
    /// it; in this order, so that no change falls between.
    pub(super) async fn join(&mut self) -> Result<(), Fault> {
        let before = self.listed;
        let (made, now) = self
            .files(move |place| match place.stat() {
                // Gone with all else: not mounted, rather than emptied.
                (Err(e), false) if before.is_some() => Err(e),
                _ => Ok((place.prepare()?, place.stat().0?)),
            })
            .await?;
        let subnets = self.place.subnets();
        self.lost |= before.is_some_and(|before| made || !now.same_inode(&before));
        if self.lost {
            warn!(
                "{} is another directory than before; publishing our lease again",
                subnets.display()
            );
        } else if made {
            info!("{}: made, as it was not there", subnets.display());
        }
        self.notify = match Notify::new(&subnets) {
            Ok(notify) => Some(notify),
            Err(e) => {
                if self.complaints.is_new("inotify", e.to_string()) {
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
        let (dir, config) = self.files(|place| Ok(place.stat())).await?;
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

    fn end_what_is_over(&mut self) {
        let now = entry::now();
        let over = self
            .catalog
            .iter()
            .filter(|(_, seen)| seen.expires.is_some_and(|end| end.get() <= now));
        let over: Vec<SubnetKey> = over.map(|(key, _)| key).collect();
        for key in over {
            if self.holding.as_ref().is_none_or(|own| own.key != key) {
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
