//! Just enough netlink to look: dump requests, and attributes found by number. Written apart from
//! the daemon's own, so that it can be its witness.

#![allow(unsafe_code, reason = "borrows a descriptor")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::Error;
use crate::error::Doing;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;

/// A socket for asking.
pub(crate) struct Asker(Socket);

impl Asker {
    /// Opens one in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Asker, Error> {
        let socket = Socket::new(NETLINK_ROUTE).doing(|| "open a netlink socket".into())?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .doing(|| "connect a netlink socket".into())?;
        Ok(Asker(socket))
    }

    /// Dumps all objects that message type `kind` asks for; `body` is the request's fixed part,
    /// `each` gets the body of every answer.
    pub(crate) fn dump(
        &self,
        kind: u16,
        body: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let what = || format!("netlink dump, message type {kind}");
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(DUMP.to_ne_bytes());
        request.extend([0; 8]);
        request.extend(body);
        self.0.send(&request, 0).doing(what)?;
        loop {
            let (datagram, _) = self.0.recv_from_full().doing(what)?;
            for (kind, body) in messages(&datagram) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let errno = -body
                            .get(..4)
                            .map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                        return Err(std::io::Error::from_raw_os_error(errno)).doing(what);
                    }
                    _ => each(body),
                }
            }
        }
    }
}

/// The messages of a datagram: type and body.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = u32_at(rest, 0)? as usize;
        let message = rest.get(..len).filter(|m| m.len() >= HEADER)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((u16_at(message, 4)?, &message[HEADER..]))
    })
}

/// The first attribute numbered `wanted` in `list`.
pub(crate) fn attr(list: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = list;
    while let (Some(len), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let body = rest.get(4..usize::from(len))?;
        // The top bits are flags.
        if kind & 0x3fff == wanted {
            return Some(body);
        }
        rest = rest.get(usize::from(len).next_multiple_of(4)..)?;
    }
    None
}

/// The number at `at`, host byte order.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)
        .map(|b| u16::from_ne_bytes([b[0], b[1]]))
}

/// The number at `at`, host byte order.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)
        .map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

/// An address of four or sixteen bytes.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes)
            .ok()
            .map(|b| Ipv4Addr::from(b).into()),
        16 => <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|b| Ipv6Addr::from(b).into()),
        _ => None,
    }
}

/// A socket that is told of every change of links, addresses, routes, neighbours and next hops.
pub(crate) struct Listener(Socket);

impl Listener {
    /// Opens one in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Listener, Error> {
        let mut socket = Socket::new(NETLINK_ROUTE).doing(|| "open a netlink socket".into())?;
        socket
            .bind_auto()
            .doing(|| "bind a netlink socket".into())?;
        // RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
        for group in [1, 3, 5, 7, 9, 11] {
            socket
                .add_membership(group)
                .doing(|| format!("join netlink group {group}"))?;
        }
        // RTNLGRP_NEXTHOP: a kernel before 5.3 has none.
        let _ = socket.add_membership(32);
        socket
            .set_non_blocking(true)
            .doing(|| "make a netlink socket non-blocking".into())?;
        Ok(Listener(socket))
    }

    /// Waits up to `ms` milliseconds for news; hands type and body of each to `each`, all that have
    /// come. Some may have been lost when there were too many.
    pub(crate) fn wait(&self, ms: u16, mut each: impl FnMut(u16, &[u8])) {
        use nix::poll::{PollFd, PollFlags, poll};
        // SAFETY: the socket lives as long as `self`.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) };
        let _ = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], ms);
        loop {
            match self.0.recv_from_full() {
                Ok((datagram, _)) => messages(&datagram).for_each(|(kind, body)| each(kind, body)),
                // Overrun: there is more behind it.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}
