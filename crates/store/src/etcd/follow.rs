//! The task that follows etcd: list, watch, list again where that is needed, and never give up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use model::{Lease, LeaseAttrs, NetConfig, SubnetKey};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::client::{Client, Failure, Watch};
use super::etcd_lease::EtcdLease;
use super::history::History;
use super::keyspace::Keyspace;
use super::listing::Listing;
use super::own_key::{OwnKey, Revision};
use super::proto::{KeyValue, TxnResponse, WatchCreate, WatchResponse, path};
use crate::backoff::Backoff;
use crate::event_queue::EventQueue;
use crate::lease_index::LeaseIndex;
use crate::own_lease::{Action, Answer, Cause, Event, Look, OwnLease, Policy, Request, Time, Who};
use crate::reachability::Reachability;
use crate::retry::{Retry, StoreStatus};
use crate::retry_log::{FaultLog, RetryLog};
use crate::subnet_allocator;
use crate::{AcquireError, Timing, clock};

/// etcd confirms a watch at once.
const CONFIRM: Duration = Duration::from_secs(10);
/// A connection that stood for so long was a good one.
const LASTING: Duration = Duration::from_secs(5);
/// Keys after which the daemon is told, so that its work overlaps with the rest of the listing.
const BATCH: usize = 1000;
/// A write of the own lease that etcd refuses is tried again after about so long.
const REFUSED_AGAIN: Duration = Duration::from_secs(20);
/// No network's leases change so often while a connection is down: an etcd that is so far ahead was restored with
/// `--bump-revision`.
const BUMPED: i64 = 500_000;
const DELETE: i32 = 1;

/// What is known of etcd, and the work on it. First the store's own calls drive it, one after the
/// other (own, acquire); then [`Follower::run`] does, for good.
pub(super) struct Follower {
    client: Arc<Client>,
    keys: Keyspace,
    timing: Timing,
    queue: Arc<EventQueue>,
    index: LeaseIndex<i64>,
    fault_log: FaultLog,
    waiting: RetryLog,
    status: StoreStatus,
    who: Who,
    config: NetConfig,
    own: OwnLease<Revision>,
    own_key: OwnKey,
    /// What the own lease asked for and is not done yet.
    todo: VecDeque<Action<Revision>>,
    /// When the own lease wants to be asked again.
    wake: Option<Time>,
    /// When a refused request may be tried again.
    retry: Option<Instant>,
    /// `None`: nothing is being listed.
    listing: Option<Listing>,
    listed: bool,
    history: History,
    /// The connection over which the history is known to be the same.
    known_on: Option<u64>,
    /// Our own key as the present listing shows it.
    own_seen: Option<KeyValue>,
    /// The revision that was known before the present listing.
    before: i64,
    /// etcd went back in time, or is another one: what is missing there was lost, not deleted.
    regressed: bool,
    /// When the keys that a regressed etcd has lost count as gone.
    sweep_at: Option<Instant>,
    /// What the daemon wants to have published.
    desired: watch::Receiver<Option<LeaseAttrs>>,
    reachability: Reachability,
}

/// Why a watch ended.
enum End {
    /// What is known no longer joins up with what etcd tells.
    ListAgain(&'static str),
    /// The connection comes from an address that this node has given up: nothing would come back
    /// over it, and only silence would tell.
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

/// How an acquisition ended.
type Acquired = Result<Lease, AcquireError>;

impl Follower {
    pub(super) fn new(
        client: Arc<Client>,
        keys: Keyspace,
        timing: Timing,
        queue: Arc<EventQueue>,
        desired: watch::Receiver<Option<LeaseAttrs>>,
        (config, who, status): (NetConfig, Who, StoreStatus),
    ) -> Follower {
        let life = EtcdLease::new(client.clone(), timing);
        let own_key = OwnKey::new(client.clone(), keys.clone(), config.clone(), life);
        Follower {
            client,
            keys,
            timing,
            index: LeaseIndex::new(queue.clone()),
            queue,
            fault_log: FaultLog::default(),
            waiting: RetryLog::default(),
            status,
            own: OwnLease::new(who.clone(), clock::writer_id(), Policy::default()),
            own_key,
            who,
            config,
            todo: VecDeque::new(),
            wake: None,
            retry: None,
            listing: None,
            listed: false,
            history: History::default(),
            known_on: None,
            own_seen: None,
            before: 0,
            regressed: false,
            sweep_at: None,
            desired,
            reachability: Reachability::new("etcd"),
        }
    }

    /// Whether it looks for the lease of `who`, under `config`.
    pub(super) fn is_for(&self, config: &NetConfig, who: &Who) -> bool {
        self.config == *config
            && self.who == *who
            && self.own.key().is_none()
            && !self.own.is_over()
    }

    pub(super) fn who(&self) -> &Who {
        &self.who
    }

    /// The lease that the store holds for this node. Reads only as far as it takes to find one.
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
            if self.listed {
                retry.over();
                return None;
            }
            if let Err(failure) = self.read(false).await {
                retry.wait(&failure.to_string(), true).await;
            }
        }
    }

    /// Takes a subnet; waits while etcd does not answer.
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
                    Some(at) => {
                        sleep_until(clock::timer(at)).await;
                        self.tell(Event::Tick);
                    }
                    // It always has something to do, or to wait for.
                    None => self.tell(Event::Retry),
                },
                Err(failure) => {
                    retry.wait(&failure.to_string(), true).await;
                    self.tell(Event::Retry);
                }
            }
        }
    }

    /// Follows etcd for ever.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let mut joined = None;
            let end = match self.session(&mut joined).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let lasted = joined.is_some_and(|at: Instant| at.elapsed() >= LASTING);
            if lasted {
                backoff.reset();
            }
            match end {
                End::ListAgain(why) => {
                    info!("etcd: {why}: listing all leases again");
                    self.own_key.doubtful = true;
                    self.list_anew();
                }
                // The end of a connection is no outage yet: the next one may follow at once.
                End::Failed(failure) if lasted => debug!("etcd: {failure}"),
                End::Moved => debug!("etcd: this node has another address: connecting again"),
                End::Failed(failure) => {
                    let reason = failure.to_string();
                    self.reachability.away(&self.queue, &reason);
                    self.status.set(Some(reason));
                }
            }
            self.history.rewind();
            backoff.shared_by(self.index.iter().count());
            backoff.wait().await;
        }
    }

    /// From one connection to its end.
    async fn session(
        &mut self,
        joined: &mut Option<Instant>,
    ) -> Result<std::convert::Infallible, End> {
        if !self.listed {
            while !self.listed {
                self.read(false).await?;
            }
            self.check_own_in_listing().await?;
        }
        let mut watch = self.open_watch().await?;
        *joined = Some(Instant::now());
        self.reachability
            .back(&self.queue, &watch.endpoint().to_string());
        self.status.set(None);
        self.publish_desired();
        self.tell(Event::Retry);
        loop {
            self.work_or_retry().await?;
            self.queue.flush();
            let timers = [self.wake.map(clock::timer), self.sweep_at, self.retry];
            let timer = timers.into_iter().flatten().min();
            tokio::select! {
                answer = self.client.next(&mut watch) => {
                    let answer = answer?;
                    self.take_in(answer).await?;
                }
                () = until(timer) => self.timers(),
                Ok(()) = self.desired.changed() => {
                    if self.publish_desired() {
                        self.client.leave(watch.connection()).await;
                        return Err(End::Moved);
                    }
                }
            }
        }
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.sweep_at.take_if(|at| *at <= now).is_some() {
            self.index.sweep();
        }
        if self.retry.take_if(|at| *at <= now).is_some() {
            self.tell(Event::Retry);
        } else {
            self.tell(Event::Tick);
        }
    }

    /// Hands on what the daemon wants to have published. Returns whether that is another address.
    fn publish_desired(&mut self) -> bool {
        let Some(desired) = self.desired.borrow_and_update().clone() else {
            return false;
        };
        let held = self.own.held().and_then(|entry| entry.attrs.as_ref());
        let moved = held.is_some_and(|held| held.public_ip != desired.public_ip);
        self.tell(Event::Publish(desired));
        moved
    }

    /// Works off what the own lease asked for; what etcd refuses does not end the session.
    async fn work_or_retry(&mut self) -> Result<(), End> {
        match self.work().await {
            Ok(_) => Ok(()),
            Err(Failure::Refused(reason)) => {
                if self.waiting.is_due(&reason) {
                    warn!("etcd refuses to write our lease: {reason}; trying again");
                }
                self.retry = Some(Instant::now() + REFUSED_AGAIN.mul_f64(0.5 + fastrand::f64()));
                Ok(())
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Opens the watch behind the position, waits until etcd has confirmed it, and makes sure that it is
    /// the etcd that is known.
    async fn open_watch(&mut self) -> Result<Watch, End> {
        let (key, range_end) = self.keys.subnets();
        let create = WatchCreate {
            key,
            range_end,
            start_revision: self.history.revision() + 1,
            progress_notify: true,
            fragment: true,
        };
        let mut watch = self.client.watch(create).await?;
        let first = match timeout(CONFIRM, self.client.next(&mut watch)).await {
            Ok(first) => first?,
            Err(_) => {
                self.client.leave(watch.connection()).await;
                return Err(Failure::Away(format!(
                    "{}: the watch is not confirmed",
                    watch.endpoint()
                ))
                .into());
            }
        };
        if self.known_on != Some(watch.connection()) {
            self.check_history().await?;
            self.known_on = Some(watch.connection());
        }
        self.take_in(first).await?;
        Ok(watch)
    }

    /// After an interruption: does etcd still tell the history that is known? One request, whatever the
    /// number of leases.
    async fn check_history(&mut self) -> Result<(), End> {
        let question = self.history.question(self.keys.subnets());
        let answer: Result<TxnResponse, Failure> = self.client.call(path::TXN, question).await;
        let broken = match answer {
            Ok(answer) => self.history.break_in(&answer),
            Err(failure) if History::is_ahead_of(&failure) => Some("it has lost what it knew"),
            Err(failure) => return Err(failure.into()),
        };
        match broken {
            Some(why) => {
                self.lost();
                Err(End::ListAgain(why))
            }
            None => Ok(()),
        }
    }

    /// etcd has lost data.
    fn lost(&mut self) {
        self.regressed = true;
        self.tell(Event::HistoryLost);
    }

    /// Takes in what a watch tells.
    async fn take_in(&mut self, answer: WatchResponse) -> Result<(), End> {
        let header = answer.header.clone().unwrap_or_default();
        if !self.history.is_same_cluster(&header) {
            self.lost();
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
            if event.kind == DELETE {
                self.history.deleted(kv);
                self.key_deleted(kv);
            } else {
                self.history.put(kv);
                self.read_key(kv);
                self.own_written(kv);
            }
        }
        if answer.events.is_empty() && !answer.created {
            // A sign of life: there was nothing for us up to here.
            reached = header.revision;
        }
        if !answer.fragment && !answer.created {
            self.history.reach(reached);
        }
        Ok(())
    }

    fn key_deleted(&mut self, kv: &KeyValue) {
        self.fault_log.settled(kv.key.as_ref());
        let Ok(key) = self.keys.parse(&kv.key) else {
            return;
        };
        let own = self.own.key() == Some(key);
        if !own || self.is_news(kv) {
            self.index.gone(&key);
        }
        if own && self.is_news(kv) {
            self.tell(Event::Observed(Look::Gone(Cause::Deleted)));
        }
    }

    /// A watch shows a key: our own one?
    fn own_written(&mut self, kv: &KeyValue) {
        if let Some(entry) = self.own_key.entry(kv)
            && self.own.key() == Some(entry.key)
            && self.is_news(kv)
        {
            self.tell(Event::Observed(Look::There(entry)));
        }
    }

    /// Whether this state of our own key is later than the one that is known.
    fn is_news(&self, kv: &KeyValue) -> bool {
        self.own
            .held()
            .is_none_or(|held| held.mark.mod_revision < kv.mod_revision)
    }

    /// What a finished listing says about our own lease.
    async fn check_own_in_listing(&mut self) -> Result<(), Failure> {
        let seen = self.own_seen.take();
        if self.own.key().is_some() {
            let look = match seen.and_then(|kv| self.own_key.entry(&kv)) {
                Some(entry) => Look::There(entry),
                None => Look::Gone(self.own_key.why_missing().await?),
            };
            if look == Look::Gone(Cause::Lost) && !self.regressed {
                self.regressed = true;
                self.end_of_listing();
            }
            self.tell(Event::Observed(look));
        }
        self.regressed = false;
        self.own_key.doubtful = false;
        Ok(())
    }

    /// Starts reading all leases anew; what the new listing does not show is gone at its end.
    fn list_anew(&mut self) {
        self.listing = Some(Listing::new(self.keys.subnets().0));
        self.listed = false;
        self.before = self.before.max(self.history.revision());
        self.history = History::default();
        self.own_seen = None;
        self.index.begin();
        // Versions of two histories may be equal by chance.
        self.index.forget_versions(0);
        self.tell(Event::ListingBegan);
    }

    /// Reads some keys, if there are any left. Returns whether all are read.
    async fn read(&mut self, anew: bool) -> Result<bool, Failure> {
        if anew || (self.listing.is_none() && !self.listed) {
            self.list_anew();
        }
        for _ in 0..BATCH {
            let Some(listing) = &mut self.listing else {
                break;
            };
            let next = listing.next(&self.client, &self.keys.subnets().1).await;
            if self.history == History::default()
                && let Some(header) = listing.header()
            {
                self.history.begin(header);
            }
            match next {
                Ok(Some(kv)) => {
                    self.history.listed(&kv);
                    self.read_key(&kv);
                }
                Ok(None) => {
                    self.history.reach(0);
                    self.known_on = listing.connection();
                    self.own_key.listed_at = self.history.revision();
                    self.listing = None;
                    self.listed = true;
                    let before = std::mem::take(&mut self.before);
                    if self.own_key.doubtful && self.history.revision() - before > BUMPED {
                        self.lost();
                    }
                    self.end_of_listing();
                }
                // The pages would not fit together.
                Err(Failure::Compacted) => self.list_anew(),
                Err(failure) => {
                    self.list_anew();
                    return Err(failure);
                }
            }
        }
        self.queue.flush();
        Ok(self.listed)
    }

    /// Takes in one key as it is now. Ones that make no sense are said once, and skipped.
    fn read_key(&mut self, kv: &KeyValue) {
        let key = match self.keys.parse(&kv.key) {
            Ok(key) => key,
            Err(name) => {
                if self.fault_log.is_new(kv.key.as_ref(), "key") {
                    warn!("etcd: key {name} names no subnet such as 172.30.80.0-24: skipped");
                }
                return;
            }
        };
        if self.own.key() == Some(key) {
            self.own_seen = Some(kv.clone());
        }
        if self
            .index
            .has(&key, |revision| *revision == kv.mod_revision)
        {
            return;
        }
        let lease = match LeaseAttrs::from_json(&kv.value) {
            Ok(attrs) => {
                self.fault_log.settled(kv.key.as_ref());
                let seniority = u64::try_from(kv.create_revision).unwrap_or(0);
                Some(Lease {
                    key,
                    attrs,
                    seniority,
                })
            }
            Err(error) => {
                if self.fault_log.is_new(kv.key.as_ref(), error.to_string()) {
                    warn!("etcd: lease {key}: {error}: skipped");
                }
                None
            }
        };
        let like_ours = lease
            .as_ref()
            .is_some_and(|lease| self.who.likeness(&lease.attrs).is_some());
        if like_ours
            && self.own.key().is_none()
            && let Some(entry) = self.own_key.entry(kv)
        {
            self.tell(Event::Entry(entry));
        }
        self.index.saw(key, kv.mod_revision, lease);
    }

    /// Everything has been read. What an etcd that lost data does not show is not gone yet: its
    /// owner is about to notice, and to publish it again.
    fn end_of_listing(&mut self) {
        if self.regressed {
            self.sweep_at = Some(Instant::now() + self.timing.grace);
            warn!(
                "etcd has lost what it knew; leases that are missing now are kept for {} s more",
                self.timing.grace.as_secs()
            );
        } else if self.sweep_at.is_none() {
            self.index.sweep();
        }
    }

    /// Tells the own lease's machine, and keeps what it asks for.
    fn tell(&mut self, event: Event<Revision>) {
        self.wake = None;
        for action in self.own.on(event, clock::now()) {
            match action {
                Action::WakeAt(at) => self.wake = Some(at),
                action => self.todo.push_back(action),
            }
        }
    }

    /// Does what the own lease asked for. Returns how an acquisition ended, if one did.
    async fn work(&mut self) -> Result<Option<Acquired>, Failure> {
        while let Some(action) = self.todo.pop_front() {
            match action {
                Action::Do(request) => match self.carry_out(request).await {
                    Ok(answer) => self.tell(Event::Answer(answer)),
                    Err(failure) => {
                        self.tell(Event::Answer(Answer::Failed));
                        return Err(failure);
                    }
                },
                Action::Acquired(lease) => {
                    self.show(lease.clone());
                    return Ok(Some(Ok(lease)));
                }
                Action::Changed(lease) => self.show(lease),
                Action::Full(why) => {
                    self.own_key.life.release().await;
                    return Ok(Some(Err(AcquireError::Full(why))));
                }
                Action::Revoked(reason) => {
                    self.queue.revoke(reason.to_string());
                    self.queue.flush();
                    return Ok(Some(Err(AcquireError::Held(reason.to_string()))));
                }
                Action::Say(notice) => notice.log(&mut self.waiting),
                Action::WakeAt(_) => {}
            }
        }
        Ok(None)
    }

    /// The daemon is to know our own lease as it is written.
    fn show(&mut self, lease: Lease) {
        if let Some(held) = self.own.held() {
            let version = held.mark.mod_revision;
            self.index.saw(lease.key, version, Some(lease));
            self.queue.flush();
        }
    }

    async fn carry_out(&mut self, request: Request<Revision>) -> Result<Answer<Revision>, Failure> {
        match request {
            Request::Read { anew } => {
                let all = self.read(anew).await?;
                Ok(Answer::Read { all })
            }
            Request::Pick { lost } => Ok(Answer::Picked(self.pick(lost))),
            Request::Write {
                key,
                value,
                over,
                reserved,
            } => {
                let answer = self.own_key.write(key, &value, over, reserved).await?;
                if over.is_none() && !matches!(answer, Answer::Written { rival: None, .. }) {
                    self.mark_taken(key, &answer);
                }
                Ok(answer)
            }
            Request::Delete { key, over } => {
                let answer = self.own_key.delete(&key, over).await?;
                if answer == Answer::Deleted {
                    self.index.gone(&key);
                }
                Ok(answer)
            }
            Request::Look { key } => self.own_key.look(&key).await,
            Request::Renew => Ok(match self.own_key.life.renew().await? {
                Some(life) => Answer::Renewed(life),
                None => Answer::LifeOver,
            }),
        }
    }

    /// Remembers what stood in the way of a new lease. Its value is still to be read, so that the
    /// version is none that it can have.
    fn mark_taken(&mut self, key: SubnetKey, answer: &Answer<Revision>) {
        let other = match answer {
            Answer::Written { rival, .. } => *rival,
            Answer::Differs(Some(entry)) => Some(entry.key),
            _ => None,
        };
        if self.own.key().is_none() {
            for key in [Some(key), other].into_iter().flatten() {
                if self.index.version(&key).is_none() {
                    self.index.saw(key, 0, None);
                }
            }
        }
    }

    fn pick(&self, lost: u32) -> Result<SubnetKey, String> {
        let taken: Vec<SubnetKey> = self.index.taken().collect();
        subnet_allocator::pick(&self.config, &taken, self.who.previous.as_ref(), lost)
    }
}

/// Sleeps until then; for ever if there is no such time.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
