//! How long a kernel stays broken: measured by its own notices, not by asking now and then.

#![allow(unsafe_code, reason = "the priority of one thread")]

use std::time::{Duration, Instant};

use crate::netlink::Listener;
use crate::picture::{Names, Picture};
use crate::{Error, Namespace};

/// A fault and its repair.
#[derive(Clone, Debug)]
pub struct Repair {
    /// From the first change that the fault made until all was as before. An upper bound: it errs by
    /// the time between two looks, a millisecond or less.
    pub took: Duration,
    /// What was wrong in between, in the order of its discovery: `- line` gone, `+ line` new.
    pub seen: Vec<String>,
}

/// A fault that shows no effect for so long has none.
const NO_EFFECT: Duration = Duration::from_millis(500);

/// After the fault has been made, the kernel must stay as before for so long: a repair that is
/// followed by another change was not the end.
const SETTLED: Duration = Duration::from_millis(20);

pub(crate) fn measure(
    place: &Namespace,
    fault: impl FnOnce() -> Result<(), Error> + Send,
    deadline: Duration,
) -> Result<Repair, Error> {
    let watch = || -> Result<Repair, Error> {
        go_first();
        let listener = Listener::open()?;
        let mut names = Names::default();
        let before = Picture::take_with(&mut names)?;
        std::thread::scope(|s| {
            let fault = std::thread::Builder::new()
                .name("fault".into())
                .spawn_scoped(s, fault);
            let fault = fault.map_err(|source| Error::Io {
                what: "start a thread".into(),
                source,
            })?;
            let seen = follow(&listener, &before, names, deadline, || fault.is_finished());
            fault
                .join()
                .unwrap_or_else(|p| std::panic::resume_unwind(p))?;
            seen
        })
    };
    place.run(watch)?
}

/// Lets the calling thread run before all others, where that is allowed: it must hear of the fault
/// before whoever repairs it has finished. It sleeps nearly all the time.
fn go_first() {
    let priority: libc::c_int = 10;
    // What it starts, the fault among it, does not go first.
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: a plain system call with a value that lives long enough: for the kernel, `sched_param` is
    // its priority and nothing else. musl's own function refuses whatever it is asked. A refusal costs
    // precision and nothing else.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) };
}

fn follow(
    listener: &Listener,
    before: &Picture,
    mut names: Names,
    deadline: Duration,
    fault_made: impl Fn() -> bool,
) -> Result<Repair, Error> {
    let start = Instant::now();
    // When the first change was told or seen, and since when all is as before.
    let (mut broken, mut whole) = (None::<Instant>, None::<Instant>);
    let (mut made, mut last_look) = (None, start);
    let mut seen: Vec<String> = Vec::new();
    loop {
        let mut told = Vec::new();
        listener.wait(1, |kind, body| {
            told.extend(before.against(kind, body, &mut names))
        });
        let now = Instant::now();
        if fault_made() {
            made.get_or_insert(now);
        }
        let picture = Picture::take()?;
        let difference = before.difference(&picture);
        if !told.is_empty() || !difference.is_empty() {
            // Told, but as before when looked at: broken and repaired since the last look, so it
            // took no longer than that.
            broken.get_or_insert(if difference.is_empty() {
                last_look
            } else {
                now
            });
            whole = difference.is_empty().then_some(now);
        } else if broken.is_some() {
            whole.get_or_insert(now);
        }
        last_look = now;
        for line in told.into_iter().chain(difference.iter().cloned()) {
            if !seen.contains(&line) {
                seen.push(line);
            }
        }
        let made_for = made.map_or(Duration::ZERO, |made| now - made);
        match (broken, whole) {
            (Some(broken), Some(whole)) if (now - whole).min(made_for) >= SETTLED => {
                return Ok(Repair {
                    took: whole - broken,
                    seen,
                });
            }
            (None, _) if made_for >= NO_EFFECT => {
                return Err(Error::Bad("the fault changed nothing in the kernel".into()));
            }
            _ => {}
        }
        if start.elapsed() >= deadline {
            let last = match difference.as_slice() {
                [] => "all as before, but not for long enough".to_string(),
                lines => format!("against before the fault:\n{}", lines.join("\n")),
            };
            return Err(Error::Timeout {
                what: "the kernel is as before the fault".into(),
                after: deadline,
                last,
            });
        }
    }
}
