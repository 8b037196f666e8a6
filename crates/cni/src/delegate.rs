//! The plugin that does the work: found on `CNI_PATH`, run with our environment.

use std::fs;
use std::io::{Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::fs::MemfdFlags;

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
        let io = |what: &str, error: &dyn std::fmt::Display| {
            Failure::new(
                Code::Io,
                format!("{}: {what}: {error}", self.program.display()),
            )
        };
        // A file in memory, not a pipe: a plugin that answers without reading blocks nobody.
        let mut stdin = rustix::fs::memfd_create("flannel-delegate", MemfdFlags::CLOEXEC)
            .map(fs::File::from)
            .map_err(|error| io("make its input", &error))?;
        serde_json::to_vec(config)
            .map_err(std::io::Error::from)
            .and_then(|text| stdin.write_all(&text))
            .and_then(|()| stdin.rewind())
            .map_err(|error| io("make its input", &error))?;

        let mut child = std::process::Command::new(&self.program)
            .env("CNI_COMMAND", command.name())
            .envs(vars.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| io("cannot be run", &error))?;
        // Should this end early, `stdout` is closed, and a plugin that goes on writing fails.
        let answer = child.stdout.take().map(files::read_limited);
        let status = child.wait().map_err(|error| io("wait for it", &error))?;
        let answer = answer
            .unwrap_or_else(|| Ok(Vec::new()))
            .map_err(|error| io("read its answer", &error))?;
        match status.success() {
            true => Ok(answer),
            false => Err(self.refusal(command, status, answer)),
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
        let said = String::from_utf8_lossy(&answer);
        Failure::new(
            Code::DelegateFailed,
            format!(
                "the delegate {} failed at {} without an error object ({status})",
                self.name,
                command.name()
            ),
        )
        .advise(match said.trim() {
            "" => format!(
                "it said nothing on stdout; see the runtime's log for what {} wrote to stderr",
                self.program.display()
            ),
            said => format!("it said: {}", short(said)),
        })
        .into()
    }
}

/// Whether `name` can be the name of a plugin: a file's name and no path.
pub fn is_plugin_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
