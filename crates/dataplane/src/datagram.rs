//! Options of UDP sockets that no library sets.

#![allow(unsafe_code, reason = "socket options that take a pointer")]

pub mod reports;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use model::Family;

/// Sends packets whole, whatever the kernel believes of the path: what is too large for the device is refused
/// (`EMSGSIZE`), what is too large for the path is lost.
///
/// # Errors
/// The kernel's refusal; none is expected.
pub fn never_fragment(socket: &impl AsFd, family: Family) -> io::Result<()> {
    let socket = socket.as_fd();
    match family {
        Family::V4 => set(
            socket,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_PROBE,
        ),
        Family::V6 => {
            let probe = libc::IPV6_PMTUDISC_PROBE;
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
        }
    }
}

/// Sends IPv4 packets without a UDP checksum, or with it again.
///
/// # Errors
/// The kernel's refusal; none is expected.
pub fn omit_checksum(socket: &impl AsFd, omit: bool) -> io::Result<()> {
    set(
        socket.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_NO_CHECK,
        i32::from(omit),
    )
}

fn set(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    let fd = socket.as_raw_fd();
    // SAFETY: the option's value is one `int`, which outlives the call.
    let done = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), len) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
