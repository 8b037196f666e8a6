//! Reading what somebody else may have put there: regular files of a sane size, nothing that blocks.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// The longest input that is read, in bytes: ten times what an API server or etcd would keep of a configuration.
pub const LIMIT: u64 = 16 << 20;

/// Reads a regular file; symbolic links are followed.
///
/// # Errors
/// The system's; `InvalidData` for what is not a regular file or longer than [`LIMIT`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_limited(open_regular(path, OFlags::empty())?)
}

/// Reads a regular file that nobody but this user and root could have written. A symbolic link is an error.
///
/// # Errors
/// As for [`read`]; `PermissionDenied` for a file of somebody else's, with the reason.
pub fn read_private(path: &Path) -> io::Result<Vec<u8>> {
    let file = open_regular(path, OFlags::NOFOLLOW)?;
    let meta = file.metadata()?;
    let denied = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if ![0, rustix::process::geteuid().as_raw()].contains(&meta.uid()) {
        return denied(format!("it belongs to user {}, not to root", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return denied(format!(
            "others may write to it (mode {:04o})",
            meta.mode() & 0o7777
        ));
    }
    read_limited(file)
}

fn open_regular(path: &Path, flags: OFlags) -> io::Result<File> {
    // Without NONBLOCK, opening a FIFO that nobody writes to would wait for ever.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a regular file",
        ));
    }
    Ok(file)
}

/// Reads to the end.
///
/// # Errors
/// The reader's; `InvalidData` where the end does not come within [`LIMIT`].
pub fn read_limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    reader.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("longer than {} MiB", LIMIT >> 20),
        ));
    }
    Ok(bytes)
}
