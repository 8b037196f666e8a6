//! Joins packets of one flow that arrived one after the other into the large packet that they were cut
//! from, so that the kernel handles one instead of dozens.
//!
//! Packets of one flow stay in order. What is joined was found intact: a packet with a wrong checksum is
//! handed over as it is, for the kernel to drop and count.

use std::ops::Range;

use crate::checksum::Sum;
use crate::packet::{Packet, TCP, UDP, be16, be32, put, put16};
use crate::virtio::{DATA_VALID, Gso, Header, NEEDS_CSUM};

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// The longest packet that IP permits.
const LONGEST: usize = 65_535;
/// The most datagrams that the kernel permits in one packet (`UDP_MAX_SEGMENTS`).
const MOST_DATAGRAMS: usize = 64;
/// The most packets that are joined: `writev` takes 1024 pieces.
const MOST_PIECES: usize = 256;
/// How many flows are joined at the same time.
const FLOWS: usize = 16;

/// A packet for the kernel: a header and pieces of the received data.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    pub(crate) virtio: Header,
    /// The rewritten headers, in [`Coalescer::headers`]; empty if the pieces are the whole packet.
    pub(crate) head: Range<usize>,
    /// Pieces of the received data, in [`Coalescer::pieces`].
    pub(crate) pieces: Vec<Range<usize>>,
}

/// A flow that may go on.
#[derive(Debug)]
struct Flow {
    /// In `Coalescer::joined`.
    at: usize,
    /// The first packet.
    first: Range<usize>,
    packet: Packet,
    /// Where the payload begins.
    body: usize,
    /// Payload of each packet but the last, in bytes.
    size: usize,
    /// Payload so far, in bytes.
    total: usize,
    /// TCP: the sequence number that goes on from here.
    next: u32,
    /// IPv4: the identification that goes on from here.
    id: u16,
    /// TCP: the last packet asks to be delivered at once. It is the flow's last.
    push: bool,
}

/// Collects received packets, and joins them.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    joined: Vec<Joined>,
    used: usize,
    headers: Vec<u8>,
    /// Flows that may go on.
    flows: Vec<Flow>,
    /// Flows of several packets that take no more.
    done: Vec<Flow>,
    /// Whether the device takes joined UDP datagrams.
    join_udp: bool,
}

/// What a packet is, as far as joining is concerned.
struct Candidate {
    packet: Packet,
    protocol: u8,
    body: usize,
    /// TCP: nothing but an acknowledgement and data. UDP: data.
    plain: bool,
}

impl Candidate {
    fn pushes(&self, bytes: &[u8]) -> bool {
        self.protocol == TCP && bytes[self.packet.header + 13] & PSH != 0
    }
}

impl Coalescer {
    pub(crate) fn new(join_udp: bool) -> Coalescer {
        Coalescer {
            join_udp,
            ..Coalescer::default()
        }
    }

    /// Takes a packet: `at` in `data`. Returns whether it is one.
    pub(crate) fn push(&mut self, data: &[u8], at: Range<usize>) -> bool {
        let bytes = &data[at.clone()];
        let Some(packet) = Packet::parse(bytes) else {
            return false;
        };
        // Without what may follow it: the datagram may be longer than the packet.
        let at = at.start..at.start + packet.len;
        let bytes = &bytes[..packet.len];
        let Some(candidate) = self.candidate(bytes, &packet) else {
            self.single(at, 0);
            return true;
        };
        let flow = self
            .flows
            .iter()
            .position(|flow| flow.is_of(data, bytes, &candidate));
        let intact = candidate.plain && intact(bytes, &candidate);
        if let Some(index) = flow {
            let room = self.joined[self.flows[index].at].pieces.len() < MOST_PIECES;
            if intact && room && self.flows[index].takes(data, bytes, &candidate) {
                self.append(index, bytes, at, &candidate);
                return true;
            }
            self.close(index);
        }
        if !intact {
            self.single(at, 0);
            return true;
        }
        let joined = self.single(at.clone(), DATA_VALID);
        if candidate.pushes(bytes) {
            return true;
        }
        if self.flows.len() == FLOWS {
            self.close(0);
        }
        let size = packet.len - candidate.body;
        self.flows.push(Flow {
            at: joined,
            first: at,
            packet,
            body: candidate.body,
            size,
            total: size,
            next: be32(bytes, packet.header + 4)
                .unwrap_or(0)
                .wrapping_add(size as u32),
            id: be16(bytes, 4).unwrap_or(0).wrapping_add(1),
            push: false,
        });
        true
    }

    /// Ends all flows and hands each packet for the kernel to `each`: header, rewritten headers, and
    /// pieces of the received data. Nothing is left afterwards.
    pub(crate) fn drain(
        &mut self,
        data: &[u8],
        mut each: impl FnMut(&Header, &[u8], &[Range<usize>]),
    ) {
        let mut flows = std::mem::take(&mut self.done);
        flows.append(&mut self.flows);
        for flow in flows.drain(..) {
            self.finish(data, &flow);
        }
        self.done = flows;
        for joined in &self.joined[..self.used] {
            each(
                &joined.virtio,
                &self.headers[joined.head.clone()],
                &joined.pieces,
            );
        }
        self.used = 0;
        self.headers.clear();
    }

    fn candidate(&self, bytes: &[u8], packet: &Packet) -> Option<Candidate> {
        if packet.fragment || (!packet.v6 && packet.header != 20) {
            return None;
        }
        let at = packet.header;
        match packet.protocol {
            TCP => {
                let header = usize::from(*bytes.get(at + 12)? >> 4) * 4;
                let body = at + header;
                if header < 20 || body > packet.len {
                    return None;
                }
                // Without reserved bits, which would have to be the same in all packets.
                let plain =
                    bytes[at + 12] & 0xf == 0 && bytes[at + 13] & !PSH == ACK && body < packet.len;
                Some(Candidate {
                    packet: *packet,
                    protocol: TCP,
                    body,
                    plain,
                })
            }
            UDP if self.join_udp => {
                let stated = usize::from(be16(bytes, at + 4)?);
                let body = at + 8;
                let summed = be16(bytes, at + 6)? != 0;
                let plain = summed && stated == packet.len - at && body < packet.len;
                Some(Candidate {
                    packet: *packet,
                    protocol: UDP,
                    body,
                    plain,
                })
            }
            _ => None,
        }
    }

    /// Adds a packet that is handed over as it is, so far. Returns its place.
    fn single(&mut self, at: Range<usize>, flags: u8) -> usize {
        if self.used == self.joined.len() {
            self.joined.push(Joined::default());
        }
        let joined = &mut self.joined[self.used];
        joined.virtio = Header {
            flags,
            ..Header::default()
        };
        joined.head = 0..0;
        joined.pieces.clear();
        joined.pieces.push(at);
        self.used += 1;
        self.used - 1
    }

    fn append(&mut self, index: usize, bytes: &[u8], at: Range<usize>, candidate: &Candidate) {
        let flow = &mut self.flows[index];
        let size = candidate.packet.len - candidate.body;
        flow.total += size;
        flow.next = flow.next.wrapping_add(size as u32);
        flow.id = flow.id.wrapping_add(1);
        flow.push = candidate.pushes(bytes);
        let last = flow.push || size < flow.size;
        let body = at.start + candidate.body..at.end;
        self.joined[flow.at].pieces.push(body);
        if last {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        let flow = self.flows.swap_remove(index);
        self.done.push(flow);
    }

    /// Writes the headers of a flow of several packets.
    fn finish(&mut self, data: &[u8], flow: &Flow) {
        let joined = &mut self.joined[flow.at];
        if joined.pieces.len() < 2 {
            return;
        }
        let packet = &flow.packet;
        let start = self.headers.len();
        self.headers
            .extend_from_slice(&data[flow.first.start..flow.first.start + flow.body]);
        let header = &mut self.headers[start..];
        let len = flow.body + flow.total;
        if packet.v6 {
            put16(header, 4, (len - packet.header) as u16);
        } else {
            put16(header, 2, len as u16);
            put16(header, 10, 0);
            let sum = Sum::default().bytes(&header[..packet.header]).checksum();
            put(header, 10, sum);
        }
        let transport = packet.header;
        let sum = Sum::default()
            .pseudo_header(
                &header[packet.addresses()],
                packet.protocol,
                len - transport,
            )
            .folded();
        let (gso, offset) = if packet.protocol == TCP {
            if flow.push {
                header[transport + 13] |= PSH;
            }
            (Gso::Tcp { v6: packet.v6 }, 16)
        } else {
            put16(header, transport + 4, (len - transport) as u16);
            (Gso::Udp, 6)
        };
        put(header, transport + offset, sum);
        joined.virtio = Header {
            flags: NEEDS_CSUM,
            gso,
            hdr_len: flow.body as u16,
            gso_size: flow.size as u16,
            csum_start: transport as u16,
            csum_offset: offset as u16,
        };
        joined.head = start..self.headers.len();
        // The first packet's headers have been copied.
        joined.pieces[0].start += flow.body;
    }
}

/// Returns where in the received data the packets are that were joined into one with the headers `head`.
pub(crate) fn apart(head: &[u8], pieces: &[Range<usize>]) -> impl Iterator<Item = Range<usize>> {
    // Each payload comes after headers of the same length.
    let headers = head.len();
    let whole = move |piece: &Range<usize>| piece.start.saturating_sub(headers)..piece.end;
    pieces.iter().map(whole)
}

impl Flow {
    /// Returns whether a packet is of this flow.
    fn is_of(&self, data: &[u8], bytes: &[u8], other: &Candidate) -> bool {
        let first = &data[self.first.clone()];
        let (mine, theirs) = (&self.packet, &other.packet);
        if mine.v6 != theirs.v6 || mine.protocol != theirs.protocol {
            return false;
        }
        let ports = mine.header..mine.header + 4;
        first[mine.addresses()] == bytes[theirs.addresses()] && first[ports.clone()] == bytes[ports]
    }

    /// Returns whether an intact packet of this flow can be appended.
    fn takes(&self, data: &[u8], bytes: &[u8], other: &Candidate) -> bool {
        let first = &data[self.first.clone()];
        let size = other.packet.len - other.body;
        if other.body != self.body || size > self.size || self.body + self.total + size > LONGEST {
            return false;
        }
        let network = if self.packet.v6 {
            // Version, class, flow label; hop limit.
            first[..4] == bytes[..4] && first[7] == bytes[7]
        } else {
            let unfragmented = bytes[6] & 0x40 != 0;
            // Service, flags; lifetime.
            first[1] == bytes[1]
                && first[6] == bytes[6]
                && first[8] == bytes[8]
                && (unfragmented || be16(bytes, 4) == Some(self.id))
        };
        let at = self.packet.header;
        let transport = if other.protocol == TCP {
            // Acknowledgement, window; options.
            be32(bytes, at + 4) == Some(self.next)
                && first[at + 8..at + 12] == bytes[at + 8..at + 12]
                && first[at + 14..at + 16] == bytes[at + 14..at + 16]
                && first[at + 20..self.body] == bytes[at + 20..self.body]
        } else {
            self.total / self.size < MOST_DATAGRAMS
        };
        network && transport
    }
}

/// Returns whether the packet's checksums are right.
fn intact(bytes: &[u8], candidate: &Candidate) -> bool {
    let packet = &candidate.packet;
    let header = packet.v6 || Sum::default().bytes(&bytes[..packet.header]).is_valid();
    header
        && Sum::default()
            .pseudo_header(
                &bytes[packet.addresses()],
                packet.protocol,
                packet.len - packet.header,
            )
            .bytes(&bytes[packet.header..])
            .is_valid()
}

#[cfg(test)]
mod tests;
