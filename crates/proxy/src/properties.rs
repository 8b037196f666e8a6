//! What holds for all packets: cutting is what a slow reference does, and joining loses, changes and reorders nothing.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::coalesce::Coalescer;
use crate::packet::{Packet, be16, put, put16};
use crate::samples::{Sample, assembled};
use crate::segment::segment;
use crate::virtio::Header;

const MTU: usize = 1472;

/// A packet of a flow that `port` identifies, to be cut into parts of `size`.
fn sample(tcp: bool, v6: bool, port: u16, payload: usize, size: u16) -> Sample {
    let mut sample = if tcp {
        Sample::tcp(v6, payload, size)
    } else {
        Sample::udp(v6, payload, size)
    };
    // Not part of the checksum so far, which covers the pseudo-header.
    let transport = usize::from(sample.virtio.csum_start);
    put16(&mut sample.bytes, transport, port);
    sample
}

fn cut(header: &Header, bytes: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let (mut headers, mut out) = (Vec::new(), Vec::new());
    segment(header, &mut bytes, mtu, &mut headers, &mut out).unwrap();
    out.iter()
        .map(|part| assembled(part, &headers, &bytes))
        .collect()
}

/// RFC 1071, word by word.
fn checksum(parts: &[&[u8]]) -> u16 {
    let all = parts.concat();
    let words = all
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What `sample` is to be cut into: field by field, from the payload.
fn reference(sample: &Sample, tcp: bool, mtu: usize) -> Vec<Vec<u8>> {
    let (transport, body) = (usize::from(sample.virtio.csum_start), sample.body());
    let v6 = sample.bytes[0] >> 4 == 6;
    let mut size = usize::from(sample.virtio.gso_size);
    if tcp {
        size = size.min(mtu - body);
    }
    let payload = &sample.bytes[body..];
    let count = payload.len().div_ceil(size);
    let part = |(number, payload): (usize, &[u8])| {
        let mut packet = sample.bytes[..body].to_vec();
        packet.extend_from_slice(payload);
        let len = packet.len();
        let (addresses, protocol) = if v6 {
            (8..40, packet[6])
        } else {
            (12..20, packet[9])
        };
        if v6 {
            put16(&mut packet, 4, (len - 40) as u16);
        } else {
            let id = be16(&packet, 4).unwrap().wrapping_add(number as u16);
            put16(&mut packet, 2, len as u16);
            put16(&mut packet, 4, id);
            put16(&mut packet, 10, 0);
            let sum = checksum(&[&packet[..20]]);
            put16(&mut packet, 10, sum);
        }
        let at = if tcp {
            let sequence = Sample::SEQUENCE.wrapping_add((number * size) as u32);
            put(&mut packet, transport + 4, sequence.to_be_bytes());
            if number + 1 < count {
                // Neither the end nor urgent.
                packet[transport + 13] = 0x10;
            }
            transport + 16
        } else {
            put16(&mut packet, transport + 4, (8 + payload.len()) as u16);
            transport + 6
        };
        put16(&mut packet, at, 0);
        let pseudo = [0, protocol, 0, 0];
        let stated = ((len - transport) as u16).to_be_bytes();
        let sum = checksum(&[&packet[addresses], &pseudo, &stated, &packet[transport..]]);
        let sum = if sum == 0 && !tcp { 0xffff } else { sum };
        put16(&mut packet, at, sum);
        packet
    };
    payload.chunks(size).enumerate().map(part).collect()
}

/// What happens to a packet on its way.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    Lost,
    Doubled,
    Damaged,
    Overtaken,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Doubled),
        1 => Just(Fate::Damaged),
        1 => Just(Fate::Overtaken),
    ]
}

/// Parts of several packets as they arrive, in an order that `steps` decides.
fn arrivals(mut flows: Vec<Vec<Vec<u8>>>, steps: &[(usize, Fate)]) -> Vec<Vec<u8>> {
    let mut arriving = Vec::new();
    for (pick, fate) in steps {
        flows.retain(|parts| !parts.is_empty());
        let Some(parts) = flows.len().checked_sub(1).map(|last| pick % (last + 1)) else {
            break;
        };
        let parts = &mut flows[parts];
        let mut packet = parts.remove(0);
        match fate {
            Fate::Arrives => {}
            Fate::Lost => continue,
            Fate::Doubled => arriving.push(packet.clone()),
            Fate::Damaged => *packet.last_mut().unwrap() ^= 0x10,
            Fate::Overtaken if !parts.is_empty() => arriving.push(parts.remove(0)),
            Fate::Overtaken => {}
        }
        arriving.push(packet);
    }
    arriving
}

/// The packets of each flow, without what a sender may choose: the identification of packets that are never
/// fragmented, and with it the header's checksum.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<(u8, u16), Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for packet in packets {
        let parsed = Packet::parse(packet).unwrap();
        let mut shown = packet.clone();
        if !parsed.v6 {
            put16(&mut shown, 4, 0);
            put16(&mut shown, 10, 0);
        }
        let port = be16(packet, parsed.header).unwrap();
        let flow = flows.entry((parsed.protocol, port)).or_default();
        flow.push(shown);
    }
    flows
}

proptest! {
    #[test]
    fn packets_are_cut_as_by_the_reference(
        tcp: bool,
        v6: bool,
        payload in 1usize..30_000,
        size in 500u16..1400,
        mtu in 600usize..1600,
    ) {
        let sample = sample(tcp, v6, 40_000, payload, size);
        let mtu = if tcp { mtu } else { MTU };
        prop_assert_eq!(cut(&sample.virtio, &sample.bytes, mtu), reference(&sample, tcp, mtu));
    }

    #[test]
    fn what_is_joined_and_cut_again_is_what_arrived(
        packets in vec((any::<bool>(), any::<bool>(), 1usize..12_000, 500u16..1400), 1..5),
        steps in vec((any::<usize>(), fate()), 80),
        join_udp: bool,
    ) {
        let flows = packets.iter().zip(40_000u16..).map(|((tcp, v6, payload, size), port)| {
            let sample = sample(*tcp, *v6, port, *payload, *size);
            cut(&sample.virtio, &sample.bytes, MTU)
        });
        let arriving = arrivals(flows.collect(), &steps);
        let data = arriving.concat();
        let mut coalescer = Coalescer::new(join_udp);
        let mut at = 0;
        for packet in &arriving {
            prop_assert!(coalescer.push(&data, at..at + packet.len()));
            at += packet.len();
        }
        let mut delivered = Vec::new();
        coalescer.drain(&data, |header, head, pieces| {
            let mut bytes = head.to_vec();
            pieces.iter().for_each(|piece| bytes.extend_from_slice(&data[piece.clone()]));
            delivered.extend(cut(header, &bytes, MTU));
        });
        prop_assert_eq!(by_flow(&delivered), by_flow(&arriving));
    }

    #[test]
    fn what_is_no_packet_is_refused_without_a_panic(
        bytes in vec(any::<u8>(), 0..200),
        virtio: [u8; 10],
        mtu in 0usize..300,
    ) {
        let header = Header::decode(&virtio);
        let (mut headers, mut out) = (Vec::new(), Vec::new());
        let mut copy = bytes.clone();
        if segment(&header, &mut copy, mtu, &mut headers, &mut out).is_ok() {
            for part in &out {
                prop_assert!(assembled(part, &headers, &copy).len() <= mtu);
            }
        } else {
            prop_assert!(out.is_empty());
        }
        let mut coalescer = Coalescer::new(true);
        coalescer.push(&bytes, 0..bytes.len());
        coalescer.drain(&bytes, |_, _, pieces| {
            pieces.iter().for_each(|piece| assert!(piece.end <= bytes.len()));
        });
    }
}
