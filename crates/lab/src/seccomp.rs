//! A seccomp profile, applied to what a lab starts.

use std::collections::BTreeSet;
use std::path::Path;

use seccompiler::BpfProgram;
use serde::Deserialize;

use crate::Error;
use crate::error::Doing;

/// The variable that names a profile for every flanneld of every lab.
pub(crate) const VARIABLE: &str = "FLANNEL_LAB_SECCOMP";

/// A seccomp profile for tests: what the file allows is allowed, any other system call ends the process with `SIGSYS`.
///
/// A container runtime refuses such a call with an error, which the program may survive unnoticed; a test shall notice.
#[derive(Clone, Debug)]
pub struct Seccomp(BpfProgram);

/// The parts of a profile that are read: the format of the OCI runtime specification, "Linux container configuration".
#[derive(Deserialize)]
struct Profile {
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    names: Vec<String>,
    action: String,
}

impl Seccomp {
    /// Reads a profile in the format of container runtimes: `{"syscalls": [{"names": […], "action": "SCMP_ACT_ALLOW"}]}`.
    ///
    /// # Errors
    /// The file cannot be read or is no such profile, an action is another one, or a name is no system call of this
    /// processor.
    pub fn read(file: &Path) -> Result<Seccomp, Error> {
        let text = std::fs::read(file).doing(|| format!("read {}", file.display()))?;
        Seccomp::parse(&text).map_err(|reason| Error::Bad(format!("{}: {reason}", file.display())))
    }

    fn parse(text: &[u8]) -> Result<Seccomp, String> {
        let profile: Profile = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if let Some(rule) = profile
            .syscalls
            .iter()
            .find(|rule| rule.action != "SCMP_ACT_ALLOW")
        {
            return Err(format!("action {}: expected SCMP_ACT_ALLOW", rule.action));
        }
        let names: BTreeSet<String> = profile
            .syscalls
            .into_iter()
            .flat_map(|rule| rule.names)
            .collect();
        let filter: Vec<_> = names
            .into_iter()
            .map(|name| serde_json::json!({ "syscall": name }))
            .collect();
        let filters = serde_json::json!({ "flanneld": {
            "mismatch_action": "kill_process", "match_action": "allow", "filter": filter,
        }});
        let arch = std::env::consts::ARCH
            .try_into()
            .map_err(|e: seccompiler::BackendError| e.to_string())?;
        seccompiler::compile_from_json(filters.to_string().as_bytes(), arch)
            .map_err(|e| e.to_string())?
            .remove("flanneld")
            .map(Seccomp)
            .ok_or_else(|| "no filter".into())
    }

    /// Confines the calling thread, and what it starts from now on, for good.
    pub(crate) fn confine(&self) -> Result<(), Error> {
        seccompiler::apply_filter(&self.0).map_err(|e| Error::Bad(format!("seccomp: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;
    use crate::namespace::in_thread;

    /// What a thread and the shell need, without `chdir`.
    const SMALL: &str = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": [
        "access", "arch_prctl", "brk", "clone", "clone3", "close", "dup2", "execve", "exit", "exit_group", "faccessat2",
        "fcntl", "fstat", "futex", "geteuid", "getegid", "getgid", "getpid", "getppid", "getcwd", "getrandom", "getuid", "gettid",
        "ioctl", "lseek", "madvise", "mmap", "mprotect", "munmap", "newfstatat", "open", "openat", "pipe2", "poll",
        "pread64", "prlimit64", "prctl", "read", "rseq", "rt_sigaction", "rt_sigprocmask", "sched_getaffinity",
        "set_robust_list", "set_tid_address", "sigaltstack", "stat", "vfork", "wait4", "waitid", "write", "writev",
        "statx", "recvfrom", "recvmsg", "socketpair", "pidfd_send_signal"]}]}"#;

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
