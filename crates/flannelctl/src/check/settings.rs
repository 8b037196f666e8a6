//! Which flanneld configuration is checked: the very one that the daemon of this host has.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use flanneld::flags;
use flanneld::options::{Options, ProcessOptions};

use crate::cleanup::daemons::running;

/// Where the unit file of the packages has its variables.
const ENV_FILE: &str = "/etc/flannel/flanneld.env";

/// A configuration and where it comes from.
pub(crate) struct Settings {
    pub(crate) options: Options,
    /// For people.
    pub(crate) source: String,
    /// The process of the daemon that runs on this host.
    pub(crate) daemon: Option<u32>,
    /// The flags, and the FLANNELD_… variables, as given: may hold secrets.
    pub(crate) given: Vec<String>,
}

impl Settings {
    /// Finds it.
    ///
    /// `flags` are those of the command line, `env_file` that of `--env-file`.
    ///
    /// # Errors
    /// A flag, variable or file that flanneld would refuse.
    pub(crate) fn find(flags: &[String], env_file: Option<&Path>) -> Result<Settings> {
        let daemons = running()?;
        let daemon = daemons.first().map(|daemon| daemon.pid);
        let running = daemons
            .first()
            .filter(|_| flags.is_empty() && env_file.is_none())
            .and_then(|daemon| {
                let pid = daemon.pid;
                let words = strings(pid, "cmdline")?;
                // One with a flannel in it, such as k3s, has words of its own.
                let readable = || flags::parse(words.clone().into_iter().skip(1), |_| None).is_ok();
                (daemon.is_named() || readable()).then_some((
                    pid,
                    words.clone(),
                    strings(pid, "environ")?,
                ))
            });
        let (words, variables, source) = match running {
            Some((pid, words, environ)) => {
                let variables = environ.iter().filter_map(|text| text.split_once('='));
                let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned()));
                let others = match daemons.len() {
                    1 => String::new(),
                    n => format!("; {} more run here: name one by its flags after --", n - 1),
                };
                let source = format!("that of the running flanneld, process {pid}{others}");
                let words: Vec<String> = words.into_iter().skip(1).collect();
                (words, variables.collect(), source)
            }
            None => {
                let (variables, file) = variables(env_file)?;
                let source = match flags.is_empty() {
                    true => format!("FLANNELD_… variables{file}"),
                    false => format!("the flags after --, and FLANNELD_… variables{file}"),
                };
                (flags.to_vec(), variables, source)
            }
        };
        let ours = variables
            .iter()
            .filter(|(name, _)| name.starts_with("FLANNELD_"));
        let ours = ours.map(|(name, value)| format!("{name}={value}"));
        let all = words.iter().cloned().chain(ours).collect();
        let given = flags::parse(words, |name| variables.get(name).cloned())?;
        ProcessOptions::from_flags(&given)?;
        let options = Options::from_flags(&given)?;
        Ok(Settings {
            options,
            source,
            daemon,
            given: all,
        })
    }
}

/// Returns an environment variable of the daemon that runs on this host; without one, of the daemon that is to
/// run.
///
/// # Errors
/// The environment file of the packages cannot be read.
pub(crate) fn variable_of_daemon(daemon: Option<u32>, name: &str) -> Result<Option<String>> {
    let found = match daemon.and_then(|pid| strings(pid, "environ")) {
        Some(environ) => environ
            .iter()
            .filter_map(|text| text.split_once('='))
            .find_map(|(key, value)| (key == name).then(|| value.to_owned())),
        None => variables(None)?.0.remove(name),
    };
    Ok(found.filter(|value| !value.is_empty()))
}

/// The environment's variables, and below them those of the file.
fn variables(file: Option<&Path>) -> Result<(BTreeMap<String, String>, String)> {
    let path = file.unwrap_or(Path::new(ENV_FILE));
    let (mut variables, source) = match fs::read_to_string(path) {
        Err(e) if e.kind() == ErrorKind::NotFound && file.is_none() => {
            (BTreeMap::new(), String::new())
        }
        text => {
            let text = text.with_context(|| format!("--env-file {}", path.display()))?;
            let source = format!(" of the environment and of {}", path.display());
            (crate::env_file::parse(&text), source)
        }
    };
    variables.extend(std::env::vars().filter(|(_, value)| !value.is_empty()));
    Ok((variables, source))
}

/// A file of NUL-terminated strings below `/proc/PID`.
fn strings(pid: u32, name: &str) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/{name}")).ok()?;
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    let text = bytes.split(|b| *b == 0);
    Some(
        text.map(|s| String::from_utf8_lossy(s).into_owned())
            .collect(),
    )
}
