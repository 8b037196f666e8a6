//! The backends that this daemon has in use, kept beside `subnet.env`: a daemon that ends in the middle of a change
//! from one to another, or starts after one, goes on with both. May hold a secret of the configuration, so that
//! only its owner reads it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use model::BackendConfig;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::warn;

/// Returns where it is.
pub fn path(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.as_os_str().to_owned();
    name.push(".backends");
    name.into()
}

/// A backend that was in use.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kept {
    /// Its configuration.
    pub(crate) backend: BackendConfig,
    /// Other nodes know it from this node's lease.
    pub(crate) known: bool,
}

/// An element of the file.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "Backend")]
    backend: Box<RawValue>,
    #[serde(rename = "Known", default)]
    known: bool,
}

/// Reads which backends were in use, newest first. What cannot be read was none.
pub(crate) fn read(subnet_file: &Path) -> Vec<Kept> {
    let text = fs::read_to_string(path(subnet_file)).unwrap_or_default();
    let all: Vec<Wire> = serde_json::from_str(&text).unwrap_or_default();
    let kept = all.iter().filter_map(|wire| {
        let backend = BackendConfig::from_json(wire.backend.get()).ok()?;
        Some(Kept {
            backend,
            known: wire.known,
        })
    });
    kept.collect()
}

/// Writes which backends are in use, newest first.
pub(crate) fn write(subnet_file: &Path, all: &[Kept]) {
    let wire = all.iter().filter_map(|kept| {
        Some(Wire {
            backend: RawValue::from_string(kept.backend.to_json()).ok()?,
            known: kept.known,
        })
    });
    let wire: Vec<Wire> = wire.collect();
    let text = serde_json::to_string(&wire).unwrap_or_default() + "\n";
    let path = path(subnet_file);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    let written = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, &path)
    };
    if let Err(error) = written() {
        let _ = fs::remove_file(&temporary);
        warn!(
            "{}: cannot write it: {error}; a restart in the middle of a change of the backend may lose packets",
            path.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use model::NetConfig;

    use super::*;

    #[test]
    fn what_was_in_use_reads_back_and_is_kept_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subnet.env");
        assert_eq!(read(&file), []);
        let config = |backend: &str| {
            let json = format!(r#"{{"Network":"10.1.0.0/16","Backend":{backend}}}"#);
            Kept {
                backend: NetConfig::from_json(&json).unwrap().backend,
                known: backend.contains("PSK"),
            }
        };
        let all = [
            config(r#"{"Type":"wireguard","PSK":"x","MTU":1400}"#),
            config(r#"{"Type":"vxlan","VNI":7}"#),
        ];
        write(&file, &all);
        assert_eq!(read(&file), all);
        let mode = fs::metadata(path(&file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(path(&file), "nonsense").unwrap();
        assert_eq!(read(&file), []);
    }
}
