//! Where the parts of an IP packet are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMP_V6: u8 = 58;

/// The length of an IPv6 header, in bytes.
pub(crate) const V6_HEADER: usize = 40;

/// What the first header of an IP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Whether it is IPv6.
    pub(crate) v6: bool,
    /// Where the header ends, in bytes. IPv6: without extension headers.
    pub(crate) header: usize,
    /// The length that the header states, in bytes; never more than there is.
    pub(crate) len: usize,
    /// The protocol of what follows the header. IPv6: perhaps an extension header.
    pub(crate) protocol: u8,
    /// IPv4: part of a fragmented packet, the first fragment included.
    pub(crate) fragment: bool,
}

impl Packet {
    /// Reads the header. `None` if it is not IP, is cut off, or states more bytes than there are.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Packet> {
        match bytes.first()? >> 4 {
            4 => {
                let header = usize::from(bytes[0] & 0xf) * 4;
                let len = usize::from(be16(bytes, 2)?);
                let offset = be16(bytes, 6)?;
                let protocol = *bytes.get(9)?;
                let whole = header >= 20 && len >= header && len <= bytes.len();
                whole.then_some(Packet {
                    v6: false,
                    header,
                    len,
                    protocol,
                    fragment: offset & 0x3fff != 0,
                })
            }
            6 => {
                let len = V6_HEADER + usize::from(be16(bytes, 4)?);
                let whole = len <= bytes.len();
                whole.then_some(Packet {
                    v6: true,
                    header: V6_HEADER,
                    len,
                    protocol: *bytes.get(6)?,
                    fragment: false,
                })
            }
            _ => None,
        }
    }

    /// Where source and destination address are, next to each other.
    pub(crate) fn addresses(&self) -> Range<usize> {
        if self.v6 { 8..40 } else { 12..20 }
    }
}

/// Returns source and destination of a packet that [`Packet::parse`] accepted.
pub(crate) fn ends(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match bytes.first()? >> 4 {
        4 => {
            let source: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
            let destination: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
            Some((
                Ipv4Addr::from(source).into(),
                Ipv4Addr::from(destination).into(),
            ))
        }
        6 => {
            let source: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
            Some((
                Ipv6Addr::from(source).into(),
                Ipv6Addr::from(destination).into(),
            ))
        }
        _ => None,
    }
}

/// Reads a 16-bit number in network byte order.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([two[0], two[1]]))
}

/// Reads a 32-bit number in network byte order.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
}

/// Writes a 16-bit number in network byte order; does nothing outside of `bytes`.
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    put(bytes, at, value.to_be_bytes());
}

/// Writes bytes; does nothing outside of `bytes`.
pub(crate) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..at + N) {
        place.copy_from_slice(&value);
    }
}
