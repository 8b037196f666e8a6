//! One page of a listing, read key by key as it arrives.
//!
//! A page of thousands of leases is one gRPC message of more than a megabyte. Taken as a whole it
//! would cost several times that in memory, for the length of a moment, on every node at every
//! start; taken apart on the way it costs what one key costs, and the work on its first keys does not
//! wait for the last.

use std::future::poll_fn;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::body::Body;
use tonic::codegen::http::{HeaderValue, Request, Version};
use tonic::{Code, Status};
use tower_service::Service;

use super::connection::Connection;
use super::failure::innermost;
use super::proto::{Header, KeyValue, RangeRequest, path};

/// Flag and length before each gRPC message.
const PREFIX: usize = 5;
/// The most that one key with its value may take: etcd's own limit is 1.5 MB unless it was raised.
const LARGEST_FIELD: usize = 16 << 20;
/// The most that a page may take as a whole.
const LARGEST_PAGE: usize = 256 << 20;
/// A field's number and length take no more than this.
const FIELD_START: usize = 20;

/// An answer to a [`RangeRequest`] that is still arriving.
#[derive(Debug)]
pub(super) struct Page {
    body: Body,
    parser: Parser,
}

/// Takes apart what has arrived.
#[derive(Debug, Default)]
struct Parser {
    buffer: BytesMut,
    /// Bytes of the message that were not yet taken apart; `None` before it begins.
    left: Option<usize>,
    header: Option<Header>,
    more: bool,
}

/// One field of the message.
struct Field {
    number: u32,
    /// The value of a number.
    varint: u64,
    /// The value of anything else.
    bytes: Bytes,
}

impl Page {
    /// Asks for a page; returns when the answer begins.
    pub(super) async fn open(
        connection: &Connection,
        query: &RangeRequest,
    ) -> Result<Page, Status> {
        let mut message = BytesMut::with_capacity(PREFIX + query.encoded_len());
        message.put_u8(0);
        message.put_u32(u32::try_from(query.encoded_len()).unwrap_or(0));
        message.put_slice(&query.encode_to_vec());
        let mut request = Request::post(path::RANGE)
            .version(Version::HTTP_2)
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(Body::new(Full::new(message.freeze())))
            .map_err(|e| Status::internal(e.to_string()))?;
        if let Some(token) = &connection.token {
            let token = HeaderValue::from_bytes(token.as_bytes());
            let token = token.map_err(|e| Status::internal(e.to_string()))?;
            request.headers_mut().insert("token", token);
        }
        let mut channel = connection.channel.clone();
        let unavailable = |e: tonic::transport::Error| Status::unavailable(innermost(&e));
        poll_fn(|cx| channel.poll_ready(cx))
            .await
            .map_err(unavailable)?;
        let answer = channel.call(request).await.map_err(unavailable)?;
        if !answer.status().is_success() {
            return Err(Status::unavailable(format!(
                "HTTP status {}",
                answer.status()
            )));
        }
        // An answer that is nothing but an error has it here.
        check(Status::from_header_map(answer.headers()))?;
        let body = answer.into_body();
        Ok(Page {
            body,
            parser: Parser::default(),
        })
    }

    /// The next key, if it has arrived already.
    pub(super) fn arrived(&mut self) -> Result<Option<KeyValue>, Status> {
        self.parser.next()
    }

    /// The next key; `None` at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<KeyValue>, Status> {
        loop {
            if let Some(kv) = self.arrived()? {
                return Ok(Some(kv));
            }
            match self.body.frame().await {
                Some(frame) => match frame?.into_data() {
                    Ok(data) => self.parser.buffer.extend_from_slice(&data),
                    // The trailers, which say whether all went well.
                    Err(frame) => check(frame.trailers_ref().and_then(Status::from_header_map))?,
                },
                None if self.parser.left == Some(0) => return Ok(None),
                None => return Err(Status::unavailable("the answer was cut off")),
            }
        }
    }

    /// Where in its history the store answered; known as soon as there is a key.
    pub(super) fn header(&self) -> Option<&Header> {
        self.parser.header.as_ref()
    }

    /// There are more keys than fit in the page; known at its end.
    pub(super) fn more(&self) -> bool {
        self.parser.more
    }
}

impl Parser {
    /// The next key, if all of it has arrived.
    fn next(&mut self) -> Result<Option<KeyValue>, Status> {
        if self.left.is_none() && self.buffer.len() >= PREFIX {
            // We never say that we understand compression, so the flag is 0.
            self.buffer.advance(1);
            let length = usize::try_from(self.buffer.get_u32()).unwrap_or(usize::MAX);
            if length > LARGEST_PAGE {
                return Err(malformed(format!(
                    "a page of {length} bytes, of which {LARGEST_PAGE} are read at most"
                )));
            }
            self.left = Some(length);
        }
        while let Some(Field {
            number,
            varint,
            bytes,
        }) = self.field()?
        {
            match number {
                1 => self.header = Some(Header::decode(bytes).map_err(malformed)?),
                2 => return KeyValue::decode(bytes).map(Some).map_err(malformed),
                3 => self.more = varint != 0,
                _ => {}
            }
        }
        Ok(None)
    }

    /// The next field, if all of it has arrived.
    fn field(&mut self) -> Result<Option<Field>, Status> {
        let Some(left) = self.left.filter(|left| *left > 0) else {
            return Ok(None);
        };
        let here = self.buffer.len().min(left);
        let mut rest = &self.buffer[..here];
        let start = decode_key(&mut rest).and_then(|key| Ok((key, decode_varint(&mut rest)?)));
        let ((number, wire), varint) = match start {
            Ok(start) => start,
            Err(_) if here < left && here < FIELD_START => return Ok(None),
            Err(error) => return Err(malformed(error)),
        };
        let start = here - rest.len();
        let length = match wire {
            WireType::Varint => 0,
            WireType::LengthDelimited => usize::try_from(varint).unwrap_or(usize::MAX),
            wire => return Err(malformed(format!("a field of type {wire:?}"))),
        };
        if length > left - start {
            return Err(malformed("a field longer than the message"));
        }
        if length > LARGEST_FIELD {
            return Err(malformed(format!(
                "a key and value of {length} bytes, of which {LARGEST_FIELD} are read at most"
            )));
        }
        if length > here - start {
            return Ok(None);
        }
        self.buffer.advance(start);
        let bytes = Bytes::copy_from_slice(&self.buffer[..length]);
        self.buffer.advance(length);
        self.left = Some(left - start - length);
        Ok(Some(Field {
            number,
            varint,
            bytes,
        }))
    }
}

fn malformed(what: impl std::fmt::Display) -> Status {
    Status::internal(format!("not an answer of etcd: {what}"))
}

fn check(status: Option<Status>) -> Result<(), Status> {
    match status {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::proto::{RangeResponse, WatchResponse};

    fn answer() -> (RangeResponse, Vec<u8>) {
        let kv = |n: u8| KeyValue {
            key: vec![n; 40].into(),
            create_revision: 7,
            mod_revision: i64::from(n) << 40,
            value: vec![n; usize::from(n)].into(),
            lease: -1,
        };
        let header = Some(Header {
            cluster_id: u64::MAX,
            raft_term: 2,
            revision: 1234,
        });
        let answer = RangeResponse {
            header,
            kvs: (0..200).map(kv).collect(),
            more: true,
            count: 0,
        };
        let message = answer.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend((message.len() as u32).to_be_bytes());
        bytes.extend(message);
        (answer, bytes)
    }

    #[test]
    fn it_reads_what_was_written_however_it_is_cut() {
        let (answer, bytes) = answer();
        for size in (1..100).chain([1000, 16384, bytes.len()]) {
            let mut parser = Parser::default();
            let mut kvs = Vec::new();
            for part in bytes.chunks(size) {
                parser.buffer.extend_from_slice(part);
                while let Some(kv) = parser.next().unwrap() {
                    kvs.push(kv);
                }
            }
            assert_eq!(
                (parser.left, &parser.header, parser.more),
                (Some(0), &answer.header, true)
            );
            assert_eq!(kvs, answer.kvs, "in parts of {size}");
        }
    }

    /// All keys that a parser finds, and whether it takes the page for complete; `None`: it refuses it.
    fn read(bytes: &[u8]) -> Option<(usize, bool)> {
        let mut parser = Parser::default();
        parser.buffer.extend_from_slice(bytes);
        let mut keys = 0;
        loop {
            match parser.next() {
                Ok(Some(_)) => keys += 1,
                Ok(None) => return Some((keys, parser.left == Some(0))),
                Err(status) => {
                    assert!(status.message().contains("not an answer of etcd"));
                    return None;
                }
            }
        }
    }

    #[test]
    fn a_page_that_is_cut_off_is_never_complete() {
        let (answer, bytes) = answer();
        assert_eq!(read(&bytes), Some((answer.kvs.len(), true)));
        for end in 0..bytes.len() {
            let found = read(&bytes[..end]);
            assert!(
                found.is_some_and(|(_, complete)| !complete),
                "{end}: {found:?}"
            );
            // The same from a server that believes that it is all.
            if let Some(message) = bytes[..end].get(PREFIX..) {
                let mut whole = vec![0];
                whole.extend((message.len() as u32).to_be_bytes());
                whole.extend(message);
                let found = read(&whole);
                assert!(
                    found.is_none_or(|(keys, _)| keys < answer.kvs.len() || end + 4 > bytes.len())
                );
            }
        }
    }

    #[test]
    fn a_watch_s_message_that_is_cut_off_is_refused_or_shorter() {
        let event = |n: u8| crate::etcd::proto::Event {
            kv: Some(answer().0.kvs[usize::from(n)].clone()),
            ..Default::default()
        };
        let answer = WatchResponse {
            header: answer().0.header,
            cancel_reason: "why".into(),
            events: (0..3).map(event).collect(),
            ..WatchResponse::default()
        };
        let bytes = answer.encode_to_vec();
        let mut refused = 0;
        for end in 0..bytes.len() {
            match WatchResponse::decode(&bytes[..end]) {
                Ok(shorter) => assert!(answer.events.starts_with(&shorter.events)),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > bytes.len() - 12, "{refused} of {}", bytes.len());
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_arrives() {
        let begin = |bytes: &[u8]| {
            let mut parser = Parser::default();
            parser.buffer.extend_from_slice(bytes);
            parser.next()
        };
        // A page of 4 GiB; one of 100 MiB whose first field is as large.
        assert!(begin(&[0, 0xff, 0xff, 0xff, 0xff]).is_err());
        let field = [0, 6, 0x40, 0, 0, 0x12, 0xf0, 0xff, 0xff, 0x31];
        assert!(begin(&field).is_err());
        let small = [0, 6, 0x40, 0, 0, 0x12, 0xf0, 0xff, 0x31];
        assert!(matches!(begin(&small), Ok(None)));
    }

    #[test]
    fn nonsense_is_refused_and_never_a_panic() {
        let (_, bytes) = answer();
        let mut refused = 0;
        for _ in 0..2000 {
            let mut bytes = bytes.clone();
            for _ in 0..3 {
                let at = fastrand::usize(..bytes.len());
                bytes[at] = fastrand::u8(..);
            }
            let mut parser = Parser::default();
            parser.buffer.extend_from_slice(&bytes);
            loop {
                match parser.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => {
                        refused += 1;
                        break;
                    }
                }
            }
        }
        assert!(refused > 0);
    }

    #[test]
    fn fuzzed_pages() {
        let (_, bytes) = answer();
        fuzz::run("etcd page", &[&bytes[..2000], &bytes], read);
        let watch = WatchResponse {
            header: answer().0.header,
            cancel_reason: "why".into(),
            ..WatchResponse::default()
        };
        fuzz::run("etcd watch", &[&watch.encode_to_vec()], |input| {
            WatchResponse::decode(input).is_ok()
        });
    }
}
