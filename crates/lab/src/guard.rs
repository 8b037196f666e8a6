//! Nothing outlives its lab.
//!
//! All processes of a lab live in a process namespace of its own, whose first process, the guard,
//! does nothing but read from a pipe. The lab's own process holds the other end. When that process
//! ends, in whatever way, the pipe closes, the guard exits, and the kernel kills whatever else
//! is in the namespace. Network and mount namespaces have no names: they are held by the lab's
//! file descriptors and by those processes, and vanish with them.

#![allow(unsafe_code, reason = "fork")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use crate::error::Doing;
use crate::{Error, wait_for};

/// How long the end of a lab's processes may take.
const BURIAL: Duration = Duration::from_secs(20);

/// The lab's process namespace and the process that ends it.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Closing it is the signal. `None` once closed.
    pipe: Option<OwnedFd>,
    pid: Pid,
    namespace: OwnedFd,
}

impl Guard {
    /// Starts the guard. At the end it removes the file `unlink`, and only then gives up `held`; if
    /// there is a `held`, it is that file, and another one that took its place stays.
    pub(crate) fn start(unlink: Option<&Path>, held: Option<BorrowedFd>) -> Result<Guard, Error> {
        let path = match unlink {
            Some(path) => CString::new(path.as_os_str().as_bytes())
                .map(Some)
                .map_err(|_| {
                    Error::Bad(format!(
                        "{}: a path cannot hold a zero byte",
                        path.display()
                    ))
                })?,
            None => None,
        };
        let pipe = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).doing(|| "pipe".into())?;
        // A thread of its own: its future children, and only its, belong to the new namespace.
        std::thread::scope(|s| {
            s.spawn(|| start_in_this_thread(pipe, path, held))
                .join()
                .unwrap_or_else(|p| std::panic::resume_unwind(p))
        })
    }

    /// The process namespace.
    pub(crate) fn namespace(&self) -> &OwnedFd {
        &self.namespace
    }

    /// The guard's process id, as this process sees it.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }
}

fn start_in_this_thread(
    pipe: (OwnedFd, OwnedFd),
    unlink: Option<CString>,
    held: Option<BorrowedFd>,
) -> Result<Guard, Error> {
    let (read, write) = pipe;
    unshare(CloneFlags::CLONE_NEWPID).doing(|| "new process namespace".into())?;
    let fd = read.as_raw_fd();
    let held = held.map(|held| held.as_raw_fd());
    // SAFETY: the child of a process with several threads may only make async-signal-safe calls:
    // `keep_watch` makes system calls only, allocates nothing and never returns.
    let pid = match unsafe { nix::unistd::fork() }.doing(|| "fork".into())? {
        ForkResult::Child => keep_watch(fd, held, unlink.as_deref()),
        ForkResult::Parent { child } => child,
    };
    let path = format!("/proc/{pid}/ns/pid");
    let namespace = std::fs::File::open(&path).doing(|| path)?.into();
    Ok(Guard {
        pipe: Some(write),
        pid,
        namespace,
    })
}

/// The guard's whole life.
fn keep_watch(fd: RawFd, held: Option<RawFd>, unlink: Option<&std::ffi::CStr>) -> ! {
    // SAFETY: plain system calls on values that live in this frame.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"lab-guard".as_ptr());
        // Orphans come to the first process of the namespace: let the kernel bury them.
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        // Hold nothing of the process that we were forked from: neither its ends of other pipes
        // nor its directory.
        let kept = held.unwrap_or(fd);
        let (low, high) = (fd.min(kept), fd.max(kept));
        libc::syscall(libc::SYS_close_range, 0, low - 1, 0);
        if high - low > 1 {
            libc::syscall(libc::SYS_close_range, low + 1, high - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, high + 1, libc::c_uint::MAX, 0);
        libc::chdir(c"/".as_ptr());
        let mut byte = 0u8;
        while libc::read(fd, (&raw mut byte).cast(), 1) == -1
            && *libc::__errno_location() == libc::EINTR
        {}
        if let Some(path) = unlink {
            // Whoever removed it already may have made room for another lab's.
            let mut ours: libc::stat = std::mem::zeroed();
            let mut there: libc::stat = std::mem::zeroed();
            let another = held.is_some_and(|held| {
                libc::fstat(held, &raw mut ours) == 0
                    && libc::lstat(path.as_ptr(), &raw mut there) == 0
                    && (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino)
            });
            if !another {
                libc::unlink(path.as_ptr());
            }
        }
        libc::_exit(0)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pipe = None;
        // It is buried once every other process of the namespace is. Our own children among them have
        // been waited for: each holds a reference to this guard until then. One that was spawned by
        // hand and forgotten, say by an assertion that failed, would hold us here for ever.
        let ended = wait_for("the lab's processes end", BURIAL, || {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::Error::EINTR) => Err("one is left"),
                _ => Ok(()),
            }
        });
        if let Err(why) = ended {
            eprintln!("lab: {why}: a child of this process that it never waited for?");
        }
    }
}
