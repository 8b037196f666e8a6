//! Just enough HTTP to ask a health server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::Doing;
use crate::{Error, Namespace};

/// A plain HTTP GET to a port of 127.0.0.1 in `place`: status and body.
pub(crate) fn http_get(place: &Namespace, port: u16, path: &str) -> Result<(u16, String), Error> {
    let timeout = Duration::from_secs(5);
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let what = || format!("{}: http://{to}{path}", place.name());
    let mut stream = place
        .run(|| TcpStream::connect_timeout(&to, timeout))?
        .doing(what)?;
    let mut answer = Vec::new();
    stream
        .set_read_timeout(Some(timeout))
        .and_then(|()| {
            write!(
                stream,
                "GET {path} HTTP/1.0\r\nHost: {to}\r\nConnection: close\r\n\r\n"
            )
        })
        .and_then(|()| stream.read_to_end(&mut answer))
        .doing(what)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok());
    let status =
        status.ok_or_else(|| Error::Bad(format!("{}: no HTTP answer: {head:?}", what())))?;
    Ok((status, body.to_string()))
}
