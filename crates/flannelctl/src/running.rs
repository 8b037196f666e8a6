//! The labs that run in the background: a file for each, which says where the lab is. Whoever builds a
//! lab locks its file first, and the lab's guard holds that lock until the lab has ended and the file
//! is removed, so a name belongs to one lab at a time.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::Handles;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// What the file of a lab says.
#[derive(Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) name: String,
    /// The arguments that it was made with.
    pub(crate) shape: Vec<String>,
    pub(crate) handles: Handles,
}

/// How long a lock may be held by somebody who only looks whether a lab is alive.
const GLANCE: Duration = Duration::from_millis(500);

/// The locked file of a lab that is being built.
pub(crate) struct Claim {
    file: File,
    path: PathBuf,
    published: bool,
}

/// Environment variable that overrides the directory; set for commands beside a lab, which may
/// not be able to tell whose lab it is.
pub(crate) const DIR_VAR: &str = "FLANNEL_LAB_DIR";

/// The directory of the files; made when it is not there.
pub(crate) fn dir() -> Result<PathBuf> {
    let uid = nix::unistd::geteuid();
    let dir = if let Some(dir) = std::env::var_os(DIR_VAR) {
        PathBuf::from(dir)
    } else if uid.is_root() && !lab::user_namespace() {
        "/run/flannel-lab".into()
    } else if let Some(dir) =
        std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir())
    {
        Path::new(&dir).join("flannel-lab")
    } else {
        std::env::temp_dir().join(format!("flannel-lab-{uid}"))
    };
    let shown = dir.display();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("make {shown}"))?;
    let owner = fs::symlink_metadata(&dir).with_context(|| format!("{shown}"))?;
    if !owner.is_dir() || owner.uid() != uid.as_raw() {
        bail!(
            "{shown} is not a directory of this user's: remove it, or name another one in {DIR_VAR}"
        );
    }
    Ok(dir)
}

/// The file of the lab called `name`.
pub(crate) fn file(name: &str) -> Result<PathBuf> {
    Ok(dir()?.join(format!("{name}.json")))
}

impl Running {
    /// The lab called `name`.
    pub(crate) fn find(name: &str) -> Result<Running> {
        match read(&file(name)?)? {
            State::Up(running) => Ok(*running),
            State::Building => bail!("the lab called {name} is still being built"),
            State::None => {
                bail!("there is no lab called {name}; `flannelctl lab up --name={name}` makes one")
            }
        }
    }

    /// Every lab, by name.
    pub(crate) fn all() -> Result<Vec<Running>> {
        let dir = dir()?;
        let mut all = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("{}", dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "json")
                && let State::Up(running) = read(&path)?
            {
                all.push(*running);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Waits until nothing of it is left.
    pub(crate) fn wait_gone(&self) -> Result<()> {
        // The guard ends last, and removes the file just before.
        let guard = format!("/proc/{}/comm", self.handles.guard);
        let gone = || match fs::read_to_string(&guard) {
            Ok(name) if name.trim() == "lab-guard" => Err("its processes are still there"),
            _ => Ok(()),
        };
        Ok(lab::wait_for(
            &format!("lab {} is gone", self.name),
            Duration::from_secs(60),
            gone,
        )?)
    }
}

impl Claim {
    /// Takes the name of a lab: nobody else builds one under it until this lab has ended.
    ///
    /// # Errors
    /// There is such a lab already, or somebody is building it.
    pub(crate) fn take(name: &str, path: &Path) -> Result<Claim> {
        let shown = path.display();
        let attempt = || match Claim::attempt(path) {
            Ok(claim) => Ok(Ok(claim)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Err("it is locked"),
            Err(e) => Ok(Err(e)),
        };
        match lab::wait_for("the lab's file is free", GLANCE, attempt) {
            Ok(Ok(claim)) => Ok(claim),
            Ok(Err(e)) => Err(e).with_context(|| format!("lock {shown}")),
            Err(_) => bail!(
                "there is a lab called {name} already: `flannelctl lab down --name={name}` ends it, \
                 or give this one another --name"
            ),
        }
    }

    fn attempt(path: &Path) -> std::io::Result<Claim> {
        loop {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.mode(0o600).open(path)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            // The lab that held it removed it just before we had the lock: make another one.
            if is_at(&file, path)? {
                file.set_len(0)?;
                return Ok(Claim {
                    file,
                    path: path.to_owned(),
                    published: false,
                });
            }
        }
    }

    /// What holds the lock: for the lab's guard.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn lock(&self) -> Result<File> {
        self.file.try_clone().context("duplicate the lab's lock")
    }

    /// The same claim in other hands: dropped unpublished by one of them, the file is removed.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn another(&self) -> Result<Claim> {
        Ok(Claim {
            file: self.lock()?,
            path: self.path.clone(),
            published: false,
        })
    }

    /// Leaves the file to the lab's guard.
    pub(crate) fn keep(mut self) {
        self.published = true;
    }

    /// Says where the lab is: from now on others find it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn publish(mut self, running: &Running) -> Result<()> {
        let text = serde_json::to_vec_pretty(running)?;
        self.file
            .rewind()
            .and_then(|()| self.file.write_all(&text))
            .with_context(|| format!("write {}", self.path.display()))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // No lab came of it. A lab's guard that was started has removed the file already, and the
        // name may be another's.
        if !self.published && is_at(&self.file, &self.path).unwrap_or(false) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What a lab's file says.
enum State {
    None,
    /// Somebody holds the lock and has written nothing yet.
    Building,
    Up(Box<Running>),
}

/// Reads a lab's file. One that nobody holds, as after a crash of the whole machine, is removed.
fn read(path: &Path) -> Result<State> {
    let shown = || path.display().to_string();
    let mut file = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(State::None),
        file => file.with_context(shown)?,
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        // Closing the file gives the lock back.
        Ok(()) => {
            if is_at(&file, path).with_context(shown)? {
                fs::remove_file(path).with_context(|| format!("remove {}", shown()))?;
            }
            return Ok(State::None);
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        Err(e) => return Err(e).with_context(|| format!("lock {}", shown())),
    }
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(shown)?;
    if text.is_empty() {
        return Ok(State::Building);
    }
    let running = serde_json::from_str(&text).with_context(shown)?;
    Ok(State::Up(Box::new(running)))
}

/// Whether `path` still leads to this open file.
fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
