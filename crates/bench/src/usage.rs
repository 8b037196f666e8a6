//! What a daemon has used so far.

use std::time::Duration;

use anyhow::Context;
use lab::Node;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// What a node's flanneld has used since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time, to the nanosecond, of threads that have ended too.
    pub cpu: Duration,
    /// Memory at its peak, in KiB.
    pub peak_kib: u64,
}

impl Usage {
    /// Of the flanneld that runs on `node`.
    ///
    /// # Errors
    /// None does.
    pub fn of(node: &Node) -> anyhow::Result<Usage> {
        let flanneld = node.flanneld();
        let pid = Pid::from_raw(flanneld.pid()?.cast_signed());
        let clock = clock_getcpuclockid(pid).and_then(|clock| clock.now());
        let cpu = clock.with_context(|| format!("processor time of {}", flanneld.name()))?;
        Ok(Usage {
            cpu: cpu.into(),
            peak_kib: flanneld.usage()?.peak_rss_kib,
        })
    }
}
