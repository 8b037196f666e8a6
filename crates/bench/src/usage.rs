//! What a daemon has used.

#![allow(unsafe_code, reason = "a system call that no library here wraps")]

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
        Ok(Usage {
            cpu: cpu(flanneld.pid()?)?,
            peak_kib: flanneld.usage()?.peak_rss_kib,
        })
    }
}

/// Returns the processor time in user space of all programs that this process started, that have ended and were waited
/// for. Of a running one the kernel says it in units of 10 ms.
///
/// # Errors
/// The kernel refuses.
pub fn user_time_of_ended() -> anyhow::Result<Duration> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the kernel writes one `rusage` there.
    let done = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    if done != 0 {
        return Err(std::io::Error::last_os_error()).context("user time of ended programs");
    }
    // SAFETY: the kernel has written it.
    let user = unsafe { usage.assume_init() }.ru_utime;
    let micros = user.tv_sec * 1_000_000 + user.tv_usec;
    Ok(Duration::from_micros(micros.try_into().unwrap_or(0)))
}

/// Processor time of a process, to the nanosecond, of threads that have ended too.
///
/// # Errors
/// There is no such process.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).and_then(|clock| clock.now());
    Ok(clock
        .with_context(|| format!("processor time of process {pid}"))?
        .into())
}
