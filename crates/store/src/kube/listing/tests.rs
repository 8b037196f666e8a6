//! Lists cut at every byte, cut off, and lists that lie about their lengths.

use super::*;
use crate::kube::annotations::{Key, Prefix};
use crate::kube::node::Node;

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(content);
    bytes
}

fn node(name: &str, fill: usize) -> Vec<u8> {
    let annotation = [field(1, b"f.io/public-ip"), field(2, b"10.0.0.1")].concat();
    let metadata = [
        field(1, name.as_bytes()),
        field(6, b"7"),
        field(12, &annotation),
        field(13, &vec![0xff; fill]),
    ];
    let spec = [field(1, b"10.1.2.0/24"), field(7, b"10.1.2.0/24")].concat();
    [
        field(1, &metadata.concat()),
        field(2, &spec),
        field(3, &vec![9; fill]),
    ]
    .concat()
}

fn protobuf_list() -> Vec<u8> {
    let list = [
        field(1, &field(2, b"42")),
        field(2, &node("a", 300)),
        vec![5 << 3, 1],
        field(2, &node("b", 0)),
        field(9, &[1; 200]),
        field(2, &node("c", 20)),
    ];
    let envelope = [
        field(1, &[field(1, b"v1"), field(2, b"NodeList")].concat()),
        field(2, &list.concat()),
        field(3, b""),
        field(4, b""),
    ];
    [b"k8s\0".to_vec(), envelope.concat()].concat()
}

const JSON: &str = r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"42","x":{"items":[{"a":1}]}},
 "items":[{"metadata":{"name":"a","annotations":{"f.io/public-ip":"10.0.0.1","k":"}\"]{"}},"spec":{"podCIDR":"10.1.2.0/24"}},
 {"metadata":{"name":"b","annotations":{"f.io/public-ip":"10.0.0.1"}},"items":[{}],"spec":{"podCIDRs":["10.1.2.0/24"]}} , {"metadata":{"name":"c","annotations":{"f.io/public-ip":"10.0.0.1"}},"spec":{"podCIDR":"10.1.2.0/24"}}]}"#;

/// The names of the Nodes, and the version; what arrives is cut at `cuts`.
fn read(bytes: &[u8], encoding: Encoding, cuts: &[usize]) -> Result<String, Malformed> {
    let prefix = Prefix::parse("f.io").unwrap();
    let mut list = List::new(encoding);
    let (mut names, mut from) = (String::new(), 0);
    for to in cuts.iter().copied().chain([bytes.len()]) {
        list.buffer.extend_from_slice(&bytes[from..to]);
        from = to;
        while let Some(range) = list.next()? {
            let node = match encoding {
                Encoding::Protobuf => Node::from_protobuf(&list.buffer[range], &prefix)?,
                Encoding::Json => Node::from_json(&list.buffer[range], &prefix)?,
            };
            assert_eq!(node.annotations.get(Key::PublicIp).unwrap(), "10.0.0.1");
            assert!(node.subnets(&[model::Family::V4], |_, _| {}).v4.is_some());
            names += &node.name;
        }
    }
    list.finish()?;
    Ok(format!("{names}@{}", list.resource_version()))
}

#[test]
fn a_list_may_be_cut_anywhere() {
    for (bytes, encoding) in [
        (protobuf_list(), Encoding::Protobuf),
        (JSON.as_bytes().to_vec(), Encoding::Json),
    ] {
        assert_eq!(read(&bytes, encoding, &[]).unwrap(), "abc@42");
        for at in 0..=bytes.len() {
            assert_eq!(
                read(&bytes, encoding, &[at]).unwrap(),
                "abc@42",
                "cut at {at}"
            );
        }
        let every: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(read(&bytes, encoding, &every).unwrap(), "abc@42");
    }
}

#[test]
fn a_list_that_is_cut_off_is_no_list() {
    let bytes = protobuf_list();
    // What follows the list in its envelope is of no interest.
    let end = bytes.len() - 4;
    for at in 0..end {
        assert!(
            read(&bytes[..at], Encoding::Protobuf, &[]).is_err(),
            "at {at}"
        );
    }
    for at in 0..JSON.len() {
        assert!(
            read(&JSON.as_bytes()[..at], Encoding::Json, &[]).is_err(),
            "at {at}"
        );
    }
}

#[test]
fn an_empty_cluster_has_a_list_too() {
    let list = field(2, &field(1, &field(2, b"1")));
    let bytes = [b"k8s\0".to_vec(), list].concat();
    assert_eq!(read(&bytes, Encoding::Protobuf, &[]).unwrap(), "@1");
    let json = br#"{"metadata":{"resourceVersion":"1"},"items":null}"#;
    assert_eq!(read(json, Encoding::Json, &[]).unwrap(), "@1");
}

#[test]
fn lengths_that_lie_are_refused_before_anything_is_set_aside() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0x7f];
    let endless = [0xff; 11];
    for (what, list) in [
        (
            "a Node longer than the list",
            [&[0x12][..], &huge[..]].concat(),
        ),
        ("a number without end", [&[0x12][..], &endless[..]].concat()),
        ("a group", vec![0x13, 0]),
        (
            "a skipped field longer than the list",
            [&[0x4a][..], &huge[..]].concat(),
        ),
    ] {
        let bytes = [b"k8s\0".to_vec(), field(2, &list)].concat();
        assert!(
            read(&bytes, Encoding::Protobuf, &[]).is_err(),
            "{what} was taken"
        );
    }
    // A Node of 2 GiB in a list that is large enough for it.
    let mut bytes = b"k8s\0\x12\xff\xff\xff\xff\x7f\x12".to_vec();
    bytes.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x07]);
    let mut list = List::new(Encoding::Protobuf);
    list.buffer = bytes;
    assert_eq!(list.next(), Err(TOO_LARGE));
    assert!(read(b"<html>", Encoding::Protobuf, &[]).is_err());
    assert!(read(b"]", Encoding::Json, &[]).is_err());
}

#[test]
fn garbage_is_an_error_and_no_panic() {
    let (protobuf, json) = (protobuf_list(), JSON.as_bytes());
    let prefix = Prefix::parse("f.io").unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..20_000 {
        let (source, encoding) = match round % 2 {
            0 => (&protobuf[..], Encoding::Protobuf),
            _ => (json, Encoding::Json),
        };
        let mut bytes = source.to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            match random.u8(..3) {
                0 => bytes[at] = random.u8(..),
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, random.u8(..)),
            }
        }
        let mut list = List::new(encoding);
        for chunk in bytes.chunks(random.usize(1..100)) {
            list.buffer.extend_from_slice(chunk);
            while let Ok(Some(range)) = list.next() {
                let node = match encoding {
                    Encoding::Protobuf => Node::from_protobuf(&list.buffer[range], &prefix),
                    Encoding::Json => Node::from_json(&list.buffer[range], &prefix),
                };
                let _ = node.map(|node| (node.fingerprint(), node.condition()));
            }
        }
        let _ = list.finish();
    }
}

#[test]
fn fuzzed_lists() {
    let prefix = Prefix::parse("f.io").unwrap();
    let read = |input: &[u8], encoding, cut: usize| -> Result<usize, String> {
        let mut list = List::new(encoding);
        let mut nodes = 0;
        for part in [&input[..cut], &input[cut..]] {
            list.buffer.extend_from_slice(part);
            while let Some(range) = list.next().map_err(|error| error.to_string())? {
                let node = match encoding {
                    Encoding::Protobuf => Node::from_protobuf(&list.buffer[range], &prefix),
                    Encoding::Json => Node::from_json(&list.buffer[range], &prefix),
                };
                let node = node.map_err(|error| error.to_string())?;
                node.subnets(&[model::Family::V4, model::Family::V6], |_, _| {});
                nodes += 1;
            }
        }
        list.finish().map_err(|error| error.to_string())?;
        Ok(nodes)
    };
    for (encoding, seed) in [
        (Encoding::Protobuf, protobuf_list()),
        (Encoding::Json, JSON.as_bytes().to_vec()),
    ] {
        fuzz::run(&format!("node list, {encoding:?}"), &[&seed], |input| {
            let whole = read(input, encoding, 0);
            let halves = read(input, encoding, input.len() / 2);
            assert_eq!(whole.is_ok(), halves.is_ok());
            whole
        });
    }
}
