//! The client of flanneld's status socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use flanneld::report::{NodeReport, PeersReport};
use model::Outside;
use serde::de::DeserializeOwned;

/// How long the daemon may take for its answer as a whole.
const LIMIT: Duration = Duration::from_secs(10);

/// Bytes of the longest answer that is read: some 200,000 peers.
const LARGEST: usize = 64 << 20;

/// Which daemon.
#[derive(Args)]
pub(crate) struct SocketArgs {
    /// The daemon's status socket
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/run/flannel/flanneld.sock"
    )]
    pub(crate) socket: PathBuf,
}

/// How long the daemon may take if its answer is one of several.
const SHORT: Duration = Duration::from_secs(3);

/// Returns what the daemon reports of this node and of the others, or why it reports nothing.
pub(crate) fn daemon(socket: &Path) -> Result<(NodeReport, PeersReport), String> {
    let both = || {
        let node = report(socket, "/v1/status", SHORT)?;
        anyhow::Ok((node, report(socket, "/v1/peers", SHORT)?))
    };
    both().map_err(|error| format!("{error:#}"))
}

/// Asks the daemon for a report.
///
/// # Errors
/// No daemon answers there, or with something else; the message says what to do.
pub(crate) fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    report(socket, path, LIMIT)
}

fn report<T: DeserializeOwned>(socket: &Path, path: &str, limit: Duration) -> Result<T> {
    let text = text(socket, path, limit)?;
    serde_json::from_str(&text).with_context(|| {
        let place = socket.display();
        format!("{place}: GET {path}: the answer is not the expected JSON")
    })
}

/// Asks the daemon for a text.
///
/// # Errors
/// As [`get`].
pub(crate) fn text(socket: &Path, path: &str, limit: Duration) -> Result<String> {
    request(socket, "GET", path, limit)
}

/// Changes something of the daemon; returns its answer.
///
/// # Errors
/// As [`get`].
pub(crate) fn put(socket: &Path, path: &str) -> Result<String> {
    request(socket, "PUT", path, LIMIT)
}

fn request(socket: &Path, method: &str, path: &str, limit: Duration) -> Result<String> {
    let place = socket.display();
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow!(
            "{place}: {error}: no flanneld of this version runs here; start it (systemctl start flanneld), or name its socket with --socket"
        ),
        ErrorKind::PermissionDenied => anyhow!("{place}: {error}: run this command as root"),
        _ => anyhow!("{place}: {error}"),
    })?;
    let answer = exchange(&mut stream, method, path, limit).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow!(
            "{place}: {method} {path}: no answer within {} s: flanneld is stopped or hangs; its log says what it did last, and a restart (systemctl restart flanneld) leaves the network in place",
            limit.as_secs()
        ),
        _ => anyhow!("{place}: {method} {path}: {error}"),
    })?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .with_context(|| format!("{place}: the answer is not HTTP"))?;
    let code = head.split(' ').nth(1).unwrap_or_default();
    if code != "200" {
        bail!(
            "{place}: {method} {path}: HTTP status {}: {}",
            Outside(code),
            Outside(body.trim())
        );
    }
    Ok(body.to_owned())
}

fn exchange(
    stream: &mut UnixStream,
    method: &str,
    path: &str,
    limit: Duration,
) -> std::io::Result<Vec<u8>> {
    let began = Instant::now();
    let left = || {
        let left = limit.checked_sub(began.elapsed());
        left.filter(|left| !left.is_zero())
            .ok_or(std::io::Error::from(ErrorKind::TimedOut))
    };
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: flanneld\r\n\r\n")?;
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
