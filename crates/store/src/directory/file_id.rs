//! Whether a file is still in the state that was observed.

use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;

/// Identifies one state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    ino: u64,
    mtime: (i64, i64),
    size: u64,
}

impl FileId {
    pub(super) fn of(meta: &Metadata) -> FileId {
        FileId {
            ino: meta.ino(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: meta.size(),
        }
    }

    /// The same in eight bytes.
    pub(super) fn digest(&self) -> NonZeroU64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MAX)
    }

    /// It is the same file, or the same directory, whatever happened in it.
    pub(super) fn same_inode(&self, other: &FileId) -> bool {
        self.ino == other.ino
    }

    /// When it was last changed, in milliseconds of the epoch.
    pub(super) fn modified_ms(&self) -> u64 {
        let (seconds, nanoseconds) = self.mtime;
        u64::try_from(
            seconds
                .saturating_mul(1000)
                .saturating_add(nanoseconds / 1_000_000),
        )
        .unwrap_or(0)
    }

    /// The same file in a state that is never seen: whatever is seen next differs.
    pub(super) fn unsettled(self) -> FileId {
        FileId {
            mtime: (0, -1),
            ..self
        }
    }

    /// Changed so lately that a further change might not show in its times. `now`: the file system's
    /// time, in seconds of the epoch. A file from the future is not young: it would stay so for long.
    pub(super) fn is_young(&self, now: u64) -> bool {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        (now - 2..=now + 2).contains(&self.mtime.0)
    }
}
