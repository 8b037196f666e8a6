//! The files that a flannel leaves on a host. Configuration that people wrote for the daemon itself
//! (`/etc/flannel`, units) is not among them, nor are programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use flanneld::{backends_file, status_socket, subnet_file};
use serde_json::Value;

use super::args::Cleanup;

/// Beside `subnet.env`: docker's options as the guides have them made, the wireguard backend's key.
const IN_RUN: [&str; 2] = ["/run/flannel/docker", "/run/flannel/wgkey"];

/// Where `mk-docker-opts.sh` writes unless told otherwise.
const DOCKER_OPTS: &str = "/run/docker_opts.env";

/// No network list is larger.
const LARGEST: u64 = 1 << 20;

/// What the CNI plugin writes before it gives it a container's name.
const HALF_SAVED: &str = ".new-";

/// What is there.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) files: BTreeSet<PathBuf>,
    /// Directories that are empty once the files are gone.
    pub(crate) dirs: BTreeSet<PathBuf>,
    /// Files where flannel's are looked for that hold something else, and what was expected.
    pub(crate) others: Vec<(PathBuf, &'static str)>,
}

pub(crate) fn find(args: &Cleanup) -> Found {
    let mut found = Found::default();
    for file in &args.subnet_files {
        let is_one = is_subnet_file(file);
        found.decide(file, is_one, "it holds no FLANNEL_SUBNET or FLANNEL_MTU");
        found.files.extend(half_written(file));
        let withdrawn = subnet_file::withdrawn(file);
        if is_subnet_file(&withdrawn) {
            found.add(&withdrawn);
        }
        found.add(&status_socket::path(file));
        found.add(&backends_file::path(file));
    }
    IN_RUN.iter().for_each(|file| found.add(Path::new(file)));
    if is_docker_options(Path::new(DOCKER_OPTS)) {
        found.add(Path::new(DOCKER_OPTS));
    }
    for file in files_in(&args.cni_data_dir) {
        let is_one = is_saved(&file);
        found.decide(&file, is_one, "it holds no delegate's configuration");
    }
    let lists = files_in(&args.cni_conf_dir);
    found
        .files
        .extend(lists.into_iter().filter(|file| is_flannels_network(file)));

    let parents = args.subnet_files.iter().filter_map(|file| file.parent());
    let run = parents.filter(|dir| dir.ends_with("flannel"));
    for dir in run.chain([Path::new("/run/flannel"), &args.cni_data_dir]) {
        let Ok(entries) = fs::read_dir(dir) else {
            continue;
        };
        let stays = |entry: fs::DirEntry| !found.files.contains(&entry.path());
        if !entries.flatten().any(stays) {
            found.dirs.insert(dir.to_owned());
        }
    }
    found
}

impl Found {
    /// Adds a file if it is there and one of flannel's.
    fn decide(&mut self, file: &Path, is_one: bool, else_why: &'static str) {
        if is_one {
            self.files.insert(file.to_owned());
        } else if fs::symlink_metadata(file).is_ok() {
            self.others.push((file.to_owned(), else_why));
        }
    }

    /// Adds a file if it is there. A directory under its name is none of flannel's.
    fn add(&mut self, file: &Path) {
        if fs::symlink_metadata(file).is_ok_and(|meta| !meta.is_dir()) {
            self.files.insert(file.to_owned());
        }
    }
}

/// The files in a directory, links and directories apart.
fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|entry| entry.path()).collect()
}

/// What a daemon that was killed while it wrote `file` left beside it.
fn half_written(file: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (file.parent(), file.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let is_half = |path: &PathBuf| {
        let half = path.file_name().and_then(|n| n.to_str());
        let pid = half.and_then(|half| {
            let rest = half.strip_prefix('.')?.strip_prefix(name)?;
            rest.strip_prefix('.')?.strip_suffix(".tmp")
        });
        pid.is_some_and(|pid| pid.parse::<u32>().is_ok())
    };
    files_in(dir).into_iter().filter(is_half).collect()
}

/// Whether a flannel wrote a file for the others on its host: somebody may have named the wrong one.
pub(crate) fn is_subnet_file(file: &Path) -> bool {
    let keys = [
        "FLANNEL_SUBNET=",
        "FLANNEL_IPV6_SUBNET=",
        "FLANNEL_MTU=",
        "FLANNEL_NETWORK=",
    ];
    let text = read(file).unwrap_or_default();
    text.lines()
        .any(|line| keys.iter().any(|key| line.trim().starts_with(key)))
}

/// Whether the CNI plugin saved a file.
fn is_saved(file: &Path) -> bool {
    let half = file.file_name().and_then(|name| name.to_str());
    let saved = || {
        let saved: Value = serde_json::from_str(&read(file)?).ok()?;
        saved.get("type")?.as_str().map(drop)
    };
    half.is_some_and(|name| name.starts_with(HALF_SAVED)) || saved().is_some()
}

/// Whether `mk-docker-opts.sh` wrote a file: its name alone does not tell.
fn is_docker_options(file: &Path) -> bool {
    let text = read(file).unwrap_or_default();
    let its = |line: &str| line.starts_with("DOCKER_OPT") || line.trim().is_empty();
    text.contains("--bip=") && text.lines().all(its)
}

/// Whether a network of container runtimes is flannel's: the plugin is called by it.
fn is_flannels_network(file: &Path) -> bool {
    let suits = |ext: &str| matches!(ext, "conf" | "conflist" | "json");
    if !file
        .extension()
        .and_then(|ext| ext.to_str())
        .is_some_and(suits)
    {
        return false;
    }
    let text = read(file).unwrap_or_default();
    let network: Value = serde_json::from_str(&text).unwrap_or_default();
    let calls = |plugin: &Value| plugin["type"] == "flannel";
    calls(&network)
        || network["plugins"]
            .as_array()
            .is_some_and(|all| all.iter().any(calls))
}

fn read(file: &Path) -> Option<String> {
    let meta = fs::symlink_metadata(file).ok()?;
    let fits = meta.is_file() && meta.len() <= LARGEST;
    fits.then(|| fs::read_to_string(file).ok())?
}
