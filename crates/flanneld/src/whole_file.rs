//! Files that others read while we write them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes a file so that a reader sees the old one or the new one whole: a temporary file beside
/// it, mode 0644, renamed. Makes the directory. Does nothing where the file holds that already;
/// returns whether it wrote.
///
/// # Errors
/// What could not be done, and the system's reason.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<bool, (&'static str, io::Error)> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(|error| ("cannot make its directory", error))?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = dir.join(name);
    let written = write_new(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
        .map(|()| true)
        .map_err(|error| ("cannot write", error))
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)?;
    // The umask does not decide who may read it.
    file.set_permissions(PermissionsExt::from_mode(0o644))?;
    file.write_all(content)?;
    file.sync_all()
}
