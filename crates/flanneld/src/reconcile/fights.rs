//! What somebody else keeps changing: repaired at once the first times, then less and less often.

use std::collections::HashMap;
use std::time::Duration;

use model::object::ObjectKey;
use model::{IfName, KernelState, Object, Op};
use tokio::time::Instant;
use tracing::warn;

/// A change that comes within this time after a repair undoes that repair.
const CALM: Duration = Duration::from_secs(10);

/// So many repairs in a row are named as a fight.
const NAMED: u32 = 10;

/// So many are made at once: they cost little, and an administrator who tries things out, or a test, is
/// no fight.
const AT_ONCE: u32 = 100;

/// The pause after them, doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Repairs that are due within this time are made together.
const TOGETHER: Duration = Duration::from_millis(250);

/// How often the log says what is fought over.
const LINE_EVERY: Duration = Duration::from_secs(60);

/// More subjects than these are looked through for those that are over.
const MANY: usize = 1024;

/// What is fought over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    /// One object of ours.
    Ours(ObjectKey),
    /// Whatever others put on one of our devices: each time it may be something else.
    Strays(&'static str, Option<IfName>),
}

#[derive(Debug)]
struct Fight {
    /// Repairs, each undone soon after.
    repairs: u32,
    last: Instant,
    pause: Duration,
}

impl Fight {
    fn not_before(&self) -> Instant {
        self.last + self.pause
    }

    fn is_over(&self, now: Instant) -> bool {
        now > self.not_before() + CALM
    }
}

/// Everything that is fought over.
#[derive(Debug, Default)]
pub struct Fights {
    fights: HashMap<Subject, Fight>,
    /// What was changed by somebody else since it was repaired last, and to what.
    contested: HashMap<Subject, Option<Object>>,
    /// The earliest repair that was put off.
    due: Option<Instant>,
    line_due: Option<Instant>,
    /// Until when a device is fought over, and with it all that is on it.
    device_until: Option<Instant>,
    /// Subjects that the log did not name since its last line.
    unnamed: usize,
}

fn subject(object: &Object, state: &KernelState) -> Subject {
    if state.is_desired(object) {
        Subject::Ours(object.key())
    } else {
        Subject::Strays(object.kind(), object.device())
    }
}

impl Fights {
    /// Takes in that somebody else deleted or wrote an object, so that there is work. `now_is` is what
    /// they wrote.
    pub fn changed(&mut self, object: &Object, now_is: Option<Object>, state: &KernelState) {
        self.contested.insert(subject(object, state), now_is);
    }

    /// Returns whether the repair has to wait.
    pub fn holds(&mut self, op: &Op, state: &KernelState, now: Instant) -> bool {
        if self.fights.is_empty() {
            return false;
        }
        let Some(fight) = self.fights.get(&subject(op.object(), state)) else {
            return false;
        };
        let not_before = fight.not_before();
        if now >= not_before {
            return false;
        }
        let at = not_before.max(now + TOGETHER);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
        true
    }

    /// Takes in that the kernel did what was asked. Returns whether it is a repair that the log has
    /// already named as a fight.
    pub fn done(&mut self, op: &Op, state: &KernelState, now: Instant) -> bool {
        if self.contested.is_empty() {
            return false;
        }
        let subject = subject(op.object(), state);
        let Some(now_is) = self.contested.remove(&subject) else {
            return false;
        };
        if self.fights.len() >= MANY {
            self.fights.retain(|_, fight| !fight.is_over(now));
        }
        let fight = self.fights.entry(subject).or_insert(Fight {
            repairs: 0,
            last: now,
            pause: Duration::ZERO,
        });
        if fight.is_over(now) {
            fight.repairs = 0;
        }
        fight.repairs = fight.repairs.saturating_add(1);
        fight.last = now;
        fight.pause = match fight.repairs.checked_sub(AT_ONCE) {
            Some(doublings) => (FIRST_PAUSE * (1 << doublings.min(16))).min(LONGEST_PAUSE),
            None => Duration::ZERO,
        };
        let (repairs, until) = (fight.repairs, fight.not_before() + CALM);
        if repairs >= NAMED && matches!(op.object(), Object::Link(..)) {
            self.device_until = self.device_until.max(Some(until));
        }
        if repairs == NAMED {
            self.report(op, now_is, now);
        }
        repairs >= NAMED
    }

    /// Returns whether a device is fought over: what is on it comes and goes with it.
    pub fn is_about_a_device(&self, now: Instant) -> bool {
        self.device_until.is_some_and(|until| now < until)
    }

    fn report(&mut self, op: &Op, now_is: Option<Object>, now: Instant) {
        if self.line_due.is_some_and(|due| now < due) {
            self.unnamed += 1;
            return;
        }
        self.line_due = Some(now + LINE_EVERY);
        let unnamed = match std::mem::take(&mut self.unnamed) {
            0 => String::new(),
            n => format!(" ({n} other objects too)"),
        };
        let theirs = match now_is {
            Some(object) => format!("writes `{}`", Op::Put(object)),
            None => "deletes it".to_owned(),
        };
        warn!(
            "somebody else keeps undoing `{op}` and {theirs}{unnamed}: repairing it less and less often if this \
             goes on, in the end every {} s; find that program: another flanneld, a DHCP client, a script",
            LONGEST_PAUSE.as_secs()
        );
    }

    /// Returns when the first of the repairs that were put off is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Returns whether repairs that were put off are due now: all of them are to be offered again.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| now >= due);
        if is_due {
            self.due = None;
        }
        is_due
    }
}
