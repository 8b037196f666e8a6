//! The client of flanneld's status socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use model::Outside;
use serde::de::DeserializeOwned;

/// How long the daemon may take for its answer as a whole.
const LIMIT: Duration = Duration::from_secs(10);

/// Bytes of the longest answer that is read: some 200,000 peers.
const LARGEST: usize = 64 << 20;

/// Asks the daemon for a report.
///
/// # Errors
/// No daemon answers there, or with something else; the message says what to do.
pub(crate) fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    let place = socket.display();
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow!(
            "{place}: {error}: no flanneld of this version runs here; start it (systemctl start flanneld), or name its socket with --socket"
        ),
        ErrorKind::PermissionDenied => anyhow!("{place}: {error}: run this command as root"),
        _ => anyhow!("{place}: {error}"),
    })?;
    let answer = exchange(&mut stream, path).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow!(
            "{place}: GET {path}: no answer within {} s: flanneld is stopped or hangs; its log says what it did last, and a restart (systemctl restart flanneld) leaves the network in place",
            LIMIT.as_secs()
        ),
        _ => anyhow!("{place}: GET {path}: {error}"),
    })?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("{place}: the answer is not HTTP"))?;
    let code = head.split(' ').nth(1).unwrap_or_default();
    if code != "200" {
        bail!(
            "{place}: GET {path}: HTTP status {}: {}",
            Outside(code),
            Outside(body.trim())
        );
    }
    serde_json::from_str(body)
        .with_context(|| format!("{place}: GET {path}: the answer is not the expected JSON"))
}

fn exchange(stream: &mut UnixStream, path: &str) -> std::io::Result<Vec<u8>> {
    let began = Instant::now();
    let left = || {
        let left = LIMIT.checked_sub(began.elapsed());
        left.filter(|left| !left.is_zero())
            .ok_or(std::io::Error::from(ErrorKind::TimedOut))
    };
    stream.set_write_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: flanneld\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(answer),
            Ok(read) => answer.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > LARGEST {
            let error = format!("the answer is longer than {} MiB", LARGEST >> 20);
            return Err(std::io::Error::new(ErrorKind::InvalidData, error));
        }
    }
}
