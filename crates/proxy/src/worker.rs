//! The two directions of one queue: from the device to the peers, and back.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use crate::coalesce::Coalescer;
use crate::icmp::{self, Allowance, Reason};
use crate::outgoing::{Outgoing, Refused};
use crate::packet::ends;
use crate::proxy::{Shared, View};
use crate::segment::{Reject, Segment, segment};
use crate::socket::{LARGEST, Receiver, Socket, overhead};
use crate::statistics::count;
use crate::tun::Queue;
use crate::virtio::{self, Header};
use crate::wake::{Stop, wait};

/// How many packets are read before they are sent.
const BATCH: usize = 64;

/// How much data they may be, in bytes: small enough to stay in the processor's cache.
const ARENA: usize = 256 << 10;

/// Carries packets from the device to the peers until an order to stop is given.
///
/// # Errors
/// The device is gone.
pub(crate) fn uplink(
    shared: &Shared,
    stops: &[&Stop],
    queue: &Queue,
    socket: &Socket,
) -> io::Result<()> {
    let mut uplink = Uplink {
        shared,
        queue,
        socket,
        data: vec![0; ARENA],
        headers: Vec::with_capacity(16 << 10),
        segments: Vec::new(),
        outgoing: Outgoing::default(),
        allowance: Allowance::new(),
    };
    while !stops.iter().any(|stop| stop.is_given()) {
        if uplink.batch()? {
            wait(stops, Some(queue.as_fd()), None);
        }
    }
    Ok(())
}

struct Uplink<'a> {
    shared: &'a Shared,
    queue: &'a Queue,
    socket: &'a Socket,
    data: Vec<u8>,
    headers: Vec<u8>,
    segments: Vec<Segment>,
    outgoing: Outgoing,
    allowance: Allowance,
}

impl Uplink<'_> {
    /// Reads what there is, up to a batch, and sends it. Returns whether there is nothing more.
    fn batch(&mut self) -> io::Result<bool> {
        let view = self.shared.view();
        let (mut used, mut packets, mut empty) = (0, 0, false);
        self.headers.clear();
        while packets < BATCH && self.data.len() - used >= virtio::LEN + LARGEST {
            let Some((header, len)) = self.queue.read(&mut self.data[used..])? else {
                empty = true;
                break;
            };
            let start = used + virtio::LEN;
            self.packet(&view, &header, start..start + len);
            used = start + len;
            packets += 1;
        }
        self.flush();
        Ok(empty)
    }

    fn packet(&mut self, view: &View, header: &Header, at: Range<usize>) {
        let counters = &self.shared.counters;
        let bytes = &mut self.data[at.clone()];
        let Some((_, destination)) = ends(bytes) else {
            return count(&counters.malformed, 1);
        };
        let Some(to) = view.table.next_hop(destination) else {
            count(&counters.no_route, 1);
            // The kernel's own multicasts (router and group announcements) are expected here.
            return self.answer(at, Reason::NoRoute);
        };
        self.segments.clear();
        match segment(
            header,
            bytes,
            view.mtu,
            &mut self.headers,
            &mut self.segments,
        ) {
            Ok(()) => {
                for segment in &self.segments {
                    self.outgoing.push(segment, at.start, to);
                }
            }
            Err(Reject::Malformed) => count(&counters.malformed, 1),
            Err(Reject::TooBig) => {
                count(&counters.too_big, 1);
                self.answer(at, Reason::TooBig(view.mtu));
            }
        }
    }

    /// Tells the sender of a packet why it is not forwarded.
    fn answer(&mut self, offender: Range<usize>, reason: Reason) {
        if let Some(error) = icmp::error(&self.data[offender], reason) {
            write_error(self.queue, &mut self.allowance, &error);
        }
    }

    fn flush(&mut self) {
        let counters = &self.shared.counters;
        let (queue, socket, allowance) = (self.queue, self.socket, &mut self.allowance);
        let (headers, data) = (&self.headers, &self.data);
        count(&counters.sent, self.outgoing.len() as u64);
        self.outgoing.flush(socket, headers, data, |refused| {
            if let Some(reason) = reason(socket, &refused) {
                let mut offender = headers[refused.head.clone()].to_vec();
                offender.extend_from_slice(&data[refused.body.clone()]);
                if let Some(error) = icmp::error(&offender, reason) {
                    write_error(queue, allowance, &error);
                }
            }
            if let Some(libc::EMSGSIZE) = refused.error.raw_os_error() {
                count(&counters.too_big, 1);
            } else {
                counters.not_sent(refused.to, &refused.error);
            }
        });
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

/// Carries packets from the peers to the device until an order to stop is given.
///
/// # Errors
/// The device is gone.
pub(crate) fn downlink(
    shared: &Shared,
    stops: &[&Stop],
    queue: &Queue,
    socket: &Socket,
    join_udp: bool,
) -> io::Result<()> {
    let mut receiver = Receiver::new();
    let mut coalescer = Coalescer::new(join_udp);
    let mut scratch = Vec::new();
    while !stops.iter().any(|stop| stop.is_given()) {
        match receiver.receive(socket) {
            Ok(true) => {
                deliver(shared, queue, &receiver, &mut coalescer, &mut scratch)?;
                continue;
            }
            Ok(false) => {}
            // For want of memory, or what a datagram sent earlier came to: neither ends the socket.
            Err(error) => tracing::debug!(%error, "cannot receive"),
        }
        wait(stops, Some(socket.as_fd()), None);
    }
    Ok(())
}

fn deliver(
    shared: &Shared,
    queue: &Queue,
    receiver: &Receiver,
    coalescer: &mut Coalescer,
    scratch: &mut Vec<libc::iovec>,
) -> io::Result<()> {
    let data = receiver.buffer();
    let (mut received, mut malformed) = (0, 0);
    for piece in receiver.pieces() {
        let mut at = piece.start;
        let end = piece.start + piece.len;
        while at < end {
            let next = (at + piece.segment).min(end);
            if coalescer.push(data, at..next) {
                received += 1;
            } else {
                malformed += 1;
            }
            at = next;
        }
    }
    count(&shared.counters.received, received);
    if malformed > 0 {
        count(&shared.counters.malformed, malformed);
    }
    let mut gone = None;
    coalescer.drain(data, |header, head, pieces| {
        if gone.is_some() {
            return;
        }
        if let Err(error) = queue.write(header, head, data, pieces, scratch) {
            if is_gone(&error) {
                gone = Some(error);
            } else if error.raw_os_error() == Some(libc::EIO) {
                // The device is down, as somebody wants it, or until the daemon has set it up.
                count(&shared.counters.not_taken, 1);
            } else {
                shared.counters.not_taken(&shared.device, &error);
            }
        }
    });
    gone.map_or(Ok(()), Err)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
}
