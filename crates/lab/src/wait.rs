//! Waiting for a condition, never for a time.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::Error;

/// Time between two looks.
const STEP: Duration = Duration::from_millis(2);

/// Looks with `probe` every two milliseconds until it answers `Ok`. Its `Err` says what it saw
/// instead, for the message when `deadline` has passed.
///
/// # Errors
/// [`Error::Timeout`] with what was seen last.
pub fn wait_for<T, E: Display>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> Result<T, Error> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(seen) if start.elapsed() >= deadline => {
                return Err(Error::Timeout {
                    what: what.into(),
                    after: deadline,
                    last: seen.to_string(),
                });
            }
            Err(_) => pause(STEP),
        }
    }
}

/// Watches for the whole of `span` that `probe` stays `Ok`.
///
/// # Errors
/// [`Error::Bad`] with what `probe` saw as soon as it is not.
pub fn holds_for<E: Display>(
    what: &str,
    span: Duration,
    mut probe: impl FnMut() -> Result<(), E>,
) -> Result<(), Error> {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(seen) = probe() {
            return Err(Error::Bad(format!(
                "{what}: no longer so after {:?}: {seen}",
                start.elapsed()
            )));
        }
        pause(STEP);
    }
    Ok(())
}

/// The one sleep of this crate: a step of a loop that has a condition and a deadline.
#[allow(clippy::disallowed_methods)]
pub(crate) fn pause(step: Duration) {
    std::thread::sleep(step);
}
