//! Waiting for a descriptor, or for the order to stop.

#![allow(unsafe_code, reason = "eventfd")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// An order to stop. Once given, it stays given.
#[derive(Debug)]
pub(crate) struct Stop {
    given: AtomicBool,
    fd: OwnedFd,
}

impl Stop {
    pub(crate) fn new() -> io::Result<Stop> {
        // SAFETY: no pointers; the descriptor is ours alone.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(Stop {
                    given: AtomicBool::new(false),
                    fd: OwnedFd::from_raw_fd(fd),
                })
            }
        }
    }

    /// Gives the order.
    pub(crate) fn give(&self) {
        self.given.store(true, Ordering::Release);
        let one = 1u64;
        // SAFETY: writes eight bytes that outlive the call. It fails only if the order has been given 2^64
        // times.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Returns whether the order was given.
    pub(crate) fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }
}

/// Waits until one of `fds` can be read, until the time is over, or for an order to stop. Returns whether one was
/// given.
pub(crate) fn wait(stops: &[&Stop; 2], fds: &[BorrowedFd], time: Option<Duration>) -> bool {
    let readable = |fd: c_int| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // Entries with a negative descriptor are ignored.
    let mut polled = [readable(-1); 4];
    let stops = stops.iter().map(|stop| stop.fd.as_raw_fd());
    let wanted = stops.chain(fds.iter().map(AsRawFd::as_raw_fd));
    for (place, fd) in polled.iter_mut().zip(wanted) {
        place.fd = fd;
    }
    let time = time.map_or(-1, |time| {
        c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX)
    });
    // SAFETY: four structures that outlive the call.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), 4, time) };
    ready > 0 && polled[..2].iter().any(|polled| polled.revents != 0)
}
