//! Sees routes appear in a namespace, at next to no cost: the kernel's own notices, of which a
//! filter in the kernel lets only the few through that matter. Two cores do the work that is
//! measured; counting fifteen thousand routes beside it would be measured too.

#![allow(unsafe_code, reason = "sockets of the kernel that no library opens")]

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::Namespace;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const RTM_NEWROUTE: u16 = 24;
const RTNLGRP_IPV4_ROUTE: u32 = 7;

/// Where a route notice holds its destination: behind the header (16), the fixed part (12), the
/// table (8) and the attribute's own header (4).
const DESTINATION: usize = 40;

/// Told of the routes that are made in one namespace.
pub struct Witness(Socket);

impl Witness {
    /// Begins to listen in `place`: to all routes, or only to those to `only` (at most 200).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(place: &Namespace, only: Option<&[Ipv4Addr]>) -> anyhow::Result<Witness> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            if let Some(only) = only {
                attach(&socket, &filter(only))?;
            }
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(RTNLGRP_IPV4_ROUTE)?;
            Ok(socket)
        };
        Ok(Witness(
            place.run(open)?.context("listen to route notices")?,
        ))
    }

    /// Waits until every route of `awaited` has been made; returns when the last one was seen.
    ///
    /// # Errors
    /// Names a route that is missing when `deadline` has passed.
    pub fn all(&self, awaited: &[Ipv4Addr], deadline: Instant) -> anyhow::Result<Instant> {
        let mut missing: HashSet<Ipv4Addr> = awaited.iter().copied().collect();
        let mut seen = Instant::now();
        while !missing.is_empty() {
            for dst in self.wait(deadline.saturating_duration_since(Instant::now()))? {
                if missing.remove(&dst) {
                    seen = Instant::now();
                }
            }
            if Instant::now() >= deadline {
                let one = missing
                    .iter()
                    .next()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                bail!(
                    "no route to {one} was made in time; {} of {} are missing",
                    missing.len(),
                    awaited.len()
                );
            }
        }
        Ok(seen)
    }

    /// Waits up to `timeout` for routes; returns their destinations, none if time is up.
    pub fn wait(&self, timeout: Duration) -> anyhow::Result<Vec<Ipv4Addr>> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout)?;
        let mut routes = Vec::new();
        loop {
            match self.0.recv_from_full() {
                Ok((datagram, _)) => routes.extend(destination(&datagram)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(routes),
                Err(e) => return Err(e).context("read route notices"),
            }
        }
    }
}

impl AsFd for Witness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// The destination of a new route; a notice is one message of its own.
fn destination(notice: &[u8]) -> Option<Ipv4Addr> {
    let kind = u16::from_ne_bytes(notice.get(4..6)?.try_into().ok()?);
    let dst: [u8; 4] = notice.get(DESTINATION..DESTINATION + 4)?.try_into().ok()?;
    (kind == RTM_NEWROUTE).then(|| dst.into())
}

/// A classic BPF program: new routes to one of `only` pass.
fn filter(only: &[Ipv4Addr]) -> Vec<libc::sock_filter> {
    let op = |code: u32, jt: usize, jf: usize, k: u32| libc::sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: jf as u8,
        k,
    };
    let n = only.len();
    // BPF reads big endian; the message type is in the machine's own order.
    let new_route = u32::from(u16::from_be_bytes(RTM_NEWROUTE.to_ne_bytes()));
    let mut program = vec![
        op(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 4),
        op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            n + 1,
            new_route,
        ),
        op(
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            0,
            0,
            DESTINATION as u32,
        ),
    ];
    for (i, dst) in only.iter().enumerate() {
        program.push(op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            n - i,
            0,
            u32::from(*dst),
        ));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX));
    program
}

fn attach(socket: &Socket, program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program that `program` points to, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
