//! Which flannel daemons run in this network namespace, ours or another: whatever is called flanneld.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

const PROGRAM: &str = "flanneld";

/// A daemon that runs.
pub(crate) struct Running {
    pub(crate) pid: u32,
    /// Its program's file, or else its name.
    pub(crate) program: String,
}

/// Looks through all processes.
///
/// # Errors
/// There is no `/proc` to look at.
pub(crate) fn running() -> Result<Vec<Running>> {
    let here = fs::read_link("/proc/self/ns/net").context("/proc/self/ns/net")?;
    let mut running = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let Some((pid, dir)) = entry.ok().and_then(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, entry.path()))
        }) else {
            continue;
        };
        if let Some(program) = flanneld(&dir).filter(|_| shares(&dir, &here)) {
            running.push(Running { pid, program });
        }
    }
    running.sort_by_key(|daemon| daemon.pid);
    Ok(running)
}

/// What a process is called, if it is a flanneld that has not ended.
fn flanneld(process: &Path) -> Option<String> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    if rest.starts_with(['Z', 'X']) {
        return None;
    }
    let program = fs::read_link(process.join("exe")).ok();
    let file = program.as_deref().and_then(file_name);
    let ours = name == PROGRAM || file.as_deref() == Some(PROGRAM);
    ours.then(|| program.map_or_else(|| name.to_owned(), |path| path.display().to_string()))
}

/// The last part of a program's path; one that was replaced meanwhile is told as "(deleted)".
fn file_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// Whether a process has this network namespace. One that does not let root look may have; whoever is
/// root of a user namespace only is not shown the processes of others, whose networks are not theirs.
fn shares(process: &Path, here: &Path) -> bool {
    match fs::read_link(process.join("ns/net")) {
        Ok(its) => its == *here,
        Err(e) if e.kind() == ErrorKind::PermissionDenied => !lab::user_namespace(),
        // It ended just now.
        Err(e) => e.kind() != ErrorKind::NotFound && e.raw_os_error() != Some(nix::libc::ESRCH),
    }
}
