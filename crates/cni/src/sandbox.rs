//! A container's network namespace: whether it still exists, and what is in it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ipnet::IpNet;
use rustix::fs::OFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netlink::{self, Netlink};

/// A network namespace, held open.
#[derive(Debug)]
pub struct Sandbox {
    file: File,
    id: String,
}

impl Sandbox {
    /// Opens the namespace at `path`; `None` where nothing is there.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Option<Sandbox>> {
        // Without NONBLOCK, opening a FIFO would wait for ever.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(path);
        match opened {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            // What the kernel says of the namespace of a process that has just ended.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                Ok(None)
            }
            other => {
                let file = other?;
                let id = id(&file.metadata()?);
                Ok(Some(Sandbox { file, id }))
            }
        }
    }

    /// Returns what tells this namespace from every other one that exists at the same time.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns whether it is the namespace that this process is in.
    pub fn is_own(&self) -> bool {
        fs::metadata("/proc/self/ns/net").is_ok_and(|own| id(&own) == self.id)
    }

    /// Returns whether there is an interface `name` in it.
    ///
    /// # Errors
    /// The system's, also for what is no network namespace.
    pub fn has_interface(&self, name: &str) -> io::Result<bool> {
        self.inside(|| netlink::index(name))
            .map(|index| index.is_some())
    }

    /// Returns the addresses of the interface `name` in it; `None` where there is no such interface.
    ///
    /// # Errors
    /// The system's, also for what is no network namespace.
    pub fn addresses(&self, name: &str) -> io::Result<Option<Vec<IpNet>>> {
        self.inside(|| match netlink::index(name)? {
            None => Ok(None),
            Some(index) => Netlink::open()?.addresses(index).map(Some),
        })
    }

    /// Runs `job` in the namespace. A thread of its own enters it, so that nothing else of this process can be left in
    /// there.
    fn inside<T: Send>(&self, job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        if self.is_own() {
            return job();
        }
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn_scoped(scope, || {
                    move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                    job()
                })?
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace failed")))
        })
    }
}

fn id(meta: &Metadata) -> String {
    format!("{}:{}", meta.dev(), meta.ino())
}
