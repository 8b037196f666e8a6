//! The frames of a watch, as they arrive: protobuf ones behind their length, JSON ones on a line each.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::annotations::Prefix;
use super::body::Encoding;
use super::node::Node;
use super::status::Status;
use super::wire::{Fields, Malformed, unwrap};

/// No event is larger.
const LARGEST: usize = 16 << 20;
/// The length before a protobuf frame: big endian.
const LENGTH: usize = 4;

/// Cuts what arrives into frames. Append to [`Frames::buffer`].
#[derive(Debug)]
pub(super) struct Frames {
    pub buffer: Vec<u8>,
    at: usize,
    /// A JSON frame's end was looked for up to here.
    seen: usize,
    encoding: Encoding,
}

/// An event of a watch.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// The Node as it is now.
    Put(Node<'a>),
    /// The Node was deleted.
    Gone(Node<'a>),
    /// Everything up to this Node's resource version was sent.
    Bookmark(Node<'a>),
    /// The watch is over.
    Error(Status),
}

impl Frames {
    pub(super) fn new(encoding: Encoding) -> Frames {
        Frames {
            buffer: Vec::new(),
            at: 0,
            seen: 0,
            encoding,
        }
    }

    /// Returns the range of the next frame in the buffer; `None`: append more.
    pub(super) fn next(&mut self) -> Result<Option<Range<usize>>, Malformed> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let frame = match self.encoding {
            Encoding::Protobuf => match rest.first_chunk::<LENGTH>() {
                Some(length) => {
                    let length = u32::from_be_bytes(*length) as usize;
                    if length > LARGEST {
                        return Err(TOO_LARGE);
                    }
                    let end = LENGTH + length;
                    (rest.len() >= end).then_some((LENGTH..end, end))
                }
                None => None,
            },
            Encoding::Json => {
                let seen = std::mem::replace(&mut self.seen, rest.len());
                let unseen = rest.get(seen..).unwrap_or_default();
                let end = unseen.iter().position(|byte| *byte == b'\n');
                end.map(|end| (0..seen + end, seen + end + 1))
            }
        };
        match frame {
            Some((range, end)) => {
                let range = self.at + range.start..self.at + range.end;
                self.at += end;
                self.seen = 0;
                Ok(Some(range))
            }
            None if rest.len() > LARGEST => Err(TOO_LARGE),
            None => {
                self.buffer.drain(..std::mem::take(&mut self.at));
                Ok(None)
            }
        }
    }

    /// Reads a frame that [`Frames::next`] found.
    pub(super) fn read(
        &self,
        frame: Range<usize>,
        prefix: &Prefix,
    ) -> Result<Event<'_>, Malformed> {
        let frame = self.buffer.get(frame).unwrap_or_default();
        match self.encoding {
            Encoding::Protobuf => protobuf(frame, prefix),
            Encoding::Json => json(frame, prefix),
        }
    }
}

const TOO_LARGE: Malformed = Malformed("an event of more than 16 MiB");

/// `WatchEvent`: the type, and a `RawExtension` whose field 1 is an object in its envelope.
fn protobuf<'a>(frame: &'a [u8], prefix: &Prefix) -> Result<Event<'a>, Malformed> {
    let (mut fields, mut kind, mut object) = (Fields(frame), "", &[][..]);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => kind = value.text(),
            2 => {
                let mut extension = Fields(value.bytes());
                while let Some((number, value)) = extension.next()? {
                    if number == 1 {
                        object = value.bytes();
                    }
                }
            }
            _ => {}
        }
    }
    let node = |object| Node::from_protobuf(unwrap(object)?, prefix);
    event(kind, object, node, |object| {
        Status::read(object, Encoding::Protobuf)
    })
}

fn json<'a>(frame: &'a [u8], prefix: &Prefix) -> Result<Event<'a>, Malformed> {
    #[derive(Deserialize)]
    struct Frame<'a> {
        #[serde(borrow, rename = "type")]
        kind: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let frame: Frame<'a> =
        serde_json::from_slice(frame).map_err(|_| Malformed("an event that is none"))?;
    let object = frame.object.get().as_bytes();
    let node = |object| Node::from_json(object, prefix);
    event(&frame.kind, object, node, |object| {
        Status::read(object, Encoding::Json)
    })
}

fn event<'a>(
    kind: &str,
    object: &'a [u8],
    node: impl Fn(&'a [u8]) -> Result<Node<'a>, Malformed>,
    status: impl Fn(&[u8]) -> Option<Status>,
) -> Result<Event<'a>, Malformed> {
    Ok(match kind {
        "ADDED" | "MODIFIED" => Event::Put(node(object)?),
        "DELETED" => Event::Gone(node(object)?),
        "BOOKMARK" => Event::Bookmark(node(object)?),
        "ERROR" => Event::Error(status(object).unwrap_or_default()),
        _ => return Err(Malformed("an event of a kind that there is not")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = r#"{"metadata":{"name":"n","resourceVersion":"7"}}"#;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, content.len() as u8];
        bytes.extend_from_slice(content);
        bytes
    }

    fn protobuf_frame(kind: &str, object: &[u8]) -> Vec<u8> {
        let object = [b"k8s\0".to_vec(), field(2, object)].concat();
        let event = [field(1, kind.as_bytes()), field(2, &field(1, &object))].concat();
        [(event.len() as u32).to_be_bytes().to_vec(), event].concat()
    }

    fn protobuf() -> Vec<u8> {
        let node = field(1, &[field(1, b"n"), field(6, b"7")].concat());
        let status = [field(3, b"too old"), field(4, b"Expired")].concat();
        [
            protobuf_frame("ADDED", &node),
            protobuf_frame("DELETED", &node),
            protobuf_frame("BOOKMARK", &node),
            protobuf_frame("ERROR", &status),
        ]
        .concat()
    }

    fn json() -> Vec<u8> {
        let status = r#"{"message":"too old","reason":"Expired"}"#;
        let event =
            |kind: &str, object: &str| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
        let events = [
            event("MODIFIED", NODE),
            event("DELETED", NODE),
            event("BOOKMARK", NODE),
            event("ERROR", status),
        ];
        events.concat().into_bytes()
    }

    /// Returns the events of a watch that arrives cut at `cuts`.
    fn read(bytes: &[u8], encoding: Encoding, cuts: &[usize]) -> Result<String, Malformed> {
        let prefix = Prefix::parse("f.io").unwrap();
        let (mut frames, mut said, mut from) = (Frames::new(encoding), String::new(), 0);
        for to in cuts.iter().copied().chain([bytes.len()]) {
            frames.buffer.extend_from_slice(&bytes[from..to]);
            from = to;
            while let Some(frame) = frames.next()? {
                match frames.read(frame, &prefix)? {
                    Event::Put(node) => said += &format!("+{}{}", node.name, node.resource_version),
                    Event::Gone(node) => said += &format!("-{}", node.name),
                    Event::Bookmark(node) => said += &format!("@{}", node.resource_version),
                    Event::Error(status) => said += &format!("!{}", status.reason),
                }
            }
        }
        Ok(said)
    }

    #[test]
    fn a_watch_may_be_cut_anywhere() {
        for (bytes, encoding) in [(protobuf(), Encoding::Protobuf), (json(), Encoding::Json)] {
            let whole = "+n7-n@7!Expired";
            for at in 0..=bytes.len() {
                assert_eq!(read(&bytes, encoding, &[at]).unwrap(), whole, "cut at {at}");
            }
            let every: Vec<usize> = (0..bytes.len()).collect();
            assert_eq!(read(&bytes, encoding, &every).unwrap(), whole);
            // What is cut off is not told, and nothing that was not.
            for at in 0..bytes.len() {
                assert!(whole.starts_with(&read(&bytes[..at], encoding, &[]).unwrap()));
            }
        }
    }

    #[test]
    fn hostile_frames_are_refused() {
        assert!(read(&[0xff; 8], Encoding::Protobuf, &[]).is_err());
        assert!(read(&[0x7f, 0xff, 0xff, 0xff], Encoding::Protobuf, &[]).is_err());
        assert!(read(&protobuf_frame("FLOWN", b""), Encoding::Protobuf, &[]).is_err());
        assert!(read(b"{}\n", Encoding::Json, &[]).is_err());
        assert!(read(b"<html>\n", Encoding::Json, &[]).is_err());
        let mut random = fastrand::Rng::with_seed(2);
        for round in 0..20_000 {
            let (mut bytes, encoding) = match round % 2 {
                0 => (protobuf(), Encoding::Protobuf),
                _ => (json(), Encoding::Json),
            };
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            let _ = read(&bytes, encoding, &[]);
        }
    }

    #[test]
    fn fuzzed_frames() {
        for (encoding, seed) in [(Encoding::Protobuf, protobuf()), (Encoding::Json, json())] {
            fuzz::run(&format!("watch frames, {encoding:?}"), &[&seed], |input| {
                let whole = read(input, encoding, &[]);
                let halves = read(input, encoding, &[input.len() / 2]);
                assert_eq!(whole.is_ok(), halves.is_ok());
                whole.map_err(|error| error.to_string())
            });
        }
    }
}
