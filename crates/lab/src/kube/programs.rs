//! Kubernetes' own programs: built from their Go modules once, kept outside the work tree.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::Error;
use crate::error::Doing;

/// The script that builds them; part of this program, so that it works without the sources.
const SCRIPT: &str = include_str!("../../../../scripts/kubernetes");

/// The status by which the script says that this machine cannot build them.
const CANNOT: i32 = 2;

/// Tells everybody that a test was not run: past the test harness, which would keep it to itself.
pub fn not_run(what: &str, why: &Error) {
    let mut out = std::io::stderr();
    let _ = writeln!(out, "NOT RUN: {what}: {why}");
}

/// The directory of `kube-apiserver`, `kubelet`, `kubectl` and so on. Builds them when they are not there,
/// which takes minutes; whoever asks meanwhile waits.
///
/// # Errors
/// [`Error::Needs`]: they cannot be built here, and why. A test then says so by [`not_run`].
pub fn kube_bin_dir() -> Result<PathBuf, Error> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(dir) = FOUND.get() {
        return Ok(dir.clone());
    }
    let output = Command::new("bash")
        .args(["-c", SCRIPT, "scripts/kubernetes"])
        .stdin(Stdio::null())
        .output()
        .doing(|| "run bash".into())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if output.status.code() == Some(CANNOT) {
        return Err(Error::Needs(said));
    }
    if !output.status.success() {
        return Err(Error::Command {
            place: "this machine".into(),
            command: "scripts/kubernetes".into(),
            status: output.status.to_string(),
            output: said,
        });
    }
    let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    Ok(FOUND.get_or_init(|| dir).clone())
}
