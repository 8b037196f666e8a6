//! The UDP side: sockets that send and receive many datagrams of one peer in one piece (UDP GSO and GRO),
//! and many such pieces in one call.

#![allow(unsafe_code, reason = "sendmmsg and recvmmsg")]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Kernel memory for datagrams that wait, in bytes: what arrives while the other side is scheduled.
const BUFFER: c_int = 4 << 20;

/// The longest that the packets of one batch may wait for room, all together. A link that takes less than is sent
/// loses packets sooner or later; what arrives meanwhile should not wait for it.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long the packets of a batch may still wait for room.
#[derive(Debug)]
pub(crate) struct Patience {
    left: Duration,
}

impl Patience {
    pub(crate) fn new() -> Patience {
        Patience { left: PATIENCE }
    }
}

/// The largest datagram, and the largest piece of joined ones, in bytes.
pub(crate) const LARGEST: usize = 65_535;

/// The most datagrams that the kernel takes in one piece (`UDP_MAX_SEGMENTS` of older kernels).
pub(crate) const MOST_SEGMENTS: usize = 64;

/// How many pieces are sent or received with one call.
pub(crate) const PIECES: usize = 32;

/// A UDP socket.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
}

impl Socket {
    /// Binds `count` sockets to `at`. The kernel spreads the peers over them: what comes from one peer comes
    /// by one socket, in order.
    ///
    /// # Errors
    /// The address is in use, or not of this host.
    pub(crate) fn bind_all(at: SocketAddr, count: usize) -> io::Result<Vec<Socket>> {
        // Without sharing first, so that another program's socket is an error.
        let first = Socket::bind(at, false)?;
        let at = first.socket.local_addr()?;
        let mut sockets = vec![first];
        if count > 1 {
            sockets[0].set(libc::SOL_SOCKET, libc::SO_REUSEPORT, &1)?;
            for _ in 1..count {
                sockets.push(Socket::bind(at, true)?);
            }
        }
        Ok(sockets)
    }

    fn bind(at: SocketAddr, shared: bool) -> io::Result<Socket> {
        let family = if at.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        // SAFETY: no pointers; the descriptor is ours alone.
        let socket = unsafe {
            let fd = libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Socket {
                socket: UdpSocket::from(OwnedFd::from_raw_fd(fd)),
            }
        };
        if shared {
            socket.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, &1)?;
        }
        if at.is_ipv6() {
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1)?;
        }
        let (address, len) = raw(at);
        // SAFETY: `address` is a socket address of `len` bytes.
        let done =
            unsafe { libc::bind(socket.socket.as_raw_fd(), (&raw const address).cast(), len) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        for (forced, plain) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        ] {
            // More than the system's limit only for root; less than asked for is no error.
            if socket.set(libc::SOL_SOCKET, forced, &BUFFER).is_err() {
                let _ = socket.set(libc::SOL_SOCKET, plain, &BUFFER);
            }
        }
        // Kernel 5.0. Without it, datagrams come one by one.
        let _ = socket.set(libc::SOL_UDP, libc::UDP_GRO, &1);
        Ok(socket)
    }

    fn set<T>(&self, level: c_int, name: c_int, value: &T) -> io::Result<()> {
        let len = size_of::<T>() as libc::socklen_t;
        let value = (&raw const *value).cast();
        // SAFETY: `value` is `len` bytes long and outlives the call.
        let done = unsafe { libc::setsockopt(self.socket.as_raw_fd(), level, name, value, len) };
        if done < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Sends one datagram, which is in one part.
    ///
    /// # Errors
    /// The kernel refuses it, or has no room for it in time.
    pub(crate) fn send_one(
        &self,
        bytes: &[u8],
        to: SocketAddr,
        patience: &mut Patience,
    ) -> io::Result<usize> {
        let part = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let parts = &[part];
        let piece = Piece {
            to,
            parts,
            segment: 0,
        };
        // SAFETY: the part is a slice that is borrowed.
        unsafe { self.send(&[piece], patience) }
    }

    /// Waits until the kernel may have room for more, as long as there is patience. Returns whether to try again.
    fn has_room_in_time(&self, patience: &mut Patience) -> bool {
        if patience.left.is_zero() {
            return false;
        }
        let began = Instant::now();
        let mut polled = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        let time = c_int::try_from(patience.left.as_millis() + 1).unwrap_or(1);
        // SAFETY: one structure that outlives the call.
        let ready = unsafe { libc::poll(&raw mut polled, 1, time) };
        patience.left = patience.left.saturating_sub(began.elapsed());
        // The kernel only reports room when half the buffer is free. Some may be free before.
        if ready == 0 {
            patience.left = Duration::ZERO;
        }
        true
    }

    /// Returns the largest IP packet that the path to `peer` takes at present, as far as the kernel knows.
    pub(crate) fn path_mtu(&self, peer: SocketAddr) -> Option<usize> {
        let any: SocketAddr = if peer.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let probe = UdpSocket::bind(any).ok()?;
        probe.connect(peer).ok()?;
        let (level, name) = if peer.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_MTU)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU)
        };
        let mut mtu: c_int = 0;
        let mut len = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: `mtu` is `len` bytes long.
        let done = unsafe {
            libc::getsockopt(
                probe.as_raw_fd(),
                level,
                name,
                (&raw mut mtu).cast(),
                &mut len,
            )
        };
        if done < 0 {
            None
        } else {
            usize::try_from(mtu).ok()
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Datagrams of one size to one peer, the last one perhaps shorter.
#[derive(Clone, Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) to: SocketAddr,
    /// What is sent, part by part.
    pub(crate) parts: &'a [libc::iovec],
    /// The size of each datagram; zero if there is just one.
    pub(crate) segment: u16,
}

/// Room for one control message that holds a number.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 24]);

impl Socket {
    /// Sends pieces, [`PIECES`] at most. Returns how many were sent; it is an error only if the first one was
    /// refused, or (`WouldBlock`) there was no room for it in time.
    ///
    /// # Safety
    /// Each part of each piece must be readable memory.
    pub(crate) unsafe fn send(
        &self,
        pieces: &[Piece<'_>],
        patience: &mut Patience,
    ) -> io::Result<usize> {
        // SAFETY: structures of plain numbers and pointers, for which zero is a value.
        let mut messages: [libc::mmsghdr; PIECES] = unsafe { zeroed() };
        let mut addresses: [MaybeUninit<libc::sockaddr_storage>; PIECES] =
            [MaybeUninit::uninit(); PIECES];
        let mut controls = [Control([0; 24]); PIECES];
        let count = pieces.len().min(PIECES);
        for (((message, address), control), piece) in messages
            .iter_mut()
            .zip(&mut addresses)
            .zip(&mut controls)
            .zip(pieces)
        {
            let (filled, len) = raw(piece.to);
            let header = &mut message.msg_hdr;
            header.msg_name = address.write(filled) as *mut _ as *mut c_void;
            header.msg_namelen = len;
            header.msg_iov = piece.parts.as_ptr().cast_mut();
            header.msg_iovlen = piece.parts.len() as _;
            if piece.segment > 0 {
                header.msg_control = control.0.as_mut_ptr().cast();
                header.msg_controllen = size_of::<Control>() as _;
                // SAFETY: the control buffer has room for the header and a u16, and is aligned for both.
                unsafe {
                    let cmsg = libc::CMSG_FIRSTHDR(header);
                    (*cmsg).cmsg_level = libc::SOL_UDP;
                    (*cmsg).cmsg_type = libc::UDP_SEGMENT;
                    (*cmsg).cmsg_len = libc::CMSG_LEN(2) as _;
                    libc::CMSG_DATA(cmsg)
                        .cast::<u16>()
                        .write_unaligned(piece.segment);
                }
            }
        }
        loop {
            // SAFETY: `count` messages whose names, parts and control data outlive the call.
            let sent = unsafe {
                libc::sendmmsg(
                    self.socket.as_raw_fd(),
                    messages.as_mut_ptr(),
                    count as u32,
                    libc::MSG_DONTWAIT as _,
                )
            };
            if sent >= 0 {
                return Ok(sent as usize);
            }
            let error = io::Error::last_os_error();
            let again = match error.kind() {
                io::ErrorKind::Interrupted => true,
                io::ErrorKind::WouldBlock => self.has_room_in_time(patience),
                _ => false,
            };
            if !again {
                return Err(error);
            }
        }
    }
}

/// One piece of received data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Where it begins in the buffer.
    pub(crate) start: usize,
    /// Its length in bytes.
    pub(crate) len: usize,
    /// The size of each datagram in it; the last one may be shorter.
    pub(crate) segment: usize,
    /// Who sent it.
    pub(crate) from: SocketAddr,
}

/// Receives into a buffer of its own.
pub(crate) struct Receiver {
    buffer: Vec<u8>,
    pieces: Vec<Received>,
}

impl Receiver {
    pub(crate) fn new() -> Receiver {
        Receiver {
            buffer: vec![0; PIECES * LARGEST],
            pieces: Vec::with_capacity(PIECES),
        }
    }

    /// Receives what there is, without waiting. Returns whether there was anything.
    ///
    /// # Errors
    /// The kernel reports one: none of them ends the socket.
    pub(crate) fn receive(&mut self, socket: &Socket) -> io::Result<bool> {
        self.pieces.clear();
        // SAFETY: structures of plain numbers and pointers, for which zero is a value.
        let (mut messages, mut addresses): (
            [libc::mmsghdr; PIECES],
            [libc::sockaddr_storage; PIECES],
        ) = unsafe { (zeroed(), zeroed()) };
        let mut controls = [Control([0; 24]); PIECES];
        let mut parts = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; PIECES];
        let slots = self.buffer.chunks_exact_mut(LARGEST);
        for ((((message, address), control), part), slot) in messages
            .iter_mut()
            .zip(&mut addresses)
            .zip(&mut controls)
            .zip(&mut parts)
            .zip(slots)
        {
            part.iov_base = slot.as_mut_ptr().cast();
            part.iov_len = slot.len();
            let header = &mut message.msg_hdr;
            header.msg_name = (&raw mut *address).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
            header.msg_iov = part;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: PIECES messages whose names, parts and control data outlive the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                PIECES as u32,
                flags as _,
                std::ptr::null_mut(),
            )
        };
        if received < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            };
        }
        for (index, message) in messages.iter().enumerate().take(received as usize) {
            let header = &message.msg_hdr;
            let len = (message.msg_len as usize).min(LARGEST);
            let cut = header.msg_flags & libc::MSG_TRUNC != 0;
            let Some(from) = address(&addresses[index]).filter(|_| !cut && len > 0) else {
                continue;
            };
            let segment = segment_size(header).filter(|size| *size > 0).unwrap_or(len);
            self.pieces.push(Received {
                start: index * LARGEST,
                len,
                segment,
                from,
            });
        }
        Ok(received > 0)
    }

    /// The buffer into which was received.
    pub(crate) fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    /// What was received.
    pub(crate) fn pieces(&self) -> &[Received] {
        &self.pieces
    }
}

/// Reads the size of the datagrams in a piece (`UDP_GRO`).
fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has filled in the control data that `header` points to.
    unsafe {
        let cmsg = libc::CMSG_FIRSTHDR(header);
        if cmsg.is_null()
            || (*cmsg).cmsg_level != libc::SOL_UDP
            || (*cmsg).cmsg_type != libc::UDP_GRO
        {
            return None;
        }
        let size = libc::CMSG_DATA(cmsg).cast::<c_int>().read_unaligned();
        usize::try_from(size).ok()
    }
}

fn raw(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: a structure of plain numbers, for which zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let place = &raw mut storage;
    let len = match address {
        SocketAddr::V4(address) => {
            let filled = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*address.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_storage` has room and alignment for every kind of address.
            unsafe { place.cast::<libc::sockaddr_in>().write(filled) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            let filled = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(filled) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let place = &raw const *storage;
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is one.
            let raw = unsafe { place.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that it is one.
            let raw = unsafe { place.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Some(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Returns the bytes that IP and UDP add to a datagram to `peer`.
pub(crate) fn overhead(peer: IpAddr) -> usize {
    if peer.is_ipv4() { 28 } else { 48 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_waits_for_room_for_its_time_however_often_it_asks() {
        let socket = Socket::bind((Ipv4Addr::LOCALHOST, 0).into(), false).unwrap();
        let mut patience = Patience::new();
        // There is room at once each time: a kernel that nevertheless refuses must not be asked for ever.
        let began = Instant::now();
        while socket.has_room_in_time(&mut patience) {
            assert!(began.elapsed() < Duration::from_secs(60));
        }
        assert!(patience.left.is_zero());
        assert!(!socket.has_room_in_time(&mut patience));
    }
}
