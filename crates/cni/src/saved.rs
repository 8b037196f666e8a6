//! The delegates' configurations, kept from ADD to DEL.
//!
//! A container's first attachment is `<dataDir>/<container>`, as upstream's plugin has it, so that either plugin can end
//! what the other began. Each further one is `<dataDir>/<container>@<interface>`. Beside the delegate's configuration a
//! file holds [`Origin`] under a key that delegates ignore. The directory is treated as hostile: no link is followed,
//! only a regular file of root's is read, and what is read is checked.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::delegate::is_plugin_name;
use crate::failure::{Code, Failure, note};
use crate::files;
use crate::network::decode_object;
use crate::object::Object;
use crate::request::{is_identifier, is_interface};

/// A temporary file begins with this, which no container's identifier does.
const TEMPORARY: &str = ".new-";
/// A temporary file of this age belongs to a plugin that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Between container and interface in a file's name; no container's identifier contains it.
const SEPARATOR: char = '@';
/// Where a saved file holds its [`Origin`].
const ORIGIN: &str = "flannelAttachment";

/// What ADD was asked for, apart from the delegate's configuration. Upstream's files do not have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// The namespace's [`crate::sandbox::Sandbox::id`]: a path can name another namespace later. Empty where it could not
    /// be read.
    #[serde(default)]
    pub id: String,
}

/// The directory of saved configurations.
#[derive(Clone, Debug)]
pub struct Saved<'a>(pub &'a Path);

/// What is kept of an attachment.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Nothing: it was never added, or is deleted already.
    Absent,
    /// The configuration that its delegate was given, and what else was saved with it.
    Config(Object, Option<Origin>),
    /// Something that no delegate could be run with, and why.
    Broken(String),
}

/// The file of one attachment.
#[derive(Clone, Debug)]
pub struct SavedFile {
    /// Where it is.
    pub path: PathBuf,
    /// The container.
    pub container: String,
    /// The interface that the file's name says, if it says one.
    pub named: Option<String>,
}

/// A configuration that was just saved, and what it replaced.
#[derive(Debug)]
pub struct Written {
    file: SavedFile,
    /// The text of the attachment's earlier file.
    previous: Option<Vec<u8>>,
}

impl Saved<'_> {
    fn plain(&self, container: &str) -> SavedFile {
        SavedFile {
            path: self.0.join(container),
            container: container.to_owned(),
            named: None,
        }
    }

    fn with_interface(&self, container: &str, ifname: &str) -> SavedFile {
        SavedFile {
            path: self.0.join(format!("{container}{SEPARATOR}{ifname}")),
            container: container.to_owned(),
            named: Some(ifname.to_owned()),
        }
    }

    /// Finds what is kept of the attachment of `container` by `ifname`, and in which file. A file of upstream's, which
    /// does not say its interface, counts for whichever interface is asked for.
    pub fn find(&self, container: &str, ifname: &str) -> (SavedFile, Entry) {
        let own = self.with_interface(container, ifname);
        match own.read() {
            Entry::Absent => {}
            entry => return (own, entry),
        }
        let plain = self.plain(container);
        match plain.read() {
            Entry::Config(_, Some(origin)) if origin.ifname != ifname => (plain, Entry::Absent),
            entry => (plain, entry),
        }
    }

    /// Saves the configuration of an attachment: whole or not at all, readable by root only.
    ///
    /// It is not forced to disk, which would cost more than all the rest: after a power cut no container is
    /// left, and DEL can handle a broken file.
    ///
    /// # Errors
    /// [`Code::Io`] with the path.
    pub fn write(
        &self,
        container: &str,
        config: &Object,
        origin: &Origin,
    ) -> Result<Written, Failure> {
        let plain = self.plain(container);
        let mut file = match plain.read() {
            Entry::Absent | Entry::Broken(_) => plain,
            Entry::Config(_, Some(old)) if old.ifname == origin.ifname => plain,
            Entry::Config(..) => self.with_interface(container, &origin.ifname),
        };
        // A container's later attachment stays where it is when the first one is gone.
        let own = self.with_interface(container, &origin.ifname);
        if file.named.is_none() && fs::symlink_metadata(&own.path).is_ok() {
            file = own;
        }
        let previous = match file.read() {
            Entry::Config(..) => files::read_private(&file.path).ok(),
            _ => None,
        };
        let mut config = config.clone();
        let text = config
            .set(ORIGIN, origin)
            .and_then(|()| serde_json::to_vec(&config))
            .map_err(io::Error::from);
        self.replace(&file, text)?;
        Ok(Written { file, previous })
    }

    fn replace(&self, file: &SavedFile, text: io::Result<Vec<u8>>) -> Result<(), Failure> {
        let failed = |what: &str, error: io::Error| {
            Failure::new(
                Code::Io,
                format!("{}: {what}: {error}", file.path.display()),
            )
            .advise("the delegate's configuration must be saved there for DEL; see \"dataDir\"")
        };
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
        opened
            .and_then(|mut out| out.write_all(&text?))
            .and_then(|()| fs::rename(&temporary, &file.path))
            .map_err(|error| {
                let _ = fs::remove_file(&temporary);
                failed("cannot save", error)
            })
    }

    /// Ends an ADD that failed: the attachment's earlier file is put back, or there is none again.
    ///
    /// # Errors
    /// [`Code::Io`] with the path.
    pub fn restore(&self, written: Written) -> Result<(), Failure> {
        match written.previous {
            Some(text) => self.replace(&written.file, Ok(text)),
            None => written.file.remove(),
        }
    }

    /// Lists the files of attachments, in order, and removes temporary files that nobody will finish.
    ///
    /// # Errors
    /// [`Code::Io`] with the directory; one that does not exist holds nothing.
    pub fn list(&self) -> Result<Vec<SavedFile>, Failure> {
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
        let mut found = Vec::new();
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
                continue;
            }
            let file = match name.split_once(SEPARATOR) {
                Some((container, ifname)) if is_interface(ifname) => {
                    self.with_interface(container, ifname)
                }
                Some(_) => continue,
                None => self.plain(&name),
            };
            if is_identifier(&file.container) && entry.file_type().is_ok_and(|kind| !kind.is_dir())
            {
                found.push(file);
            }
        }
        found.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(found)
    }
}

impl SavedFile {
    /// Reads it. Where it cannot even be said whether something is kept, such as on a damaged disk, that counts as
    /// broken: DEL must still be able to end.
    pub fn read(&self) -> Entry {
        let bytes = match files::read_private(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Entry::Absent,
            Err(_) if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.is_symlink()) => {
                return Entry::Broken("a symbolic link, which is not followed".to_owned());
            }
            // Of an interface that has no file of its own there is nothing to say where the directory is unusable.
            Err(error) if error.raw_os_error().is_some() && self.named.is_some() => {
                return Entry::Absent;
            }
            Err(error) => return Entry::Broken(error.to_string()),
        };
        let mut config = match decode_object(&bytes, "it") {
            Err(failure) => return Entry::Broken(failure.to_string()),
            Ok(config) => config,
        };
        match config.decode::<String>("type") {
            // Not this plugin's own name either, which no ADD saves.
            Ok(Some(name)) if is_plugin_name(&name) && name != "flannel" => {}
            _ => return Entry::Broken("its \"type\" is not a delegate's name".to_owned()),
        }
        let origin = config
            .decode::<Origin>(ORIGIN)
            .ok()
            .flatten()
            .filter(|origin| is_interface(&origin.ifname));
        config.remove(ORIGIN);
        Entry::Config(config, origin)
    }

    /// Removes it; one that is gone already is no error.
    ///
    /// # Errors
    /// [`Code::Io`] with the path.
    pub fn remove(&self) -> Result<(), Failure> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::new(
                Code::Io,
                format!("{}: cannot be removed: {error}", self.path.display()),
            )),
            _ => Ok(()),
        }
    }

    /// Removes it after the delegate's DEL. The container is detached by then, so that a read-only file system is not a
    /// reason to fail; a later DEL of the same container does no harm.
    pub fn forget(&self) {
        if let Err(failure) = self.remove() {
            note(format_args!("{failure}; the container is detached"));
        }
    }
}

impl Written {
    /// Returns whether the attachment had a file before.
    pub fn replaced(&self) -> bool {
        self.previous.is_some()
    }
}
