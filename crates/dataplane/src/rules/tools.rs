//! The programs that write rules: found, run with a minimal environment and a time limit, counted.

use std::collections::BTreeSet;
use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::RulesError;

/// How long a program may take, its wait for the xtables lock included.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long iptables may wait for the lock of its legacy variant.
pub const LOCK_SECONDS: &str = "10";
/// The same as a duration, for the lock that is taken here.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Directories that a service's `PATH` may lack.
const SYSTEM_DIRS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];
/// What children get to see of our environment.
const PASSED_ON: [&str; 2] = ["XTABLES_LIBDIR", "XTABLES_LOCKFILE"];
/// As much as is shown of what a program complains about.
const MOST_SHOWN: usize = 300;

/// Where programs are, and which of them were started.
pub struct Tools {
    dirs: Vec<PathBuf>,
    started: Mutex<Vec<u32>>,
    count: Mutex<u64>,
    /// The programs that do not know `-w`.
    without_waiting: Mutex<BTreeSet<String>>,
}

impl Tools {
    /// Looks in `PATH` and in the system's own directories.
    pub fn new() -> Tools {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut dirs: Vec<PathBuf> = env::split_paths(&path)
            .filter(|d| d.is_absolute())
            .collect();
        dirs.extend(SYSTEM_DIRS.map(PathBuf::from));
        Tools::within(dirs)
    }

    /// Looks in these directories only.
    pub fn within(dirs: Vec<PathBuf>) -> Tools {
        Tools {
            dirs,
            started: Mutex::default(),
            count: Mutex::default(),
            without_waiting: Mutex::default(),
        }
    }

    /// Where a program is, if it is installed.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        let runs = |path: &PathBuf| {
            path.metadata()
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        self.dirs.iter().map(|dir| dir.join(program)).find(runs)
    }

    /// Whether a program is known not to know `-w`.
    pub fn lacks_waiting(&self, program: &str) -> bool {
        let without = &self.without_waiting;
        let without = without.lock().unwrap_or_else(PoisonError::into_inner);
        without.contains(program)
    }

    /// Remembers that a program does not know `-w`.
    pub fn note_lacks_waiting(&self, program: &str) {
        let without = &self.without_waiting;
        let mut without = without.lock().unwrap_or_else(PoisonError::into_inner);
        without.insert(program.to_owned());
    }

    /// How many programs were started so far.
    pub fn started(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process ids of those started since the last call.
    pub fn take_ids(&self) -> Vec<u32> {
        std::mem::take(&mut *self.started.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a program to its end and returns what it printed. Dropping the future kills it.
    ///
    /// # Errors
    /// It is not installed, takes too long or fails.
    pub async fn run(
        &self,
        program: &str,
        args: &[&str],
        input: Option<&str>,
    ) -> Result<String, RulesError> {
        let path = self
            .find(program)
            .ok_or_else(|| RulesError::missing(program))?;
        let of = |source| RulesError::Start {
            program: path.display().to_string(),
            source,
        };
        let mut command = Command::new(&path);
        command
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .envs(PASSED_ON.iter().filter_map(|n| Some((n, env::var_os(n)?))))
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Ok(path) = env::join_paths(&self.dirs) {
            command.env("PATH", path);
        }
        let mut child = command.spawn().map_err(of)?;
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let ids = &self.started;
        ids.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(child.id());
        let work = async {
            if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
                // One that stops reading says why when it ends.
                let _ = pipe.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let line = || {
            std::iter::once(program)
                .chain(args.iter().copied())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let output = match tokio::time::timeout(PATIENCE, work).await {
            Ok(output) => output.map_err(of)?,
            Err(_) => {
                return Err(RulesError::TooSlow {
                    command: line(),
                    seconds: PATIENCE.as_secs(),
                });
            }
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(RulesError::Failed {
                command: line(),
                status: output.status.to_string(),
                said: said
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
                    .chars()
                    .take(MOST_SHOWN)
                    .collect(),
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
