//! What all places of one lab share: the guarded processes and one tmpfs for every file, which
//! only the lab sees.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::error::Doing;
use crate::guard::Guard;
use crate::namespace::{Namespace, in_thread};
use crate::{Error, SHARED_DIR};

/// The lab's mounts and processes.
#[derive(Debug)]
pub(crate) struct Ground {
    mnt: Arc<OwnedFd>,
    guard: Arc<Guard>,
    /// The lab's `/run`, held open: the way into its files from outside.
    run: File,
}

impl Ground {
    /// Lays the ground: a tmpfs on `/run` of a mount namespace of its own, with directories of
    /// programs (`bins`: from where, to where) bound into it. `unlink` is removed when the lab ends,
    /// and `held` is closed after that.
    pub(crate) fn lay(
        bins: &[(PathBuf, &str)],
        unlink: Option<&Path>,
        held: Option<BorrowedFd>,
    ) -> Result<Ground, Error> {
        let guard = Arc::new(Guard::start(unlink, held)?);
        let (mnt, run) = in_thread(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
                .doing(|| "new mount namespace".into())?;
            make_private()?;
            // Opened here, for only what is in this mount namespace can be bound; and before /run
            // is covered, for it may lie below it.
            let opened = bins.iter().map(|(dir, _)| open_path(dir));
            let opened = opened.collect::<Result<Vec<_>, _>>()?;
            mount(
                Some("lab"),
                "/run",
                Some("tmpfs"),
                MsFlags::MS_NOSUID,
                Some("mode=755"),
            )
            .doing(|| "mount a tmpfs on /run".into())?;
            for dir in ["store", "log", "tls", "bin", "kube-bin"] {
                make_dir(&Path::new(SHARED_DIR).join(dir))?;
            }
            for (dir, (_, to)) in opened.iter().zip(bins) {
                bind(&format!("/proc/self/fd/{}", dir.as_raw_fd()), to)?;
            }
            let mnt = File::open("/proc/thread-self/ns/mnt")
                .doing(|| "open the mount namespace".into())?;
            Ok((Arc::new(OwnedFd::from(mnt)), open_path(Path::new("/run"))?))
        })?;
        Ok(Ground { mnt, guard, run })
    }

    /// The directory that every place of the lab sees as [`SHARED_DIR`], by a path that this
    /// process can use.
    pub(crate) fn dir(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}/lab",
            std::process::id(),
            self.run.as_raw_fd()
        ))
    }

    /// The same directory by a path below a namespace's fd that another process can use.
    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// A place that shares the lab's files.
    pub(crate) fn place(&self, name: &str) -> Result<Namespace, Error> {
        Namespace::new(name, &self.mnt, &self.guard, None)
    }

    /// A place with the files of `host`: a pod beside its node.
    pub(crate) fn place_in(&self, name: &str, host: &Namespace) -> Result<Namespace, Error> {
        Namespace::new(name, host.mnt(), &self.guard, None)
    }

    /// A place with `/run` and `/var/lib` of its own: a node.
    pub(crate) fn node(&self, name: &str) -> Result<Namespace, Error> {
        let arrange = || {
            let own = PathBuf::from(format!("/run/nodes/{name}"));
            let (run, var_lib) = (own.join("run"), own.join("lib"));
            make_dir(&run.join("lab"))?;
            make_dir(&var_lib)?;
            bind(SHARED_DIR, &run.join("lab").to_string_lossy())?;
            bind(&var_lib.to_string_lossy(), "/var/lib")?;
            bind(&run.to_string_lossy(), "/run")
        };
        Namespace::new(name, &self.mnt, &self.guard, Some(&arrange))
    }
}

/// No mount of this namespace is seen outside of it, nor one from outside in it.
pub(crate) fn make_private() -> Result<(), Error> {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .doing(|| "make / private".into())
}

/// Opens a file or directory as a place only.
pub(crate) fn open_path(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .doing(|| path.display().to_string())
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).doing(|| path.display().to_string())
}

fn bind(what: &str, to: &str) -> Result<(), Error> {
    mount(
        Some(what),
        to,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .doing(|| format!("bind {what} to {to}"))
}
