//! A seccomp profile, applied to what a lab starts.

use std::path::Path;

use seccompiler::BpfProgram;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Error;
use crate::error::Doing;

/// The variable that names a profile for every flanneld of every lab.
pub(crate) const VARIABLE: &str = "FLANNEL_LAB_SECCOMP";

/// A seccomp profile for tests: as in the file, except that a system call that it does not mention ends the process with
/// `SIGSYS`.
///
/// A container runtime refuses such a call with an error, which the program may survive unnoticed; a test shall notice.
/// It consists of filters of which the strictest answer counts.
#[derive(Clone, Debug)]
pub struct Seccomp(Vec<BpfProgram>);

/// The parts of a profile that are read: the format of the OCI runtime specification, "Linux container configuration".
#[derive(Deserialize)]
struct Profile {
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    names: Vec<String>,
    action: Action,
    #[serde(default, rename = "errnoRet")]
    errno: u32,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
enum Action {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Refuse,
}

#[derive(Deserialize)]
struct Argument {
    index: u8,
    /// The value, or the mask.
    value: u64,
    #[serde(default, rename = "valueTwo")]
    masked: u64,
    op: Comparison,
}

#[derive(Deserialize)]
enum Comparison {
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

impl Argument {
    fn condition(&self) -> Value {
        let (op, value) = match self.op {
            Comparison::Equal => (json!("eq"), self.value),
            Comparison::MaskedEqual => (json!({ "masked_eq": self.value }), self.masked),
        };
        json!({ "index": self.index, "type": "dword", "op": op, "val": value })
    }
}

impl Rule {
    fn entries(&self) -> impl Iterator<Item = Value> {
        self.names.iter().map(|name| match self.args.is_empty() {
            true => json!({ "syscall": name }),
            false => {
                let conditions: Vec<_> = self.args.iter().map(Argument::condition).collect();
                json!({ "syscall": name, "args": conditions })
            }
        })
    }
}

impl Seccomp {
    /// Reads a profile in the format of container runtimes, such as `deploy/seccomp/flanneld.json`.
    ///
    /// # Errors
    /// The file cannot be read or is no such profile, an action or a comparison is one that the lab does not know, or a
    /// name is no system call of this processor.
    pub fn read(file: &Path) -> Result<Seccomp, Error> {
        let text = std::fs::read(file).doing(|| format!("read {}", file.display()))?;
        Seccomp::parse(&text).map_err(|reason| Error::Bad(format!("{}: {reason}", file.display())))
    }

    fn parse(text: &[u8]) -> Result<Seccomp, String> {
        let profile: Profile = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let (refused, allowed): (Vec<_>, Vec<_>) = profile
            .syscalls
            .iter()
            .partition(|rule| rule.action == Action::Refuse);
        let refusals = refused.iter().map(|rule| {
            let action = json!({ "errno": rule.errno });
            filter(&json!("allow"), &action, rule.entries().collect())
        });
        // What the others answer, the one for the rest must let through.
        let rest = allowed.iter().chain(&refused);
        let rest = rest.flat_map(|rule| rule.entries()).collect();
        let rest = filter(&json!("kill_process"), &json!("allow"), rest);
        refusals
            .chain([rest])
            .collect::<Result<_, _>>()
            .map(Seccomp)
    }

    /// Confines the calling thread, and what it starts from now on, for good.
    pub(crate) fn confine(&self) -> Result<(), Error> {
        let mut filters = self.0.iter();
        let applied = filters.try_for_each(|filter| seccompiler::apply_filter(filter));
        applied.map_err(|e| Error::Bad(format!("seccomp: {e}")))
    }
}

fn filter(otherwise: &Value, action: &Value, entries: Vec<Value>) -> Result<BpfProgram, String> {
    let text = json!({ "one": {
        "mismatch_action": otherwise, "match_action": action, "filter": entries,
    }});
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|e: seccompiler::BackendError| e.to_string())?;
    let programs = seccompiler::compile_from_json(text.to_string().as_bytes(), arch);
    let program = programs.map_err(|e| e.to_string())?.remove("one");
    program.ok_or_else(|| "no filter".into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;
    use crate::namespace::in_thread;

    /// What a thread and the shell need, without `chdir`.
    const SMALL: &str = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": [
        "access", "arch_prctl", "brk", "clone", "close", "dup2", "execve", "exit", "exit_group", "faccessat2",
        "fcntl", "fstat", "futex", "geteuid", "getegid", "getgid", "getpid", "getppid", "getcwd", "getrandom", "getuid", "gettid",
        "ioctl", "lseek", "madvise", "mmap", "mprotect", "munmap", "newfstatat", "open", "openat", "pipe2", "poll",
        "pread64", "prlimit64", "prctl", "read", "rseq", "rt_sigaction", "rt_sigprocmask", "sched_getaffinity",
        "set_robust_list", "set_tid_address", "sigaltstack", "stat", "vfork", "wait4", "waitid", "write", "writev",
        "statx", "recvfrom", "recvmsg", "pidfd_send_signal"]},
        {"action": "SCMP_ACT_ERRNO", "errnoRet": 38, "names": ["clone3"]},
        {"action": "SCMP_ACT_ALLOW", "names": ["socketpair"],
         "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;

    #[test]
    fn what_the_profile_does_not_allow_ends_the_process() {
        let profile = Seccomp::parse(SMALL.as_bytes()).unwrap();
        let run = |line: &str| {
            in_thread(|| {
                profile.confine()?;
                Ok(Command::new("sh").args(["-c", line]).status().unwrap())
            })
            .unwrap()
        };
        assert_eq!(run("exit 7").code(), Some(7));
        let ended = run("cd /");
        assert_eq!(ended.signal(), Some(libc::SIGSYS), "{ended}");
    }

    #[test]
    fn the_shipped_profile_can_be_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        Seccomp::read(&root.join("deploy/seccomp/flanneld.json")).unwrap();
    }

    #[test]
    fn a_bad_profile_is_named() {
        for (text, said) in [
            ("{", "EOF"),
            (
                r#"{"syscalls": [{"names": [], "action": "SCMP_ACT_LOG"}]}"#,
                "SCMP_ACT_LOG",
            ),
            (
                r#"{"syscalls": [{"names": ["opan"], "action": "SCMP_ACT_ALLOW"}]}"#,
                "opan",
            ),
        ] {
            let failure = Seccomp::parse(text.as_bytes()).unwrap_err();
            assert!(failure.contains(said), "{failure}");
        }
    }
}
