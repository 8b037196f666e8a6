use super::*;
use crate::samples::{Sample, assembled, is_intact};
use crate::virtio::DATA_VALID;

fn cut(sample: &Sample, mtu: usize) -> Result<Vec<Vec<u8>>, Reject> {
    let mut bytes = sample.bytes.clone();
    let (mut headers, mut out) = (vec![0xee; 3], Vec::new());
    segment(&sample.virtio, &mut bytes, mtu, &mut headers, &mut out)?;
    Ok(out
        .iter()
        .map(|part| assembled(part, &headers, &bytes))
        .collect())
}

#[test]
fn a_tcp_packet_becomes_segments_that_say_the_same() {
    for v6 in [false, true] {
        let sample = Sample::tcp(v6, 10_001, 1400);
        let parts = cut(&sample, 1472).unwrap();
        assert_eq!(parts.len(), 8);
        let mut payload = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            assert!(is_intact(part), "part {number}");
            let header = Packet::parse(part).unwrap().header;
            let sequence = be32(part, header + 4).unwrap();
            assert_eq!(
                sequence,
                Sample::SEQUENCE.wrapping_add(number as u32 * 1400)
            );
            let last = number == 7;
            assert_eq!(
                part[header + 13],
                if last { 0x19 } else { 0x10 },
                "flags of part {number}"
            );
            payload.extend_from_slice(&part[sample.body()..]);
        }
        assert_eq!(payload, sample.bytes[sample.body()..]);
    }
}

#[test]
fn segments_fit_a_smaller_tunnel() {
    let sample = Sample::tcp(false, 10_001, 1400);
    let parts = cut(&sample, 1000).unwrap();
    assert!(
        parts
            .iter()
            .all(|part| part.len() <= 1000 && is_intact(part))
    );
    let total: usize = parts.iter().map(|part| part.len() - sample.body()).sum();
    assert_eq!(total, 10_001);
    assert_eq!(cut(&sample, sample.body()), Err(Reject::TooBig));
}

#[test]
fn a_udp_packet_becomes_datagrams() {
    for v6 in [false, true] {
        let sample = Sample::udp(v6, 3_001, 1000);
        let parts = cut(&sample, 1472).unwrap();
        let lens: Vec<usize> = parts
            .iter()
            .map(|part| part.len() - sample.body())
            .collect();
        assert_eq!(lens, [1000, 1000, 1000, 1]);
        for part in &parts {
            assert!(is_intact(part));
            let header = Packet::parse(part).unwrap().header;
            assert_eq!(
                usize::from(be16(part, header + 4).unwrap()),
                part.len() - header
            );
        }
        assert_eq!(cut(&sample, 1000), Err(Reject::TooBig));
    }
}

#[test]
fn one_packet_gets_its_checksum() {
    let mut sample = Sample::tcp(false, 100, 1400);
    sample.virtio.gso = Gso::None;
    let parts = cut(&sample, 1472).unwrap();
    assert_eq!(parts.len(), 1);
    assert!(is_intact(&parts[0]));
    // What has its checksum is left as it is.
    let complete = Sample {
        bytes: parts[0].clone(),
        virtio: Header {
            flags: DATA_VALID,
            ..Header::default()
        },
    };
    assert_eq!(cut(&complete, 1472).unwrap(), parts);
}

#[test]
fn what_may_be_fragmented_is() {
    let mut sample = Sample::udp(false, 4_000, 4_000);
    sample.virtio.gso = Gso::None;
    assert_eq!(cut(&sample, 1472), Err(Reject::TooBig));
    sample.bytes[6] = 0;
    let parts = cut(&sample, 1472).unwrap();
    assert_eq!(parts.len(), 3);
    let mut at = 0;
    for (number, part) in parts.iter().enumerate() {
        assert!(part.len() <= 1472);
        assert!(Sum::default().bytes(&part[..20]).is_valid());
        let field = be16(part, 6).unwrap();
        assert_eq!(usize::from(field & 0x1fff) * 8, at);
        assert_eq!(field & 0x2000 != 0, number < 2, "more fragments");
        at += part.len() - 20;
    }
    assert_eq!(at, 4_008);
}

#[test]
fn contradictions_are_refused_without_a_panic() {
    let mut rng = fastrand::Rng::with_seed(11);
    for sample in [
        Sample::tcp(false, 5_000, 1400),
        Sample::tcp(true, 5_000, 1400),
        Sample::udp(false, 5_000, 900),
    ] {
        for _ in 0..20_000 {
            let mut broken = Sample {
                bytes: sample.bytes.clone(),
                virtio: sample.virtio,
            };
            broken.bytes.truncate(rng.usize(..=sample.bytes.len()));
            for _ in 0..rng.usize(..4) {
                if !broken.bytes.is_empty() {
                    let at = rng.usize(..broken.bytes.len().min(64));
                    broken.bytes[at] = rng.u8(..);
                }
            }
            if rng.bool() {
                broken.virtio.csum_start = rng.u16(..);
                broken.virtio.csum_offset = rng.u16(..);
                broken.virtio.gso_size = rng.u16(..200);
            }
            let mtu = rng.usize(..2000);
            for part in cut(&broken, mtu).unwrap_or_default() {
                assert!(part.len() <= mtu);
            }
        }
    }
}

#[test]
fn fuzzed_segments() {
    let samples = [
        Sample::tcp(false, 3000, 1000),
        Sample::tcp(true, 3000, 1000),
        Sample::udp(false, 3000, 1000),
    ];
    let seeds: Vec<Vec<u8>> = samples
        .iter()
        .map(|sample| [&sample.virtio.encode()[..], &sample.bytes].concat())
        .collect();
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    fuzz::run("packets of the device", &seeds, |input| {
        let (header, bytes) = input.split_first_chunk()?;
        let mut bytes = bytes.to_vec();
        let (mut headers, mut out) = (Vec::new(), Vec::new());
        let cut = segment(
            &Header::decode(header),
            &mut bytes,
            1472,
            &mut headers,
            &mut out,
        );
        for part in &out {
            assert!(assembled(part, &headers, &bytes).len() <= 1472);
        }
        cut.ok().map(|()| out.len())
    });
}
