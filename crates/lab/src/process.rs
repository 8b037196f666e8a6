//! A program that runs on in a lab: started, watched, stopped, and never left behind.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::Doing;
use crate::namespace::Namespace;
use crate::seccomp::Seccomp;
use crate::{Error, wait_for};

/// A running program with its log. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Mutex<Child>,
    /// Keeps the lab's process namespace until the child has been waited for.
    _place: Namespace,
}

impl Process {
    /// Starts `command` in `place`, its output appended to the file `log`.
    ///
    /// # Errors
    /// The log cannot be written or the program not started.
    pub fn start(
        name: &str,
        place: &Namespace,
        command: &mut Command,
        log: &Path,
    ) -> Result<Process, Error> {
        Process::start_confined(name, place, command, log, None)
    }

    /// As [`Process::start`]; the program may make only the system calls that `seccomp` allows.
    pub(crate) fn start_confined(
        name: &str,
        place: &Namespace,
        command: &mut Command,
        log: &Path,
        seccomp: Option<&Seccomp>,
    ) -> Result<Process, Error> {
        use std::os::unix::process::CommandExt;
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .doing(|| log.display().to_string())?;
        let again = file.try_clone().doing(|| log.display().to_string())?;
        // A process group of its own: Ctrl-C in the terminal is for whoever holds the lab.
        command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(again)
            .process_group(0);
        let child = Mutex::new(place.spawn_confined(command, seccomp)?);
        Ok(Process {
            name: name.into(),
            log: log.into(),
            child,
            _place: place.clone(),
        })
    }

    /// Its process id, as this process sees it.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system could not tell.
    pub fn ended(&self) -> Result<Option<ExitStatus>, Error> {
        self.child()
            .try_wait()
            .doing(|| format!("wait for {}", self.name))
    }

    /// Sends a signal; an ended process is no error.
    ///
    /// # Errors
    /// The system refused it.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        // Under the lock and only while not yet waited for: the id cannot be somebody else's.
        let mut child = self.child();
        match child.try_wait() {
            Ok(None) => kill(Pid::from_raw(child.id().cast_signed()), signal)
                .doing(|| format!("send {signal} to {}", self.name)),
            _ => Ok(()),
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`Error::Timeout`], with the end of its log.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus, Error> {
        wait_for(
            &format!("{} has ended", self.name),
            deadline,
            || match self.ended() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err(format!(
                    "it runs; its log ends with:\n{}",
                    self.log_tail(20)
                )),
                Err(e) => Err(e.to_string()),
            },
        )
    }

    /// `SIGKILL`, and waits for the end.
    ///
    /// # Errors
    /// The system refused it.
    pub fn kill9(&self) -> Result<ExitStatus, Error> {
        let mut child = self.child();
        child.kill().doing(|| format!("kill {}", self.name))?;
        child.wait().doing(|| format!("wait for {}", self.name))
    }

    /// [`Error::Ended`] when it has ended.
    pub fn must_run(&self) -> Result<(), Error> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(Error::Ended {
                name: self.name.clone(),
                status: status.to_string(),
                log: self.log_tail(30),
            }),
        }
    }

    /// The last `lines` of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill9();
    }
}

/// The last `lines` lines of a file.
pub(crate) fn tail(file: &Path, lines: usize) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
