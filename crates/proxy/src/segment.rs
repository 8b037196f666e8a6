//! Cuts the large packets that the kernel hands over (TSO, USO) into packets that fit the tunnel, and
//! completes checksums that it left to the device.

use std::ops::Range;

use crate::checksum::{Sum, udp_form};
use crate::packet::{Packet, TCP, UDP, be16, be32, put, put16};
use crate::virtio::{Gso, Header, NEEDS_CSUM};

/// One packet to send: its first bytes from the buffer of headers, the rest from the original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// In the buffer of headers.
    pub(crate) head: Range<usize>,
    /// In the packet that was cut.
    pub(crate) body: Range<usize>,
}

/// Why a packet cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    /// It is no IP packet, or its headers contradict each other.
    Malformed,
    /// It is larger than the tunnel's MTU and cannot be cut.
    TooBig,
}

/// Appends the packets that `bytes` stands for to `out`. No packet is longer than `mtu`; their headers
/// are appended to `headers`.
///
/// # Errors
/// The packet cannot be sent; nothing is appended.
pub(crate) fn segment(
    virtio: &Header,
    bytes: &mut [u8],
    mtu: usize,
    headers: &mut Vec<u8>,
    out: &mut Vec<Segment>,
) -> Result<(), Reject> {
    let packet = Packet::parse(bytes).ok_or(Reject::Malformed)?;
    let gso_size = usize::from(virtio.gso_size);
    match virtio.gso {
        Gso::None => whole(virtio, &packet, bytes, mtu, headers, out),
        Gso::Tcp { .. } => {
            let transport = usize::from(virtio.csum_start);
            let offset = *bytes.get(transport + 12).ok_or(Reject::Malformed)? >> 4;
            let cut = Cut::new(&packet, transport, usize::from(offset) * 4, gso_size, TCP)?;
            // TCP segments may be smaller than the sender asked for.
            let cut = Cut {
                size: cut.size.min(mtu.saturating_sub(cut.body)),
                ..cut
            };
            if cut.size == 0 {
                return Err(Reject::TooBig);
            }
            cut.tcp(bytes, headers, out);
            Ok(())
        }
        Gso::Udp => {
            let transport = usize::from(virtio.csum_start);
            let cut = Cut::new(&packet, transport, 8, gso_size, UDP)?;
            if cut.body + cut.size > mtu {
                return Err(Reject::TooBig);
            }
            cut.udp(bytes, headers, out);
            Ok(())
        }
        Gso::Unknown(_) => Err(Reject::Malformed),
    }
}

fn whole(
    virtio: &Header,
    packet: &Packet,
    bytes: &mut [u8],
    mtu: usize,
    headers: &mut Vec<u8>,
    out: &mut Vec<Segment>,
) -> Result<(), Reject> {
    if virtio.flags & NEEDS_CSUM != 0 {
        complete(virtio, packet, bytes)?;
    }
    if packet.len <= mtu {
        out.push(Segment {
            head: 0..0,
            body: 0..packet.len,
        });
        return Ok(());
    }
    if packet.v6 || bytes[6] & 0x40 != 0 {
        return Err(Reject::TooBig);
    }
    fragment(packet, bytes, mtu, headers, out)
}

/// Completes a checksum: the field holds the sum of the pseudo-header.
fn complete(virtio: &Header, packet: &Packet, bytes: &mut [u8]) -> Result<(), Reject> {
    let start = usize::from(virtio.csum_start);
    let at = start + usize::from(virtio.csum_offset);
    if start < packet.header || at + 2 > packet.len {
        return Err(Reject::Malformed);
    }
    let sum = Sum::default().bytes(&bytes[start..packet.len]).checksum();
    // Of UDP (offset 6), zero means that there is no checksum.
    let sum = if virtio.csum_offset == 6 {
        udp_form(sum)
    } else {
        sum
    };
    put(bytes, at, sum);
    Ok(())
}

/// Cuts an IPv4 packet that permits it into fragments, as a router would.
fn fragment(
    packet: &Packet,
    bytes: &[u8],
    mtu: usize,
    headers: &mut Vec<u8>,
    out: &mut Vec<Segment>,
) -> Result<(), Reject> {
    let size = mtu.saturating_sub(packet.header) & !7;
    if size == 0 {
        return Err(Reject::TooBig);
    }
    let field = be16(bytes, 6).unwrap_or(0);
    let (first, more) = (field & 0x1fff, field & 0x2000);
    let mut at = packet.header;
    while at < packet.len {
        let end = (at + size).min(packet.len);
        let head = headers.len();
        // Options are repeated in every fragment: more than some need, and never harmful.
        headers.extend_from_slice(&bytes[..packet.header]);
        let header = &mut headers[head..];
        let offset = first + ((at - packet.header) / 8) as u16;
        let more = if end < packet.len { 0x2000 } else { more };
        put16(header, 6, (offset & 0x1fff) | more);
        finish_v4(header, packet.header + end - at);
        out.push(Segment {
            head: head..headers.len(),
            body: at..end,
        });
        at = end;
    }
    Ok(())
}

/// Sets the length of an IPv4 header and computes its checksum.
fn finish_v4(header: &mut [u8], len: usize) {
    put16(header, 2, u16::try_from(len).unwrap_or(u16::MAX));
    put16(header, 10, 0);
    let sum = Sum::default().bytes(header).checksum();
    put(header, 10, sum);
}

/// Where and into what a large packet is cut.
struct Cut {
    packet: Packet,
    /// Where the TCP or UDP header is.
    transport: usize,
    /// Where the payload begins.
    body: usize,
    /// Payload of each part, in bytes.
    size: usize,
}

impl Cut {
    fn new(
        packet: &Packet,
        transport: usize,
        header: usize,
        size: usize,
        protocol: u8,
    ) -> Result<Cut, Reject> {
        let body = transport + header;
        let least = if protocol == TCP { 20 } else { 8 };
        // IPv6 extension headers may lie in between; the kernel says where they end.
        let own_protocol = packet.v6 || packet.protocol == protocol;
        let sound = transport >= packet.header && header >= least && body < packet.len;
        if !sound || size == 0 || !own_protocol || packet.fragment {
            return Err(Reject::Malformed);
        }
        Ok(Cut {
            packet: *packet,
            transport,
            body,
            size,
        })
    }

    /// Calls `finish` for each part, with its header, the number of the part, and its payload.
    fn each(
        &self,
        bytes: &[u8],
        headers: &mut Vec<u8>,
        out: &mut Vec<Segment>,
        mut finish: impl FnMut(&mut [u8], usize, Range<usize>),
    ) {
        let id = be16(bytes, 4).unwrap_or(0);
        let (mut at, mut number) = (self.body, 0);
        while at < self.packet.len {
            let end = (at + self.size).min(self.packet.len);
            let head = headers.len();
            headers.extend_from_slice(&bytes[..self.body]);
            let header = &mut headers[head..];
            let len = self.body + end - at;
            if self.packet.v6 {
                let stated = len.saturating_sub(self.packet.header);
                put16(header, 4, u16::try_from(stated).unwrap_or(u16::MAX));
            } else {
                put16(header, 4, id.wrapping_add(number as u16));
                finish_v4(&mut header[..self.packet.header], len);
            }
            finish(header, number, at..end);
            out.push(Segment {
                head: head..headers.len(),
                body: at..end,
            });
            (at, number) = (end, number + 1);
        }
    }

    /// Returns the sum of the pseudo-header of a part with so much payload.
    fn pseudo_header(&self, bytes: &[u8], protocol: u8, payload: usize) -> Sum {
        let len = self.body - self.transport + payload;
        Sum::default().pseudo_header(&bytes[self.packet.addresses()], protocol, len)
    }

    fn tcp(&self, bytes: &[u8], headers: &mut Vec<u8>, out: &mut Vec<Segment>) {
        const FIN: u8 = 0x01;
        const PSH: u8 = 0x08;
        const CWR: u8 = 0x80;
        let sequence = be32(bytes, self.transport + 4).unwrap_or(0);
        self.each(bytes, headers, out, |header, number, payload| {
            let tcp = &mut header[self.transport..];
            let from = (payload.start - self.body) as u32;
            put(tcp, 4, sequence.wrapping_add(from).to_be_bytes());
            if payload.end < self.packet.len {
                tcp[13] &= !(FIN | PSH);
            }
            if number > 0 {
                tcp[13] &= !CWR;
            }
            put16(tcp, 16, 0);
            let sum = self
                .pseudo_header(bytes, TCP, payload.len())
                .bytes(tcp)
                .bytes(&bytes[payload])
                .checksum();
            put(tcp, 16, sum);
        });
    }

    fn udp(&self, bytes: &[u8], headers: &mut Vec<u8>, out: &mut Vec<Segment>) {
        self.each(bytes, headers, out, |header, _, payload| {
            let udp = &mut header[self.transport..];
            put16(udp, 4, (8 + payload.len()) as u16);
            put16(udp, 6, 0);
            let sum = self
                .pseudo_header(bytes, UDP, payload.len())
                .bytes(udp)
                .bytes(&bytes[payload])
                .checksum();
            put(udp, 6, udp_form(sum));
        });
    }
}

#[cfg(test)]
mod tests;
