//! The files of this node's WireGuard key. The key is made once and kept over restarts and reboots, so that
//! peers need not learn another one.
//!
//! By default it is kept in two places: one on disk, which outlives a reboot, and the one in which upstream keeps
//! it, which outlives a container. The first place that has a key decides.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use model::WgSecret;

/// Names the only file, as in upstream.
pub const VARIABLE: &str = "WIREGUARD_KEY_FILE";
const ON_DISK: &str = "/var/lib/flannel/wgkey";
const UPSTREAMS: &str = "/run/flannel/wgkey";

/// Bits of a mode by which others than the owner may read or write a file.
const OTHERS: u32 = 0o077;

/// A key as the files have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyOnFile {
    /// The key.
    pub secret: WgSecret,
    /// What somebody should look into; for the log.
    pub warnings: Vec<String>,
}

/// Returns where the key is, the most important place first. `named` is the value of `WIREGUARD_KEY_FILE`.
pub fn places(named: Option<PathBuf>) -> Vec<PathBuf> {
    match named.filter(|name| !name.as_os_str().is_empty()) {
        Some(name) => vec![name],
        None => vec![ON_DISK.into(), UPSTREAMS.into()],
    }
}

/// Returns where the key of this process's node is.
pub fn own_places() -> Vec<PathBuf> {
    places(std::env::var_os(VARIABLE).map(PathBuf::from))
}

/// Reads the key. `None` if no place has one.
///
/// # Errors
/// What is wrong with a file, and what helps. Nothing is replaced.
pub fn read(places: &[PathBuf]) -> Result<Option<KeyOnFile>, String> {
    let mut found: Option<KeyOnFile> = None;
    for path in places {
        let shown = path.display();
        let secret = match (read_one(path), &mut found) {
            (Ok(None), _) => continue,
            (Ok(Some(secret)), _) => secret,
            (Err(error), None) => return Err(error),
            (Err(error), Some(found)) => {
                found.warnings.push(format!("{error}; it is not used"));
                continue;
            }
        };
        let mode = fs::metadata(path).map_or(0, |found| found.permissions().mode());
        let open = (mode & OTHERS != 0).then(|| {
            let mode = mode & 0o7777;
            format!("WireGuard key file {shown}: its mode is {mode:o}, so that others may read it: chmod 400 {shown}")
        });
        match &mut found {
            Some(found) => {
                if found.secret != secret {
                    let used = places.first().map(|used| used.display().to_string());
                    let used = used.unwrap_or_default();
                    found.warnings.push(format!(
                        "WireGuard key file {shown}: it holds another key than {used}, which is used: delete the one that is wrong"
                    ));
                }
                found.warnings.extend(open);
            }
            None => {
                found = Some(KeyOnFile {
                    secret,
                    warnings: open.into_iter().collect(),
                });
            }
        }
    }
    Ok(found)
}

/// Reads the key, makes one if no place has one, and puts it into the places that have none.
///
/// # Errors
/// What is wrong with a file, and what helps; or no place can be written.
pub(crate) fn read_or_make(places: &[PathBuf]) -> Result<KeyOnFile, String> {
    let mut key = match read(places)? {
        Some(key) => key,
        None => {
            let secret = random().map_err(|error| format!("/dev/random: {error}"))?;
            // Of two daemons that do this at once, one is the first.
            let made = places.iter().map(|path| put(path, &secret));
            let made: Vec<_> = made.collect();
            if let Some(Err(error)) = made.last()
                && made.iter().all(Result::is_err)
            {
                return Err(format!(
                    "{error}; name a place for it with {VARIABLE}, a file in a directory that this process may write"
                ));
            }
            match read(places)? {
                Some(key) => key,
                None => {
                    return Err("the WireGuard key file was deleted as soon as it was made".into());
                }
            }
        }
    };
    restore(places, &mut key);
    Ok(key)
}

/// Puts the key into the places that have none. What fails is a warning.
pub(crate) fn restore(places: &[PathBuf], key: &mut KeyOnFile) {
    for (at, path) in places.iter().enumerate() {
        if let Err(error) = put(path, &key.secret) {
            let loss = if at == 0 {
                ": the key will be lost with the next reboot"
            } else {
                ""
            };
            key.warnings.push(format!("{error}{loss}"));
        }
    }
}

/// Makes a new key and puts it into all places, over what they hold. Returns it and the places that have it.
///
/// # Errors
/// No place can be written.
pub fn replace(places: &[PathBuf]) -> Result<(WgSecret, Vec<PathBuf>), String> {
    let secret = random().map_err(|error| format!("/dev/random: {error}"))?;
    let mut written = Vec::new();
    let mut failed = String::new();
    for path in places {
        let done = prepare(path, &secret).and_then(|temporary| {
            let done = fs::rename(&temporary, path);
            if done.is_err() {
                let _ = fs::remove_file(&temporary);
            }
            done
        });
        match done {
            Ok(()) => written.push(path.clone()),
            // The place that decides must have the new key, if it has one.
            Err(error) if path.exists() || written.is_empty() => {
                failed = format!(
                    "WireGuard key file {}: cannot write it: {error}",
                    path.display()
                );
                if path.exists() {
                    return Err(failed);
                }
            }
            Err(_) => {}
        }
    }
    if written.is_empty() {
        Err(failed)
    } else {
        Ok((secret, written))
    }
}

fn read_one(path: &Path) -> Result<Option<WgSecret>, String> {
    let shown = path.display();
    match fs::read_to_string(path) {
        Ok(text) => text.parse().map(Some).map_err(|error| {
            format!(
                "WireGuard key file {shown}: {error}; write a key there (wg genkey), or delete the file, and a new key is made"
            )
        }),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(format!("WireGuard key file {shown}: cannot read it: {error}")),
    }
}

/// Makes a private key.
fn random() -> io::Result<WgSecret> {
    let mut bytes = [0; 32];
    // Blocks, at a boot, until the kernel has gathered enough randomness for keys.
    fs::File::open("/dev/random")?.read_exact(&mut bytes)?;
    // As the curve wants its keys (RFC 7748).
    bytes[0] &= 0xf8;
    bytes[31] = (bytes[31] & 0x7f) | 0x40;
    Ok(WgSecret(bytes))
}

/// Puts a key into a place that has none; one that has is left alone.
fn put(path: &Path, secret: &WgSecret) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    let put = prepare(path, secret).and_then(|temporary| {
        // Unlike a rename, this never takes the place of another one's file.
        let linked = fs::hard_link(&temporary, path);
        let _ = fs::remove_file(&temporary);
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    });
    put.map_err(|error| {
        format!(
            "WireGuard key file {}: cannot write it: {error}",
            path.display()
        )
    })
}

/// Writes a key into a temporary file beside `path`.
fn prepare(path: &Path, secret: &WgSecret) -> io::Result<PathBuf> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let temporary = dir.join(format!(
        ".wgkey.{}.{:x}.tmp",
        std::process::id(),
        fastrand::u64(..)
    ));
    let written = || {
        let mut options = OpenOptions::new();
        // Nobody else may read it at any moment.
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(&temporary)?;
        // Whatever the umask.
        file.set_permissions(Permissions::from_mode(0o400))?;
        file.write_all(secret.to_file().as_bytes())?;
        file.sync_all()
    };
    let done = written();
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done.map(|()| temporary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(dir: &Path) -> Vec<PathBuf> {
        vec![dir.join("disk/wgkey"), dir.join("run/wgkey")]
    }

    #[test]
    fn a_key_is_made_once_and_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let places = two(dir.path());
        assert_eq!(read(&places), Ok(None));
        let made = read_or_make(&places).unwrap();
        assert_eq!(made.warnings, [""; 0]);
        assert_eq!(read_or_make(&places).as_ref(), Ok(&made));
        for path in &places {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o400);
            let dir = path.parent().unwrap();
            assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
            // One place is enough.
            fs::remove_file(path).unwrap();
            assert_eq!(read_or_make(&places).as_ref(), Ok(&made));
            assert!(path.exists());
        }
    }

    #[test]
    fn many_that_begin_at_once_have_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let places = two(dir.path());
        let keys: Vec<WgSecret> = std::thread::scope(|scope| {
            let make = || read_or_make(&places).unwrap().secret;
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            let keys = threads.into_iter().map(|thread| thread.join().unwrap());
            keys.collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn the_key_of_an_upstream_is_used_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let places = two(dir.path());
        let theirs = read_or_make(&places[1..]).unwrap();
        let ours = read_or_make(&places).unwrap();
        assert_eq!(ours.secret, theirs.secret);
        fs::remove_file(&places[1]).unwrap();
        assert_eq!(read_or_make(&places).unwrap().secret, theirs.secret);
    }

    #[test]
    fn what_is_no_key_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wgkey");
        fs::write(&path, "secret nonsense").unwrap();
        let error = read_or_make(std::slice::from_ref(&path)).unwrap_err();
        assert!(
            error.contains("wgkey") && error.contains("wg genkey"),
            "{error}"
        );
        assert!(!error.contains("nonsense"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret nonsense");
    }

    #[test]
    fn what_is_open_to_others_or_contradicts_itself_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let places = two(dir.path());
        let key = read_or_make(&places).unwrap();
        fs::set_permissions(&places[0], Permissions::from_mode(0o644)).unwrap();
        fs::remove_file(&places[1]).unwrap();
        read_or_make(&places[1..]).unwrap();
        let read = read(&places).unwrap().unwrap();
        assert_eq!(read.secret, key.secret);
        let said = read.warnings.join("\n");
        assert!(
            said.contains("chmod 400") && said.contains("another key"),
            "{said}"
        );
    }

    #[test]
    fn a_place_that_cannot_be_written_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        // A file in the place of a directory.
        fs::write(dir.path().join("disk"), "").unwrap();
        let places = two(dir.path());
        let key = read_or_make(&places).unwrap();
        assert!(
            key.warnings.join("").contains("lost with the next reboot"),
            "{key:?}"
        );
        assert_eq!(read_or_make(&places).unwrap().secret, key.secret);
        assert!(read_or_make(&places[..1]).unwrap_err().contains(VARIABLE));
    }

    #[test]
    fn a_replaced_key_is_another_one_in_all_places() {
        let dir = tempfile::tempdir().unwrap();
        let places = two(dir.path());
        let before = read_or_make(&places).unwrap();
        let (secret, written) = replace(&places).unwrap();
        assert_eq!(written, places);
        assert_ne!(secret, before.secret);
        for path in &places {
            let there = read(std::slice::from_ref(path)).unwrap().unwrap();
            assert_eq!((there.secret, there.warnings), (secret, Vec::new()));
        }
    }
}
