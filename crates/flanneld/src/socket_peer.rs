//! Who is at the other end of a Unix socket.

use std::io;
use std::os::unix::fs::MetadataExt;

use tokio::net::UnixStream;

/// Returns whether root, or this process's own user, is at the other end.
///
/// # Errors
/// The kernel's refusal to tell; none is expected.
pub(crate) fn is_root_or_own_user(stream: &UnixStream) -> io::Result<bool> {
    let theirs = stream.peer_cred()?.uid();
    Ok(theirs == 0 || theirs == std::fs::metadata("/proc/self")?.uid())
}
