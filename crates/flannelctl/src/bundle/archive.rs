//! The archive: files in memory, each without secrets, in one directory.

use std::io;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};

use super::secrets::Secrets;

/// Bytes of the longest file; of a longer one the end is kept.
const LONGEST: usize = 16 << 20;

/// A `.tar.gz` while it is written.
pub(super) struct Archive {
    dir: String,
    time: u64,
    secrets: Secrets,
    tar: Builder<GzEncoder<Vec<u8>>>,
}

impl Archive {
    /// Begins an archive whose files are all in the directory `dir`.
    pub(super) fn new(dir: String, time: u64, secrets: Secrets) -> Archive {
        let gzip = GzEncoder::new(Vec::new(), Compression::default());
        Archive {
            dir,
            time,
            secrets,
            tar: Builder::new(gzip),
        }
    }

    /// Adds a file, without what is secret in `text`.
    ///
    /// # Errors
    /// The name is too long for an archive.
    pub(super) fn add(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut start = text.len().saturating_sub(LONGEST);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        let text = self.secrets.remove(&text[start..]);
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        let path = format!("{}/{name}", self.dir);
        self.tar.append_data(&mut header, path, text.as_bytes())
    }

    /// Ends the archive; returns its bytes.
    pub(super) fn finish(self) -> Result<Vec<u8>> {
        Ok(self.tar.into_inner()?.finish()?)
    }
}
