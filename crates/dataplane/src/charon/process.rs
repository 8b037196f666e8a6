//! charon as a process: found, started when nobody answers, ended when it is not needed any more.

#![allow(unsafe_code, reason = "a signal to a process")]

use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

/// Where distributions put it, besides the directories of `PATH`.
const PROGRAMS: [&str; 5] = [
    "/usr/lib/strongswan/charon",
    "/usr/lib/ipsec/charon",
    "/usr/libexec/strongswan/charon",
    "/usr/libexec/ipsec/charon",
    "/usr/sbin/charon-systemd",
];

/// A charon that ends is started again after this time, and after twice as long each time that it ends early, up to the
/// other.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// A charon that ran for so long did not end early; one that does not listen by then listens elsewhere.
const WORKED: Duration = Duration::from_secs(60);

/// The charon that this program starts. It outlives this program, so that a restart interrupts nothing.
pub(super) struct Process {
    /// Where its process id is kept.
    pid_file: Option<PathBuf>,
    find: fn() -> Option<PathBuf>,
    child: Option<Child>,
    program: PathBuf,
    /// When it was started last.
    since: Instant,
    /// When another one may be started, and how long is waited when that one ends early.
    next: Instant,
    wait: Duration,
    /// How the last one ended, if early.
    ended: Option<String>,
}

impl Process {
    pub(super) fn new(pid_file: Option<PathBuf>) -> Process {
        let now = Instant::now();
        Process {
            pid_file,
            find,
            child: None,
            program: PathBuf::new(),
            since: now,
            next: now,
            wait: AGAIN,
            ended: None,
        }
    }

    /// Starts charon, unless it is just starting, or ended early just now.
    ///
    /// # Errors
    /// It is not installed or cannot be started, or why it is of no use.
    pub(super) fn start(&mut self) -> Result<(), String> {
        if let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) if self.since.elapsed() < WORKED => return self.verdict(),
                Ok(None) => {
                    return Err(format!(
                        "{} runs and does not listen at its usual place: does it have its plugin vici? If it listens elsewhere, name the place with -charon-vici",
                        self.program.display()
                    ));
                }
                Ok(Some(status)) => self.has_ended(&status.to_string()),
                Err(error) => self.has_ended(&error.to_string()),
            }
        }
        if Instant::now() < self.next {
            return self.verdict();
        }
        let program = (self.find)().ok_or_else(|| {
            format!(
                "charon is not installed (neither in PATH nor {}): install strongswan-charon or charon-systemd, or, in a container, name the socket of the host's with -charon-vici",
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
        (self.program, self.since) = (program, Instant::now());
        self.verdict()
    }

    /// Returns how the last one ended, until one works: that each is started is not worth a line.
    fn verdict(&self) -> Result<(), String> {
        self.ended.clone().map_or(Ok(()), Err)
    }

    fn has_ended(&mut self, status: &str) {
        self.child = None;
        if self.since.elapsed() >= WORKED {
            self.works();
            return;
        }
        self.ended = Some(format!(
            "{} ended soon after it was started ({status}); its log (syslog) says why. Where flanneld lacks the rights to run it, as in its systemd unit, start the distribution's service (strongswan), whose charon is used then",
            self.program.display()
        ));
        self.next = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(AGAIN_AT_MOST);
    }

    /// Records that charon answers.
    pub(super) fn works(&mut self) {
        (self.ended, self.wait, self.next) = (None, AGAIN, Instant::now());
    }

    /// Kills a charon that does not answer, if this program or an earlier run of it started it. `serving` is the process
    /// that answered last. Returns whether it was killed.
    pub(super) fn kill(&mut self, serving: Option<i32>) -> bool {
        let child = self.child.as_ref().and_then(Child::id);
        let child = child.and_then(|id| i32::try_from(id).ok());
        let ours = child.or(self.written().filter(|id| serving == Some(*id)));
        if let Some(id) = ours {
            // SAFETY: no memory is involved.
            unsafe { libc::kill(id, libc::SIGKILL) };
        }
        ours.is_some()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_charon_that_ends_early_is_started_again_after_growing_pauses() {
        let mut process = Process::new(None);
        process.find = || Some("/bin/false".into());
        process.start().unwrap();
        let mut pauses = Vec::new();
        while pauses.len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            match process.start() {
                Ok(()) => {}
                Err(why) => {
                    assert!(why.contains("/bin/false ended soon after"), "{why}");
                    if process.child.is_none() {
                        pauses.push(process.wait);
                        process.next = Instant::now();
                        process.start().unwrap_err();
                    }
                }
            }
        }
        assert_eq!(pauses, [AGAIN * 2, AGAIN * 4]);
        process.works();
        assert_eq!(process.wait, AGAIN);
    }

    #[tokio::test]
    async fn only_a_charon_of_ours_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("charon.pid");
        let mut other = Command::new("sleep")
            .arg("600")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let id = other.id().unwrap();
        let mut process = Process::new(Some(file.clone()));
        let serving = i32::try_from(id).ok();
        assert!(!process.kill(serving), "somebody else's");
        write(&file, id).unwrap();
        assert!(!process.kill(None), "its number may be another's by now");
        assert!(process.kill(serving), "an earlier run's");
        assert!(!other.wait().await.unwrap().success());
    }
}
