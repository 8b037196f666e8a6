//! The files themselves. Everything here blocks, and runs on a thread where that is allowed.
//!
//! A lease's file is complete from the moment it has its name: it is written elsewhere, then
//! linked (which fails if the name is there) or renamed over the old one. Changes are made under
//! a lock on `.lock`, so that checking the state of the file and changing it are one step among our
//! own daemons. On one machine that is certain. On a shared file system creation is still
//! exclusive (`link` is atomic on NFS too), while replacing relies on its locks; where it has
//! none, the loser of a race finds the other's file in its place and gives the subnet up.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::SubnetKey;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::disk_clock::DiskClock;
use super::entry::Entry;
use super::file_id::FileId;

/// No lease is larger.
const LARGEST: u64 = 64 << 10;
/// A temporary file this old was left behind by a crash.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// The lock is held for milliseconds.
const LOCKED: Duration = Duration::from_secs(4);

/// Where a network's files are.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    pub clock: DiskClock,
}

/// One look at a lease's file.
#[derive(Debug)]
pub(super) enum Look {
    /// As it was when it was last read.
    Same,
    /// A lease.
    Lease(Entry, FileId),
    /// There is an empty file: one that is about to be written, or that never was.
    Empty(FileId),
    /// There is something, but no lease: the reason, and its state if that could be seen.
    Bad(String, Option<FileId>),
    /// There is no file.
    Gone,
}

/// What became of a change.
#[derive(Debug)]
pub(super) enum Changed {
    /// Made: the file's new state.
    Done(FileId),
    /// Not made, because of what is there instead.
    Differs(Blocker),
}

/// What prevents a change.
#[derive(Debug)]
pub(super) enum Blocker {
    /// The file is not as expected, or is gone.
    File,
    /// Another lease shares addresses with ours.
    Overlap(SubnetKey),
}

/// The names in the directory of leases.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub keys: Vec<SubnetKey>,
    /// What names no subnet.
    pub foreign: Vec<String>,
    /// The directory's own state, from before it was read.
    pub dir: Option<FileId>,
}

impl Place {
    pub(super) fn new(root: PathBuf) -> Place {
        Place {
            root,
            clock: DiskClock::default(),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    pub(super) fn subnets(&self) -> PathBuf {
        self.root.join("subnets")
    }

    fn subnet(&self, key: &SubnetKey) -> PathBuf {
        self.subnets().join(key.to_string())
    }

    /// Creates the directories where they are missing; returns whether any was.
    pub(super) fn prepare(&self) -> io::Result<bool> {
        let missing = !self.subnets().is_dir();
        if missing {
            std::fs::create_dir_all(self.subnets())?;
        }
        for file in std::fs::read_dir(&self.root)?.flatten() {
            let name = file.file_name();
            let temporary = name
                .to_str()
                .is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp"));
            // By the file system's clock: another machine may be writing it at present.
            let age = || {
                let written = FileId::of(&file.metadata().ok()?).modified_ms();
                Some(self.clock.now_ms().saturating_sub(written))
            };
            if temporary && age().is_some_and(|age| u128::from(age) > LEFT_BEHIND.as_millis()) {
                let _ = std::fs::remove_file(file.path());
            }
        }
        Ok(missing)
    }

    /// Compares this machine's clock with the file system's, by a file that is written for it. Returns by
    /// how many milliseconds this machine is ahead; `None` if no file can be written.
    pub(super) fn measure_clock(&self) -> Option<i64> {
        let probe = self.temporary("clock");
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let file = options.open(&probe.0).ok()?;
        let written = FileId::of(&file.metadata().ok()?).modified_ms();
        Some(self.clock.measured(i64::try_from(written).unwrap_or(0)))
    }

    /// Returns the state of the directory of leases, and whether there is a configuration alongside.
    pub(super) fn stat(&self) -> (io::Result<FileId>, bool) {
        (
            std::fs::metadata(self.subnets()).map(|meta| FileId::of(&meta)),
            self.config().exists(),
        )
    }

    pub(super) fn names(&self) -> io::Result<Names> {
        let dir = Some(FileId::of(&std::fs::metadata(self.subnets())?));
        let mut names = Names {
            dir,
            ..Names::default()
        };
        for file in std::fs::read_dir(self.subnets())? {
            let name = file?.file_name();
            match parse_name(&name) {
                Some(key) => names.keys.push(key),
                None => names.foreign.push(name.to_string_lossy().into_owned()),
            }
        }
        Ok(names)
    }

    /// Looks at a lease's file. `known` is the digest of the state that was read before.
    ///
    /// # Errors
    /// The file system failed: nothing can be said about the file.
    pub(super) fn look(&self, key: &SubnetKey, known: Option<NonZeroU64>) -> io::Result<Look> {
        let path = self.subnet(key);
        if known.is_some()
            && std::fs::metadata(&path).is_ok_and(|meta| Some(FileId::of(&meta).digest()) == known)
        {
            return Ok(Look::Same);
        }
        // Not to hang on a pipe that somebody put there.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = match file {
            Ok(file) => file,
            Err(e) => match e.kind() {
                ErrorKind::NotFound => return Ok(Look::Gone),
                ErrorKind::PermissionDenied => {
                    return Ok(Look::Bad(e.to_string(), None));
                }
                // A symbolic link that leads to itself; a socket.
                _ if matches!(Errno::from_io_error(&e), Some(Errno::LOOP | Errno::NXIO)) => {
                    return Ok(Look::Bad(e.to_string(), None));
                }
                _ => return Err(e),
            },
        };
        let meta = file.metadata()?;
        let id = FileId::of(&meta);
        if !meta.is_file() {
            return Ok(Look::Bad("not a regular file".into(), Some(id)));
        }
        if meta.len() > LARGEST {
            return Ok(Look::Bad(
                format!("{} bytes are too many", meta.len()),
                Some(id),
            ));
        }
        let mut json = vec![0; usize::try_from(meta.len()).unwrap_or(0)];
        let mut file = file.take(LARGEST);
        let read = file.read(&mut json)?;
        if read < json.len() {
            json.truncate(read);
            file.read_to_end(&mut json)?;
        }
        Ok(match Entry::parse(&json) {
            Ok(entry) => Look::Lease(entry, id),
            Err(_) if json.is_empty() => Look::Empty(id),
            Err(e) => Look::Bad(e.to_string(), Some(id)),
        })
    }

    /// Looks at each file in turn. Files that are gone together with their directory are not gone.
    pub(super) fn look_at_each(
        &self,
        keys: Vec<(SubnetKey, Option<NonZeroU64>)>,
    ) -> io::Result<Vec<(SubnetKey, Look)>> {
        let mut looks = Vec::with_capacity(keys.len());
        for (key, known) in keys {
            looks.push((key, self.look(&key, known)?));
        }
        if looks.iter().any(|(_, look)| matches!(look, Look::Gone)) {
            self.stat().0?;
        }
        Ok(looks)
    }

    /// Creates the lease `key`, unless a lease that has not ended has any of its addresses.
    pub(super) fn create(&self, key: &SubnetKey, entry: &Entry) -> io::Result<Changed> {
        let (new, id) = self.write_temporary(key, entry)?;
        let _lock = self.lock()?;
        for other in self
            .names()?
            .keys
            .iter()
            .filter(|other| *other != key && other.overlaps(key))
        {
            if !self.is_free(other)? {
                return Ok(Changed::Differs(Blocker::Overlap(*other)));
            }
        }
        match std::fs::hard_link(&new.0, self.subnet(key)) {
            Ok(()) => return Ok(Changed::Done(id)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        if !self.is_free(key)? {
            return Ok(Changed::Differs(Blocker::File));
        }
        std::fs::rename(&new.0, self.subnet(key))?;
        Ok(Changed::Done(id))
    }

    /// Returns whether there is no lease, or one that has ended.
    fn is_free(&self, key: &SubnetKey) -> io::Result<bool> {
        Ok(match self.look(key, None)? {
            Look::Gone => true,
            Look::Empty(id) => !id.is_young(self.clock.now()),
            Look::Lease(
                Entry {
                    expires: Some(end), ..
                },
                _,
            ) => end <= self.clock.now(),
            _ => false,
        })
    }

    /// Has the file of `key` written to the disk, which may take long. Until then a power cut can
    /// leave it empty; that is why an empty file is nobody's.
    pub(super) fn sync(&self, key: &SubnetKey) -> io::Result<()> {
        File::open(self.subnet(key))?.sync_data()
    }

    /// Replaces the file of `key`, if it is still in the state `was`, by what `new` makes of the lease in it.
    pub(super) fn replace(
        &self,
        key: &SubnetKey,
        was: FileId,
        new: impl FnOnce(Option<Entry>) -> Entry,
    ) -> io::Result<Changed> {
        let _lock = self.lock()?;
        if !self.is_still(key, was)? {
            return Ok(Changed::Differs(Blocker::File));
        }
        let old = match self.look(key, None)? {
            Look::Lease(old, _) => Some(old),
            _ => None,
        };
        let (new, id) = self.write_temporary(key, &new(old))?;
        std::fs::rename(&new.0, self.subnet(key))?;
        Ok(Changed::Done(id))
    }

    /// Removes the file of `key`, if it is still in the state `was`. Returns whether it did, or there was none.
    pub(super) fn remove(&self, key: &SubnetKey, was: FileId) -> io::Result<bool> {
        let _lock = self.lock()?;
        if self.is_still(key, was)? {
            std::fs::remove_file(self.subnet(key))?;
            return Ok(true);
        }
        Ok(matches!(self.look(key, None)?, Look::Gone))
    }

    fn is_still(&self, key: &SubnetKey, was: FileId) -> io::Result<bool> {
        match std::fs::metadata(self.subnet(key)) {
            Ok(meta) => Ok(FileId::of(&meta) == was),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Returns a temporary name for a file that is about to become `name`.
    pub(super) fn temporary(&self, name: &str) -> Temporary {
        // Not in the directory of leases: that would notify every daemon.
        let name = format!(
            ".{name}.{}.{:016x}.tmp",
            std::process::id(),
            fastrand::u64(..)
        );
        Temporary(self.root.join(name))
    }

    fn write_temporary(&self, key: &SubnetKey, entry: &Entry) -> io::Result<(Temporary, FileId)> {
        let temporary = self.temporary(&key.to_string());
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temporary.0)?;
        file.write_all(entry.render().as_bytes())?;
        Ok((temporary, FileId::of(&file.metadata()?)))
    }

    /// Waits for the lock, which every change needs. Released when dropped, and by the kernel when the
    /// process ends.
    ///
    /// # Errors
    /// Another process does not release the lock.
    #[expect(
        clippy::disallowed_methods,
        reason = "file work has threads that may block"
    )]
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let path = self.root.join(".lock");
        let began = Instant::now();
        loop {
            let file = open_lock(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Somebody may have removed the file, and others lock a new one.
                Ok(()) if is_at(&file, &path)? => return Ok(Some(file)),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    if began.elapsed() >= LOCKED {
                        return Err(held(&path));
                    }
                    std::thread::sleep(Duration::from_millis(fastrand::u64(1..8)));
                }
                Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Opens the lock's file. Only its owner may: a process that can open a file can lock it for ever.
fn open_lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let permissions = file.metadata()?.permissions();
    if permissions.mode() & 0o077 != 0 {
        // Made by an earlier release. If it belongs to another user, that is for them to change.
        let _ = file.set_permissions(PermissionsExt::from_mode(0o600));
    }
    Ok(file)
}

/// Whether `path` still is `file`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(there) => Ok(there.ino() == file.metadata()?.ino()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn held(path: &Path) -> io::Error {
    let (path, seconds) = (path.display(), LOCKED.as_secs());
    io::Error::new(
        ErrorKind::WouldBlock,
        format!(
            "{path} has been locked by another process for {seconds} s: find it with \"fuser -v {path}\" and end it, \
             or delete the file"
        ),
    )
}

/// The subnet that a file is named after. Only the one name that we would give it counts: two
/// files of one subnet cannot be.
pub(super) fn parse_name(name: &std::ffi::OsStr) -> Option<SubnetKey> {
    let name = name.to_str()?;
    let key: SubnetKey = name.parse().ok()?;
    (key.to_string() == name).then_some(key)
}

/// A file that is deleted with the value, unless it was renamed.
pub(super) struct Temporary(PathBuf);

impl Temporary {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
