//! The store's keys, whatever keeps them: for tests that play a node, or spoil a lease.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::error::Doing;
use crate::{Error, Etcd, Kube};

/// What keeps the leases of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A directory that all nodes share.
    Directory,
    /// A real etcd.
    Etcd {
        /// With certificates on both sides.
        tls: bool,
    },
    /// A real Kubernetes API server: the nodes are Nodes, and the controller manager gives them their
    /// subnets.
    Kubernetes,
}

/// The key of the network config.
pub(crate) const CONFIG: &str = "config";

fn no_leases() -> Error {
    Error::Bad("in Kubernetes the Nodes are the leases: `Lab::kube` has them".into())
}

/// The store of a lab, from outside.
#[derive(Debug)]
pub(crate) enum Keys {
    Directory(PathBuf),
    Etcd(Box<Etcd>),
    Kubernetes(Box<Kube>),
}

impl Keys {
    /// Writes `key` (below the prefix, such as `config`).
    pub(crate) fn put(&self, key: &str, value: &str) -> Result<(), Error> {
        match self {
            Keys::Directory(dir) => {
                let path = dir.join(key);
                let shown = || format!("store: {key}");
                // Under another name first: a reader never sees half of it.
                let half = dir.join(format!(".lab-{}.tmp", key.replace('/', "-")));
                fs::create_dir_all(path.parent().unwrap_or(dir)).doing(shown)?;
                fs::write(&half, value)
                    .and_then(|()| fs::rename(&half, &path))
                    .doing(shown)
            }
            Keys::Etcd(etcd) => etcd
                .ctl(&["put", "--", &format!("{}/{key}", etcd.prefix()), value])
                .map(drop),
            Keys::Kubernetes(kube) if key == CONFIG => kube.put_config(value),
            Keys::Kubernetes(_) => Err(no_leases()),
        }
    }

    /// Removes `key`; one that is not there is no error.
    pub(crate) fn delete(&self, key: &str) -> Result<(), Error> {
        match self {
            Keys::Directory(dir) => match fs::remove_file(dir.join(key)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                done => done.doing(|| format!("store: {key}")),
            },
            Keys::Etcd(etcd) => etcd
                .ctl(&["del", &format!("{}/{key}", etcd.prefix())])
                .map(drop),
            Keys::Kubernetes(kube) if key == CONFIG => kube.delete_config(),
            Keys::Kubernetes(_) => Err(no_leases()),
        }
    }

    /// The leases: name of the key below `subnets/`, and the value.
    pub(crate) fn leases(&self) -> Result<BTreeMap<String, String>, Error> {
        match self {
            Keys::Kubernetes(_) => Err(no_leases()),
            Keys::Directory(dir) => {
                let mut leases = BTreeMap::new();
                let entries = match fs::read_dir(dir.join("subnets")) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(leases),
                    entries => entries.doing(|| "store: subnets".into())?,
                };
                for entry in entries.flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    // Gone between the listing and the reading: not there.
                    if let (false, Ok(value)) = (name.starts_with('.'), fs::read(entry.path())) {
                        leases.insert(name, String::from_utf8_lossy(&value).into_owned());
                    }
                }
                Ok(leases)
            }
            Keys::Etcd(etcd) => {
                let prefix = format!("{}/subnets/", etcd.prefix());
                // Key and value on a line each; the values that flannel writes have no line break.
                let text = etcd.ctl(&["get", "--prefix", &prefix])?;
                let lines: Vec<&str> = text.lines().collect();
                let pairs = lines
                    .chunks_exact(2)
                    .filter_map(|pair| Some((pair[0].strip_prefix(&prefix)?, pair[1])));
                Ok(pairs
                    .map(|(key, value)| (key.to_string(), value.to_string()))
                    .collect())
            }
        }
    }
}
