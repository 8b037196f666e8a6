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
