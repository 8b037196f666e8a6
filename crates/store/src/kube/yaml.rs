//! Values of a kubeconfig as YAML, read by their keys.

use std::path::{Path, PathBuf};

use yaml_rust2::Yaml;

/// A mapping, and the file that it is in.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub map: &'a Yaml,
    pub path: &'a Path,
}

/// Returns the text of `key`, if it is there and not empty.
pub(super) fn string(map: &Yaml, key: &str) -> Result<Option<String>, String> {
    match &map[key] {
        Yaml::BadValue | Yaml::Null => Ok(None),
        value => match scalar(value) {
            Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
            None => Err(format!("{key} is not text")),
        },
    }
}

/// Returns a value as text. An unquoted token or name may look like something else.
pub(super) fn scalar(value: &Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// Returns whether `key` is true; missing is false.
pub(super) fn boolean(map: &Yaml, key: &str) -> Result<bool, String> {
    match &map[key] {
        Yaml::BadValue | Yaml::Null => Ok(false),
        Yaml::Boolean(yes) => Ok(*yes),
        _ => Err(format!("{key} is neither true nor false")),
    }
}

/// Returns the list of `key`; missing is empty.
pub(super) fn list<'a>(map: &'a Yaml, key: &str) -> Result<&'a [Yaml], String> {
    match &map[key] {
        Yaml::BadValue | Yaml::Null => Ok(&[]),
        Yaml::Array(entries) => Ok(entries),
        _ => Err(format!("{key} is not a list")),
    }
}

/// Returns the entry called `name` of a list like `clusters`, in the first file that has one.
pub(super) fn named<'a>(
    files: &'a [(&'a Path, Yaml)],
    list: &str,
    kind: &str,
    name: &str,
) -> Result<At<'a>, String> {
    for (path, config) in files {
        let entries = config[list].as_vec().map(Vec::as_slice).unwrap_or_default();
        let found = entries
            .iter()
            .find(|entry| string(entry, "name").is_ok_and(|n| n.as_deref() == Some(name)));
        if let Some(entry) = found {
            return Ok(At {
                map: &entry[kind],
                path,
            });
        }
    }
    Err(format!("{list} has no {name:?}"))
}

/// Returns the path of `file`, which a relative path names from the directory of `path`.
pub(super) fn relative_to(path: &Path, file: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(file)
}
