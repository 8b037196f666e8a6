//! Just enough HTTP to ask a health server or an API server: one request and its answer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::Doing;
use crate::{Error, Namespace};

/// How long an answer, or the next piece of it, may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A plain HTTP GET to a port of 127.0.0.1 in `place`: status and body.
pub(crate) fn http_get(place: &Namespace, port: u16, path: &str) -> Result<(u16, String), Error> {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let what = || format!("{}: http://{to}{path}", place.name());
    let mut stream = connect(place, to).doing(what)?;
    let head = format!("GET {path} HTTP/1.0\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    let answer = exchange(&mut stream, head.as_bytes()).doing(what)?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    Ok((answer.status, body))
}

/// A TCP connection made from within `place`.
pub(crate) fn connect(place: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = place
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .map_err(io::Error::other)??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What a server answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// The connection may be used for another request.
    pub(crate) reusable: bool,
}

/// Sends `request`, head and body, which must be of HTTP/1.0 so that no answer comes in chunks, and
/// reads the answer.
pub(crate) fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> io::Result<Answer> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut text = Vec::new();
    let head_end = loop {
        if let Some(at) = text.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if read_some(stream, &mut text)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&text[..head_end]).into_owned();
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| {
        io::Error::new(ErrorKind::InvalidData, format!("no HTTP answer: {head:?}"))
    })?;
    let field = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_string())
    };
    let length: Option<usize> = field("content-length").and_then(|n| n.parse().ok());
    let mut body = text.split_off(head_end + 4);
    while length.is_none_or(|length| body.len() < length) {
        if read_some(stream, &mut body)? == 0 {
            if length.is_some() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            break;
        }
    }
    let kept = field("connection").is_some_and(|c| c.eq_ignore_ascii_case("keep-alive"));
    Ok(Answer {
        status,
        body,
        reusable: kept && length.is_some(),
    })
}

/// Reads once, to the end of `into`; 0 at the end of the stream.
fn read_some(stream: &mut impl Read, into: &mut Vec<u8>) -> io::Result<usize> {
    let mut piece = [0; 16 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(n) => {
                into.extend_from_slice(&piece[..n]);
                return Ok(n);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
