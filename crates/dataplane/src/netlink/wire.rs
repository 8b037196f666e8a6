//! Netlink messages and their attributes as bytes: written into one growing buffer, read from a
//! slice. Neither allocates per message.

use std::net::IpAddr;

use model::Family;

use super::uapi::*;

const HEADER: usize = 16;

fn pad(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// The kernel's number of an address family.
pub fn af(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

/// Messages one after the other, as one `sendmsg` takes them.
#[derive(Default)]
pub struct Batch {
    buf: Vec<u8>,
    /// Where the message being written, or last written, begins.
    start: usize,
    count: usize,
}

/// A nest that is being filled; see [`Batch::nest`].
#[must_use]
pub struct Nest(usize);

impl Batch {
    /// Forgets every message, keeps the memory.
    pub fn clear(&mut self) {
        self.buf.clear();
        self.count = 0;
        self.start = 0;
    }

    /// How many messages there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// All messages as bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Begins a message of type `kind`; `body` is the fixed part that follows the netlink header.
    pub fn open(&mut self, kind: u16, flags: u16, body: &[u8]) -> &mut Self {
        self.start = self.buf.len();
        self.count += 1;
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf
            .extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        // Number and sender: see `number`; 0 is the kernel's business.
        self.buf.extend_from_slice(&[0; 8]);
        self.buf.extend_from_slice(body);
        self.align();
        self
    }

    /// Adds an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = (4 + value.len()) as u16;
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.align();
        self
    }

    /// Adds a 32-bit attribute in host byte order.
    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds an address, 4 or 16 bytes.
    pub fn attr_ip(&mut self, kind: u16, ip: &IpAddr) -> &mut Self {
        match ip {
            IpAddr::V4(ip) => self.attr(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attr(kind, &ip.octets()),
        }
    }

    /// Begins an attribute that holds attributes.
    pub fn nest(&mut self, kind: u16) -> Nest {
        let at = self.buf.len();
        self.attr(kind | NLA_F_NESTED, &[]);
        Nest(at)
    }

    /// Ends it.
    pub fn end(&mut self, nest: Nest) {
        let len = (self.buf.len() - nest.0) as u16;
        self.buf[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// Ends the message.
    pub fn close(&mut self) {
        let len = (self.buf.len() - self.start) as u32;
        self.buf[self.start..self.start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Numbers the messages from `first` on.
    pub fn number(&mut self, first: u32) {
        let (mut at, mut seq) = (0, first);
        while let Some(len) = u32_at(&self.buf, at).filter(|len| *len > 0) {
            self.buf[at + 8..at + 12].copy_from_slice(&seq.to_ne_bytes());
            seq = seq.wrapping_add(1);
            at += pad(len as usize);
        }
    }

    /// Asks for an acknowledgement of the last message, besides the errors that always come.
    pub fn ack_last(&mut self) {
        if self.count > 0 {
            let at = self.start + 6;
            let flags = u16::from_ne_bytes([self.buf[at], self.buf[at + 1]]) | NLM_F_ACK;
            self.buf[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
    }

    fn align(&mut self) {
        self.buf.resize(pad(self.buf.len()), 0);
    }
}

/// One message as it was received.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// `RTM_*` or `NLMSG_*`.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// The request's sequence number; 0 in a notice.
    pub seq: u32,
    /// The socket whose request caused it; 0 is the kernel itself.
    pub port: u32,
    /// What follows the netlink header.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after a fixed part of `fixed` bytes.
    pub fn attrs(&self, fixed: usize) -> Attrs<'a> {
        Attrs(self.body.get(pad(fixed)..).unwrap_or_default())
    }
}

/// The messages in what one receive returned. Ends at the first one that is cut off.
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;
    fn next(&mut self) -> Option<Message<'a>> {
        let len = u32_at(self.0, 0)? as usize;
        if len < HEADER || len > self.0.len() {
            return None;
        }
        let message = Message {
            kind: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            seq: u32_at(self.0, 8)?,
            port: u32_at(self.0, 12)?,
            body: &self.0[HEADER..len],
        };
        self.0 = self.0.get(pad(len)..).unwrap_or_default();
        Some(message)
    }
}

/// Attributes: type (without its flags) and value. Ends at the first one that is cut off.
#[derive(Clone)]
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let len = u16_at(self.0, 0)? as usize;
        if len < 4 || len > self.0.len() {
            return None;
        }
        let attr = (u16_at(self.0, 2)? & NLA_TYPE_MASK, &self.0[4..len]);
        self.0 = self.0.get(pad(len)..).unwrap_or_default();
        Some(attr)
    }
}

/// The 16-bit number at `at`, host byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The 32-bit number at `at`, host byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// An address of 4 or 16 bytes.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// Text that ends at the first NUL.
pub fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|b| *b == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut batch = Batch::default();
        batch
            .open(24, NLM_F_CREATE, &[1, 2, 3, 4])
            .attr(1, b"abcde");
        let nest = batch.nest(18);
        batch.attr_u32(2, 99);
        batch.end(nest);
        batch.close();
        batch
            .open(25, 0, &[])
            .attr_ip(3, &IpAddr::from([10, 0, 0, 1]));
        batch.close();
        batch.number(7);
        batch.ack_last();

        let messages: Vec<_> = Messages(batch.bytes()).collect();
        assert_eq!((messages.len(), batch.count()), (2, 2));
        assert_eq!((messages[0].kind, messages[0].seq), (24, 7));
        assert_eq!(messages[1].seq, 8);
        assert_eq!(messages[0].flags, NLM_F_CREATE | NLM_F_REQUEST);
        assert_eq!(messages[1].flags, NLM_F_ACK | NLM_F_REQUEST);
        let attrs: Vec<_> = messages[0].attrs(4).collect();
        assert_eq!(attrs[0], (1, &b"abcde"[..]));
        assert_eq!(
            Attrs(attrs[1].1).next(),
            Some((2, &99u32.to_ne_bytes()[..]))
        );
        assert_eq!(
            messages[1].attrs(0).next().and_then(|(_, v)| ip(v)),
            Some([10, 0, 0, 1].into())
        );
    }

    #[test]
    fn garbage_ends_the_reading_and_nothing_else() {
        for len in 0..64u8 {
            let bytes: Vec<u8> = (0..64)
                .map(|i: u8| i.wrapping_mul(len).rotate_left(3))
                .collect();
            for cut in 0..bytes.len() {
                Messages(&bytes[..cut]).for_each(|m| m.attrs(12).for_each(drop));
                Attrs(&bytes[..cut]).for_each(drop);
            }
        }
    }

    /// One message of each kind as the kernel sends it, of which every decoder is given mutations.
    fn samples() -> Vec<Vec<u8>> {
        let mut kinds = Vec::new();
        let bodies: [&[u8]; 5] = [
            // A link, an address, a route, a neighbour, a next hop: family 0, 2 or 10, then numbers.
            &[0, 0, 0, 0, 7, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0],
            &[2, 24, 0, 0, 7, 0, 0, 0],
            &[2, 24, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0],
            &[10, 0, 0, 0, 7, 0, 0, 0, 0x80, 0, 2, 1],
            &[2, 0, 4, 0, 0, 0, 0, 0],
        ];
        for (kind, body) in bodies.iter().enumerate() {
            let mut batch = Batch::default();
            batch.open(kind as u16, 0, body);
            batch.attr(3, b"flannel.1\0");
            for attr in 1..16 {
                batch.attr_ip(attr, &IpAddr::from([10, 0, 0, attr as u8]));
            }
            let nest = batch.nest(18);
            batch.attr(1, b"vxlan\0");
            let inner = batch.nest(2);
            batch
                .attr_u32(1, 1)
                .attr_u32(2, 7)
                .attr(10, &[0x6a, 0xa8, 0, 0]);
            batch.end(inner);
            batch.end(nest);
            batch.close();
            kinds.push(batch.bytes().to_vec());
        }
        kinds
    }

    #[test]
    fn fuzzed_messages() {
        use crate::netlink::decode;

        let samples = samples();
        let seeds: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
        fuzz::run("rtnetlink messages", &seeds, |input| {
            let mut read = 0_u32;
            for message in Messages(input) {
                let shown = [
                    decode::link(&message)
                        .map(|link| drop(link.link()))
                        .is_some(),
                    decode::link_id(&message).is_some(),
                    decode::addr(&message).is_some(),
                    decode::route(&message).is_some(),
                    decode::path(&message).is_some(),
                    decode::neigh(&message).is_some(),
                    decode::next_hop(&message).is_some(),
                ];
                for is_some in shown {
                    read = read.rotate_left(1) ^ u32::from(is_some);
                }
            }
            read
        });
        fuzz::run("netlink attributes", &seeds, |input| {
            let mut kinds = 0_u64;
            for (kind, value) in Attrs(input) {
                let _ = (ip(value), text(value), u32_at(value, 0));
                for (inner, _) in Attrs(value) {
                    kinds ^= 1 << (inner % 64);
                }
                kinds ^= 1 << (kind % 64);
            }
            kinds
        });
    }
}
