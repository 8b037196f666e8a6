//! Pings, without a process for each: ICMP echo sockets made inside a namespace.

#![allow(unsafe_code, reason = "a socket in another namespace")]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::Error;
use crate::Namespace;
use crate::error::Doing;

/// Bytes of a request: an ICMP header and a number of ours.
const SIZE: usize = 16;

/// An ICMP echo socket towards one address.
pub(crate) struct Echo {
    socket: UdpSocket,
    v6: bool,
}

impl Echo {
    /// Opens one in `place`.
    pub(crate) fn open(place: &Namespace, to: IpAddr) -> Result<Echo, Error> {
        let open = || -> io::Result<Echo> {
            let (family, protocol) = match to {
                IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
                IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
            };
            // SAFETY: a plain system call; its result is checked before it is taken for a socket.
            let fd =
                unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: `fd` is an open socket that nobody else owns. A datagram socket is what
            // `UdpSocket` wraps, whatever its protocol.
            let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(Echo {
                socket,
                v6: to.is_ipv6(),
            })
        };
        place
            .run(open)?
            .doing(|| format!("{}: open an echo socket", place.name()))
    }

    /// Sends request `number`. The socket is not connected: the route is looked up each time, as
    /// faults come and go. An unreachable address is an error here, as is a full queue.
    pub(crate) fn send(&self, to: IpAddr, number: u64) -> io::Result<()> {
        let mut packet = [0; SIZE];
        // The kernel fills in identifier and checksum.
        packet[0] = if self.v6 { 128 } else { 8 };
        packet[6..8].copy_from_slice(&(number as u16).to_be_bytes());
        packet[8..].copy_from_slice(&number.to_be_bytes());
        self.socket
            .send_to(&packet, SocketAddr::new(to, 0))
            .map(drop)
    }

    /// Waits until `until` for a reply; returns the number of its request.
    pub(crate) fn receive(&self, until: Instant) -> io::Result<u64> {
        let mut packet = [0; 128];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            let len = self.socket.recv(&mut packet)?;
            let reply = if self.v6 { 129 } else { 0 };
            if len == SIZE && packet[0] == reply {
                let mut number = [0; 8];
                number.copy_from_slice(&packet[8..SIZE]);
                return Ok(u64::from_be_bytes(number));
            }
        }
    }
}

/// One ping from `place`: the round trip, or `None` when nothing came back within `timeout`.
///
/// # Errors
/// The namespace could not be entered or the socket not made.
pub(crate) fn ping(
    place: &Namespace,
    to: IpAddr,
    timeout: Duration,
) -> Result<Option<Duration>, Error> {
    let echo = Echo::open(place, to)?;
    let start = Instant::now();
    if echo.send(to, 1).is_err() {
        return Ok(None);
    }
    Ok(echo.receive(start + timeout).ok().map(|_| start.elapsed()))
}
