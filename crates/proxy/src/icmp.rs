//! What a router says of a packet that it cannot forward.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::checksum::{Sum, icmp_v6};
use crate::packet::{ICMP, ICMP_V6, Packet, TCP, UDP, V6_HEADER, ends, put, put16};

/// Why a packet is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No peer has a subnet with this destination.
    NoRoute,
    /// The peer cannot be reached.
    HostUnreachable,
    /// The packet is larger than this many bytes, and may not be fragmented.
    TooBig(usize),
}

/// Returns the error message for `offender`, as an IP packet. `None` for packets that are answered by
/// nobody: errors, later fragments, and what is not from one host to one host.
///
/// It is sent in the name of the destination: the kernel drops what arrives with one of its own addresses
/// as source.
pub(crate) fn error(offender: &[u8], reason: Reason) -> Option<Vec<u8>> {
    let packet = Packet::parse(offender)?;
    let (from, to) = ends(offender)?;
    if !may_be_answered(offender, &packet, from, to) {
        return None;
    }
    if packet.v6 {
        v6(offender, from, to, reason)
    } else {
        v4(offender, from, to, reason)
    }
}

fn may_be_answered(offender: &[u8], packet: &Packet, from: IpAddr, to: IpAddr) -> bool {
    let broadcast = matches!(to, IpAddr::V4(to) if to.is_broadcast());
    if from.is_unspecified() || from.is_multicast() || to.is_multicast() || broadcast {
        return false;
    }
    if packet.fragment && (offender[6] & 0x1f != 0 || offender[7] != 0) {
        return false;
    }
    let kind = offender.get(packet.header).copied();
    match packet.protocol {
        // Only requests and replies: of errors there are no errors.
        ICMP => matches!(kind, Some(0 | 8 | 13 | 14)),
        ICMP_V6 => kind.is_some_and(|kind| kind >= 128),
        TCP | UDP => true,
        _ => true,
    }
}

fn v4(offender: &[u8], from: IpAddr, to: IpAddr, reason: Reason) -> Option<Vec<u8>> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
        return None;
    };
    let (code, mtu) = match reason {
        Reason::NoRoute => (0, 0),
        Reason::HostUnreachable => (1, 0),
        Reason::TooBig(mtu) => (4, u16::try_from(mtu).unwrap_or(u16::MAX)),
    };
    // As much of the offender as fits into 576 bytes, which every host takes.
    let quoted = &offender[..offender.len().min(576 - 28)];
    let mut bytes = vec![0; 28];
    bytes[0] = 0x45;
    // Internetwork control, as the kernel's own errors.
    bytes[1] = 0xc0;
    put16(&mut bytes, 2, (28 + quoted.len()) as u16);
    bytes[8] = 64;
    bytes[9] = ICMP;
    put(&mut bytes, 12, to.octets());
    put(&mut bytes, 16, from.octets());
    let sum = Sum::default().bytes(&bytes[..20]).checksum();
    put(&mut bytes, 10, sum);
    // Destination unreachable.
    bytes[20] = 3;
    bytes[21] = code;
    put16(&mut bytes, 26, mtu);
    bytes.extend_from_slice(quoted);
    let sum = Sum::default().bytes(&bytes[20..]).checksum();
    put(&mut bytes, 22, sum);
    Some(bytes)
}

fn v6(offender: &[u8], from: IpAddr, to: IpAddr, reason: Reason) -> Option<Vec<u8>> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (from, to) else {
        return None;
    };
    let (kind, code, mtu) = match reason {
        Reason::NoRoute => (1, 0, 0),
        Reason::HostUnreachable => (1, 3, 0),
        Reason::TooBig(mtu) => (2, 0, u32::try_from(mtu).unwrap_or(u32::MAX)),
    };
    let quoted = &offender[..offender.len().min(1280 - V6_HEADER - 8)];
    let mut bytes = vec![0; V6_HEADER + 8];
    bytes[0] = 0x60;
    put16(&mut bytes, 4, (8 + quoted.len()) as u16);
    bytes[6] = ICMP_V6;
    bytes[7] = 64;
    put(&mut bytes, 8, destination.octets());
    put(&mut bytes, 24, source.octets());
    bytes[V6_HEADER] = kind;
    bytes[V6_HEADER + 1] = code;
    put(&mut bytes, V6_HEADER + 4, mtu.to_be_bytes());
    bytes.extend_from_slice(quoted);
    let sum = icmp_v6(to, from, &bytes[V6_HEADER..]);
    put(&mut bytes, V6_HEADER + 2, sum);
    Some(bytes)
}

/// Permits so many errors a second, as the kernel does.
#[derive(Debug)]
pub(crate) struct Allowance {
    since: Instant,
    left: u32,
}

impl Allowance {
    const PER_SECOND: u32 = 1000;

    pub(crate) fn new() -> Allowance {
        Allowance {
            since: Instant::now(),
            left: Self::PER_SECOND,
        }
    }

    /// Returns whether one more may be sent.
    pub(crate) fn take(&mut self) -> bool {
        let now = Instant::now();
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Allowance {
                since: now,
                left: Self::PER_SECOND,
            };
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4_packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![
            0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 1, 2,
        ];
        bytes.extend_from_slice(payload);
        let len = bytes.len() as u16;
        put16(&mut bytes, 2, len);
        bytes
    }

    #[test]
    fn fragmentation_needed_names_the_mtu_and_quotes_the_packet() {
        let offender = v4_packet(UDP, &[7; 1500]);
        let error = error(&offender, Reason::TooBig(1472)).unwrap();
        assert_eq!(error.len(), 576);
        assert_eq!(
            ends(&error),
            Some(("10.0.1.2".parse().unwrap(), "10.0.0.1".parse().unwrap()))
        );
        assert_eq!((error[20], error[21]), (3, 4));
        assert_eq!(&error[26..28], &1472u16.to_be_bytes());
        assert_eq!(&error[28..], &offender[..548]);
        assert!(Sum::default().bytes(&error[..20]).is_valid());
        assert!(Sum::default().bytes(&error[20..]).is_valid());
    }

    #[test]
    fn unreachable_in_ipv6() {
        let mut offender = vec![0; V6_HEADER + 20];
        offender[0] = 0x60;
        put16(&mut offender, 4, 20);
        offender[6] = TCP;
        offender[23] = 1;
        offender[39] = 2;
        let error = error(&offender, Reason::NoRoute).unwrap();
        assert_eq!((error[6], error[40], error[41]), (ICMP_V6, 1, 0));
        let sum = Sum::default().pseudo_header(&error[8..40], ICMP_V6, error.len() - V6_HEADER);
        assert!(sum.bytes(&error[V6_HEADER..]).is_valid());
        assert_eq!(Packet::parse(&error).unwrap().len, error.len());
    }

    #[test]
    fn never_of_an_error_nor_of_a_later_fragment_nor_to_a_crowd() {
        assert!(error(&v4_packet(ICMP, &[3, 1, 0, 0, 0, 0, 0, 0]), Reason::NoRoute).is_none());
        assert!(error(&v4_packet(ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]), Reason::NoRoute).is_some());
        let mut fragment = v4_packet(UDP, &[0; 16]);
        fragment[7] = 2;
        assert!(error(&fragment, Reason::NoRoute).is_none());
        let mut multicast = v4_packet(UDP, &[0; 16]);
        multicast[16] = 224;
        assert!(error(&multicast, Reason::NoRoute).is_none());
        assert!(error(&[], Reason::NoRoute).is_none());
    }
}
