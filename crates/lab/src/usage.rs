//! What a process costs: processor time and memory, from `/proc`.

use std::fs;
use std::time::Duration;

use crate::Error;
use crate::error::Doing;

/// What a process has used so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of its living threads.
    pub cpu: Duration,
    /// Memory now, in KiB.
    pub rss_kib: u64,
    /// Memory at its peak, in KiB.
    pub peak_rss_kib: u64,
}

/// What process `pid` has used since its start.
///
/// # Errors
/// It is not there.
pub fn usage(pid: u32) -> Result<Usage, Error> {
    let read = |path: String| fs::read_to_string(&path).doing(|| path);
    let status = read(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| {
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    };
    let mut cpu = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))
        .doing(|| format!("threads of {pid}"))?
        .flatten()
    {
        // First field: nanoseconds on a processor.
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let nanos = text
            .split_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        cpu += Duration::from_nanos(nanos);
    }
    Ok(Usage {
        cpu,
        rss_kib: kib("VmRSS"),
        peak_rss_kib: kib("VmHWM"),
    })
}
