//! The root directories that machines start from: releases of Debian, each made once and kept.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::Doing;
use crate::{Error, programs};

const SCRIPT: &str = include_str!("root.sh");

/// What is in it beside Debian's required packages: systemd, what flannel calls, and what those
/// who manage machines from afar expect there.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "procps",
    "iproute2",
    "iptables",
    "nftables",
    "iputils-ping",
    "ca-certificates",
    "openssh-server",
    "python3",
    "python3-apt",
];

/// A release of Debian that machines can run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Debian {
    /// Debian 12.
    #[default]
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Debian {
    /// Returns the code name, as mirrors and `/etc/os-release` have it.
    pub fn codename(self) -> &'static str {
        match self {
            Debian::Bookworm => "bookworm",
            Debian::Trixie => "trixie",
        }
    }

    fn number(self) -> u32 {
        match self {
            Debian::Bookworm => 12,
            Debian::Trixie => 13,
        }
    }
}

/// Returns a directory that holds a release of Debian, below `${XDG_CACHE_HOME:-~/.cache}/flannel-rs/`; nobody may
/// write to it. The first call makes it, which takes a minute or two and the network; others meanwhile wait for it.
///
/// # Errors
/// [`Error::Needs`] when something is missing; [`Error::Command`] with the end of debootstrap's
/// log.
pub fn debian_root(release: Debian) -> Result<PathBuf, Error> {
    let mut recipe = DefaultHasher::new();
    (SCRIPT, PACKAGES).hash(&mut recipe);
    let dir = cache()?.join(format!(
        "debian-{}-{:016x}",
        release.number(),
        recipe.finish()
    ));
    if dir.is_dir() {
        return Ok(dir);
    }
    programs::require(&["debootstrap", "unshare", "flock"])?;
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            SCRIPT,
            "root",
        ])
        .arg(release.codename())
        .arg(&dir)
        .args(PACKAGES)
        .env("PATH", programs::search_path())
        .stdin(Stdio::null())
        .output()
        .doing(|| "start debootstrap".into())?;
    if output.status.success() {
        Ok(dir)
    } else {
        Err(Error::Command {
            place: "this machine".into(),
            command: format!("debootstrap {} {}", release.codename(), dir.display()),
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

fn cache() -> Result<PathBuf, Error> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let base = of("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| of("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .ok_or_else(|| Error::Needs("neither XDG_CACHE_HOME nor HOME is set".into()))?;
    Ok(base.join("flannel-rs"))
}
