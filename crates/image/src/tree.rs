//! The files of an image, in memory, in the order of their names.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;

/// One thing in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory, mode 0755.
    Dir,
    /// A file.
    File {
        /// Its permission bits.
        mode: u32,
        /// Its content.
        bytes: Vec<u8>,
    },
    /// A symbolic link to what is named.
    Link(String),
}

/// Paths without a leading slash, and what is there. All belong to root.
#[derive(Debug, Default)]
pub struct Tree(BTreeMap<String, Entry>);

impl Tree {
    /// Adds a directory and those above it.
    ///
    /// # Errors
    /// Something else is there.
    pub fn dir(&mut self, path: &str) -> Result<()> {
        self.add(path, Entry::Dir)
    }

    /// Adds a file and the directories above it.
    ///
    /// # Errors
    /// Something else is there.
    pub fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) -> Result<()> {
        self.add(path, Entry::File { mode, bytes })
    }

    /// Adds a symbolic link and the directories above it.
    ///
    /// # Errors
    /// Something else is there.
    pub fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.add(path, Entry::Link(to.into()))
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<()> {
        for (slash, _) in path.match_indices('/') {
            let above = &path[..slash];
            if *self.0.entry(above.into()).or_insert(Entry::Dir) != Entry::Dir {
                bail!("/{path}: /{above} is no directory");
            }
        }
        if *self.0.entry(path.into()).or_insert_with(|| entry.clone()) != entry {
            bail!("two different things are to be /{path}");
        }
        Ok(())
    }

    /// Everything, in the order of the names: a directory before what is in it.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// All files together, in bytes.
    pub fn size(&self) -> usize {
        let sizes = self.0.values().map(|entry| match entry {
            Entry::File { bytes, .. } => bytes.len(),
            Entry::Dir | Entry::Link(_) => 0,
        });
        sizes.sum()
    }

    /// Writes everything below a directory.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn write_below(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for (path, entry) in self.entries() {
            let path = dir.join(path);
            let written = match entry {
                Entry::Dir => fs::create_dir_all(&path),
                Entry::File { mode, bytes } => fs::write(&path, bytes)
                    .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(*mode))),
                Entry::Link(to) => symlink(to, &path),
            };
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Compressed by gzip, without a name or a date.
///
/// # Errors
/// None known.
pub fn packed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(bytes)?;
    Ok(packed.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_by_themselves_and_contradictions_are_errors() {
        let mut tree = Tree::default();
        tree.file("opt/bin/flanneld", 0o755, b"one".to_vec())
            .unwrap();
        tree.file("opt/bin/flanneld", 0o755, b"one".to_vec())
            .unwrap();
        tree.link("lib", "usr/lib").unwrap();
        let names: Vec<&str> = tree.entries().map(|(path, _)| path).collect();
        assert_eq!(names, ["lib", "opt", "opt/bin", "opt/bin/flanneld"]);
        assert_eq!(tree.size(), 3);

        let said = tree.file("lib/libc.so.6", 0o755, Vec::new()).unwrap_err();
        assert_eq!(said.to_string(), "/lib/libc.so.6: /lib is no directory");
        let said = tree.file("opt/bin/flanneld", 0o755, b"two".to_vec());
        assert!(said.unwrap_err().to_string().contains("/opt/bin/flanneld"));
    }
}
