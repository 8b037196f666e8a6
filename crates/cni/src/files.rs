//! Reading what somebody else may have put there: regular files of a sane size, nothing that blocks.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// The longest input that is read, in bytes: a few hundred times the largest configuration seen.
pub const LIMIT: u64 = 4 << 20;

/// Reads a regular file; symbolic links are followed.
///
/// # Errors
/// The system's; `InvalidData` for what is not a regular file or longer than [`LIMIT`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    open_and_read(path, OFlags::empty())
}

/// Reads a regular file that must itself be at `path`: a symbolic link there is an error.
///
/// # Errors
/// As for [`read`].
pub fn read_no_link(path: &Path) -> io::Result<Vec<u8>> {
    open_and_read(path, OFlags::NOFOLLOW)
}

fn open_and_read(path: &Path, flags: OFlags) -> io::Result<Vec<u8>> {
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
    read_limited(file)
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
