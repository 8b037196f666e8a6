//! The virtio-net header (10 bytes, little-endian machines' own byte order) before each packet of a TUN
//! device with `IFF_VNET_HDR`: which checksum is still to be computed, and into what size a large packet
//! is to be cut.

/// The header's length in bytes.
pub(crate) const LEN: usize = 10;

/// The checksum at `csum_start + csum_offset` is still to be computed.
pub(crate) const NEEDS_CSUM: u8 = 1;
/// The checksum has been verified.
pub(crate) const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Into what a packet is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gso {
    /// It is one packet.
    #[default]
    None,
    /// Into TCP segments.
    Tcp {
        /// They are IPv6.
        v6: bool,
    },
    /// Into UDP datagrams.
    Udp,
    /// Into something that we did not ask the kernel for.
    Unknown(u8),
}

/// The header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) flags: u8,
    pub(crate) gso: Gso,
    /// Length of all headers, in bytes. A hint only.
    pub(crate) hdr_len: u16,
    /// Payload of each part, in bytes.
    pub(crate) gso_size: u16,
    /// Where the checksum's data begin.
    pub(crate) csum_start: u16,
    /// Where the checksum is, counted from there.
    pub(crate) csum_offset: u16,
}

impl Header {
    pub(crate) fn decode(bytes: &[u8; LEN]) -> Header {
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::Tcp { v6: false },
            GSO_TCPV6 => Gso::Tcp { v6: true },
            GSO_UDP_L4 => Gso::Udp,
            other => Gso::Unknown(other),
        };
        Header {
            flags: bytes[0],
            gso,
            hdr_len: number(2),
            gso_size: number(4),
            csum_start: number(6),
            csum_offset: number(8),
        }
    }

    pub(crate) fn encode(&self) -> [u8; LEN] {
        let gso = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp { v6: false } => GSO_TCPV4,
            Gso::Tcp { v6: true } => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
            Gso::Unknown(other) => other,
        };
        let mut bytes = [0; LEN];
        bytes[0] = self.flags;
        bytes[1] = gso;
        let numbers = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ];
        for (place, number) in bytes[2..].chunks_exact_mut(2).zip(numbers) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}
