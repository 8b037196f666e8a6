//! Programs that end with the test, and where those of other etcd versions are.

#![allow(unsafe_code, reason = "what a child does between fork and exec")]

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

/// A program that ends with the value.
pub struct Process(pub Child);

impl Process {
    /// Starts it. Should the tests be killed, it ends with them.
    pub fn start(command: &mut Command) -> Process {
        let with_us = || {
            Ok(rustix::process::set_parent_process_death_signal(Some(
                Signal::KILL,
            ))?)
        };
        command.stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: between fork and exec there is one system call, and no memory is allocated.
        let child = unsafe { command.pre_exec(with_us) }.spawn();
        Process(child.expect("etcd cannot be run: install etcd-server"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the directory with the programs of that version of etcd; `None`: they cannot be built here.
pub fn programs(version: &str) -> Option<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/etcd");
    let output = Command::new(script).arg(version).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => Some(text.trim().into()),
        Some(2) => {
            let reason = String::from_utf8_lossy(&output.stderr);
            eprintln!("NOT RUN: etcd {version}: {}", reason.trim());
            None
        }
        _ => panic!("scripts/etcd: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Returns the directory with the system's etcd.
pub fn system() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let dir = std::env::split_paths(&path).find(|dir| dir.join("etcd").exists());
    dir.expect("install etcd-server")
}
