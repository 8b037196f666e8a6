//! The delegates' configurations, kept from ADD to DEL as `<dataDir>/<container>`.
//!
//! Name and content are the same as upstream's, so that either plugin can end what the other began.
//! The directory is taken for hostile all the same: no link is followed, nothing but a regular file
//! is read, and what is read is checked.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::delegate::is_plugin_name;
use crate::failure::{Code, Failure};
use crate::files;
use crate::network::decode_object;
use crate::object::Object;
use crate::request::is_identifier;

/// A temporary file begins with this, which no container's identifier does.
const TEMPORARY: &str = ".new-";
/// A temporary file of this age belongs to a plugin that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The directory of saved configurations.
#[derive(Clone, Debug)]
pub struct Saved<'a>(pub &'a Path);

/// What is kept of a container.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Nothing: it was never added, or is deleted already.
    Absent,
    /// The configuration that its delegate was given.
    Config(Object),
    /// Something that no delegate could be run with, and why.
    Broken(String),
}

impl Saved<'_> {
    fn file(&self, container: &str) -> PathBuf {
        self.0.join(container)
    }

    /// Saves a container's configuration: whole or not at all, readable by root only. Returns whether
    /// there was none before.
    ///
    /// It is not forced to disk, which would cost more than all the rest: after a power cut no container is
    /// left, and DEL knows what to do with a broken file.
    ///
    /// # Errors
    /// [`Code::Io`] with the path.
    pub fn write(&self, container: &str, config: &Object) -> Result<bool, Failure> {
        let file = self.file(container);
        let failed = |what: &str, error: io::Error| {
            Failure::new(Code::Io, format!("{}: {what}: {error}", file.display()))
                .advise("the delegate's configuration must be saved there for DEL; see \"dataDir\"")
        };
        let new = fs::symlink_metadata(&file).is_err();
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let temporary = self.0.join(format!(
            "{TEMPORARY}{}-{}",
            std::process::id(),
            now.as_nanos()
        ));
        let open = || {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)
        };
        let opened = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(self.0)
                    .map_err(|error| failed("cannot make its directory", error))?;
                open()
            }
            other => other,
        };
        let text = serde_json::to_vec(config).map_err(io::Error::from);
        opened
            .and_then(|mut out| out.write_all(&text?))
            .and_then(|()| fs::rename(&temporary, &file))
            .map_err(|error| {
                let _ = fs::remove_file(&temporary);
                failed("cannot save", error)
            })?;
        Ok(new)
    }

    /// Reads what is kept of a container.
    ///
    /// # Errors
    /// [`Code::Io`] where it cannot even be said whether something is kept.
    pub fn read(&self, container: &str) -> Result<Entry, Failure> {
        let file = self.file(container);
        let broken = |why: &dyn std::fmt::Display| Ok(Entry::Broken(why.to_string()));
        let bytes = match files::read_no_link(&file) {
            Ok(bytes) => bytes,
            Err(error) => {
                return match error.kind() {
                    ErrorKind::NotFound => Ok(Entry::Absent),
                    _ if fs::symlink_metadata(&file).is_ok_and(|meta| meta.is_symlink()) => {
                        broken(&"a symbolic link, which is not followed")
                    }
                    ErrorKind::InvalidData => broken(&error),
                    _ => Err(Failure::new(
                        Code::Io,
                        format!("{}: cannot be read: {error}", file.display()),
                    )),
                };
            }
        };
        match decode_object(&bytes, "it") {
            Err(failure) => broken(&failure),
            Ok(config) => match config.decode::<String>("type") {
                Ok(Some(name)) if is_plugin_name(&name) => Ok(Entry::Config(config)),
                _ => broken(&"its \"type\" is not a plugin's name"),
            },
        }
    }

    /// Forgets a container; nothing to forget is no error.
    ///
    /// # Errors
    /// [`Code::Io`] with the path.
    pub fn remove(&self, container: &str) -> Result<(), Failure> {
        let file = self.file(container);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::new(
                Code::Io,
                format!("{}: cannot be removed: {error}", file.display()),
            )),
            _ => Ok(()),
        }
    }

    /// The containers of which something is kept, in order. Removes temporary files that nobody will
    /// finish.
    ///
    /// # Errors
    /// [`Code::Io`] with the directory; one that does not exist holds nothing.
    pub fn containers(&self) -> Result<Vec<String>, Failure> {
        let failed = |error: io::Error| {
            Failure::new(
                Code::Io,
                format!("{}: cannot be listed: {error}", self.0.display()),
            )
        };
        let entries = match fs::read_dir(self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut containers = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(TEMPORARY) {
                let age = entry
                    .metadata()
                    .and_then(|meta| meta.modified())
                    .map(|at| at.elapsed().unwrap_or_default());
                if age.is_ok_and(|age| age > ABANDONED) {
                    let _ = fs::remove_file(entry.path());
                }
            } else if is_identifier(&name) && entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
                containers.push(name);
            }
        }
        containers.sort();
        Ok(containers)
    }
}
