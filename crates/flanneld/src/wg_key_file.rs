//! The file of this node's WireGuard key. The key is made once and kept, so that peers need not learn another
//! one after a restart.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use model::WgSecret;

/// Names the file, as in upstream.
const VARIABLE: &str = "WIREGUARD_KEY_FILE";
const DEFAULT: &str = "/run/flannel/wgkey";

/// Returns where the key is.
pub(crate) fn path() -> PathBuf {
    let named = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
    named.map_or_else(|| PathBuf::from(DEFAULT), PathBuf::from)
}

/// Reads the key; makes one if there is no file.
///
/// # Errors
/// What is wrong with the file, and what helps. A file that cannot be read is never replaced.
pub(crate) fn read_or_make(path: &Path) -> Result<WgSecret, String> {
    let shown = path.display();
    match fs::read_to_string(path) {
        Ok(text) => text.parse().map_err(|error| {
            format!(
                "WireGuard key file {shown}: {error}; write a key there (wg genkey), or delete the file, and a new key is made"
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(path).map_err(|error| {
                format!(
                    "WireGuard key file {shown}: cannot write it: {error}; name a place for it with {VARIABLE}"
                )
            })
        }
        Err(error) => Err(format!("WireGuard key file {shown}: {error}")),
    }
}

fn make(path: &Path) -> io::Result<WgSecret> {
    let mut bytes = [0; 32];
    // Blocks, at a boot, until the kernel has gathered enough randomness for keys.
    fs::File::open("/dev/random")?.read_exact(&mut bytes)?;
    // As the curve wants its keys (RFC 7748).
    bytes[0] &= 0xf8;
    bytes[31] = (bytes[31] & 0x7f) | 0x40;
    let secret = WgSecret(bytes);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let temporary = dir.join(format!(".wgkey.{}.tmp", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let written = || {
        let mut options = OpenOptions::new();
        // Nobody may read it at any moment.
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(&temporary)?;
        file.write_all(secret.to_file().as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    let done = written();
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done.map(|()| secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flannel/wgkey");
        let made = read_or_make(&path).unwrap();
        assert_eq!(read_or_make(&path), Ok(made));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        assert_eq!(fs::read_dir(dir.path().join("flannel")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_key_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wgkey");
        fs::write(&path, "secret nonsense").unwrap();
        let error = read_or_make(&path).unwrap_err();
        assert!(
            error.contains("wgkey") && error.contains("wg genkey"),
            "{error}"
        );
        assert!(!error.contains("nonsense"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret nonsense");
    }
}
