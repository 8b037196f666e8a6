//! Failures to inject into a fake kernel.

use model::Op;

/// How an operation goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is refused with this `errno`, and nothing changes.
    Refused(i32),
    /// It is done, but the answer is lost: reported as failed with `ENOBUFS`.
    AnswerLost,
    /// It is under way at first; an event says that it is done.
    DoneLater,
    /// It is under way at first; an event says that it was refused with this `errno`.
    RefusedLater(i32),
}

/// Decides about each operation; see [`super::FakeKernel::set_faults`].
pub type Faults = Box<dyn FnMut(&Op) -> Option<Fault> + Send>;

/// How a full look goes wrong: it shows that many objects, and then fails with this `errno`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookFault {
    /// How many objects it shows, of those that there are.
    pub after: usize,
    /// Why it ends there.
    pub errno: i32,
}

/// Decides about each full look; see [`super::FakeKernel::set_look_faults`].
pub type LookFaults = Box<dyn FnMut() -> Option<LookFault> + Send>;

/// Decides after how many operations and looks of the program a notice arrives; see
/// [`super::FakeKernel::set_delays`].
pub type Delays = Box<dyn FnMut() -> usize + Send>;

/// Somebody else, who may do something now; see [`super::FakeKernel::set_meddler`].
pub type Meddler = Box<dyn FnMut() -> Option<Op> + Send>;

/// No look fails.
pub fn no_look_fails() -> LookFaults {
    Box::new(|| None)
}

/// Each full look fails with a probability of `percent`, at any point; the same `seed`, the same
/// failures.
pub fn random_looks(seed: u64, percent: u8) -> LookFaults {
    let mut rng = fastrand::Rng::with_seed(seed);
    Box::new(move || {
        (rng.u8(0..100) < percent).then(|| LookFault {
            after: rng.usize(0..40),
            errno: [libc::ENOBUFS, libc::EINTR, libc::ENOMEM][rng.usize(0..3)],
        })
    })
}

/// Every notice arrives at once.
pub fn no_delay() -> Delays {
    Box::new(|| 0)
}

/// Notices arrive up to `most` operations and looks later; the same `seed`, the same delays.
pub fn random_delays(seed: u64, most: usize) -> Delays {
    let mut rng = fastrand::Rng::with_seed(seed);
    Box::new(move || rng.usize(0..=most))
}

/// Nobody else is there.
pub fn nobody() -> Meddler {
    Box::new(|| None)
}

/// Somebody who makes any of these changes, each time with a probability of `percent`; the same
/// `seed`, the same changes.
pub fn random_meddler(seed: u64, percent: u8, changes: Vec<Op>) -> Meddler {
    let mut rng = fastrand::Rng::with_seed(seed);
    Box::new(move || {
        let acts = rng.u8(0..100) < percent && !changes.is_empty();
        acts.then(|| changes[rng.usize(0..changes.len())].clone())
    })
}

/// None at all.
pub fn none() -> Faults {
    Box::new(|_| None)
}

/// The `n`-th operation from now, counted from 0, is refused with `errno`.
pub fn nth(n: usize, errno: i32) -> Faults {
    let mut left = n;
    Box::new(move |_| match left {
        0 => {
            left = usize::MAX;
            Some(Fault::Refused(errno))
        }
        _ => {
            left -= 1;
            None
        }
    })
}

/// Operations for which `which` says so are refused with `errno`.
pub fn matching(which: impl Fn(&Op) -> bool + Send + 'static, errno: i32) -> Faults {
    Box::new(move |op| which(op).then_some(Fault::Refused(errno)))
}

/// Each operation fails with a probability of `percent`, in one of several ways; the same `seed`,
/// the same failures.
pub fn random(seed: u64, percent: u8) -> Faults {
    let mut rng = fastrand::Rng::with_seed(seed);
    let errnos = [
        libc::ENOMEM,
        libc::EBUSY,
        libc::ENETDOWN,
        libc::EINVAL,
        libc::EPERM,
    ];
    Box::new(move |_| {
        if rng.u8(0..100) >= percent {
            return None;
        }
        Some(match rng.u8(0..6) {
            0 => Fault::AnswerLost,
            1 => Fault::DoneLater,
            2 => Fault::RefusedLater(errnos[rng.usize(0..errnos.len())]),
            _ => Fault::Refused(errnos[rng.usize(0..errnos.len())]),
        })
    })
}
