//! `nft` and both variants of iptables, with the libraries that they load, from Debian packages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::root::Root;
use crate::tree::{Tree, packed};

const PROGRAMS: [&str; 3] = [
    "/usr/sbin/nft",
    "/usr/sbin/xtables-nft-multi",
    "/usr/sbin/xtables-legacy-multi",
];
/// What iptables loads by name: without them it cannot even show other programs' rules.
const EXTENSIONS: [&str; 3] = ["libxt_", "libipt_", "libip6t_"];

/// What the image has from Debian.
pub struct Debian {
    /// The files.
    pub tree: Tree,
    /// Where they are from, by name.
    pub packages: Vec<Package>,
    /// As Debian calls it, such as `amd64`.
    pub architecture: String,
}

/// A Debian package.
#[derive(Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `amd64`, …
    pub architecture: String,
    /// The source package, and its version.
    pub source: (String, String),
    /// Debian's short names of its licences; none where its copyright file is prose.
    pub licences: BTreeSet<String>,
}

/// Takes the files from a root, and the `libraries` that programs of ours need.
///
/// # Errors
/// A package is missing, one of the files is not as its package brought it, or a Debian tool fails.
pub fn collect(root: &Root, libraries: &BTreeSet<String>) -> Result<Debian> {
    let mut wanted: BTreeSet<PathBuf> = PROGRAMS.map(PathBuf::from).into();
    for line in root.dpkg_query(&["--listfiles", "iptables"])?.lines() {
        let extension = |name: &str| EXTENSIONS.iter().any(|e| name.starts_with(e));
        if line.contains("/xtables/") && extension(line.rsplit('/').next().unwrap_or_default()) {
            wanted.insert(line.into());
        }
    }
    let found: Vec<PathBuf> = wanted.iter().cloned().collect();
    if root.is_own() {
        wanted.extend(shared_libraries(&found)?);
    } else {
        wanted.extend(root.libraries(&found, libraries)?);
    }

    let mut tree = Tree::default();
    for (name, to) in [
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("sbin", "usr/sbin"),
    ] {
        tree.link(name, to)?;
    }
    let mut real = BTreeSet::new();
    for path in &wanted {
        real.insert(take(root, &mut tree, path)?);
    }
    for family in ["iptables", "ip6tables"] {
        for part in ["", "-save", "-restore"] {
            for (variant, program) in [("", "nft"), ("-nft", "nft"), ("-legacy", "legacy")] {
                let link = format!("usr/sbin/{family}{variant}{part}");
                tree.link(&link, &format!("xtables-{program}-multi"))?;
            }
        }
    }
    let owners = owners(root, &real)?;
    // Another root was made of signed packages just before.
    if root.is_own() {
        unchanged(&owners)?;
    }
    let packages = packages(root, &mut tree, &owners)?;
    let architecture = packages.iter().map(|p| p.architecture.as_str());
    let architecture = architecture
        .into_iter()
        .find(|architecture| *architecture != "all")
        .context("no package has an architecture")?
        .to_owned();
    Ok(Debian {
        tree,
        packages,
        architecture,
    })
}

/// The shared libraries, loader included, that ELF files of this machine ask for; none for static ones.
///
/// # Errors
/// One of them is not on this machine.
fn shared_libraries(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    // Its status says only whether all of them are dynamic.
    let output = Command::new("ldd")
        .args(files)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run ldd")?;
    let mut found = BTreeSet::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let line = line.trim();
        if line.ends_with("not found") {
            bail!("ldd: {line}");
        }
        // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, and the loader as `/lib64/… (0x…)`.
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        if path.starts_with('/')
            && let Some((path, _address)) = path.split_once(" (0x")
        {
            found.insert(PathBuf::from(path));
        }
    }
    Ok(found.into_iter().collect())
}

/// Adds a file, and where it is known by another name, that name too. Returns where it really is.
fn take(root: &Root, tree: &mut Tree, path: &Path) -> Result<PathBuf> {
    let real = root.resolve(path).with_context(|| {
        format!(
            "cannot find {}: are the packages iptables and nftables installed?",
            root.at(path).display()
        )
    })?;
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{} is no file", path.display());
    };
    let known_as = root.resolve(dir)?.join(name);
    let here = root.at(&real);
    let bytes = fs::read(&here).with_context(|| format!("cannot read {}", here.display()))?;
    let mode = fs::metadata(&here)?.permissions().mode() & 0o755;
    tree.file(in_tree(&real)?, mode, bytes)?;
    if known_as != real {
        let to = if known_as.parent() == real.parent() {
            real.file_name().map(PathBuf::from).unwrap_or_default()
        } else {
            real.clone()
        };
        tree.link(in_tree(&known_as)?, &to.to_string_lossy())?;
    }
    Ok(real)
}

fn in_tree(path: &Path) -> Result<&str> {
    let text = path.to_str().and_then(|p| p.strip_prefix('/'));
    text.with_context(|| format!("{} is no plain absolute path", path.display()))
}

/// The package of each file.
fn owners(root: &Root, files: &BTreeSet<PathBuf>) -> Result<BTreeMap<PathBuf, String>> {
    // Packages older than the merged /usr still name their files without it.
    let older = |path: &Path| {
        path.strip_prefix("/usr")
            .map(|p| Path::new("/").join(p))
            .ok()
    };
    let names: BTreeMap<PathBuf, PathBuf> = files
        .iter()
        .flat_map(|real| {
            [Some(real.clone()), older(real)]
                .into_iter()
                .flatten()
                .map(|n| (n, real.clone()))
        })
        .collect();
    let output = root
        .query()
        .arg("--search")
        .args(names.keys())
        .output()
        .context("cannot run dpkg-query")?;
    let mut owners = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // `libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6`
        if let Some((package, path)) = line.split_once(": ")
            && let Some(real) = names.get(Path::new(path))
        {
            owners.insert(real.clone(), package.to_owned());
        }
    }
    match files.iter().find(|file| !owners.contains_key(*file)) {
        Some(file) => bail!(
            "{} belongs to no Debian package: it cannot go into the image",
            file.display()
        ),
        None => Ok(owners),
    }
}

/// What goes into the image must be what Debian made.
fn unchanged(owners: &BTreeMap<PathBuf, String>) -> Result<()> {
    let packages: BTreeSet<&str> = owners.values().map(String::as_str).collect();
    let output = Command::new("dpkg")
        .arg("--verify")
        .args(packages)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run dpkg --verify")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let path = line.split_whitespace().last().map(Path::new);
        let real = path.and_then(|p| fs::canonicalize(p).ok());
        if let Some(package) = real.as_ref().and_then(|real| owners.get(real)) {
            bail!("{line}: not as the package brought it (apt-get install --reinstall {package})");
        }
    }
    Ok(())
}

fn packages(
    root: &Root,
    tree: &mut Tree,
    owners: &BTreeMap<PathBuf, String>,
) -> Result<Vec<Package>> {
    let names: BTreeSet<&str> = owners.values().map(String::as_str).collect();
    let mut args = vec![
        "--show",
        "--showformat=${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n",
    ];
    args.extend(names);
    let mut packages = Vec::new();
    for line in root.dpkg_query(&args)?.lines() {
        let [name, version, architecture, source, source_version] =
            line.split('\t').collect::<Vec<_>>()[..]
        else {
            bail!("dpkg-query said {line:?}");
        };
        let path = format!("usr/share/doc/{name}/copyright");
        let file = root.resolve(&Path::new("/").join(&path));
        let copyright = file.and_then(|f| fs::read(root.at(&f))).with_context(|| {
            format!("cannot read /{path}, which must go along with the programs")
        })?;
        packages.push(Package {
            name: name.into(),
            version: version.into(),
            architecture: architecture.into(),
            source: (source.into(), source_version.into()),
            licences: licences(&String::from_utf8_lossy(&copyright)),
        });
        tree.file(&format!("{path}.gz"), 0o644, packed(&copyright)?)?;
    }
    Ok(packages)
}

/// The licences that a machine-readable copyright file names.
fn licences(copyright: &str) -> BTreeSet<String> {
    if !copyright.trim_start().starts_with("Format:") {
        return BTreeSet::new();
    }
    copyright
        .lines()
        .filter_map(|line| line.strip_prefix("License:"))
        .map(|licence| licence.trim().to_owned())
        .filter(|licence| !licence.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_read_from_what_machines_can_read() {
        let readable = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+\n\nFiles: debian/*\nLicense: MIT\n text\n\nLicense: GPL-2+\n";
        assert_eq!(
            licences(readable),
            ["GPL-2+", "MIT"].map(String::from).into()
        );
        assert!(licences("This package was debianized by somebody.\nLicense: yes\n").is_empty());
    }
}
