use super::*;
use crate::samples::{Sample, assembled, is_intact};
use crate::segment::segment;

/// The packets that `sample` is cut into.
fn parts(sample: &Sample) -> Vec<Vec<u8>> {
    let mut bytes = sample.bytes.clone();
    let (mut headers, mut out) = (Vec::new(), Vec::new());
    segment(&sample.virtio, &mut bytes, 1472, &mut headers, &mut out).unwrap();
    out.iter()
        .map(|part| assembled(part, &headers, &bytes))
        .collect()
}

/// What the device gets when these arrive.
fn joined(arriving: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
    let mut coalescer = Coalescer::new(true);
    let mut all = Vec::new();
    // Twice: nothing of the first round is left in the second.
    for _ in 0..2 {
        all.clear();
        let data = arriving.concat();
        let mut at = 0;
        for packet in arriving {
            assert!(coalescer.push(&data, at..at + packet.len()));
            at += packet.len();
        }
        coalescer.drain(&data, |header, head, pieces| {
            let mut bytes = head.to_vec();
            pieces
                .iter()
                .for_each(|piece| bytes.extend_from_slice(&data[piece.clone()]));
            all.push((*header, bytes));
        });
    }
    all
}

#[test]
fn what_was_cut_is_joined() {
    for sample in [
        Sample::tcp(false, 14_001, 1400),
        Sample::tcp(true, 14_001, 1400),
        Sample::udp(false, 14_001, 1400),
        Sample::udp(true, 14_001, 1400),
    ] {
        let mut sample = sample;
        // A flow's end is never joined.
        if matches!(sample.virtio.gso, Gso::Tcp { .. }) {
            let header = usize::from(sample.virtio.csum_start);
            sample.bytes[header + 13] = ACK | PSH;
        }
        let all = joined(&parts(&sample));
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].1, sample.bytes);
        assert_eq!(all[0].0, sample.virtio);
    }
}

#[test]
fn what_was_joined_is_taken_apart_again() {
    for sample in [
        Sample::tcp(false, 14_001, 1400),
        Sample::udp(true, 14_001, 1400),
    ] {
        let parts = parts(&sample);
        let (mut coalescer, data) = (Coalescer::new(true), parts.concat());
        let mut at = 0;
        for packet in &parts {
            assert!(coalescer.push(&data, at..at + packet.len()));
            at += packet.len();
        }
        let (mut all, mut calls) = (Vec::new(), 0);
        coalescer.drain(&data, |_, head, pieces| {
            calls += 1;
            all.extend(apart(head, pieces).map(|packet| data[packet].to_vec()));
        });
        assert!(calls < parts.len());
        assert_eq!(all, parts);
    }
}

#[test]
fn two_flows_are_joined_each() {
    let (a, mut b) = (
        Sample::tcp(false, 2_800, 1400),
        Sample::tcp(false, 2_800, 1400),
    );
    b.bytes[23] = 1;
    let mut a = a;
    for sample in [&mut a, &mut b] {
        sample.bytes[33] = ACK;
    }
    // The port is part of the checksum: `parts` computes it anew from the pseudo-header alone.
    let (a, b) = (parts(&a), parts(&b));
    let mixed = [a[0].clone(), b[0].clone(), a[1].clone(), b[1].clone()];
    let all = joined(&mixed);
    assert_eq!(all.len(), 2);
    assert!(
        all.iter()
            .all(|(header, bytes)| header.gso_size == 1400 && bytes.len() == 2_852)
    );
}

#[test]
fn what_is_not_next_is_kept_apart_and_in_order() {
    let mut sample = Sample::tcp(false, 5_600, 1400);
    sample.bytes[33] = ACK;
    let parts = parts(&sample);
    // The third is lost on the way.
    let all = joined(&[parts[0].clone(), parts[1].clone(), parts[3].clone()]);
    assert_eq!(all.len(), 2);
    assert_eq!(all[1].1, parts[3]);
    // Swapped on the way.
    let all = joined(&[parts[1].clone(), parts[0].clone()]);
    assert_eq!(
        all.iter()
            .map(|(_, bytes)| bytes.clone())
            .collect::<Vec<_>>(),
        [parts[1].clone(), parts[0].clone()]
    );
}

#[test]
fn a_damaged_packet_is_not_hidden() {
    let mut sample = Sample::tcp(false, 5_600, 1400);
    sample.bytes[33] = ACK;
    let mut parts = parts(&sample);
    let last = parts[1].len() - 1;
    parts[1][last] ^= 1;
    let all = joined(&parts);
    let damaged: Vec<_> = all.iter().filter(|(header, _)| header.flags == 0).collect();
    assert_eq!(damaged.len(), 1);
    assert!(!is_intact(&damaged[0].1));
    let total: usize = all.iter().map(|(_, bytes)| bytes.len() - 52).sum();
    assert_eq!(total, 5_600);
}

#[test]
fn an_end_and_an_acknowledgement_are_handed_over_as_they_are() {
    let sample = Sample::tcp(false, 2_800, 1400);
    let parts = parts(&sample);
    let all = joined(&parts);
    assert_eq!(all.len(), 2);
    // FIN.
    assert_eq!((all[1].0.flags, &all[1].1), (0, &parts[1]));
}

#[test]
fn never_longer_than_a_packet_may_be() {
    let mut first = Sample::tcp(false, 60_200, 1400);
    first.bytes[33] = ACK;
    let one = parts(&first);
    // The same flow goes on.
    let mut second = Sample::tcp(false, 60_200, 1400);
    second.bytes[33] = ACK;
    put(
        &mut second.bytes,
        24,
        Sample::SEQUENCE.wrapping_add(60_200).to_be_bytes(),
    );
    let two = parts(&second);
    let all = joined(&[one, two].concat());
    assert!(all.len() > 1);
    let total: usize = all.iter().map(|(_, bytes)| bytes.len() - 52).sum();
    assert_eq!(total, 120_400);
}

#[test]
fn noise_does_no_harm() {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut coalescer = Coalescer::new(true);
    let sample = Sample::tcp(false, 14_001, 1400);
    let parts = parts(&sample);
    for _ in 0..5_000 {
        let mut data = Vec::new();
        let mut ranges = Vec::new();
        for _ in 0..rng.usize(1..6) {
            let mut packet = parts[rng.usize(..parts.len())].clone();
            packet.truncate(rng.usize(..=packet.len()));
            for _ in 0..rng.usize(..4) {
                if !packet.is_empty() {
                    let at = rng.usize(..packet.len().min(60));
                    packet[at] = rng.u8(..);
                }
            }
            ranges.push(data.len()..data.len() + packet.len());
            data.extend_from_slice(&packet);
        }
        for range in ranges {
            coalescer.push(&data, range);
        }
        coalescer.drain(&data, |_, head, pieces| {
            let total: usize = pieces.iter().map(|piece| data[piece.clone()].len()).sum();
            assert!(head.len() + total <= 65_535);
        });
    }
}

#[test]
fn fuzzed_packets() {
    let samples: Vec<Vec<u8>> = [
        Sample::tcp(false, 2000, 1000),
        Sample::tcp(true, 2000, 1000),
        Sample::udp(false, 2000, 1000),
        Sample::udp(true, 2000, 1000),
    ]
    .iter()
    .flat_map(parts)
    .collect();
    let seeds: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
    fuzz::run("packets for the device", &seeds, |input| {
        let packet = crate::packet::Packet::parse(input);
        let error = crate::icmp::error(input, crate::icmp::Reason::TooBig(1400));
        if let Some(error) = &error {
            assert!(packet.is_some() && crate::packet::Packet::parse(error).is_some());
        }
        if packet.is_some() {
            let arriving = [samples[0].clone(), input.to_vec(), samples[1].clone()];
            let joined: usize = joined(&arriving).iter().map(|(_, bytes)| bytes.len()).sum();
            // Joined packets have one header in place of several, and nothing is added.
            assert!(joined <= arriving.iter().map(Vec::len).sum());
        }
        let ends = crate::packet::ends(input);
        (packet.is_some(), ends.is_some(), error.is_some())
    });
}
