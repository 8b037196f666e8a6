//! Where the programs are that a lab runs.

use std::path::{Path, PathBuf};

use crate::Error;

/// The directory that holds the `flanneld` to be run: `$FLANNEL_BIN_DIR`, else the directory of
/// the running program or the one above it (where cargo puts test programs' siblings).
///
/// # Errors
/// [`Error::Needs`] with the command that builds it.
pub fn flannel_bin_dir() -> Result<PathBuf, Error> {
    let holds = |dir: &Path| dir.join("flanneld").is_file();
    if let Some(dir) = std::env::var_os("FLANNEL_BIN_DIR") {
        let dir = PathBuf::from(dir);
        return match holds(&dir) {
            true => Ok(dir),
            false => Err(Error::Needs(format!(
                "FLANNEL_BIN_DIR is {}, but there is no flanneld in it; `cargo build --workspace --bins` builds one",
                dir.display()
            ))),
        };
    }
    let exe = std::env::current_exe().map_err(|source| Error::Io {
        what: "find the running program's own file".into(),
        source,
    })?;
    exe.ancestors().skip(1).take(2).find(|dir| holds(dir)).map(Path::to_path_buf).ok_or_else(|| {
        Error::Needs(format!(
            "no flanneld beside {} or in the directory above it: build it with `cargo build --workspace --bins`, or name its directory in FLANNEL_BIN_DIR",
            exe.display()
        ))
    })
}

/// The container image that is run: `$FLANNEL_IMAGE`, else where `make image` puts it, beside what cargo built.
///
/// # Errors
/// [`Error::Needs`] with the command that makes it.
pub fn flannel_image() -> Result<PathBuf, Error> {
    if let Some(image) = std::env::var_os("FLANNEL_IMAGE") {
        let image = PathBuf::from(image);
        return match image.is_file() {
            true => Ok(image),
            false => Err(Error::Needs(format!(
                "FLANNEL_IMAGE is {}, but there is no such file",
                image.display()
            ))),
        };
    }
    let exe = std::env::current_exe().map_err(|source| Error::Io {
        what: "find the running program's own file".into(),
        source,
    })?;
    let mut images = exe
        .ancestors()
        .skip(2)
        .take(2)
        .map(|dir| dir.join("image/flannel-rs.tar"));
    images.find(|image| image.is_file()).ok_or_else(|| {
        Error::Needs(
            "there is no container image: `make image` makes it; or name one in FLANNEL_IMAGE"
                .into(),
        )
    })
}

/// What to say when a program of the system is not there.
pub(crate) fn missing(program: &str) -> Error {
    let package = match program {
        "ip" | "bridge" | "ss" | "tc" => "iproute2",
        "etcd" => "etcd-server",
        "etcdctl" => "etcd-client",
        "ping" => "iputils-ping",
        "unshare" | "setpriv" | "flock" | "pivot_root" => "util-linux",
        "dockerd" => "docker.io",
        "docker" => "docker-cli (Debian 12: docker.io)",
        "busybox" => "busybox-static",
        other => other,
    };
    Error::Needs(format!(
        "{program} is not installed: `make install-tools` does it, or: apt-get install {package}"
    ))
}

/// Checks that the system's programs `names` are there, before anything is built with them.
///
/// # Errors
/// [`Error::Needs`] names the first that is missing and its Debian package.
pub(crate) fn require(names: &[&str]) -> Result<(), Error> {
    let path = search_path();
    let there = |name: &str| {
        path.split(':')
            .any(|dir| Path::new(dir).join(name).is_file())
    };
    names
        .iter()
        .find(|name| !there(name))
        .map_or(Ok(()), |name| Err(missing(name)))
}

/// Where programs are looked for: a person's `PATH` often lacks the `sbin`s that hold `ip`.
pub(crate) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
}
