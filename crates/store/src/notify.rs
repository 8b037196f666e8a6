//! Notifications of the kernel about changed files of a directory.

#![allow(unsafe_code, reason = "registers a descriptor with the runtime")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// The watch on one directory.
#[derive(Debug)]
pub(crate) struct Notify(AsyncFd<OwnedFd>);

/// What happened since the last time, coalesced by name.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Files that were created, written, replaced or removed.
    pub(crate) names: BTreeSet<OsString>,
    /// Some changes were not notified: look at everything.
    pub(crate) lost_some: bool,
    /// The directory is no longer the one that is watched.
    pub(crate) moved: bool,
}

impl Notify {
    pub(crate) fn new(dir: &Path) -> io::Result<Notify> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // A link makes a file that is complete from the start: CREATE is all there is to see of it.
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, dir, flags)?;
        // SAFETY: the value owns its descriptor, which stays the same for as long as it lives.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Notify(fd))
    }

    /// Waits for changes, and takes all there are. Cancel-safe.
    pub(crate) async fn changes(&self) -> io::Result<Changes> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| read(fd.get_ref())) {
                Ok(changes) => return changes,
                Err(_not_yet) => continue,
            }
        }
    }
}

fn read(fd: &OwnedFd) -> io::Result<Changes> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut reader = Reader::new(fd, &mut buffer);
    let mut changes = Changes::default();
    let mut any = false;
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(Errno::AGAIN) if any => return Ok(changes),
            Err(e) => return Err(e.into()),
        };
        any = true;
        let what = event.events();
        changes.lost_some |= what.contains(ReadFlags::QUEUE_OVERFLOW);
        changes.moved |= what.intersects(
            ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED | ReadFlags::UNMOUNT,
        );
        if let Some(name) = event.file_name() {
            changes
                .names
                .insert(OsString::from_vec(name.to_bytes().to_vec()));
        }
    }
}
