//! The lock that all users of legacy iptables share, for versions of `iptables-restore` that do not
//! take it themselves (before 1.6.2).

#![allow(unsafe_code, reason = "flock")]

use std::env;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::RulesError;
use super::tools::LOCK_WAIT;

const FILE: &str = "/run/xtables.lock";
/// How often a held lock is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// Takes the lock; it is released when the file is dropped.
///
/// # Errors
/// The file cannot be opened, or another program holds the lock for too long.
pub async fn take() -> Result<File, RulesError> {
    let path = PathBuf::from(env::var_os("XTABLES_LOCKFILE").unwrap_or_else(|| FILE.into()));
    let failed = |reason: String, remedy| RulesError::Lock {
        path: path.display().to_string(),
        reason,
        remedy,
    };
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| {
            let remedy = "create the file and make it writable for flanneld (ReadWritePaths= in its unit), or install iptables 1.6.2 or later";
            failed(error.to_string(), remedy)
        })?;
    let give_up = Instant::now() + LOCK_WAIT;
    loop {
        // SAFETY: takes no pointers; the descriptor is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(file);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::Interrupted {
            return Err(failed(
                error.to_string(),
                "check the file system that holds it",
            ));
        }
        if Instant::now() >= give_up {
            let reason = format!("another program holds it for {} s", LOCK_WAIT.as_secs());
            return Err(failed(reason, "find that program with lsof"));
        }
        sleep(AGAIN).await;
    }
}
