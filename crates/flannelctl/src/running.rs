//! The labs that run in the background: a file for each, which tells where it is and is removed
//! when it ends, in whatever way it ends.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::Handles;
use serde::{Deserialize, Serialize};

/// What the file of a lab says.
#[derive(Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) name: String,
    /// The arguments that it was made with.
    pub(crate) shape: Vec<String>,
    pub(crate) handles: Handles,
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
            Some(running) => Ok(running),
            None => {
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
            if path.extension().is_some_and(|e| e == "json") {
                all.extend(read(&path)?);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Writes the file, whole or not at all.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let half = file.with_extension("new");
        let write =
            || fs::write(&half, serde_json::to_vec_pretty(self)?).map_err(anyhow::Error::from);
        write()
            .and_then(|()| Ok(fs::rename(&half, file)?))
            .with_context(|| format!("write {}", file.display()))
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

    /// The guard is there, and a child of the holder's: the numbers have not been given to others.
    fn alive(&self) -> bool {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.handles.guard)).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            return false;
        };
        let parent = rest.split(' ').nth(1).and_then(|pid| pid.parse().ok());
        name.ends_with("(lab-guard") && parent == Some(self.handles.pid)
    }
}

/// Reads a lab's file. One whose lab is gone, as after a crash of the whole machine, is removed.
fn read(path: &Path) -> Result<Option<Running>> {
    let text = match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("{}", path.display()))?,
    };
    let running: Running =
        serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    if running.alive() {
        return Ok(Some(running));
    }
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    Ok(None)
}
