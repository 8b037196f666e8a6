//! What is handed out: pages and completions, `make install`, the Debian package, and the units under
//! a real systemd.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod guide;
mod hardened;
mod install;
mod machines;
mod manual;
mod package;
mod release;
mod service;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// The project's directory.
fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A script of `dist/` with the programs under test.
fn script(name: &str) -> Command {
    let bin = lab::flannel_bin_dir().unwrap();
    let mut command = Command::new(project().join("dist").join(name));
    command
        .env("BIN_DIR", &bin)
        .env("CNI_PLUGIN", bin.join("flannel"));
    command
}

/// Runs a command that must succeed, and returns what it printed.
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
