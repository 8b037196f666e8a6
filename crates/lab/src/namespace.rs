//! A place to run things in: a network namespace, files, and the lab's processes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;
use crate::error::Doing;
use crate::guard::Guard;
use crate::programs;
use crate::seccomp::Seccomp;

/// A network namespace with the mount namespace that belongs to it. It has no name in the file
/// system; it lives as long as this value or a process in it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    net: Arc<OwnedFd>,
    mnt: Arc<OwnedFd>,
    pid: Arc<OwnedFd>,
    /// Of a whole machine: its host name, IPC and cgroup namespaces.
    others: Arc<[OwnedFd]>,
    /// Keeps the process namespace; `None` for one that belongs to another process's lab.
    _guard: Option<Arc<Guard>>,
}

impl Namespace {
    /// Makes a network namespace; the mount namespace is the one of `files`, and private to the
    /// new one when `own_files` is given, which is called inside it to arrange its mounts.
    pub(crate) fn new(
        name: &str,
        files: &Arc<OwnedFd>,
        guard: &Arc<Guard>,
        own_files: Option<&(dyn Fn() -> Result<(), Error> + Sync)>,
    ) -> Result<Namespace, Error> {
        let make = || -> Result<Namespace, Error> {
            unshare(CloneFlags::CLONE_FS).doing(|| "unshare".into())?;
            setns(&**files, CloneFlags::CLONE_NEWNS).doing(|| "enter the lab's mounts".into())?;
            unshare(CloneFlags::CLONE_NEWNET).doing(|| format!("{name}: new network namespace"))?;
            let mut mnt = files.clone();
            if let Some(arrange) = own_files {
                unshare(CloneFlags::CLONE_NEWNS)
                    .doing(|| format!("{name}: new mount namespace"))?;
                arrange()?;
                mnt = Arc::new(open_own("mnt")?);
            }
            let pid = guard.namespace().try_clone().doing(|| "dup".into())?;
            Ok(Namespace {
                name: name.into(),
                net: Arc::new(open_own("net")?),
                mnt,
                pid: Arc::new(pid),
                others: Arc::default(),
                _guard: Some(guard.clone()),
            })
        };
        in_thread(make)
    }

    /// A namespace of a lab that another process holds.
    pub(crate) fn foreign(
        name: &str,
        net: OwnedFd,
        mnt: OwnedFd,
        pid: OwnedFd,
        others: Vec<OwnedFd>,
    ) -> Namespace {
        Namespace {
            name: name.into(),
            net: net.into(),
            mnt: mnt.into(),
            pid: pid.into(),
            others: others.into(),
            _guard: None,
        }
    }

    /// All namespaces of process `pid`, the first one of a machine on the network of `node`.
    pub(crate) fn of_process(name: &str, pid: u32, node: &Namespace) -> Result<Namespace, Error> {
        let open = |kind: &str| -> Result<OwnedFd, Error> {
            let path = format!("/proc/{pid}/ns/{kind}");
            Ok(std::fs::File::open(&path).doing(|| path)?.into())
        };
        Ok(Namespace {
            name: name.into(),
            net: node.net.clone(),
            mnt: Arc::new(open("mnt")?),
            pid: Arc::new(open("pid")?),
            others: Arc::new([open("uts")?, open("ipc")?, open("cgroup")?]),
            _guard: node._guard.clone(),
        })
    }

    /// The same network and processes, with a mount namespace of its own that is, as yet, the same.
    pub(crate) fn with_own_mounts(&self, name: &str) -> Result<Namespace, Error> {
        in_thread(|| {
            self.enter()?;
            unshare(CloneFlags::CLONE_NEWNS).doing(|| format!("{name}: new mount namespace"))?;
            Ok(Namespace {
                name: name.into(),
                mnt: Arc::new(open_own("mnt")?),
                ..self.clone()
            })
        })
    }

    /// The same files and processes in another network.
    pub(crate) fn with_network(&self, name: &str, net: OwnedFd) -> Namespace {
        Namespace {
            name: name.into(),
            net: net.into(),
            ..self.clone()
        }
    }

    /// What it is called in messages: `n1`, `n1-p1`, `fabric`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn net(&self) -> &OwnedFd {
        &self.net
    }

    pub(crate) fn pid(&self) -> &OwnedFd {
        &self.pid
    }

    pub(crate) fn others(&self) -> &[OwnedFd] {
        &self.others
    }

    pub(crate) fn mnt(&self) -> &Arc<OwnedFd> {
        &self.mnt
    }

    /// A path by which another program can open the network namespace: `ip … netns PATH`.
    pub(crate) fn net_path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// Runs `f` in a thread inside this namespace. Sockets that it makes stay in the namespace
    /// and may be handed out and used anywhere. Threads that it starts are in there too.
    ///
    /// # Errors
    /// The namespace could not be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        in_thread(|| {
            self.enter()?;
            Ok(f())
        })
    }

    /// Moves the calling thread into the network and mount namespace, for good.
    fn enter(&self) -> Result<(), Error> {
        unshare(CloneFlags::CLONE_FS).doing(|| "unshare".into())?;
        setns(&*self.net, CloneFlags::CLONE_NEWNET).doing(|| format!("enter {}", self.name))?;
        for other in &*self.others {
            setns(other, CloneFlags::empty()).doing(|| format!("enter {}", self.name))?;
        }
        setns(&*self.mnt, CloneFlags::CLONE_NEWNS)
            .doing(|| format!("enter the files of {}", self.name))
    }

    /// Starts a program in this namespace, among the lab's processes.
    ///
    /// # Errors
    /// The namespace could not be entered, or the program not started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, Error> {
        self.spawn_confined(command, None)
    }

    /// As [`Namespace::spawn`]; the program may make only the system calls that `seccomp` allows.
    pub(crate) fn spawn_confined(
        &self,
        command: &mut Command,
        seccomp: Option<&Seccomp>,
    ) -> Result<Child, Error> {
        let spawn = || {
            self.enter()?;
            setns(&*self.pid, CloneFlags::CLONE_NEWPID)
                .doing(|| "enter the lab's processes".into())?;
            if !self.others.is_empty() {
                forget_environment(command);
            }
            command
                .env("PATH", search_path())
                .env("LAB_NODE", &self.name);
            if let Some(seccomp) = seccomp {
                seccomp.confine()?;
            }
            command.spawn().map_err(|e| self.not_started(command, e))
        };
        in_thread(spawn)
    }

    /// Runs a program to its end and hands back its status and output.
    ///
    /// # Errors
    /// It could not be started.
    pub fn output<S: AsRef<OsStr>>(
        &self,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<Output, Error> {
        let mut command = command_of(argv)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.spawn(&mut command)?;
        child
            .wait_with_output()
            .doing(|| format!("{}: wait for {command:?}", self.name))
    }

    /// Runs a program that must succeed; returns what it wrote to standard output.
    ///
    /// # Errors
    /// It could not be started, or failed: then with what it wrote to standard error.
    pub fn exec<S: AsRef<OsStr>>(
        &self,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<String, Error> {
        let argv: Vec<S> = argv.into_iter().collect();
        let output = self.output(argv.iter())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = if output.stderr.is_empty() {
            &output.stdout
        } else {
            &output.stderr
        };
        let words: Vec<_> = argv.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        Err(Error::Command {
            place: self.name.clone(),
            command: words.join(" "),
            status: output.status.to_string(),
            output: String::from_utf8_lossy(said).into_owned(),
        })
    }

    /// Feeds `lines` to `ip -batch`: many changes for the price of one process.
    ///
    /// # Errors
    /// As [`Namespace::exec`]; `ip` names the line at fault.
    pub fn ip_batch(&self, lines: &[String]) -> Result<(), Error> {
        let mut command = Command::new("ip");
        command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.spawn(&mut command)?;
        let mut input = lines.join("\n");
        input.push('\n');
        // It stops reading at the first line that fails; its message then tells more than EPIPE.
        let written = child.stdin.take().map_or(Ok(()), |mut pipe| {
            io::Write::write_all(&mut pipe, input.as_bytes())
        });
        let output = child.wait_with_output().doing(|| "wait for ip".into())?;
        if output.status.success() {
            return written.doing(|| format!("{}: write to ip -batch", self.name));
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let at = |n: usize| lines.get(n.wrapping_sub(1)).cloned().unwrap_or_default();
        let line = said
            .rsplit(':')
            .find_map(|n| n.trim().parse().ok())
            .map(at)
            .unwrap_or_default();
        Err(Error::Command {
            place: self.name.clone(),
            command: format!("ip {line}"),
            status: output.status.to_string(),
            output: said,
        })
    }

    /// Sets kernel parameters: pairs of a path below `/proc/sys` and a value.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> Result<(), Error> {
        let set = || {
            settings.iter().try_for_each(|(key, value)| {
                let path = format!("/proc/sys/{key}");
                std::fs::write(&path, value)
                    .doing(|| format!("{}: write {value} to {path}", self.name))
            })
        };
        self.run(set)?
    }

    fn not_started(&self, command: &Command, e: io::Error) -> Error {
        let program = command.get_program().to_string_lossy();
        match e.kind() {
            io::ErrorKind::NotFound => programs::missing(&program),
            _ => Error::Io {
                what: format!("{}: start {program}", self.name),
                source: e,
            },
        }
    }
}

fn open_own(kind: &str) -> Result<OwnedFd, Error> {
    let path = format!("/proc/thread-self/ns/{kind}");
    Ok(std::fs::File::open(&path).doing(|| path)?.into())
}

fn command_of<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Result<Command, Error> {
    let mut argv = argv.into_iter();
    let program = argv
        .next()
        .ok_or_else(|| Error::Bad("an empty command".into()))?;
    let mut command = Command::new(program);
    command.args(argv);
    Ok(command)
}

/// Where programs are looked for: flannel's first.
fn search_path() -> String {
    let (ours, kube) = (crate::BIN_DIR, crate::KUBE_BIN_DIR);
    format!("{ours}:{kube}:{}", programs::search_path())
}

/// Leaves a command only those variables that it was given by its maker.
fn forget_environment(command: &mut Command) {
    let given: Vec<_> = command.get_envs().map(|(key, _)| key.to_owned()).collect();
    let inherited = std::env::vars_os().map(|(key, _)| key);
    inherited
        .filter(|key| !given.contains(key))
        .for_each(|key| {
            command.env_remove(key);
        });
    if !given.iter().any(|key| key == "HOME") {
        command.env("HOME", "/root");
    }
}

/// Runs `f` in a thread of its own, so that what it enters, it alone has entered.
pub(crate) fn in_thread<T: Send>(f: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|s| {
        let thread = std::thread::Builder::new()
            .name("lab".into())
            .spawn_scoped(s, f);
        thread
            .doing(|| "start a thread".into())?
            .join()
            .unwrap_or_else(|p| std::panic::resume_unwind(p))
    })
}
