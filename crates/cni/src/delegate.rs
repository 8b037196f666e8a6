//! The plugin that does the work: found on `CNI_PATH`, run with our environment.

use std::fs;
use std::io::{self, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::failure::{Code, Failure, Refusal};
use crate::files;
use crate::object::Object;
use crate::request::{Command, short};
use crate::version::Version;

/// A plugin that was found.
#[derive(Clone, Debug)]
pub struct Delegate {
    program: PathBuf,
    name: String,
}

impl Delegate {
    /// Finds the plugin that `config`'s `type` names in the directories `path`.
    ///
    /// # Errors
    /// [`Code::InvalidConfig`] where the name is none, [`Code::Io`] where no directory has it.
    pub fn find(config: &Object, path: &[PathBuf]) -> Result<Delegate, Failure> {
        let name: String = match config.decode("type") {
            Ok(Some(name)) => name,
            _ => {
                return Err(Failure::new(
                    Code::InvalidConfig,
                    "the delegate's \"type\" must be a string",
                ));
            }
        };
        if !is_plugin_name(&name) {
            return Err(Failure::new(
                Code::InvalidConfig,
                format!(
                    "the delegate's \"type\" {:?} is not a plugin's name",
                    short(&name)
                ),
            )
            .advise("the file name of a plugin in a directory of CNI_PATH, without a '/'"));
        }
        if name == "flannel" {
            return Err(Failure::new(
                Code::InvalidConfig,
                "the delegate's \"type\" is flannel itself",
            )
            .advise(
                "name the plugin that is to make the interface, such as bridge, or leave it out",
            ));
        }
        let program = path
            .iter()
            .map(|dir| dir.join(&name))
            .find(|file| is_program(file))
            .ok_or_else(|| {
                let dirs: Vec<_> = path.iter().map(|dir| dir.display().to_string()).collect();
                Failure::new(
                    Code::Io,
                    format!("no plugin {name:?} in CNI_PATH ({})", dirs.join(":")),
                )
                .advise(
                    "install the standard CNI plugins there, or correct the delegate's \"type\"",
                )
            })?;
        Ok(Delegate { program, name })
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `command` with `config` on stdin and returns what the plugin writes to stdout. Its stderr
    /// is ours. `vars` are set beside our environment.
    ///
    /// # Errors
    /// The plugin's own error object, or, where it gave none, what can be said about its end.
    pub fn run(
        &self,
        command: Command,
        config: &Object,
        vars: &[(&str, &str)],
    ) -> Result<Vec<u8>, Refusal> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::new(
                Code::Io,
                format!("{}: {what}: {error}", self.program.display()),
            )
        };
        // A file in memory, not a pipe: a plugin that answers without reading blocks nobody.
        let mut stdin = memory_file().map_err(|error| failed("make its input", &error))?;
        serde_json::to_vec(config)
            .map_err(io::Error::from)
            .and_then(|text| stdin.write_all(&text))
            .and_then(|()| stdin.rewind())
            .map_err(|error| failed("make its input", &error))?;

        let mut program = std::process::Command::new(&self.program);
        // A DEL whose plugin is killed may finish: the next one finds less to do.
        if !matches!(command, Command::Del | Command::Gc) {
            end_with_us(&mut program);
        }
        let mut child = program
            .env("CNI_COMMAND", command.name())
            .envs(vars.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| failed("cannot be run", &error))?;
        // Should this end early, `stdout` is closed, and a plugin that goes on writing fails.
        let answer = child.stdout.take().map(files::read_limited);
        let status = child
            .wait()
            .map_err(|error| failed("wait for it", &error))?;
        let answer = answer
            .unwrap_or_else(|| Ok(Vec::new()))
            .map_err(|error| failed("read its answer", &error))?;
        if status.success() {
            Ok(answer)
        } else {
            Err(self.refusal(command, status, answer))
        }
    }

    /// Runs DEL. A plugin that was replaced after ADD by one that does not speak the configuration's version is asked
    /// again in the newest version that it does speak: the container and its interface are named alike in all of them.
    /// Otherwise the runtime would retry for ever.
    ///
    /// # Errors
    /// As [`Delegate::run`].
    pub fn delete(&self, config: &Object, vars: &[(&str, &str)]) -> Result<Vec<u8>, Refusal> {
        let refusal = match self.run(Command::Del, config, vars) {
            Err(refusal) if refusal.is_of_version() => refusal,
            done => return done,
        };
        let known = self.versions(config).unwrap_or_default();
        let newest = known.iter().filter_map(|text| Version::parse(text)).max();
        let mut config = config.clone();
        // The result is of the version that ADD was of.
        config.remove("prevResult");
        match newest.map(|version| config.set("cniVersion", version.as_str())) {
            Some(Ok(())) => self.run(Command::Del, &config, vars),
            _ => Err(refusal),
        }
    }

    /// Which versions the plugin says it speaks; `None` where it does not say so properly.
    pub fn versions(&self, config: &Object) -> Option<Vec<String>> {
        let answer = self.run(Command::Version, config, &[]).ok()?;
        let answer: Object = serde_json::from_slice(&answer).ok()?;
        answer.decode("supportedVersions").ok()?
    }

    /// Whether the plugin says that it speaks `version`.
    pub fn speaks(&self, version: Version, config: &Object) -> bool {
        self.versions(config)
            .is_some_and(|list| list.iter().any(|one| one == version.as_str()))
    }

    fn refusal(&self, command: Command, status: ExitStatus, answer: Vec<u8>) -> Refusal {
        if serde_json::from_slice::<Object>(&answer).is_ok_and(|object| object.has("code")) {
            return Refusal::Delegates(answer);
        }
        self.said_wrong(
            &format!(
                "failed at {} without an error object ({status})",
                command.name()
            ),
            &answer,
        )
        .into()
    }

    /// Returns the failure of an ADD that ended with success but whose `answer` is not a result.
    pub fn no_result(&self, answer: &[u8]) -> Failure {
        self.said_wrong("ended ADD with success but without a result", answer)
    }

    fn said_wrong(&self, what: &str, answer: &[u8]) -> Failure {
        let said = String::from_utf8_lossy(answer);
        Failure::new(
            Code::DelegateFailed,
            format!("the delegate {} {what}", self.name),
        )
        .advise(match said.trim() {
            "" => format!(
                "its stdout is empty; see the runtime's log for what {} wrote to stderr",
                self.program.display()
            ),
            said => format!("it said: {}", short(said)),
        })
    }
}

/// Makes a file in memory. It is never run, which has to be said where the system forbids what could be
/// (`vm.memfd_noexec=2`); kernels before 6.3 do not know the flag.
fn memory_file() -> io::Result<fs::File> {
    let make = |flags| rustix::fs::memfd_create("flannel-delegate", MemfdFlags::CLOEXEC | flags);
    let made = match make(MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => make(MemfdFlags::empty()),
        other => other,
    };
    Ok(made?.into())
}

/// Has the kernel kill the program when this process is killed. A runtime that kills the plugin takes the container for
/// not attached; a delegate that went on would attach it after the runtime's DEL.
#[allow(unsafe_code)]
fn end_with_us(program: &mut std::process::Command) {
    let parent = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            // This process was killed before that.
            Err(Errno::SRCH.into())
        }
    };
    // SAFETY: between fork and exec it makes two system calls, allocates nothing and takes no lock.
    unsafe { program.pre_exec(before_exec) };
}

/// Whether `name` can be the name of a plugin: a file's name and no path.
pub fn is_plugin_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
