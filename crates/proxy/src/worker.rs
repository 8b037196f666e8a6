//! The two directions of one queue: from the device to the peers, and back.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use crate::busy_poll::BusyPoll;
use crate::coalesce::{Coalescer, apart};
use crate::icmp::{self, Allowance, Reason};
use crate::narrow::{LEAST_V4, Narrow};
use crate::outgoing::{Outgoing, Refused};
use crate::packet::ends;
use crate::proxy::{Carrier, Shared, View};
use crate::segment::{Reject, Segment, segment};
use crate::socket::{LARGEST, PIECES, Patience, Receiver, Socket, overhead};
use crate::statistics::count;
use crate::tun::Queue;
use crate::virtio::{self, Header};
use crate::wake::{Stop, wait};
use crate::wireguard::{LONGEST_MESSAGE, OVERHEAD, Seal, Sealed, Tunnel};

/// How many packets are read before they are sent.
const BATCH: usize = 64;

/// How much data they may be, in bytes: small enough to stay in the processor's cache.
const ARENA: usize = 256 << 10;

/// How much encrypted data is sent at once, in bytes.
const SEALED: usize = 384 << 10;

/// Carries packets between one queue of the device and one socket until an order to stop is given.
///
/// One thread does both directions: what it delivers to the device is often answered at once, and the answer is
/// then sent without waking another thread.
///
/// # Errors
/// The device is gone.
pub(crate) fn carry(
    shared: &Shared,
    stops: &[&Stop; 2],
    queue: &Queue,
    socket: &Socket,
    join_udp: bool,
) -> io::Result<()> {
    let mut uplink = Uplink::new(shared, queue, socket);
    let mut downlink = Downlink::new(shared, queue, socket, join_udp);
    let mut busy_poll = BusyPoll::new();
    while !stops.iter().any(|stop| stop.is_given()) {
        let mut patience = Patience::new();
        let received = downlink.batch(&mut patience)?;
        let sent = uplink.batch(&mut patience)?;
        if received || sent {
            busy_poll.found();
        } else if !busy_poll.yields() {
            wait(stops, &[queue.as_fd(), socket.as_fd()], None);
            busy_poll.woken();
        }
    }
    Ok(())
}

/// Where a packet goes.
enum Way<'a> {
    Plain(std::net::SocketAddr),
    Sealed(&'a Tunnel),
}

/// From the device to the peers.
struct Uplink<'a> {
    shared: &'a Shared,
    queue: &'a Queue,
    socket: &'a Socket,
    data: Vec<u8>,
    headers: Vec<u8>,
    segments: Vec<Segment>,
    outgoing: Outgoing,
    /// Encrypted packets, if packets are encrypted.
    sealed: Option<Sealed>,
    /// A packet in one piece, to be encrypted.
    plain: Vec<u8>,
    /// Peers to which the path takes less than the tunnel's MTU, if packets are encrypted.
    narrow: Narrow,
    allowance: Allowance,
}

impl<'a> Uplink<'a> {
    fn new(shared: &'a Shared, queue: &'a Queue, socket: &'a Socket) -> Uplink<'a> {
        Uplink {
            shared,
            queue,
            socket,
            data: vec![0; ARENA],
            headers: Vec::with_capacity(16 << 10),
            segments: Vec::new(),
            outgoing: Outgoing::default(),
            sealed: match &shared.view().to {
                Carrier::Plain(_) => None,
                Carrier::Sealed(_) => Some(Sealed::new(SEALED)),
            },
            plain: Vec::new(),
            narrow: Narrow::default(),
            allowance: Allowance::new(),
        }
    }

    /// Reads what there is, up to a batch, and sends it. Returns whether there was anything.
    ///
    /// # Errors
    /// The device is gone.
    fn batch(&mut self, patience: &mut Patience) -> io::Result<bool> {
        let shared = self.shared;
        let (mut used, mut packets) = (0, 0);
        self.headers.clear();
        while packets < BATCH && self.data.len() - used >= virtio::LEN + LARGEST {
            let (header, len) = match self.queue.read(&mut self.data[used..]) {
                Ok(Some(read)) => read,
                Ok(None) => break,
                Err(error) if is_lost_packet(&error) => {
                    count(&shared.counters.malformed, 1);
                    packets += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let start = used + virtio::LEN;
            // Not before: what is read after a change is treated accordingly.
            let view = shared.view();
            self.packet(&view, &header, start..start + len, patience);
            used = start + len;
            packets += 1;
        }
        if packets > 0 {
            self.flush(patience);
        }
        Ok(packets > 0)
    }

    fn packet(&mut self, view: &View, header: &Header, at: Range<usize>, patience: &mut Patience) {
        let counters = &self.shared.counters;
        let bytes = &mut self.data[at.clone()];
        let Some((_, destination)) = ends(bytes) else {
            return count(&counters.malformed, 1);
        };
        let way = match &view.to {
            Carrier::Plain(table) => table.next_hop(destination).map(Way::Plain),
            Carrier::Sealed(peers) => peers.to(destination).map(|tunnel| Way::Sealed(tunnel)),
        };
        let Some(way) = way else {
            count(&counters.no_route, 1);
            return self.answer(at, Reason::NoRoute);
        };
        self.segments.clear();
        let mut mtu = view.mtu;
        if let Way::Sealed(tunnel) = &way
            && let Some(path) = self.narrow.of(|| tunnel.endpoint())
        {
            // No link takes less, so an IPv6 packet of this size is never refused.
            let least = if destination.is_ipv6() {
                1280
            } else {
                LEAST_V4
            };
            mtu = mtu.min(path.max(least));
        }
        match segment(header, bytes, mtu, &mut self.headers, &mut self.segments) {
            Ok(()) => match way {
                Way::Plain(to) => {
                    for segment in &self.segments {
                        self.outgoing.push(segment, at.start, to);
                    }
                }
                Way::Sealed(tunnel) => self.seal(tunnel, at, patience),
            },
            Err(Reject::Malformed) => count(&counters.malformed, 1),
            Err(Reject::TooBig) => {
                count(&counters.too_big, 1);
                self.answer(at, Reason::TooBig(mtu));
            }
        }
    }

    /// Encrypts the segments of the packet `at`.
    fn seal(&mut self, tunnel: &Tunnel, at: Range<usize>, patience: &mut Patience) {
        let counters = &self.shared.counters;
        for number in 0..self.segments.len() {
            let segment = &self.segments[number];
            self.plain.clear();
            self.plain
                .extend_from_slice(&self.headers[segment.head.clone()]);
            let body = segment.body.start + at.start..segment.body.end + at.start;
            self.plain.extend_from_slice(&self.data[body]);
            if !self
                .sealed
                .as_ref()
                .is_some_and(|sealed| sealed.has_room(self.plain.len()))
            {
                self.flush(patience);
            }
            let Some(sealed) = &mut self.sealed else {
                return;
            };
            match sealed.seal(tunnel, &self.plain) {
                Seal::Send(range, to) => self.outgoing.push_whole(range, to),
                Seal::Waits => {}
                Seal::NoEndpoint => {
                    count(&counters.no_route, 1);
                    return self.answer(at, Reason::HostUnreachable);
                }
            }
        }
    }

    /// Tells the sender of a packet why it is not forwarded.
    fn answer(&mut self, offender: Range<usize>, reason: Reason) {
        if let Some(error) = icmp::error(&self.data[offender], reason) {
            write_error(self.queue, &mut self.allowance, &error);
        }
    }

    fn flush(&mut self, patience: &mut Patience) {
        let counters = &self.shared.counters;
        let (queue, socket, allowance) = (self.queue, self.socket, &mut self.allowance);
        let narrow = &mut self.narrow;
        let headers = &self.headers;
        let data = self
            .sealed
            .as_ref()
            .map_or(&self.data, |sealed| &sealed.data);
        // An encrypted packet cannot be quoted to its sender.
        let quotable = self.sealed.is_none();
        count(&counters.sent, self.outgoing.len() as u64);
        self.outgoing
            .flush(socket, headers, data, patience, |refused| {
                if let Some(reason) = reason(socket, &refused).filter(|_| quotable) {
                    let mut offender = headers[refused.head.clone()].to_vec();
                    offender.extend_from_slice(&data[refused.body.clone()]);
                    if let Some(error) = icmp::error(&offender, reason) {
                        write_error(queue, allowance, &error);
                    }
                }
                if let Some(libc::EMSGSIZE) = refused.error.raw_os_error() {
                    if !quotable && let Some(path) = socket.path_mtu(refused.to) {
                        narrow.learn(
                            refused.to,
                            path.saturating_sub(overhead(refused.to.ip()) + OVERHEAD),
                        );
                    }
                    count(&counters.too_big, 1);
                } else {
                    counters.not_sent(refused.to, &refused.error);
                }
            });
        if let Some(sealed) = &mut self.sealed {
            sealed.clear();
        }
    }
}

/// Returns what the sender of a packet is told when the kernel refuses to send it.
fn reason(socket: &Socket, refused: &Refused) -> Option<Reason> {
    match refused.error.raw_os_error()? {
        libc::EMSGSIZE => {
            let path = socket.path_mtu(refused.to)?;
            Some(Reason::TooBig(path.checked_sub(overhead(refused.to.ip()))?))
        }
        libc::ENETUNREACH | libc::EHOSTUNREACH => Some(Reason::HostUnreachable),
        _ => None,
    }
}

fn write_error(queue: &Queue, allowance: &mut Allowance, error: &[u8]) {
    if allowance.take() {
        // A device that does not take it is down, or gone, which reading from it shows.
        let _ = queue.write(&Header::default(), error, &[], &[], &mut Vec::new());
    }
}

/// From the peers to the device.
struct Downlink<'a> {
    shared: &'a Shared,
    queue: &'a Queue,
    socket: &'a Socket,
    receiver: Receiver,
    coalescer: Coalescer,
    /// Decrypted packets, if packets are encrypted.
    opened: Vec<u8>,
    scratch: Vec<libc::iovec>,
}

impl<'a> Downlink<'a> {
    fn new(
        shared: &'a Shared,
        queue: &'a Queue,
        socket: &'a Socket,
        join_udp: bool,
    ) -> Downlink<'a> {
        Downlink {
            shared,
            queue,
            socket,
            receiver: Receiver::new(),
            coalescer: Coalescer::new(join_udp),
            opened: match &shared.view().to {
                Carrier::Plain(_) => Vec::new(),
                // What waited for a handshake is sealed in the room that is left.
                Carrier::Sealed(_) => vec![0; PIECES * LARGEST + LARGEST + LONGEST_MESSAGE],
            },
            scratch: Vec::new(),
        }
    }

    /// Receives what there is, up to a batch, and delivers it. Returns whether there was anything.
    ///
    /// # Errors
    /// The device is gone.
    fn batch(&mut self, patience: &mut Patience) -> io::Result<bool> {
        match self.receiver.receive(self.socket) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => {
                // For want of memory, or what a datagram sent earlier came to: neither ends the socket.
                tracing::debug!(%error, "cannot receive");
                return Ok(false);
            }
        }
        let data = take(
            self.shared,
            self.socket,
            &self.receiver,
            &mut self.opened,
            &mut self.coalescer,
            patience,
        );
        deliver(
            self.shared,
            self.queue,
            data,
            &mut self.coalescer,
            &mut self.scratch,
        )?;
        Ok(true)
    }
}

/// Passes the received packets to `coalescer`, decrypted if need be. Returns the data in which they are.
fn take<'a>(
    shared: &Shared,
    socket: &Socket,
    receiver: &'a Receiver,
    opened: &'a mut [u8],
    coalescer: &mut Coalescer,
    patience: &mut Patience,
) -> &'a [u8] {
    let counters = &shared.counters;
    let received = receiver.buffer();
    let view = shared.view();
    let (mut packets, mut malformed, mut used) = (0, 0, 0);
    for piece in receiver.pieces() {
        let mut at = piece.start;
        let end = piece.start + piece.len;
        while at < end {
            let next = (at + piece.segment.max(1)).min(end);
            let taken = match &view.to {
                Carrier::Plain(_) => Some(coalescer.push(received, at..next)),
                Carrier::Sealed(peers) => {
                    let (datagram, into) = (&received[at..next], &mut opened[used..]);
                    let len = peers.open(socket, piece.from, datagram, into, counters, patience);
                    len.map(|len| {
                        let range = used..used + len;
                        used = range.end;
                        coalescer.push(opened, range)
                    })
                }
            };
            packets += u64::from(taken == Some(true));
            malformed += u64::from(taken == Some(false));
            at = next;
        }
    }
    count(&counters.received, packets);
    if malformed > 0 {
        count(&counters.malformed, malformed);
    }
    match &view.to {
        Carrier::Plain(_) => received,
        Carrier::Sealed(_) => opened,
    }
}

fn deliver(
    shared: &Shared,
    queue: &Queue,
    data: &[u8],
    coalescer: &mut Coalescer,
    scratch: &mut Vec<libc::iovec>,
) -> io::Result<()> {
    let mut gone = None;
    coalescer.drain(data, |header, head, pieces| {
        if gone.is_some() {
            return;
        }
        let mut refused = |error: io::Error| {
            if is_gone(&error) {
                gone = Some(error);
            } else if error.raw_os_error() == Some(libc::EIO) {
                // The device is down, as somebody wants it, or until the daemon has set it up.
                count(&shared.counters.not_taken, 1);
            } else {
                shared.counters.not_taken(&shared.device, &error);
            }
        };
        match queue.write(header, head, data, pieces, scratch) {
            Ok(()) => {}
            // Kernels of some vendors refuse every joined packet.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !head.is_empty() => {
                for packet in apart(head, pieces) {
                    let one_by_one = queue.write(&Header::default(), &[], data, &[packet], scratch);
                    one_by_one.unwrap_or_else(&mut refused);
                }
            }
            Err(error) => refused(error),
        }
    });
    gone.map_or(Ok(()), Err)
}

/// Returns whether the kernel had a packet that it could not pass on (some drivers join packets in ways that a TUN
/// device does not know) and dropped it. The next ones can be read.
fn is_lost_packet(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_the_kernel_cannot_pass_on_is_no_lost_device() {
        let error = io::Error::from_raw_os_error;
        assert!(is_lost_packet(&error(libc::EINVAL)) && !is_gone(&error(libc::EINVAL)));
        for gone in [libc::EBADFD, libc::ENODEV] {
            assert!(is_gone(&error(gone)) && !is_lost_packet(&error(gone)));
        }
        assert!(!is_gone(&error(libc::EIO)) && !is_lost_packet(&error(libc::EIO)));
    }
}
