//! Checksums of TCP and UDP: the arithmetic, and a watch on what arrives on a device.

#![allow(unsafe_code, reason = "a packet socket, and its messages")]

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use dataplane::host;
use model::IfName;

/// The sum of 16-bit words, carries added in, not yet inverted.
pub(crate) fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of a segment between two addresses, whose own checksum field is zero; also the test
/// of one that has it: then the result is 0.
pub(crate) fn of_segment(from: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(segment.len() + 40);
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend((segment.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(segment);
    !ones_complement(&bytes)
}

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Whether a packet's TCP or UDP checksum is right, and who sent it; `None` if it is no such packet,
/// has no checksum, or is a fragment.
pub(crate) fn verify(packet: &[u8]) -> Option<(IpAddr, bool)> {
    let address4 = |at: usize| {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::from(bytes))
    };
    let address6 = |at: usize| {
        let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::from(bytes))
    };
    let word = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let (from, to, protocol, segment) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            if word(6)? & 0x3fff != 0 {
                return None;
            }
            let segment = packet.get(header..usize::from(word(2)?))?;
            (address4(12)?, address4(16)?, *packet.get(9)?, segment)
        }
        6 => {
            let segment = packet.get(40..40 + usize::from(word(4)?))?;
            (address6(8)?, address6(24)?, *packet.get(6)?, segment)
        }
        _ => return None,
    };
    let field = match protocol {
        TCP => segment.get(16..18)?,
        UDP => segment.get(6..8)?,
        _ => return None,
    };
    if protocol == UDP && field == [0, 0] {
        return None;
    }
    Some((from, of_segment(from, to, protocol, segment) == 0))
}

/// What arrived with a checksum, by sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) good: u64,
    pub(crate) bad: u64,
}

/// Sees every packet that arrives on one device.
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// There is no such device, or no permission.
    pub(crate) fn on(device: &IfName) -> io::Result<Watch> {
        let index = host::standing(device).map_err(|e| io::Error::other(e.to_string()))?;
        let index = index
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?
            .index;
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Nothing is let in before it is bound to the device.
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        super::icmp::set_option(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        // SAFETY: all zeros is a value of this plain C structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: `address` is a whole link-layer address, and outlives the call.
        let bound = unsafe {
            let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len)
        };
        match bound {
            0 => Ok(Watch(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Counts what arrived since the last call.
    pub(crate) fn count(&self, tallies: &mut BTreeMap<IpAddr, Tally>) {
        let mut buffer = vec![0; 65_536];
        while let Some((len, trusted)) = self.receive(&mut buffer) {
            let packet = &buffer[..len.min(buffer.len())];
            if let Some((from, good)) = verify(packet).filter(|_| !trusted) {
                let tally = tallies.entry(from).or_default();
                match good {
                    true => tally.good += 1,
                    false => tally.bad += 1,
                }
            }
        }
    }

    /// The next packet's length, and whether nobody need look at its checksum: it was sent from
    /// here, or comes from a neighbour in the same kernel, who leaves checksums out.
    fn receive(&self, buffer: &mut [u8]) -> Option<(usize, bool)> {
        /// `struct tpacket_auxdata`.
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Auxiliary {
            status: u32,
            rest: [u32; 4],
        }
        const TP_STATUS_CSUMNOTREADY: u32 = 1 << 3;
        let mut control = [0u64; 16];
        let mut io = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: all zeros is a value of these plain C structures.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut io;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: `message` points to buffers of the lengths it tells, which outlive the call.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        let len = usize::try_from(len).ok()?;
        let mut trusted = from.sll_pkttype == libc::PACKET_OUTGOING;
        // SAFETY: the kernel filled in `message`; its control buffer is aligned, and the walk stays
        // within the length that the kernel told.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(&raw const message);
            while !at.is_null() {
                let (level, kind) = ((*at).cmsg_level, (*at).cmsg_type);
                if level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA {
                    let data = libc::CMSG_DATA(at).cast::<Auxiliary>().read_unaligned();
                    trusted |= data.status & TP_STATUS_CSUMNOTREADY != 0;
                }
                at = libc::CMSG_NXTHDR(&raw const message, at);
            }
        }
        Some((len, trusted))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A UDP packet whose checksum is right.
    fn packet(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut segment = [&[0, 7, 0, 9, 0, 13, 0, 0][..], b"hello"].concat();
        let sum = of_segment(from, to, UDP, &segment);
        segment[6..8].copy_from_slice(&sum.to_be_bytes());
        let mut packet = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let fixed = [0x45, 0, 0, 33, 0, 0, 0, 0, 64, UDP, 0, 0];
                [&fixed[..], &from.octets(), &to.octets()].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let fixed = [0x60, 0, 0, 0, 0, 13, UDP, 64];
                [&fixed[..], &from.octets(), &to.octets()].concat()
            }
            _ => Vec::new(),
        };
        packet.extend(segment);
        packet
    }

    #[test]
    fn right_and_wrong_are_told_apart_in_both_families() {
        for (from, to) in [("10.1.0.1", "10.1.0.2"), ("fd00::1", "fd00::2")] {
            let mut packet = packet(from, to);
            let from = from.parse().unwrap();
            assert_eq!(verify(&packet), Some((from, true)));
            // What the wire adds to short packets is not theirs.
            packet.extend([1, 2, 3]);
            assert_eq!(verify(&packet), Some((from, true)));
            let last = packet.len() - 4;
            packet[last] ^= 1;
            assert_eq!(verify(&packet), Some((from, false)));
        }
        // RFC 1071's own example.
        assert_eq!(
            ones_complement(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]),
            0xddf2
        );
    }

    #[test]
    fn what_cannot_be_judged_is_not() {
        let mut fragment = packet("10.1.0.1", "10.1.0.2");
        fragment[6] = 0x20;
        assert_eq!(verify(&fragment), None);
        let mut without = packet("10.1.0.1", "10.1.0.2");
        without[26..28].fill(0);
        assert_eq!(verify(&without), None);
        for whole in [packet("10.1.0.1", "10.1.0.2"), packet("fd00::1", "fd00::2")] {
            for end in 0..whole.len() {
                assert_eq!(verify(&whole[..end]), None, "cut off at {end}");
            }
        }
        assert_eq!(verify(&[0x4f; 64]), None);
    }
}
