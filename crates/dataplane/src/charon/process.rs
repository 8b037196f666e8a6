//! charon as a process: found, started when nobody answers, ended when it is not needed any more.

#![allow(unsafe_code, reason = "a signal to a process")]

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// Where distributions put it, besides the directories of `PATH`.
const PROGRAMS: [&str; 5] = [
    "/usr/lib/strongswan/charon",
    "/usr/lib/ipsec/charon",
    "/usr/libexec/strongswan/charon",
    "/usr/libexec/ipsec/charon",
    "/usr/sbin/charon-systemd",
];

/// The charon that this program starts. It outlives this program, so that a restart interrupts nothing.
pub(super) struct Process {
    /// Where its process id is kept.
    pid_file: Option<PathBuf>,
    child: Option<Child>,
}

impl Process {
    pub(super) fn new(pid_file: Option<PathBuf>) -> Process {
        Process {
            pid_file,
            child: None,
        }
    }

    /// Starts charon, unless it is just starting.
    ///
    /// # Errors
    /// It is not installed or cannot be started.
    pub(super) fn start(&mut self) -> Result<(), String> {
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(None))
        {
            return Ok(());
        }
        let program = find().ok_or_else(|| {
            format!(
                "charon is not installed (neither in PATH nor {}): install strongswan-charon or charon-systemd",
                PROGRAMS.join(", ")
            )
        })?;
        let child = Command::new(&program)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .env_remove("FLANNELD_ETCD_PASSWORD")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        if let Some((file, id)) = self.pid_file.as_ref().zip(child.id()) {
            // Without it, it stays when flannel is removed.
            let _ = write(file, id);
        }
        self.child = Some(child);
        Ok(())
    }

    /// Ends the charon that this program, or an earlier run of it, started. `serving` is the process that
    /// answered last.
    pub(super) fn stop(&mut self, serving: Option<i32>) {
        let starting = self.child.take().and_then(|mut child| {
            let runs = matches!(child.try_wait(), Ok(None));
            child.id().filter(|_| runs)
        });
        let starting = starting.and_then(|id| i32::try_from(id).ok());
        if let Some(id) = starting.or(self.written().filter(|id| serving == Some(*id))) {
            // SAFETY: no memory is involved.
            unsafe { libc::kill(id, libc::SIGTERM) };
        }
        self.pid_file.iter().for_each(|file| {
            // One that stays names no charon.
            let _ = fs::remove_file(file);
        });
    }

    /// Returns whether the process that answers was started by an earlier run of this program.
    pub(super) fn was_left(&self, serving: Option<i32>) -> bool {
        self.child.is_none() && serving.is_some() && self.written() == serving
    }

    /// Returns the process that the file names. Its number may be another's by now.
    fn written(&self) -> Option<i32> {
        let text = fs::read_to_string(self.pid_file.as_ref()?).ok()?;
        text.trim().parse().ok().filter(|id| *id > 1)
    }
}

fn write(file: &PathBuf, id: u32) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(file, format!("{id}\n"))
}

fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|dir| dir.join("charon"));
    let all = in_path.chain(PROGRAMS.map(PathBuf::from));
    all.into_iter().find(|program| program.is_file())
}
