//! The log's lines about repairs.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::Pass;
use crate::allowance::Allowance;

/// Logs the first repairs, and then one line now and then.
pub struct RepairLog {
    lines: Allowance,
    put: usize,
    deleted: usize,
}

impl Default for RepairLog {
    fn default() -> Self {
        RepairLog {
            lines: Allowance::new(4, Duration::from_secs(15)),
            put: 0,
            deleted: 0,
        }
    }
}

impl RepairLog {
    /// Logs what a pass repaired, together with what was repaired since the last line. Repairs in a fight
    /// are not counted: see [`super::Fights`].
    pub fn add(&mut self, pass: &Pass, took: Duration) {
        if pass.put + pass.deleted <= pass.fought {
            return;
        }
        self.put += pass.put;
        self.deleted += pass.deleted;
        let now = Instant::now();
        if now < self.lines.next() {
            return;
        }
        self.lines.take(now);
        info!(
            put = std::mem::take(&mut self.put),
            deleted = std::mem::take(&mut self.deleted),
            "repaired the kernel's state in {:.1} ms",
            took.as_secs_f64() * 1e3
        );
    }
}
