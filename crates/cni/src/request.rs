//! What the runtime asks: the command and its parameters from the environment.

use std::path::PathBuf;

use crate::failure::{Code, Failure};

/// `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it; of what is not there, say nothing.
    Del,
    /// Is the attachment as ADD left it?
    Check,
    /// Would an ADD succeed?
    Status,
    /// Forget the containers that are no more.
    Gc,
    /// Which versions of the specification do we speak?
    Version,
}

const COMMANDS: [(&str, Command); 6] = [
    ("ADD", Command::Add),
    ("DEL", Command::Del),
    ("CHECK", Command::Check),
    ("STATUS", Command::Status),
    ("GC", Command::Gc),
    ("VERSION", Command::Version),
];

impl Command {
    /// The command's name in `CNI_COMMAND`.
    pub fn name(self) -> &'static str {
        COMMANDS
            .iter()
            .find(|(_, command)| *command == self)
            .map_or("", |(name, _)| name)
    }

    /// The variables that this command cannot do without.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Command::Add | Command::Check => {
                &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]
            }
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Command::Status | Command::Gc => &["CNI_PATH"],
            Command::Version => &[],
        }
    }
}

/// The environment's part of a request, checked.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// The container, safe as a file name. Empty where the command is about none.
    pub container: String,
    /// The interface's name in the container. Empty where the command is about none.
    pub interface: String,
    /// The container's network namespace, not checked; may be empty.
    pub netns: String,
    /// The directories to look for plugins in, in order.
    pub path: Vec<PathBuf>,
}

impl Request {
    /// Reads the variables with `var`, which stands for the process's environment.
    ///
    /// # Errors
    /// [`Code::InvalidEnvironment`], with all missing variables, or the one that is wrong, by name.
    pub fn read(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Request, Failure> {
        let invalid = |msg: String| Failure::new(Code::InvalidEnvironment, msg);
        let text = |name: &str| match var(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => value.into_string().map(Some).map_err(|value| {
                invalid(format!(
                    "{name} is not UTF-8: {:?}",
                    short(&value.to_string_lossy())
                ))
            }),
        };

        let Some(name) = text("CNI_COMMAND")? else {
            return Err(invalid("CNI_COMMAND is missing".into()).advise(
                "this is a CNI plugin: a container runtime starts it; `flannel --help` says more",
            ));
        };
        let Some((_, command)) = COMMANDS.iter().find(|(known, _)| *known == name) else {
            return Err(
                invalid(format!("CNI_COMMAND={} is not known", short(&name)))
                    .advise("known are ADD, DEL, CHECK, STATUS, GC and VERSION, in capitals"),
            );
        };
        let command = *command;

        let mut missing = Vec::new();
        for name in command.needs() {
            if var(name).is_none_or(|value| value.is_empty()) {
                missing.push(*name);
            }
        }
        if !missing.is_empty() {
            return Err(invalid(format!(
                "{} missing from the environment of {}",
                missing.join(", "),
                command.name()
            )));
        }

        let wants = |name: &str| command.needs().contains(&name);
        let mut container = String::new();
        if wants("CNI_CONTAINERID") {
            container = text("CNI_CONTAINERID")?.unwrap_or_default();
            if !is_identifier(&container) {
                return Err(invalid(format!(
                    "CNI_CONTAINERID={:?} is not a container's identifier",
                    short(&container)
                ))
                .advise(
                    "a letter or digit, then letters, digits, '_', '.' and '-', at most 255 in all",
                ));
            }
        }
        let mut interface = String::new();
        if wants("CNI_IFNAME") {
            interface = text("CNI_IFNAME")?.unwrap_or_default();
            if !is_interface(&interface) {
                return Err(invalid(format!(
                    "CNI_IFNAME={:?} is not an interface's name",
                    short(&interface)
                ))
                .advise(
                    "1 to 15 bytes, no '/', ':' or white space, and neither \".\" nor \"..\"",
                ));
            }
        }
        Ok(Request {
            command,
            container,
            interface,
            netns: text("CNI_NETNS").ok().flatten().unwrap_or_default(),
            path: var("CNI_PATH").map_or_else(Vec::new, |path| {
                std::env::split_paths(&path)
                    .filter(|dir| !dir.as_os_str().is_empty())
                    .collect()
            }),
        })
    }
}

/// The specification's rule for the names of containers and networks, and short enough for a file name.
/// What passes is neither hidden nor a path.
pub fn is_identifier(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Returns whether `text` can be the name of an interface.
pub fn is_interface(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

/// The beginning of what somebody sent us, for a message.
pub fn short(text: &str) -> &str {
    match text.char_indices().nth(80) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Request, Failure> {
        Request::read(|name| {
            let (_, value) = vars.iter().find(|(key, _)| *key == name)?;
            Some(value.into())
        })
    }

    fn refused(vars: &[(&str, &str)]) -> String {
        let failure = read(vars).unwrap_err();
        assert_eq!(failure.code, Code::InvalidEnvironment);
        failure.msg
    }

    #[test]
    fn all_missing_variables_are_named_at_once() {
        assert_eq!(refused(&[]), "CNI_COMMAND is missing");
        assert_eq!(
            refused(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "")]),
            "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_PATH missing from the environment of ADD"
        );
        assert_eq!(
            refused(&[("CNI_COMMAND", "DEL"), ("CNI_IFNAME", "eth0")]),
            "CNI_CONTAINERID, CNI_PATH missing from the environment of DEL"
        );
        assert!(read(&[("CNI_COMMAND", "VERSION")]).is_ok());
    }

    #[test]
    fn names_that_are_paths_or_too_long_are_refused() {
        let add = |id: &str, interface: &str| {
            read(&[
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", id),
                ("CNI_NETNS", "/proc/1/ns/net"),
                ("CNI_IFNAME", interface),
                ("CNI_PATH", ":/opt/cni/bin::/usr/lib/cni"),
            ])
        };
        let long = "a".repeat(256);
        for id in [
            "..", ".", "../x", "a/b", ".hidden", "-x", "a b", "a\n", "é", &long,
        ] {
            assert_eq!(
                add(id, "eth0").unwrap_err().code,
                Code::InvalidEnvironment,
                "{id}"
            );
        }
        for interface in [".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
            assert_eq!(
                add("a", interface).unwrap_err().code,
                Code::InvalidEnvironment,
                "{interface}"
            );
        }
        let good = add("0a_B.c-d", "net1").unwrap();
        assert_eq!(
            good.path,
            ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from)
        );
        assert_eq!(good.container, "0a_B.c-d");
    }
}
