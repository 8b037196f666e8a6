//! A cgroup for a machine, a docker or a node with a kubelet, gone when that or the process that held it is.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Error;
use crate::error::Doing;

const SCRIPT: &str = include_str!("cgroup.sh");

/// A cgroup, below our own. A process outside the lab keeps it: it
/// removes it when this value is dropped, and when this process ends without dropping it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: String,
    keeper: Child,
    /// Closing it is the signal. `None` once closed.
    pipe: Option<ChildStdin>,
}

impl Cgroup {
    /// Makes a cgroup of the unified hierarchy whose name ends with `what`, and that no other of this
    /// computer has.
    pub(crate) fn new(what: &str) -> Result<Cgroup, Error> {
        Cgroup::kept_by(SCRIPT, what)
    }

    /// The same by another script, which prints where it made it, reads its standard input to the end and
    /// then removes it.
    pub(crate) fn kept_by(script: &str, what: &str) -> Result<Cgroup, Error> {
        use std::os::unix::process::CommandExt;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = &format!("flannel-lab-{}-{next}-{what}", std::process::id());
        let mut keeper = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "cgroup",
                name,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .doing(|| "start a keeper of a cgroup".into())?;
        let pipe = keeper.stdin.take();
        let mut path = String::new();
        if let Some(out) = keeper.stdout.take() {
            BufReader::new(out)
                .read_line(&mut path)
                .doing(|| format!("make the cgroup {name}"))?;
        }
        let cgroup = Cgroup {
            path: path.trim().into(),
            keeper,
            pipe,
        };
        match cgroup.path.is_empty() {
            false => Ok(cgroup),
            true => Err(Error::Needs(format!(
                "{what} needs a cgroup (cgroup v2 mounted, for a machine or docker), and may not make one here"
            ))),
        }
    }

    /// Its path in the hierarchy; what the script printed.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.keeper.wait();
    }
}
