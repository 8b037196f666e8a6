//! The leases in a directory: reads everybody's, and carries out what the own lease asks for.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use model::{Lease, NetConfig, SubnetKey};
use tracing::{debug, info, warn};

use super::entry::Entry;
use super::file_id::FileId;
use super::files::{Blocker, Changed, Look, Place};
use super::listing::Listing;
use super::own_file::OwnFile;
use super::replica::Replica;
use super::worker::{Fault, Worker};
use crate::Timing;
use crate::event_queue::EventQueue;
use crate::notify::{Changes, Notify};
use crate::own_lease::driver::{Driver, Execute};
use crate::own_lease::{self, Answer, Event, Request, Value, Who, addresses};
use crate::retry::StoreStatus;
use crate::retry_log::FaultLog;
use crate::skip_log::SkipLog;
use crate::subnet_allocator::SubnetAllocator;

/// Every so many polls all files are looked at, whether or not the directory changed.
const THOROUGH: u32 = 30;
/// A write of the own lease that failed is retried after about so long.
const RETRY: Duration = Duration::from_secs(5);

/// The own lease of a node in a directory.
pub(super) type OwnDriver = Driver<FileId>;

/// What is known of the directory, and the work on it.
pub(super) struct Leases {
    place: Arc<Place>,
    timing: Timing,
    queue: Arc<EventQueue>,
    who: Who,
    allocator: SubnetAllocator,
    worker: Worker,
    replica: Replica,
    own_file: OwnFile,
    faults: FaultLog,
    notify: Option<Notify>,
    listing: Option<Listing>,
    /// Everything has been read; this was the directory's state before.
    listed: Option<FileId>,
    polls: u32,
}

impl Leases {
    pub(super) fn new(
        place: Arc<Place>,
        timing: Timing,
        queue: Arc<EventQueue>,
        status: StoreStatus,
        (config, who): (NetConfig, Who),
    ) -> Leases {
        let files = format!("files in {}", place.subnets().display());
        let skipped = SkipLog::new(files, status.clone());
        Leases {
            worker: Worker::new(place.clone(), queue.clone()),
            replica: Replica::new(place.clone(), queue.clone(), skipped, timing.grace),
            own_file: OwnFile::new(place.clone(), config.clone(), timing),
            place,
            timing,
            queue,
            allocator: SubnetAllocator::new(config, who.previous, status),
            who,
            faults: FaultLog::default(),
            notify: None,
            listing: None,
            listed: None,
            polls: 0,
        }
    }

    pub(super) fn queue(&self) -> &Arc<EventQueue> {
        &self.queue
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.timing
    }

    pub(super) fn replica(&self) -> &Replica {
        &self.replica
    }

    pub(super) fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// Returns whether all files have been read at least once.
    pub(super) fn is_listed(&self) -> bool {
        self.listed.is_some()
    }

    /// Waits until files change; for ever if the kernel reports no changes.
    pub(super) async fn changes(&self) -> Result<Changes, Fault> {
        match &self.notify {
            Some(notify) => notify.changes().await.map_err(|e| self.worker.fault(&e)),
            None => std::future::pending().await,
        }
    }

    /// Stops being notified of changes: the directory has to be opened again.
    pub(super) fn close(&mut self) {
        self.notify = None;
    }

    /// Opens the directory, unless that is done: see [`Leases::open`].
    pub(super) async fn ensure_open(&mut self, own: &mut OwnDriver) -> Result<(), Fault> {
        if self.notify.is_none() {
            self.open(own).await?;
        }
        Ok(())
    }

    /// Makes sure that there is a directory, asks to be notified of changes in it, and begins to read
    /// it; in this order, so that no change falls between.
    async fn open(&mut self, own: &mut OwnDriver) -> Result<(), Fault> {
        let before = self.listed;
        let (made, now, ahead) = self
            .worker
            .run(move |place| match place.stat() {
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
        if before.is_some_and(|before| made || !now.same_inode(&before)) {
            self.replica.set_data_lost(true);
        }
        if self.replica.is_data_lost() {
            warn!(
                "{} is another directory than before; publishing our lease again",
                subnets.display()
            );
            own.observe(Event::HistoryLost);
        } else if made {
            info!("{}: created, as it did not exist", subnets.display());
        }
        self.notify = match Notify::new(&subnets) {
            Ok(notify) => Some(notify),
            Err(e) => {
                if self.faults.is_new("inotify", e.to_string()) {
                    warn!(
                        "{}: cannot be notified of changes ({e}; fs.inotify.max_user_instances?): looking every {} s",
                        subnets.display(),
                        self.timing.poll.as_secs()
                    );
                }
                None
            }
        };
        self.begin_listing(own);
        Ok(())
    }

    fn begin_listing(&mut self, own: &mut OwnDriver) {
        self.listing = Some(Listing::default());
        self.replica.begin_listing();
        own.observe(Event::ListingBegan);
    }

    /// Reads what is left of a listing that is under way.
    pub(super) async fn finish_listing(&mut self, own: &mut OwnDriver) -> Result<(), Fault> {
        while self.listing.is_some() {
            self.read_batch(own).await?;
        }
        Ok(())
    }

    /// Reads some files, if there are any left. Returns whether all are read.
    async fn read(&mut self, anew: bool, own: &mut OwnDriver) -> Result<bool, Fault> {
        if self.listing.is_none() && (anew || self.listed.is_none()) {
            self.open(own).await?;
        }
        self.read_batch(own).await?;
        Ok(self.listing.is_none() && self.listed.is_some())
    }

    async fn read_batch(&mut self, own: &mut OwnDriver) -> Result<(), Fault> {
        let Some(mut listing) = self.listing.take() else {
            return Ok(());
        };
        match self.next_of(&mut listing, own).await {
            Ok(true) => self.listing = Some(listing),
            Ok(false) => self.end_listing(&listing, own).await?,
            Err(fault) => {
                self.begin_listing(own);
                return Err(fault);
            }
        }
        self.queue.flush();
        Ok(())
    }

    /// Takes in one batch; returns whether there was one.
    async fn next_of(&mut self, listing: &mut Listing, own: &mut OwnDriver) -> Result<bool, Fault> {
        let foreign = listing.read_names(own.lease().key(), &mut self.worker);
        for name in foreign.await? {
            self.replica.subnet(&name.into());
        }
        let known = |key: &SubnetKey| known_state(&self.replica, own, key);
        let Some(looks) = listing.next(known, &mut self.worker).await? else {
            return Ok(false);
        };
        for (key, look) in looks {
            self.take_in(key, look, own).await?;
        }
        Ok(true)
    }

    async fn end_listing(&mut self, listing: &Listing, own: &mut OwnDriver) -> Result<(), Fault> {
        // Changed while it was read, perhaps: then the next poll reads it again.
        let now = self.place.clock.now();
        let settled = listing.dir().filter(|dir| !dir.is_young(now));
        self.listed = settled.or(listing.dir().map(FileId::unsettled));
        self.replica.end_listing();
        if !listing.shows_own()
            && let Some(key) = own.lease().key()
        {
            self.read_files(vec![key], own).await?;
        }
        self.replica.set_data_lost(false);
        Ok(())
    }

    /// Reads the files that are said to have changed.
    pub(super) async fn take_in_changes(
        &mut self,
        changes: Changes,
        own: &mut OwnDriver,
    ) -> Result<(), Fault> {
        if changes.moved {
            self.notify = None;
            self.replica.set_data_lost(true);
            return self.open(own).await;
        }
        if changes.lost_some {
            self.begin_listing(own);
            return Ok(());
        }
        let names = changes.names.iter();
        let keys = names.filter_map(|name| self.replica.subnet(name)).collect();
        self.replica.log_skipped();
        self.read_files(keys, own).await
    }

    /// Looks again at files that may have been half written.
    pub(super) async fn timer_expired(&mut self, own: &mut OwnDriver) -> Result<(), Fault> {
        self.replica.log_skipped();
        let doubtful = self.replica.take_doubtful();
        self.read_files(doubtful, own).await
    }

    /// Finds changes that were not notified, and leases that have ended.
    pub(super) async fn poll(&mut self, own: &mut OwnDriver) -> Result<(), Fault> {
        let thorough = self.polls.is_multiple_of(THOROUGH);
        let ((dir, config), ahead) = self
            .worker
            .run(move |place| {
                let stat = place.stat();
                let due = stat.0.is_ok() && (thorough || place.clock.is_stale());
                Ok((stat, due.then(|| place.measure_clock()).flatten()))
            })
            .await?;
        self.report_clock(ahead);
        let Some(before) = self.listed else {
            self.begin_listing(own);
            return Ok(());
        };
        match dir {
            Ok(dir) if dir.same_inode(&before) => {
                self.polls += 1;
                if dir != before || self.polls.is_multiple_of(THOROUGH) {
                    self.begin_listing(own);
                }
            }
            Err(e) if !config => return Err(self.worker.fault(&e)),
            _ => {
                self.notify = None;
                self.open(own).await?;
            }
        }
        self.replica.expire(own.lease().key());
        Ok(())
    }

    /// Logs by how many milliseconds this machine's clock is ahead of the file system's, once.
    fn report_clock(&mut self, ahead: Option<i64>) {
        let Some(ahead) = ahead else { return };
        if ahead == 0 {
            self.faults.cleared("clock");
        } else if self.faults.is_new("clock", ahead > 0) {
            let word = if ahead > 0 { "ahead of" } else { "behind" };
            warn!(
                "this machine's clock is {} s {word} that of {}; leases are judged by the latter: set the clock",
                ahead.unsigned_abs() / 1000,
                self.place.root().display()
            );
        }
    }

    async fn read_files(&mut self, keys: Vec<SubnetKey>, own: &mut OwnDriver) -> Result<(), Fault> {
        if keys.is_empty() {
            return Ok(());
        }
        let known = |key: SubnetKey| (key, known_state(&self.replica, own, &key));
        let keys = keys.into_iter().map(known).collect();
        let looks = self.worker.run(move |place| place.look_at_each(keys));
        for (key, look) in looks.await? {
            self.take_in(key, look, own).await?;
        }
        self.replica.log_skipped();
        Ok(())
    }

    /// Takes in one look at a file.
    async fn take_in(
        &mut self,
        key: SubnetKey,
        look: Look,
        own: &mut OwnDriver,
    ) -> Result<(), Fault> {
        if own.lease().key() != Some(key) {
            if let Look::Lease(entry, id) = &look {
                self.recognise(key, entry, *id, own);
            }
            self.replica.take_in(key, look);
            return Ok(());
        }
        // We may have written it since it was looked at.
        if let Some(look) = self.look_at(key).await?
            && self.replica.take_in_own(key, &look)
            && let Some(look) = self.as_seen(key, look, own)
        {
            own.observe(Event::Observed(look));
        }
        Ok(())
    }

    /// Passes a lease that may be ours, or that of a node with our address, on to the own lease's machine.
    fn recognise(&mut self, key: SubnetKey, entry: &Entry, id: FileId, own: &mut OwnDriver) {
        if self.who.likeness(&entry.attrs).is_none() {
            return;
        }
        let held = own.lease().key();
        let file = self.own_file.entry(key, Some(entry.clone()), id, None);
        own.observe(Event::Entry(file));
        let Some(held) = held else { return };
        // The daemon's roster refuses such a lease and says why: one line is enough.
        let other = entry.attrs.public_ip;
        if self.faults.is_new(("twin", key), other) {
            debug!(
                "lease {key} is published with our public address or device ({}), ours is {held}: two nodes with one \
                 address, or a left-over that will expire",
                addresses(&other)
            );
        }
    }

    fn as_seen(
        &self,
        key: SubnetKey,
        look: Look,
        own: &OwnDriver,
    ) -> Option<own_lease::Look<FileId>> {
        let lost = self.replica.is_data_lost();
        self.own_file.look(key, look, own.lease().held(), lost)
    }

    async fn look_at(&mut self, key: SubnetKey) -> Result<Option<Look>, Fault> {
        let looks = self
            .worker
            .run(move |place| place.look_at_each(vec![(key, None)]));
        Ok(looks.await?.pop().map(|(_, look)| look))
    }

    /// Returns how the file of `key` is.
    ///
    /// # Errors
    /// That cannot be said.
    async fn look_at_own(
        &mut self,
        key: SubnetKey,
        own: &OwnDriver,
    ) -> Result<own_lease::Look<FileId>, Fault> {
        let look = self.look_at(key).await?;
        let reason = match &look {
            Some(Look::Bad(reason, None)) => reason.clone(),
            _ => "its state cannot be read".into(),
        };
        let seen = look.and_then(|look| self.as_seen(key, look, own));
        seen.ok_or_else(|| {
            let file = self.place.subnets().join(key.to_string());
            Fault(format!("{}: {reason}", file.display()))
        })
    }

    /// Returns what prevents a change.
    async fn differs(&mut self, key: SubnetKey, own: &OwnDriver) -> Result<Answer<FileId>, Fault> {
        Ok(match self.look_at_own(key, own).await? {
            own_lease::Look::There(entry) => Answer::Differs(Some(entry)),
            own_lease::Look::Gone(_) => Answer::Differs(None),
        })
    }

    async fn create(
        &mut self,
        key: SubnetKey,
        entry: Entry,
        own: &OwnDriver,
    ) -> Result<Answer<FileId>, Fault> {
        let new = entry.clone();
        let blocker = match self
            .worker
            .run(move |place| place.create(&key, &new))
            .await?
        {
            Changed::Done(id) => return Ok(self.own_file.written(key, entry, id)),
            Changed::Differs(Blocker::File) => key,
            Changed::Differs(Blocker::Overlap(other)) => other,
        };
        if own.lease().key().is_none() {
            self.replica.put_unread(blocker);
        }
        self.differs(blocker, own).await
    }

    async fn replace(
        &mut self,
        key: SubnetKey,
        value: Value,
        was: FileId,
        reserved: bool,
        own: &OwnDriver,
    ) -> Result<Answer<FileId>, Fault> {
        let new = self.own_file.replacement(value, was, reserved);
        let replaced = self.worker.run(move |place: &Place| -> io::Result<_> {
            let mut written = None;
            let changed = place.replace(&key, was, |old| written.insert(new(old)).clone())?;
            Ok((changed, written))
        });
        match replaced.await? {
            (Changed::Done(id), Some(entry)) => Ok(self.own_file.written(key, entry, id)),
            _ => self.differs(key, own).await,
        }
    }

    /// Writes our file again, with a new end.
    async fn renew(&mut self, own: &OwnDriver) -> Result<Answer<FileId>, Fault> {
        let held = own.lease().held();
        let Some((key, was, attrs)) =
            held.and_then(|held| Some((held.key, held.mark, held.attrs.clone()?)))
        else {
            return Ok(Answer::LifeOver);
        };
        let value = Value {
            attrs,
            signature: None,
        };
        self.replace(key, value, was, false, own).await
    }
}

impl Execute for Leases {
    type Mark = FileId;
    type Error = Fault;

    async fn execute(
        &mut self,
        request: Request<FileId>,
        own: &mut OwnDriver,
    ) -> Result<Answer<FileId>, Fault> {
        match request {
            Request::Read { anew } => {
                let all = self.read(anew, own).await?;
                Ok(Answer::Read { all })
            }
            Request::Pick { lost } => {
                let picked = self.allocator.pick(&self.replica.taken(), lost);
                Ok(Answer::Picked(picked))
            }
            Request::Write {
                key,
                value,
                over: Some(was),
                reserved,
            } => self.replace(key, value, was, reserved, own).await,
            Request::Write {
                key,
                value,
                over: None,
                reserved,
            } => {
                let entry = self.own_file.new_entry(value, reserved);
                self.create(key, entry, own).await
            }
            Request::Delete { key, over } => {
                if self
                    .worker
                    .run(move |place| place.remove(&key, over))
                    .await?
                {
                    self.replica.remove(&key);
                    return Ok(Answer::Deleted);
                }
                self.differs(key, own).await
            }
            Request::Look { key } => Ok(Answer::Looked {
                look: self.look_at_own(key, own).await?,
                rival: None,
            }),
            Request::Renew => self.renew(own).await,
        }
    }

    fn record(&mut self, lease: Lease, id: FileId) {
        let key = lease.key;
        self.replica.put_own(lease, id);
        self.queue.flush();
        // Nobody waits for the disk.
        drop(self.worker.begin(move |place| place.sync(&key)));
    }

    /// A file that cannot be written does not end the session: other nodes' leases can be read all
    /// the same.
    fn retry_after(&self, _: &Fault) -> Option<Duration> {
        Some(RETRY)
    }
}

/// Returns the state of the file of `key` that need not be read again.
fn known_state(replica: &Replica, own: &OwnDriver, key: &SubnetKey) -> Option<NonZeroU64> {
    // Until we have a lease, any may be ours: the machine is to see it.
    own.lease().key()?;
    replica.state(key)
}
