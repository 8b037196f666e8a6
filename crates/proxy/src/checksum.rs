//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// A running one's complement sum, not yet folded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds `bytes`, which must begin at an even offset of what is summed.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Sum {
        // Independent accumulators of 32-bit words, which the compiler turns into vector instructions: without
        // iterators' adapters, which it does not always inline where the rest of the program is built for
        // size. A u64 holds the sum of 2^32 such words.
        let mut lanes = [0u64; 8];
        let mut rest = bytes;
        while let Some((chunk, tail)) = rest.split_first_chunk::<32>() {
            let mut lane = 0;
            while lane < 8 {
                let at = lane * 4;
                let word = [chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]];
                lanes[lane] += u64::from(u32::from_ne_bytes(word));
                lane += 1;
            }
            rest = tail;
        }
        let mut sum = 0;
        for lane in lanes {
            sum += fold32(lane);
        }
        while let Some((pair, tail)) = rest.split_first_chunk::<2>() {
            sum += u64::from(u16::from_ne_bytes(*pair));
            rest = tail;
        }
        if let [last] = rest {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Sum(fold32(self.0) + fold32(sum))
    }

    /// Adds one 16-bit number.
    pub(crate) fn number(self, number: u16) -> Sum {
        Sum(self.0 + u64::from(number.to_be()))
    }

    /// Adds the pseudo-header of TCP and UDP. `addresses` are source and destination as they are in
    /// the packet, next to each other.
    pub(crate) fn pseudo_header(self, addresses: &[u8], protocol: u8, len: usize) -> Sum {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.bytes(addresses)
            .number(u16::from(protocol))
            .number((len >> 16) as u16)
            .number(len as u16)
    }

    /// Returns the folded sum in network byte order, not complemented.
    pub(crate) fn folded(self) -> [u8; 2] {
        let sum = fold32(self.0);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        (sum as u16).to_ne_bytes()
    }

    /// Returns the checksum to write: the complement of the sum.
    pub(crate) fn checksum(self) -> [u8; 2] {
        let [a, b] = self.folded();
        [!a, !b]
    }

    /// Returns whether a sum over data that includes its checksum is right.
    pub(crate) fn is_valid(self) -> bool {
        self.folded() == [0xff, 0xff]
    }
}

fn fold32(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// Returns UDP's form of a checksum: zero, which means "none", is sent as all ones.
pub(crate) fn udp_form(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0, 0] {
        [0xff, 0xff]
    } else {
        checksum
    }
}

/// Returns the ICMPv6 checksum of `message` between two addresses.
pub(crate) fn icmp_v6(source: IpAddr, destination: IpAddr, message: &[u8]) -> [u8; 2] {
    let mut addresses = [0; 32];
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) {
        addresses[..16].copy_from_slice(&source.octets());
        addresses[16..].copy_from_slice(&destination.octets());
    }
    Sum::default()
        .pseudo_header(&addresses, 58, message.len())
        .bytes(message)
        .checksum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn as_the_rfc_computes_it() {
        let mut rng = fastrand::Rng::with_seed(7);
        for len in (0..300).chain([1460, 65_535]) {
            let bytes: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
            let sum = Sum::default().bytes(&bytes).checksum();
            assert_eq!(u16::from_be_bytes(sum), naive(&bytes), "{len} bytes");
        }
        let ones = vec![0xff; 65_535];
        let sum = Sum::default().bytes(&ones).checksum();
        assert_eq!(u16::from_be_bytes(sum), naive(&ones));
    }

    #[test]
    fn in_parts_as_in_one() {
        let bytes: Vec<u8> = (0..200u8).collect();
        let whole = Sum::default().bytes(&bytes).checksum();
        let parts = Sum::default()
            .bytes(&bytes[..54])
            .bytes(&bytes[54..])
            .checksum();
        assert_eq!(whole, parts);
    }

    #[test]
    fn data_with_its_checksum_is_valid() {
        let mut bytes = vec![
            0x45, 0, 0, 20, 1, 2, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        let sum = Sum::default().bytes(&bytes).checksum();
        bytes[10..12].copy_from_slice(&sum);
        assert!(Sum::default().bytes(&bytes).is_valid());
        bytes[13] ^= 1;
        assert!(!Sum::default().bytes(&bytes).is_valid());
    }
}
