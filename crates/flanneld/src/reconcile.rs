//! The loop's body: compare what the kernel should hold with what it does hold, write the
//! difference, remember what was refused. Level-triggered: callers only mark state dirty and call
//! [`Reconciler::pass`].

mod fights;
mod repair_log;
mod retry;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dataplane::{Dataplane, KernelError, KernelEvent, Outcome, Scope};
use model::state::{Conflict, Progress};
use model::{IfName, KernelState, Object, Op, Owner};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::allowance::Allowance;
use fights::Fights;
pub use repair_log::RepairLog;
use retry::Retry;

/// Operations handed to the kernel at once: enough to be quick, few enough to stay small. An operation has 184 bytes,
/// and so many are one `sendmsg`.
const BATCH: usize = 1000;
/// A pass that finds more work than this after so many batches is chasing a kernel that does not
/// do what it acknowledges; the rest waits for the retry.
const MAX_BATCHES: usize = 1000;
/// Above this many, operations are summed up in the log.
const LOG_EACH: usize = 20;

/// How long a full look at the kernel is put off, on average. Events tell of every change that we
/// know of; this is for those that we do not.
const AUDIT_EVERY: Duration = Duration::from_secs(120);

/// Full looks that events ask for: a device that somebody sets down and up in a loop asks for one each
/// time.
const LOOKS: (u32, Duration) = (200, Duration::from_millis(25));

/// A look that took long counts for more, so that looks take at most one part in so many of the time; but for no more
/// than the whole allowance, which one of 250 ms uses up.
const LOOKS_SHARE: f64 = 20.0;

/// Retries of everything refused that events ask for.
const EAGER_RETRIES: (u32, Duration) = (50, Duration::from_millis(500));

/// What one pass did.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub struct Pass {
    /// Objects written.
    pub put: usize,
    /// Objects deleted.
    pub deleted: usize,
    /// Operations that the kernel refused; they are tried again later.
    pub refused: usize,
    /// Operations that were begun.
    pub under_way: usize,
    /// Of those written and deleted, repairs of what somebody else keeps undoing, as the log says.
    pub fought: usize,
}

impl Pass {
    /// How many operations the kernel was given.
    pub fn ops(&self) -> usize {
        self.put + self.deleted + self.refused + self.under_way
    }
}

/// Desired state, observed state and the kernel between them.
pub struct Reconciler<D> {
    dataplane: D,
    state: KernelState,
    /// Whether what is not desired may be deleted: only with a complete view of the store.
    may_delete: bool,
    look_again: bool,
    /// The last full look failed.
    look_failed: bool,
    /// The last pass has looked at the kernel.
    looked: bool,
    looks: Allowance,
    next_audit: Instant,
    retry: Retry,
    /// An event may have removed the reason for a refusal.
    retry_now: bool,
    eager_retries: Allowance,
    fights: Fights,
    /// Kinds of failure since all was well, by kind of object and errno, and in how many passes.
    failures: BTreeMap<(&'static str, i32), Failures>,
    /// Devices that the kernel refuses to create or to change: what is on them fails with them.
    failing_devices: BTreeSet<IfName>,
    /// What the kernel said when it last refused a device or an address.
    device_refusal: Option<String>,
    passes: u64,
    audits: u64,
    connection_changes: u64,
    /// What the last pass wrote and deleted, by kind of object.
    last_done: BTreeMap<&'static str, u64>,
    /// Refusals since the start, by kind of object and errno.
    refusals: BTreeMap<(&'static str, i32), u64>,
}

impl<D: Dataplane> Reconciler<D> {
    /// For the objects in `scope`. Nothing is read or written yet.
    pub fn new(mut dataplane: D, scope: Scope) -> Reconciler<D> {
        let state = KernelState::new(dataplane.features().next_hops, scope.devices.clone());
        dataplane.set_scope(scope);
        Reconciler {
            dataplane,
            state,
            may_delete: false,
            look_again: true,
            look_failed: false,
            looked: false,
            looks: Allowance::new(LOOKS.0, LOOKS.1),
            next_audit: next_audit(),
            retry: Retry::default(),
            retry_now: false,
            eager_retries: Allowance::new(EAGER_RETRIES.0, EAGER_RETRIES.1),
            fights: Fights::default(),
            failures: BTreeMap::new(),
            failing_devices: BTreeSet::new(),
            device_refusal: None,
            passes: 0,
            audits: 0,
            connection_changes: 0,
            last_done: BTreeMap::new(),
            refusals: BTreeMap::new(),
        }
    }

    /// Makes `objects` all that `owner` wants; what it wanted before and does not name now is to go.
    pub fn set(&mut self, owner: Owner, objects: impl IntoIterator<Item = Object>) {
        self.state.set(owner, objects);
    }

    /// Returns how far the kernel is with what `owner` wants.
    pub fn progress(&mut self, owner: Owner) -> Progress {
        self.state.progress(owner)
    }

    /// Returns whether the kernel was last seen to hold what meets `object`, desired or not.
    pub fn holds(&self, object: &Object) -> bool {
        self.state.holds(object)
    }

    /// Returns a number that is another one whenever a connection of charon may have come up.
    pub fn connection_changes(&self) -> u64 {
        self.connection_changes
    }

    /// Allows or forbids deletions. Forbidden until the store was listed once, and while it is unreachable.
    pub fn set_may_delete(&mut self, may: bool) {
        self.may_delete = may;
    }

    /// Sets whether packets between nodes must be encrypted; see [`KernelState::set_encrypted`].
    pub fn set_encrypted(&mut self, encrypted: bool) {
        self.state.set_encrypted(encrypted);
    }

    /// Sets which objects concern us from now on; the kernel is read again.
    pub fn set_scope(&mut self, scope: Scope) {
        self.state.set_devices(scope.devices.clone());
        self.dataplane.set_scope(scope);
        self.look_again = true;
    }

    /// Notes what the kernel told. Returns whether a pass has something to do.
    pub fn note(&mut self, event: KernelEvent) -> bool {
        debug!(?event, "kernel");
        let work = match event {
            KernelEvent::Saw(object) => {
                self.connection_changes += u64::from(matches!(object, Object::IkeConnection(..)));
                let work = self.state.notify(object.clone());
                if work {
                    let now_is = Some(object.clone());
                    self.fights.changed(&object, now_is, &self.state);
                }
                work
            }
            KernelEvent::Gone(object) => {
                let work = self.state.notify_gone(&object);
                if work {
                    self.fights.changed(&object, None, &self.state);
                }
                work
            }
            KernelEvent::Refused(op, error) => {
                // A notification of an earlier write may have said that the object is there.
                let put_and_seen = matches!(op, Op::Put(_)) && self.state.holds(op.object());
                self.look_again |= put_and_seen;
                self.refused(&op, error, Instant::now());
                self.retry.failed(Instant::now());
                return put_and_seen;
            }
            KernelEvent::LookAgain | KernelEvent::HostChanged => {
                self.look_again = true;
                true
            }
        };
        // A refused operation may owe its refusal to what has just changed.
        if work {
            self.retry.soon();
            self.retry_now = true;
        }
        work
    }

    /// Waits for the next thing that the kernel has to tell. Cancel-safe.
    pub async fn event(&mut self) -> KernelEvent {
        self.dataplane.event().await
    }

    /// When the next pass is due without any news: a retry, or the audit.
    pub fn due(&self) -> Instant {
        let mut due = self.next_audit;
        if self.look_again {
            let retry = self.look_failed.then_some(self.retry.at);
            due = due.min(
                self.looks
                    .next()
                    .max(retry.unwrap_or_else(|| self.looks.next())),
            );
        }
        if self.state.refused_len() > 0 {
            due = due.min(self.retry.at);
            if self.retry_now {
                due = due.min(self.eager_retries.next());
            }
        }
        self.fights.due().map_or(due, |fight| due.min(fight))
    }

    /// Makes the kernel hold what it should, as far as it lets us. Cheap when there is nothing to do.
    pub async fn pass(&mut self) -> Pass {
        let now = Instant::now();
        self.passes += 1;
        self.looked = false;
        self.last_done.clear();
        self.offer_again(now);
        let mut sum = Pass::default();
        for _ in 0..MAX_BATCHES {
            let may_look = self.look_again && now >= self.looks.next();
            let audit = now >= self.next_audit;
            self.audits += u64::from(audit && !self.look_again);
            if (may_look || audit) && !self.observe(now).await {
                self.retry.failed(now);
                return sum;
            }
            let mut ops = self.state.batch(BATCH, self.may_delete);
            if ops.is_empty() {
                break;
            }
            ops.retain(|op| {
                let held = self.fights.holds(op, &self.state, now);
                if held {
                    self.state.hold(op.object());
                }
                !held
            });
            self.apply(ops, &mut sum, now).await;
        }
        self.finish(now, &sum);
        sum
    }

    /// Offers again what was refused or put off, as far as its time has come.
    fn offer_again(&mut self, now: Instant) {
        if self.fights.take_due(now) {
            self.state.release_held();
        }
        if self.state.refused_len() == 0 {
            self.retry_now = false;
        } else if now >= self.retry.at {
            self.retry_now = false;
            self.state.retry_refused();
        } else if self.retry_now && now >= self.eager_retries.next() {
            self.retry_now = false;
            self.eager_retries.take(now);
            self.state.retry_refused();
        }
    }

    /// Reads the kernel whole. Returns whether that worked.
    async fn observe(&mut self, now: Instant) -> bool {
        let began = std::time::Instant::now();
        let looked = self.look().await;
        self.look_failed = !looked;
        self.looked |= looked;
        let cost = began.elapsed().mul_f64(LOOKS_SHARE).as_secs_f64() / LOOKS.1.as_secs_f64();
        // No more than the whole allowance: where all programs are slow, a repair shall not wait for minutes.
        let cost = cost.ceil().clamp(1.0, f64::from(LOOKS.0));
        self.looks.take_as(now, cost as u32);
        looked
    }

    async fn look(&mut self) -> bool {
        self.look_again = false;
        self.next_audit = next_audit();
        self.state.begin_audit();
        let state = &mut self.state;
        let mut note = |object| state.observe(object);
        match self.dataplane.observe(&mut note).await {
            Ok(()) => {
                let missing = self.state.end_audit();
                self.connection_changes += 1;
                self.state.set_taken_ids(self.dataplane.taken_ids());
                debug!(missing, "looked at the kernel");
                true
            }
            Err(error) => {
                self.look_again = true;
                self.report_kind(&error, "look");
                false
            }
        }
    }

    async fn apply(&mut self, ops: Vec<Op>, sum: &mut Pass, now: Instant) {
        let outcomes = self.dataplane.apply(&ops).await;
        // Of the kind that was done last.
        let (mut kind, mut done) = ("", 0);
        let mut hop_deleted = false;
        for (op, outcome) in ops.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Done => {
                    debug!(%op, "done");
                    let deleted = matches!(op, Op::Del(_));
                    sum.deleted += usize::from(deleted);
                    sum.put += usize::from(!deleted);
                    if op.object().kind() != kind {
                        self.count_done(kind, std::mem::take(&mut done));
                        kind = op.object().kind();
                    }
                    done += 1;
                    hop_deleted |= matches!(op, Op::Del(Object::NextHop(..)));
                    // What was on a device that was deleted or replaced went with it, unannounced.
                    self.look_again |= matches!(op.object(), Object::Link(..));
                    let fought = self.fights.done(&op, &self.state, now);
                    let fought = fought || self.fights.is_about_a_device(now);
                    sum.fought += usize::from(fought);
                    self.state.done(op);
                }
                Outcome::UnderWay => {
                    debug!(%op, "under way");
                    sum.under_way += 1;
                    self.state.set_under_way(&op);
                }
                Outcome::Refused(error) => {
                    sum.refused += 1;
                    self.refused(&op, error, now);
                }
            }
        }
        self.count_done(kind, done);
        // A route that could not be deleted has gone with its next hop, unannounced.
        self.look_again |= hop_deleted && self.state.refused_len() > 0;
    }

    fn count_done(&mut self, kind: &'static str, done: u64) {
        if done > 0 {
            *self.last_done.entry(kind).or_default() += done;
        }
    }

    fn refused(&mut self, op: &Op, error: KernelError, now: Instant) {
        // An answer that was lost leaves open whether the operation was done. And a route's next hop may have gone
        // without a notification: the kernel sends none of the next hops of a device. But a look has what differs
        // offered again at once: a refusal that follows one waits for the retry. And where a device comes and goes
        // all the time, its notifications ask for looks enough.
        self.look_again |= match error.errno {
            libc::ENOBUFS => true,
            libc::EINVAL | libc::ENOENT => {
                !self.looked && needs_another(op) && !self.fights.is_about_a_device(now)
            }
            _ => false,
        };
        let refusal = (op.object().kind(), error.errno);
        *self.refusals.entry(refusal).or_default() += 1;
        if matches!(
            op.object(),
            Object::Link(..)
                | Object::Addr(..)
                | Object::PostStartup(..)
                | Object::XfrmPolicy(..)
                | Object::IkeDaemon(..)
        ) {
            self.device_refusal = Some(error.to_string());
        }
        self.report(&error, op, now);
        self.state
            .refused(op, error.errno, error.reason, now.into_std());
    }

    /// Decides when to retry, and forgets failures that are over.
    fn finish(&mut self, now: Instant, sum: &Pass) {
        if sum.refused > 0 || (sum.under_way > 0 && self.state.refused_len() > 0) {
            self.retry.failed(now);
        }
        if self.state.refused_len() == 0 {
            if self.failures.values().any(|f| f.told) {
                info!("the kernel now takes everything that it refused before");
            }
            self.failures.clear();
            self.failing_devices.clear();
            self.retry = Retry::default();
        } else if sum.refused > 0 {
            // What was offered again in this pass and is not refused any more is over, so that the next
            // failure of its kind is reported.
            let pass = self.passes;
            self.failures
                .retain(|_, failures| failures.last == pass || failures.last + 1 == pass);
            let state = &self.state;
            self.failing_devices.retain(|name| !state.has_device(name));
        }
    }

    /// One line for each kind of failure that lasts, until no operation of that kind is refused any
    /// more. The first refusal is not reported: while a device goes away, what is on it cannot be
    /// written yet.
    fn report(&mut self, error: &KernelError, op: &Op, now: Instant) {
        let on = op.object().device();
        let device_fails = |dev: &IfName| self.failing_devices.contains(dev);
        let object = op.object();
        let fought = self.fights.is_about_a_device(now);
        if !matches!(object, Object::Link(..)) && (fought || on.as_ref().is_some_and(device_fails))
        {
            // The device that cannot be created, or that somebody else keeps changing, is the reason, most
            // likely, and is reported.
            debug!(%error, "refused");
            return;
        }
        if let Object::Link(name, _) = object {
            self.failing_devices.insert(*name);
        }
        self.report_kind(error, object.kind());
    }

    fn report_kind(&mut self, error: &KernelError, kind: &'static str) {
        let pass = self.passes;
        let failures = self
            .failures
            .entry((kind, error.errno))
            .or_insert(Failures {
                first: pass,
                last: pass,
                told: false,
            });
        failures.last = pass;
        if !failures.told && pass > failures.first {
            failures.told = true;
            warn!(
                errno = error.errno,
                "the kernel refuses, trying again and again: {error}"
            );
        } else {
            debug!(%error, "refused");
        }
    }

    /// Whether the kernel holds everything that it should.
    pub fn in_sync(&self) -> bool {
        self.state.in_sync() && !self.look_again
    }

    /// Why a device of ours, or its address, is missing; `None` while all are there.
    pub fn device_problem(&self) -> Option<String> {
        if self.state.devices_in_sync() {
            return None;
        }
        let problem = if !self.state.has_ike_daemon() {
            "charon, which agrees on keys with the peers, cannot be used yet"
        } else if self.state.is_prepared() {
            "a flannel device or its address is missing"
        } else {
            "PostStartupCommand has not ended with success yet"
        };
        Some(match &self.device_refusal {
            Some(refusal) => format!("{problem}: {refusal}"),
            None => problem.to_owned(),
        })
    }

    /// How many routes are missing that should be there.
    pub fn routes_missing(&self) -> usize {
        self.state.routes_missing()
    }

    /// How many full looks were made without any notification that asked for one.
    pub fn audits(&self) -> u64 {
        self.audits
    }

    /// Returns how many objects the last pass wrote or deleted, by kind of object.
    pub fn last_done(&self) -> &BTreeMap<&'static str, u64> {
        &self.last_done
    }

    /// Returns how many operations the kernel has refused since the start, by kind of object and errno.
    pub fn refusals(&self) -> &BTreeMap<(&'static str, i32), u64> {
        &self.refusals
    }

    /// How many operations the kernel refused and are still needed.
    pub fn refused_len(&self) -> usize {
        self.state.refused_len()
    }

    /// Returns the objects that more than one owner wants.
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.state.conflicts()
    }

    /// How many routes there should be.
    pub fn routes_desired(&self) -> usize {
        self.state.routes_desired()
    }
}

/// Whether a batch of this many changes is told one by one.
pub fn tell_each(changes: usize) -> bool {
    changes <= LOG_EACH
}

/// Jittered, so that a fleet started at once does not look at once.
fn next_audit() -> Instant {
    Instant::now() + AUDIT_EVERY.mul_f64(0.5 + fastrand::f64())
}

/// Whether the operation writes something that needs another object, whose end the kernel does not announce.
fn needs_another(op: &Op) -> bool {
    matches!(op, Op::Put(Object::Route(..)))
}

/// Refusals of one kind.
struct Failures {
    /// The pass of the first one.
    first: u64,
    /// The pass of the last one.
    last: u64,
    /// The log says so.
    told: bool,
}

#[cfg(test)]
mod tests;
