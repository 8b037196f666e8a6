//! What a daemon costs that has nothing to do.

use std::time::{Duration, Instant};

use crate::cold::{at_rest, look_again};
use crate::stage::{Stage, pause};
use crate::usage::Usage;

/// How often a daemon looks at the whole kernel by itself, on average.
const AUDIT_EVERY: Duration = Duration::from_secs(120);

/// A daemon at rest.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Per cent of a core, its share of the full looks at the kernel included.
    pub percent: f64,
    /// Processor time of one full look, in milliseconds.
    pub look_ms: f64,
}

/// Watches the daemon that runs for `span`.
///
/// # Errors
/// It has ended.
pub fn run(stage: &Stage, span: Duration) -> anyhow::Result<Idle> {
    let node = stage.node();
    let before = at_rest(node)?;
    let began = Instant::now();
    pause(span);
    let after = Usage::of(node)?;
    let at_work = (after.cpu - before.cpu).as_secs_f64() / began.elapsed().as_secs_f64();

    // The span is shorter than the time between two full looks: one is asked for, twice, since
    // an address that comes also goes.
    let before = at_rest(node)?;
    look_again(node)?;
    let after = at_rest(node)?;
    let look = (after.cpu - before.cpu).as_secs_f64() / 2.0;
    Ok(Idle {
        percent: (at_work + look / AUDIT_EVERY.as_secs_f64()) * 100.0,
        look_ms: look * 1e3,
    })
}
