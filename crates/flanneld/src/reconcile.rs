//! The loop's body: compare what the kernel should hold with what it does hold, write the
//! difference, remember what was refused. Level-triggered: whoever has news only marks it here and
//! calls [`Reconciler::pass`].

use std::collections::BTreeMap;
use std::time::Duration;

use dataplane::{Dataplane, KernelError, KernelEvent, Scope};
use model::{KernelState, Object, Op};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Operations handed to the kernel at once: enough to be quick, few enough to stay small.
const BATCH: usize = 4096;
/// A pass that finds more work than this after so many batches is chasing a kernel that does not
/// do what it acknowledges; the rest waits for the retry.
const MAX_BATCHES: usize = 1000;
/// Above this many, operations are summed up in the log.
const LOG_EACH: usize = 20;

/// How long a full look at the kernel is put off, on average. Events tell of every change that we
/// know of; this is for those that we do not.
const AUDIT_EVERY: Duration = Duration::from_secs(120);

/// What one pass did.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub struct Pass {
    /// Objects written.
    pub put: usize,
    /// Objects deleted.
    pub deleted: usize,
    /// Operations that the kernel refused; they are tried again later.
    pub refused: usize,
}

impl Pass {
    /// How many operations the kernel was given.
    pub fn ops(&self) -> usize {
        self.put + self.deleted + self.refused
    }
}

/// Desired state, observed state and the kernel between them.
pub struct Reconciler<D> {
    dataplane: D,
    state: KernelState,
    /// Whether what is not desired may be deleted: only with a complete view of the store.
    may_delete: bool,
    look_again: bool,
    next_audit: Instant,
    retry: Retry,
    /// Kinds of failure since all was well, by kind of object and errno, and in how many passes.
    failures: BTreeMap<(&'static str, i32), Failures>,
    passes: u64,
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
            next_audit: next_audit(),
            retry: Retry::default(),
            failures: BTreeMap::new(),
            passes: 0,
        }
    }

    /// The kernel should hold these.
    pub fn want(&mut self, objects: impl IntoIterator<Item = Object>) {
        objects
            .into_iter()
            .for_each(|object| self.state.want(object));
    }

    /// The kernel should no longer hold these.
    pub fn unwant<'a>(&mut self, objects: impl IntoIterator<Item = &'a Object>) {
        objects
            .into_iter()
            .for_each(|object| self.state.unwant(object));
    }

    /// Allows or forbids deletions. Forbidden until the store was listed once, and while it is away.
    pub fn set_may_delete(&mut self, may: bool) {
        self.may_delete = may;
    }

    /// Other objects concern us from now on; the kernel is looked at anew.
    pub fn set_scope(&mut self, scope: Scope) {
        self.dataplane.set_scope(scope);
        self.look_again = true;
    }

    /// Notes what the kernel told. Returns whether a pass has something to do.
    pub fn note(&mut self, event: KernelEvent) -> bool {
        debug!(?event, "kernel");
        let work = match event {
            KernelEvent::Saw(object) => self.state.heard(object),
            KernelEvent::Gone(object) => self.state.heard_gone(object),
            KernelEvent::LookAgain | KernelEvent::HostChanged => {
                self.look_again = true;
                true
            }
        };
        // A refused operation may owe its refusal to what has just changed.
        if work {
            self.retry.soon();
            self.state.unpark();
        }
        work
    }

    /// Waits for the next thing that the kernel has to tell. Cancel-safe.
    pub async fn event(&mut self) -> KernelEvent {
        self.dataplane.event().await
    }

    /// When the next pass is due without any news: a retry, or the audit.
    pub fn due(&self) -> Instant {
        match self.look_again || self.state.parked() > 0 {
            true => self.next_audit.min(self.retry.at),
            false => self.next_audit,
        }
    }

    /// Makes the kernel hold what it should, as far as it lets us. Cheap when there is nothing to do.
    pub async fn pass(&mut self) -> Pass {
        let now = Instant::now();
        self.passes += 1;
        if self.state.parked() > 0 && now >= self.retry.at {
            self.state.unpark();
        }
        let mut sum = Pass::default();
        for _ in 0..MAX_BATCHES {
            if (self.look_again || now >= self.next_audit) && !self.observe().await {
                self.retry.failed(now);
                return sum;
            }
            let ops = self.state.batch(BATCH, self.may_delete);
            if ops.is_empty() {
                break;
            }
            self.apply(ops, &mut sum).await;
        }
        self.settle(now, &sum);
        sum
    }

    /// Reads the kernel whole. Returns whether that worked.
    async fn observe(&mut self) -> bool {
        self.look_again = false;
        self.next_audit = next_audit();
        self.state.begin_audit();
        let state = &mut self.state;
        let mut note = |object| state.saw(object);
        match self.dataplane.observe(&mut note).await {
            Ok(()) => {
                let missing = self.state.end_audit();
                debug!(missing, "looked at the kernel");
                true
            }
            Err(error) => {
                self.look_again = true;
                self.report(&error, "look");
                false
            }
        }
    }

    async fn apply(&mut self, ops: Vec<Op>, sum: &mut Pass) {
        let outcomes = self.dataplane.apply(&ops).await;
        for (op, outcome) in ops.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    debug!(%op, "done");
                    let deleted = matches!(op, Op::Del(_));
                    sum.deleted += usize::from(deleted);
                    sum.put += usize::from(!deleted);
                    // What stood on a deleted device went with it, unannounced.
                    self.look_again |= matches!(op, Op::Del(Object::Link(..)));
                    self.state.done(op);
                }
                Err(error) => {
                    sum.refused += 1;
                    // An answer that was lost leaves open whether the operation was done.
                    self.look_again |= error.errno == libc::ENOBUFS;
                    self.report(&error, kind(op.object()));
                    self.state.refused(op);
                }
            }
        }
    }

    fn settle(&mut self, now: Instant, sum: &Pass) {
        if self.state.parked() > 0 {
            if sum.refused > 0 {
                self.retry.failed(now);
            }
        } else {
            if self.failures.values().any(|f| f.told) {
                info!("the kernel now takes everything that it refused before");
            }
            self.failures.clear();
            self.retry = Retry::default();
        }
    }

    /// One line for each kind of failure that lasts, until all is well again. The first refusal
    /// is no news: while a device goes away, what stands on it cannot be put right yet.
    fn report(&mut self, error: &KernelError, kind: &'static str) {
        if kind != LINK && self.failures.keys().any(|(kind, _)| *kind == LINK) {
            // What stands on the device that cannot be made, most likely: the device is the news.
            debug!(%error, "refused");
            return;
        }
        let pass = self.passes;
        let failures = self
            .failures
            .entry((kind, error.errno))
            .or_insert(Failures {
                first: pass,
                told: false,
            });
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

    /// Whether our devices are there with their addresses.
    pub fn devices_in_sync(&self) -> bool {
        self.state.devices_in_sync()
    }

    /// How many operations the kernel refused and are still needed.
    pub fn parked(&self) -> usize {
        self.state.parked()
    }

    /// How many routes there should be.
    pub fn routes_desired(&self) -> usize {
        self.state.routes_desired()
    }
}

/// Says what a pass repaired.
pub fn log_repair(pass: &Pass, took: Duration) {
    if pass.put + pass.deleted > 0 {
        info!(
            put = pass.put,
            deleted = pass.deleted,
            "repaired the kernel's state in {:.1} ms",
            took.as_secs_f64() * 1e3
        );
    }
}

/// Whether a batch of this many changes is told one by one.
pub fn tell_each(changes: usize) -> bool {
    changes <= LOG_EACH
}

const LINK: &str = "link";

fn kind(object: &Object) -> &'static str {
    match object {
        Object::Link(..) => LINK,
        Object::Addr(..) => "address",
        Object::Neigh(..) => "neighbour",
        Object::Fdb(..) => "fdb",
        Object::NextHop(..) => "nexthop",
        Object::Route(..) => "route",
    }
}

/// Jittered, so that a fleet started at once does not look at once.
fn next_audit() -> Instant {
    Instant::now() + AUDIT_EVERY.mul_f64(0.5 + fastrand::f64())
}

/// Refusals of one kind.
struct Failures {
    /// The pass of the first one.
    first: u64,
    /// The log says so.
    told: bool,
}

/// When to offer refused operations again: 50 ms, doubling up to 30 s, jittered.
struct Retry {
    at: Instant,
    wait: Duration,
}

impl Retry {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(30);

    fn failed(&mut self, now: Instant) {
        self.at = now + self.wait.mul_f64(0.75 + fastrand::f64() / 2.0);
        self.wait = (self.wait * 2).min(Self::LONGEST);
    }

    fn soon(&mut self) {
        self.wait = Self::FIRST;
    }
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            at: Instant::now() + Self::FIRST,
            wait: Self::FIRST,
        }
    }
}

#[cfg(test)]
mod tests;
