//! The body of an answer, inflated as it arrives.

use std::time::Duration;

use bytes::{Buf, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use hyper::http::Version;
use hyper::http::response::Parts;
use tokio::time::{Instant, timeout};

use super::failure::innermost;

/// How much is inflated at a time.
const STEP: usize = 32 << 10;
/// gzip's largest window.
const WINDOW_BITS: u8 = 15;
/// An answer that has begun and then stays silent for so long has ended.
const SILENCE: Duration = Duration::from_secs(30);

/// An answer that has not ended by then is given up, however steadily it arrives. Not for a watch.
const LONGEST: Duration = Duration::from_secs(300);

/// What an answer is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Protobuf,
    Json,
}

/// An answer that is still arriving.
#[derive(Debug)]
pub(super) struct Body {
    pub encoding: Encoding,
    /// The connection has no pings.
    pub unwatched: bool,
    began: Instant,
    incoming: Incoming,
    gunzip: Option<Decompress>,
    /// Arrived, and not yet inflated.
    input: Bytes,
    /// The compressed stream has ended.
    ended: bool,
}

impl Body {
    pub(super) fn new(head: &Parts, incoming: Incoming) -> Body {
        let header = |name| head.headers.get(name).and_then(|v| v.to_str().ok());
        let protobuf = header(CONTENT_TYPE)
            .is_some_and(|kind| kind.starts_with("application/vnd.kubernetes.protobuf"));
        Body {
            encoding: if protobuf {
                Encoding::Protobuf
            } else {
                Encoding::Json
            },
            unwatched: head.version < Version::HTTP_2,
            began: Instant::now(),
            incoming,
            gunzip: (header(CONTENT_ENCODING) == Some("gzip"))
                .then(|| Decompress::new_gzip(WINDOW_BITS)),
            input: Bytes::new(),
            ended: false,
        }
    }

    /// Waits for more and appends it to `into`; `false` at the end. Cancel-safe.
    pub(super) async fn more(&mut self, into: &mut Vec<u8>) -> Result<bool, String> {
        loop {
            if self.inflate(into)? {
                return Ok(true);
            }
            match self.incoming.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.input = data;
                    }
                }
                Some(Err(error)) => return Err(innermost(&error)),
                None if self.gunzip.is_some() && !self.ended => {
                    return Err("the answer was cut off".into());
                }
                None => return Ok(false),
            }
        }
    }

    /// As [`Body::more`]; an answer that is silent for long has ended with an error.
    pub(super) async fn more_soon(&mut self, into: &mut Vec<u8>) -> Result<bool, String> {
        let silent = |_| {
            Err(format!(
                "no more of the answer within {} s",
                SILENCE.as_secs()
            ))
        };
        let end = self.began + LONGEST;
        if Instant::now() >= end {
            let seconds = LONGEST.as_secs();
            return Err(format!("the answer did not end within {seconds} s"));
        }
        timeout(SILENCE, self.more(into))
            .await
            .unwrap_or_else(silent)
    }

    /// Returns all of it, if it is no larger than `limit` bytes.
    pub(super) async fn whole(mut self, limit: usize) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        while self.more_soon(&mut all).await? {
            if all.len() > limit {
                return Err(format!("an answer of more than {limit} bytes"));
            }
        }
        Ok(all)
    }

    /// Moves what has arrived; returns whether that was anything.
    fn inflate(&mut self, into: &mut Vec<u8>) -> Result<bool, String> {
        let Some(gunzip) = &mut self.gunzip else {
            into.extend_from_slice(&self.input);
            return Ok(!std::mem::take(&mut self.input).is_empty());
        };
        while !self.input.is_empty() && !self.ended {
            into.reserve(STEP);
            let (read, had) = (gunzip.total_in(), into.len());
            let status = gunzip
                .decompress_vec(&self.input, into, FlushDecompress::None)
                .map_err(|error| format!("no gzip: {error}"))?;
            let read = usize::try_from(gunzip.total_in() - read).unwrap_or(usize::MAX);
            self.input.advance(read.min(self.input.len()));
            self.ended = status == Status::StreamEnd;
            if into.len() > had {
                return Ok(true);
            }
            if read == 0 && status != Status::Ok {
                return Err("no gzip: it does not go on".into());
            }
        }
        // Bytes after the end of the compressed stream are ignored.
        self.input.clear();
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A byte each 20 s would never end: the silence is short each time.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_drips_is_given_up() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let _ = theirs.read(&mut [0; 1024]).await;
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n";
            let mut sent = theirs.write_all(head).await;
            while sent.is_ok() {
                tokio::time::sleep(Duration::from_secs(20)).await;
                sent = theirs.write_all(b"x").await;
            }
        });
        let (mut sender, connection) = http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::new(http_body_util::Empty::<Bytes>::new());
        let began = Instant::now();
        let (head, incoming) = sender.send_request(request).await.unwrap().into_parts();
        let error = Body::new(&head, incoming).whole(1 << 20).await.unwrap_err();
        assert!(error.contains("did not end within 300 s"), "{error}");
        assert!(began.elapsed() < LONGEST + SILENCE, "{:?}", began.elapsed());
    }
}
