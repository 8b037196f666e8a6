//! What an answer means that is not a success.

use std::time::Duration;

use hyper::header::RETRY_AFTER;
use hyper::http::response::Parts;
use serde::Deserialize;

use super::body::{Body, Encoding};
use super::failure::Failure;
use super::wire::{Fields, unwrap};

/// Longer texts of an error are not read.
const LONGEST: usize = 64 << 10;
/// The wait when a busy server does not name one.
const A_WHILE: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Kubernetes' `Status`: as far as we read it.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Status {
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub code: u16,
}

impl Status {
    /// Reads one as it comes in an error answer, protobuf in its envelope.
    pub(super) fn read(bytes: &[u8], encoding: Encoding) -> Option<Status> {
        match encoding {
            Encoding::Json => serde_json::from_slice(bytes).ok(),
            Encoding::Protobuf => Status::read_message(unwrap(bytes).ok()?),
        }
    }

    fn read_message(message: &[u8]) -> Option<Status> {
        let (mut fields, mut status) = (Fields(message), Status::default());
        while let Some((number, value)) = fields.next().ok()? {
            match number {
                3 => status.message = value.text().into(),
                4 => status.reason = value.text().into(),
                6 => status.code = u16::try_from(value.number()).unwrap_or_default(),
                _ => {}
            }
        }
        Some(status)
    }

    /// Returns the failure that follows from it.
    pub(super) fn into_failure(self, wait: Option<Duration>, place: &str) -> Failure {
        let text = if self.message.is_empty() {
            format!("HTTP status {}", self.code)
        } else {
            self.message
        };
        match (self.code, self.reason.as_str()) {
            (410, _) | (_, "Expired" | "Gone") => Failure::Expired(text),
            _ if text.contains("Too large resource version") => Failure::Ahead(text),
            (429, _) => Failure::Busy(wait.unwrap_or(A_WHILE).min(LONGEST_WAIT), text),
            (404, "NotFound") => Failure::NotFound(text),
            (404, _) => Failure::Away(format!(
                "{place}: HTTP status 404, but not from an API server: does another program answer there?"
            )),
            (409, _) => Failure::Conflict(text),
            (401, _) => {
                Failure::Unauthorized(format!("{text}: is the token or the certificate valid?"))
            }
            (422, _) => Failure::Invalid(text),
            (500.., _) | (0, _) => Failure::Away(format!("{place}: {text}")),
            _ => Failure::Refused(text),
        }
    }
}

/// Returns the failure that an answer reports.
pub(super) async fn failure(head: &Parts, body: Body, place: &str) -> Failure {
    let wait = head.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok());
    let wait = wait.and_then(|seconds| seconds.parse().ok());
    let encoding = body.encoding;
    let bytes = body.whole(LONGEST).await.unwrap_or_default();
    let mut status = Status::read(&bytes, encoding).unwrap_or_default();
    status.code = head.status.as_u16();
    status.into_failure(wait.map(Duration::from_secs), place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_either_encoding() {
        let json = br#"{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}"#;
        let status = Status::read(json, Encoding::Json).unwrap();
        assert_eq!((status.reason.as_str(), status.code), ("Expired", 410));
        let message = b"\x12\x07Failure\x1a\x07too old\x22\x07Expired\x30\x9a\x03";
        let mut bytes = b"k8s\0\x12".to_vec();
        bytes.push(message.len() as u8);
        bytes.extend_from_slice(message);
        assert_eq!(Status::read(&bytes, Encoding::Protobuf).unwrap(), status);
        assert!(matches!(
            status.into_failure(None, "x"),
            Failure::Expired(_)
        ));
        assert!(Status::read(b"<html>", Encoding::Json).is_none());
    }
}
