//! Pings of a given size that must not be cut into pieces.

#![allow(
    unsafe_code,
    reason = "a socket option that takes a pointer, and bytes that the kernel has written"
)]

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::checksum::ones_complement;

/// What became of a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    /// It was answered.
    Answered,
    /// Nothing came back in time.
    Silent,
    /// This host has no device that takes a packet so large.
    TooLarge,
}

/// Whom to ping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pinger {
    /// Who is to answer.
    pub(crate) to: IpAddr,
    /// How long each try waits.
    pub(crate) patience: Duration,
    /// How often to try.
    pub(crate) tries: u16,
}

const ECHO_HEADER: usize = 8;

/// Returns whether this process may send pings at all (`CAP_NET_RAW`).
pub(crate) fn allowed() -> bool {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4));
    !socket.is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

impl Pinger {
    /// Sends packets of `size` bytes, IP header included.
    ///
    /// # Errors
    /// No socket to be had, or no route.
    pub(crate) fn ping(&self, size: usize) -> io::Result<Echo> {
        let (domain, protocol, header) = match self.to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 20),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 40),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        never_cut(&socket, self.to)?;
        // Only what comes from there is seen.
        socket.connect(&SocketAddr::new(self.to, 0).into())?;
        let id = std::process::id() as u16 ^ socket.as_raw_fd() as u16;
        for seq in 0..self.tries {
            let request = self.request(id, seq, size.saturating_sub(header));
            match socket.send(&request) {
                Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(Echo::TooLarge),
                // An answer to the ping before, such as "unreachable": asked again, it may be gone.
                Err(e) if e.raw_os_error() == Some(libc::EHOSTUNREACH) => {}
                Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => {}
                sent => {
                    sent?;
                }
            }
            if self.answered(&socket, id)? {
                return Ok(Echo::Answered);
            }
        }
        Ok(Echo::Silent)
    }

    fn request(&self, id: u16, seq: u16, size: usize) -> Vec<u8> {
        let mut packet = vec![0; size.max(ECHO_HEADER)];
        packet[0] = match self.to {
            IpAddr::V4(_) => 8,
            IpAddr::V6(_) => 128,
        };
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[6..8].copy_from_slice(&seq.to_be_bytes());
        if self.to.is_ipv4() {
            // That of ICMPv6 is the kernel's to make.
            let sum = !ones_complement(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    fn answered(&self, socket: &Socket, id: u16) -> io::Result<bool> {
        let deadline = Instant::now() + self.patience;
        let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            socket.set_read_timeout(Some(left))?;
            let got = match socket.recv(&mut buffer) {
                Ok(len) => len.min(buffer.len()),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(false);
                }
                Err(e) if e.raw_os_error() == Some(libc::EHOSTUNREACH) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            // SAFETY: `recv` wrote the first `got` bytes.
            let bytes: Vec<u8> = buffer[..got]
                .iter()
                .map(|b| unsafe { b.assume_init() })
                .collect();
            if is_reply(&bytes, self.to, id) {
                return Ok(true);
            }
        }
    }
}

fn is_reply(packet: &[u8], from: IpAddr, id: u16) -> bool {
    // IPv4 hands out the IP header, too.
    let (at, kind) = match from {
        IpAddr::V4(_) => (packet.first().map_or(20, |b| usize::from(b & 15) * 4), 0),
        IpAddr::V6(_) => (0, 129),
    };
    packet.get(at) == Some(&kind) && packet.get(at + 4..at + 6) == Some(&id.to_be_bytes())
}

/// "Don't fragment", and no regard to what is believed of the path.
fn never_cut(socket: &Socket, to: IpAddr) -> io::Result<()> {
    let (level, option, value) = match to {
        IpAddr::V4(_) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_PROBE,
        ),
        IpAddr::V6(_) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        ),
    };
    set_option(socket.as_raw_fd(), level, option, value)?;
    if to.is_ipv6() {
        // The larger than the device's MTU fails at once rather than being cut.
        set_option(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_DONTFRAG,
            1,
        )?;
    }
    Ok(())
}

/// Sets an option whose value is one number.
pub(crate) fn set_option(fd: i32, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option's value is one `int`, which outlives the call.
    let done = unsafe {
        let len = size_of::<i32>() as libc::socklen_t;
        libc::setsockopt(fd, level, option, (&raw const value).cast(), len)
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
