//! The names under which manifests that were written for upstream's images call this program: the image has
//! neither a shell nor the tools of one.
//!
//! | name | upstream's image has | manifests run |
//! |---|---|---|
//! | `install-conf` | its own program (since 0.28) | `install-conf /etc/kube-flannel/cni-conf.json /etc/cni/net.d/10-flannel.conflist` |
//! | `cp` | Alpine's | `cp -f /flannel /opt/cni/bin/flannel`, and the same for the configuration |
//!
//! Each replaces its target in one step: a container runtime never finds half a plugin or half a configuration.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::install::put;
use crate::{output, status};

/// Does what the program is called for, if it was started under one of those names.
pub(crate) fn run(words: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let mut words = words;
    let called = words.next()?;
    let name = Path::new(&called).file_name()?.to_str()?.to_owned();
    let words: Vec<OsString> = words.collect();
    let done = match name.as_str() {
        "cp" => copies(&words),
        "install-conf" => installs(&words),
        _ => return None,
    };
    let copied = done.and_then(|copies| {
        copies
            .iter()
            .try_for_each(|(from, to)| put(from, to, mode(from)?).map(drop))
    });
    Some(match copied {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::problem_of(&name, &format!("{error:#}"));
            ExitCode::from(status::FAILED)
        }
    })
}

/// What is copied where.
type Copies = Vec<(PathBuf, PathBuf)>;

/// `install-conf SRC DST`.
fn installs(words: &[OsString]) -> Result<Copies> {
    match words {
        [from, to] => Ok(vec![(from.into(), to.into())]),
        _ => bail!(
            "expected install-conf SOURCE TARGET, got {} arguments",
            words.len()
        ),
    }
}

/// `cp [-f] SRC DST` and `cp [-f] SRC… DIRECTORY`.
fn copies(words: &[OsString]) -> Result<Copies> {
    const USAGE: &str = "expected cp [-f] SOURCE TARGET; this program copies files only";
    let mut names: Vec<&OsStr> = Vec::new();
    let mut options = true;
    for word in words {
        match word.to_str() {
            Some("--") if options => options = false,
            // What these ask for is so in any case.
            Some("--force" | "--preserve" | "--verbose" | "--dereference") if options => {}
            Some(text) if options && text.len() > 1 && text.starts_with('-') => {
                if let Some(other) = text.chars().skip(1).find(|c| !"fapvL".contains(*c)) {
                    bail!("option -{other} in {text}: {USAGE}");
                }
            }
            _ => names.push(word),
        }
    }
    let Some((to, from)) = names.split_last().filter(|(_, from)| !from.is_empty()) else {
        bail!("{USAGE}");
    };
    let to = Path::new(to);
    if to.is_dir() {
        let below = |from: &&OsStr| {
            let from = Path::new(from);
            let name = from
                .file_name()
                .with_context(|| format!("{} names no file", from.display()))?;
            Ok((from.to_owned(), to.join(name)))
        };
        return from.iter().map(below).collect();
    }
    match from {
        [from] => Ok(vec![(from.into(), to.to_owned())]),
        _ => bail!("{} is no directory: {USAGE}", to.display()),
    }
}

/// The permissions of the file, without set-user-ID and the like.
fn mode(from: &Path) -> Result<u32> {
    use std::os::unix::fs::MetadataExt;
    let cannot = || format!("cannot read {}", from.display());
    let found = from.metadata().with_context(cannot)?;
    if !found.is_file() {
        bail!("{}: it is no regular file", cannot());
    }
    Ok(found.mode() & 0o755)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn pairs(copies: Result<Copies>) -> Result<Vec<(String, String)>, String> {
        let text = |path: PathBuf| path.display().to_string();
        let copies = copies.map_err(|e| e.to_string())?;
        Ok(copies
            .into_iter()
            .map(|(from, to)| (text(from), text(to)))
            .collect())
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn command_lines_of_manifests() {
        let one = |from: &str, to: &str| Ok(vec![(from.to_owned(), to.to_owned())]);
        for (line, expected) in [
            (
                "-f /flannel /opt/cni/none/flannel",
                one("/flannel", "/opt/cni/none/flannel"),
            ),
            ("-af -- -x /none", one("-x", "/none")),
            ("--force a /none/b", one("a", "/none/b")),
            // Into a directory.
            ("/flannel /tmp", one("/flannel", "/tmp/flannel")),
        ] {
            assert_eq!(pairs(copies(&words(line))), expected, "{line}");
        }
        for (line, part) in [
            (
                "-r /a /b",
                "option -r in -r: expected cp [-f] SOURCE TARGET",
            ),
            ("-f /a", "expected cp"),
            ("/a /b /none", "/none is no directory"),
            ("", "expected cp"),
        ] {
            let said = pairs(copies(&words(line))).unwrap_err();
            assert!(said.contains(part), "{line}: {said}");
        }
        assert!(pairs(installs(&words("a b"))) == one("a", "b"));
        assert!(
            pairs(installs(&words("a")))
                .unwrap_err()
                .contains("got 1 arguments")
        );
    }

    /// Runs the program under a name.
    fn call(name: &str, words: &[&Path]) -> Option<bool> {
        let all =
            std::iter::once(name.into()).chain(words.iter().map(|w| w.as_os_str().to_owned()));
        run(all).map(|status| format!("{status:?}") == format!("{:?}", ExitCode::SUCCESS))
    }

    #[test]
    fn a_copy_replaces_the_target_and_keeps_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("plugin"), "new").unwrap();
        fs::set_permissions(path("plugin"), fs::Permissions::from_mode(0o4755)).unwrap();
        // As the plugin is in the image, and a key of a ConfigMap in a pod.
        symlink("plugin", path("link")).unwrap();
        fs::write(path("target"), "old").unwrap();
        assert_eq!(
            call(
                "/bin/cp",
                &[Path::new("-f"), &path("link"), &path("target")]
            ),
            Some(true)
        );
        assert_eq!(fs::read_to_string(path("target")).unwrap(), "new");
        assert_eq!(
            fs::metadata(path("target")).unwrap().permissions().mode() & 0o7777,
            0o755
        );

        fs::write(path("conf"), "{}").unwrap();
        fs::set_permissions(path("conf"), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            call("install-conf", &[&path("conf"), &path("net.d/10.conflist")]),
            Some(true)
        );
        assert_eq!(
            fs::metadata(path("net.d/10.conflist"))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777,
            0o644
        );
        let left = fs::read_dir(path("net.d")).unwrap().count();
        assert_eq!(left, 1);

        assert_eq!(call("cp", &[&path("none"), &path("target")]), Some(false));
        assert_eq!(call("cp", &[dir.path(), &path("target")]), Some(false));
        assert_eq!(
            call("/opt/bin/flannelctl", &[&path("conf"), &path("x")]),
            None
        );
    }
}
