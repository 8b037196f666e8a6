//! The backends that this daemon has in use, kept beside `subnet.env`: a daemon that ends in the middle of a change
//! from one to another, or starts after one, goes on with both. May hold a secret of the configuration, so that
//! only its owner reads it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use model::BackendConfig;
use serde_json::value::RawValue;
use tracing::warn;

/// Returns where it is.
pub fn path(subnet_file: &Path) -> PathBuf {
    let mut name = subnet_file.as_os_str().to_owned();
    name.push(".backends");
    name.into()
}

/// Reads which backends were in use, newest first. What cannot be read was none.
pub(crate) fn read(subnet_file: &Path) -> Vec<BackendConfig> {
    let text = fs::read_to_string(path(subnet_file)).unwrap_or_default();
    let all: Vec<Box<RawValue>> = serde_json::from_str(&text).unwrap_or_default();
    all.iter()
        .filter_map(|json| BackendConfig::from_json(json.get()).ok())
        .collect()
}

/// Writes which backends are in use, newest first.
pub(crate) fn write<'a>(subnet_file: &Path, all: impl Iterator<Item = &'a BackendConfig>) {
    let all: Vec<String> = all.map(BackendConfig::to_json).collect();
    let text = format!("[{}]\n", all.join(","));
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
            NetConfig::from_json(&json).unwrap().backend
        };
        let all = [
            config(r#"{"Type":"wireguard","PSK":"x","MTU":1400}"#),
            config(r#"{"Type":"vxlan","VNI":7}"#),
        ];
        write(&file, all.iter());
        assert_eq!(read(&file), all);
        let mode = fs::metadata(path(&file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(path(&file), "nonsense").unwrap();
        assert_eq!(read(&file), []);
    }
}
