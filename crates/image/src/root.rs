//! A directory that holds Debian packages' files and dpkg's records of them: this machine's own root, or one that
//! `scripts/debian-root` made for another architecture, of which nothing is run.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// How many symbolic links one path may lead through, as in the kernel.
const MOST_LINKS: usize = 40;

/// A directory with Debian packages' files.
pub struct Root {
    dir: PathBuf,
}

impl Root {
    /// Returns the root in `dir`; paths below it are named as seen from inside.
    pub fn new(dir: &Path) -> Root {
        Root { dir: dir.into() }
    }

    /// Returns whether this is the root of the running system.
    pub fn is_own(&self) -> bool {
        self.dir == Path::new("/")
    }

    /// Returns where a file of the root is on this machine.
    pub fn at(&self, path: &Path) -> PathBuf {
        self.dir.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Returns the real path of a file, as seen from inside: links lead nowhere but below the root.
    ///
    /// # Errors
    /// There is no such file, or its links go in circles.
    pub fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        self.follow(path, MOST_LINKS)
    }

    fn follow(&self, path: &Path, links: usize) -> io::Result<PathBuf> {
        let mut real = PathBuf::from("/");
        let mut rest = path.components();
        while let Some(next) = rest.next() {
            match next {
                Component::RootDir => real = PathBuf::from("/"),
                Component::ParentDir => drop(real.pop()),
                Component::CurDir | Component::Prefix(_) => {}
                Component::Normal(name) => {
                    let here = self.at(&real.join(name));
                    if !fs::symlink_metadata(&here)?.is_symlink() {
                        real.push(name);
                        continue;
                    }
                    let Some(links) = links.checked_sub(1) else {
                        return Err(io::Error::other("too many symbolic links"));
                    };
                    let to = fs::read_link(&here)?;
                    return self.follow(&real.join(to).join(rest.as_path()), links);
                }
            }
        }
        Ok(real)
    }

    /// Returns what `dpkg-query` says about the packages of this root.
    ///
    /// # Errors
    /// It fails.
    pub fn dpkg_query<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<String> {
        run(self.query().args(args))
    }

    /// Returns `dpkg-query` for this root, with no arguments of its own.
    pub fn query(&self) -> Command {
        let mut command = Command::new("dpkg-query");
        command
            .arg("--admindir")
            .arg(self.at(Path::new("/var/lib/dpkg")))
            .env("LC_ALL", "C");
        command
    }

    /// Returns the shared libraries, loader included, that ELF files of the root and libraries of these names need.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn libraries(
        &self,
        files: &[PathBuf],
        names: &BTreeSet<String>,
    ) -> Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        let mut open = Vec::new();
        for name in names {
            let path = self.library(name)?;
            if found.insert(path.clone()) {
                open.push(path);
            }
        }
        open.extend(files.iter().cloned());
        while !open.is_empty() {
            let here: Vec<PathBuf> = open.iter().map(|path| self.at(path)).collect();
            open.clear();
            for name in needed(&here)? {
                let path = if name.starts_with('/') {
                    PathBuf::from(name)
                } else {
                    self.library(&name)?
                };
                if found.insert(path.clone()) {
                    open.push(path);
                }
            }
        }
        Ok(found)
    }

    /// Where the loader looks: `/usr/lib/<architecture>-linux-gnu…`, then the directories that all share.
    fn library(&self, name: &str) -> Result<PathBuf> {
        let lib = Path::new("/usr/lib");
        let mut dirs = Vec::new();
        let here = self.at(lib);
        let entries =
            fs::read_dir(&here).with_context(|| format!("cannot read {}", here.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", here.display()))?;
            let name = entry.file_name();
            if name.to_string_lossy().contains("-linux-gnu") {
                dirs.push(lib.join(name));
            }
        }
        dirs.sort();
        dirs.extend(["/usr/lib", "/usr/lib64"].map(PathBuf::from));
        let paths = dirs.into_iter().map(|dir| dir.join(name));
        match paths
            .into_iter()
            .find(|path| self.at(path).symlink_metadata().is_ok())
        {
            Some(path) => Ok(path),
            None => bail!("no library {name} below {}", here.display()),
        }
    }
}

/// Returns what ELF files name as needed: libraries by name, the loader by path. Nothing for static programs.
///
/// # Errors
/// `readelf` cannot be run or read them.
pub fn needed(files: &[PathBuf]) -> Result<BTreeSet<String>> {
    let said = run(Command::new("readelf")
        .args(["--wide", "--dynamic", "--program-headers"])
        .args(files)
        .env("LC_ALL", "C"))?;
    Ok(names(&said))
}

fn names(said: &str) -> BTreeSet<String> {
    // ` 0x0000000000000001 (NEEDED)  Shared library: [libc.so.6]`, and `[Requesting program interpreter: /lib/ld64.so.1]`
    let name = |line: &str| {
        let (_, rest) = line
            .split_once("(NEEDED)")
            .and_then(|(_, rest)| rest.split_once('['))
            .or_else(|| line.split_once("[Requesting program interpreter: "))?;
        Some(rest.trim_end().trim_end_matches(']').to_owned())
    };
    said.lines().filter_map(name).collect()
}

/// Returns what a program printed.
///
/// # Errors
/// It fails, or cannot be run.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}: this needs Debian"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_nowhere_but_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fs::create_dir_all(dir.path().join("usr/lib/x-linux-gnu")).unwrap();
        fs::write(dir.path().join("usr/lib/x-linux-gnu/libc.so.6"), "").unwrap();
        symlink("usr/lib", dir.path().join("lib")).unwrap();
        symlink(
            "/lib/x-linux-gnu/libc.so.6",
            dir.path().join("usr/lib/ld.so"),
        )
        .unwrap();
        symlink("loop", dir.path().join("usr/loop")).unwrap();
        symlink("../../../../../etc", dir.path().join("usr/out")).unwrap();
        let real = |path: &str| root.resolve(Path::new(path));
        let libc = PathBuf::from("/usr/lib/x-linux-gnu/libc.so.6");
        for path in ["/lib/ld.so", "/usr/lib/ld.so", "/lib/../lib/ld.so"] {
            assert_eq!(real(path).unwrap(), libc, "{path}");
        }
        assert!(real("/usr/loop").is_err());
        assert!(real("/usr/out/passwd").is_err());
        assert!(real("/usr/lib/none").is_err());
        assert_eq!(
            root.library("libc.so.6").unwrap(),
            PathBuf::from("/usr/lib/x-linux-gnu/libc.so.6")
        );
        assert!(root.library("libd.so").is_err());
    }

    #[test]
    fn libraries_and_the_loader_are_read_from_readelf() {
        let said = " 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]\n\
                    \x20 0x000000000000000e (SONAME)  Library soname: [libx.so]\n\
                    \x20     [Requesting program interpreter: /lib/ld64.so.1]\n";
        assert_eq!(
            names(said),
            ["/lib/ld64.so.1", "libc.so.6"].map(String::from).into()
        );
    }
}
