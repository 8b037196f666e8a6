//! The clock by which leases are kept: one that counts while the machine sleeps.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::own_lease::{Time, WriterId};

/// Timers stop while the machine sleeps, so that no wait is longer than this.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

thread_local! {
    /// When the simulation on this thread began, by tokio's clock.
    static SIMULATED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Has the stores of the current thread count time by tokio's clock, which a simulation can stop and set forward,
/// instead of the system's. Their time begins again, at an hour.
pub fn simulate_time() {
    SIMULATED.set(Some(Instant::now()));
}

/// Returns the simulated time, if time is simulated on this thread.
fn simulated() -> Option<Time> {
    let began = SIMULATED.get()?;
    Some(began.elapsed() + Duration::from_secs(3600))
}

/// Returns the time since the machine started, sleep included.
pub(crate) fn now() -> Time {
    if let Some(now) = simulated() {
        return now;
    }
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Returns when to look at the clock again if something is due at `at`.
pub(crate) fn timer(at: Time) -> Instant {
    Instant::now() + at.saturating_sub(now()).min(LONGEST_SLEEP)
}

/// Sleeps until `then`; for ever if there is no such time.
pub(crate) async fn sleep_until_some(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Returns an identifier for this run of the daemon: a later start has a higher one.
pub(crate) fn writer_id() -> WriterId {
    let since_epoch = || SystemTime::now().duration_since(UNIX_EPOCH);
    let now = simulated().unwrap_or_else(|| since_epoch().unwrap_or_default());
    WriterId((now.as_secs() << 20) | fastrand::u64(..1 << 20))
}
