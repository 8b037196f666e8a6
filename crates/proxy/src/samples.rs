//! Packets as the kernel hands them over, for tests.

use crate::checksum::Sum;
use crate::packet::{Packet, TCP, UDP, put, put16};
use crate::segment::Segment;
use crate::virtio::{Gso, Header, NEEDS_CSUM};

/// A packet with its header.
pub(crate) struct Sample {
    pub(crate) bytes: Vec<u8>,
    pub(crate) virtio: Header,
}

impl Sample {
    /// The first sequence number: it wraps soon.
    pub(crate) const SEQUENCE: u32 = u32::MAX - 3_000;

    /// A TCP packet with timestamps, FIN and PSH.
    pub(crate) fn tcp(v6: bool, payload: usize, size: u16) -> Sample {
        let mut transport = vec![0; 32];
        put16(&mut transport, 0, 40_000);
        put16(&mut transport, 2, 5_201);
        put(&mut transport, 4, Self::SEQUENCE.to_be_bytes());
        put(&mut transport, 8, 77u32.to_be_bytes());
        transport[12] = 8 << 4;
        transport[13] = 0x19;
        put16(&mut transport, 14, 500);
        transport[20..24].copy_from_slice(&[1, 1, 8, 10]);
        Sample::new(v6, TCP, transport, payload, 16, Gso::Tcp { v6 }, size)
    }

    /// A UDP packet.
    pub(crate) fn udp(v6: bool, payload: usize, size: u16) -> Sample {
        let mut transport = vec![0; 8];
        put16(&mut transport, 0, 40_000);
        put16(&mut transport, 2, 53);
        put16(&mut transport, 4, 8 + payload as u16);
        Sample::new(v6, UDP, transport, payload, 6, Gso::Udp, size)
    }

    fn new(
        v6: bool,
        protocol: u8,
        transport: Vec<u8>,
        payload: usize,
        csum_offset: u16,
        gso: Gso,
        gso_size: u16,
    ) -> Sample {
        let len = transport.len() + payload;
        let mut bytes = if v6 {
            let mut header = vec![0; 40];
            header[0] = 0x60;
            put16(&mut header, 4, len as u16);
            (header[6], header[7]) = (protocol, 64);
            (header[8], header[24], header[39]) = (0xfd, 0xfd, 9);
            header
        } else {
            let mut header = vec![0; 20];
            header[0] = 0x45;
            put16(&mut header, 2, 20 + len as u16);
            put16(&mut header, 4, 65_533);
            (header[6], header[8], header[9]) = (0x40, 64, protocol);
            header[12..20].copy_from_slice(&[10, 1, 2, 3, 10, 1, 3, 4]);
            let sum = Sum::default().bytes(&header).checksum();
            put(&mut header, 10, sum);
            header
        };
        let start = bytes.len();
        bytes.extend_from_slice(&transport);
        bytes.extend((0..payload).map(|n| (n * 7 / 3) as u8));
        let packet = Packet::parse(&bytes).unwrap();
        let partial = Sum::default()
            .pseudo_header(&bytes[packet.addresses()], protocol, len)
            .folded();
        put(&mut bytes, start + usize::from(csum_offset), partial);
        let virtio = Header {
            flags: NEEDS_CSUM,
            gso,
            hdr_len: (start + transport.len()) as u16,
            gso_size,
            csum_start: start as u16,
            csum_offset,
        };
        Sample { bytes, virtio }
    }

    /// Where the payload begins.
    pub(crate) fn body(&self) -> usize {
        usize::from(self.virtio.hdr_len)
    }
}

/// A segment as it goes out.
pub(crate) fn assembled(segment: &Segment, headers: &[u8], bytes: &[u8]) -> Vec<u8> {
    [&headers[segment.head.clone()], &bytes[segment.body.clone()]].concat()
}

/// Whether all checksums of a packet are right.
pub(crate) fn is_intact(bytes: &[u8]) -> bool {
    let packet = Packet::parse(bytes).unwrap();
    let transport = packet.header;
    let header = packet.v6 || Sum::default().bytes(&bytes[..transport]).is_valid();
    header
        && packet.len == bytes.len()
        && Sum::default()
            .pseudo_header(
                &bytes[packet.addresses()],
                packet.protocol,
                packet.len - transport,
            )
            .bytes(&bytes[transport..])
            .is_valid()
}
