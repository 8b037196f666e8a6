//! A node: a machine with a network of its own and a flanneld.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::Family;

use crate::daemon::{Daemon, Instance};
use crate::docker::Docker;
use crate::error::Doing;
use crate::fabric;
use crate::ground::Ground;
use crate::picture::Picture;
use crate::pod::{self, Pod};
use crate::repair::{self, Repair};
use crate::{Error, Kubelet, Namespace, SubnetEnv};

/// A node. It dereferences to its [`Namespace`]: `node.exec(["ip", "route"])`.
#[derive(Debug)]
pub struct Node {
    index: u8,
    place: Namespace,
    ground: Arc<Ground>,
    /// What every daemon of this lab is told: where the store is.
    common_args: Vec<String>,
    flanneld: Daemon,
    kubelet: Option<Kubelet>,
    pods: Mutex<Vec<Arc<Pod>>>,
}

impl Node {
    pub(crate) fn new(
        index: u8,
        place: Namespace,
        ground: &Arc<Ground>,
        common_args: Vec<String>,
        kubelet: Option<Kubelet>,
    ) -> Node {
        let flanneld = Daemon::new(&place, ground, &common_args, Instance::default());
        Node {
            index,
            place,
            ground: ground.clone(),
            common_args,
            flanneld,
            kubelet,
            pods: Mutex::default(),
        }
    }

    /// Its number, from 1: `n1` is 1.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Its address on the underlay, `eth0`.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ipv4().into(),
            Family::V6 => self.ipv6().into(),
        }
    }

    /// Its IPv4 address on the underlay.
    pub fn ipv4(&self) -> Ipv4Addr {
        fabric::ipv4(self.index)
    }

    /// Its IPv6 address on the underlay.
    pub fn ipv6(&self) -> Ipv6Addr {
        fabric::ipv6(self.index)
    }

    /// Its flanneld; made with the lab, started by [`crate::Lab::start`] or by hand.
    pub fn flanneld(&self) -> &Daemon {
        &self.flanneld
    }

    /// Its kubelet, in a lab that has them.
    pub fn kubelet(&self) -> Option<&Kubelet> {
        self.kubelet.as_ref()
    }

    /// Another flanneld on this node, told the same store as the first and `instance.args`. The
    /// caller keeps it: dropping it kills it.
    pub fn another(&self, instance: Instance) -> Daemon {
        Daemon::new(&self.place, &self.ground, &self.common_args, instance)
    }

    /// Reads a file as the node sees it.
    ///
    /// # Errors
    /// With the node's and the file's name.
    pub fn read(&self, path: &str) -> Result<String, Error> {
        self.place
            .run(|| fs::read_to_string(path))?
            .doing(|| format!("{}: {path}", self.name()))
    }

    /// Writes a file as the node sees it, its directory too. Only `/run` and `/var/lib` are the
    /// node's own; elsewhere it would be the machine's.
    ///
    /// # Errors
    /// With the node's and the file's name.
    pub fn write(&self, path: &str, text: &str) -> Result<(), Error> {
        if !path.starts_with("/run/") && !path.starts_with("/var/lib/") {
            return Err(Error::Bad(format!(
                "{path} is not the node's own: only /run and /var/lib are"
            )));
        }
        let write = || {
            fs::create_dir_all(Path::new(path).parent().unwrap_or(Path::new("/")))?;
            fs::write(path, text)
        };
        self.place
            .run(write)?
            .doing(|| format!("{}: {path}", self.name()))
    }

    /// A directory that all places of the lab see as `/run/lab`, by a path for this process.
    pub(crate) fn shared_dir(&self) -> std::path::PathBuf {
        self.ground.dir()
    }

    /// Its `subnet.env`.
    ///
    /// # Errors
    /// It is not there or cannot be read.
    pub fn subnet_env(&self) -> Result<SubnetEnv, Error> {
        self.flanneld.subnet_env()
    }

    /// Adds `count` pods behind `cni0`, from the subnet that `subnet.env` names.
    ///
    /// # Errors
    /// No `subnet.env` yet, or the kernel refused something.
    pub fn add_pods(&self, count: usize) -> Result<Vec<Arc<Pod>>, Error> {
        let env = self.subnet_env()?;
        self.add_pods_from(&env, count)
    }

    /// Adds `count` pods from a subnet that the caller names, without any flanneld.
    ///
    /// # Errors
    /// The kernel refused something.
    pub fn add_pods_from(&self, env: &SubnetEnv, count: usize) -> Result<Vec<Arc<Pod>>, Error> {
        let mut pods = self.pods_mut();
        let before = pods.len();
        let new = (0..count).map(|i| format!("{}-p{}", self.name(), before + i + 1));
        let new = new
            .map(|name| self.ground.place_in(&name, &self.place))
            .collect::<Result<Vec<_>, _>>()?;
        pods.extend(
            pod::attach(&self.place, env, before, new)?
                .into_iter()
                .map(Arc::new),
        );
        Ok(pods[before..].to_vec())
    }

    /// Its pods.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods_mut().clone()
    }

    /// A docker for this node, not started yet.
    ///
    /// # Errors
    /// [`Error::Needs`]: docker is not installed, or this process may not make control groups.
    pub fn docker(&self) -> Result<Docker, Error> {
        Docker::new(&self.place, &self.ground)
    }

    /// This node with directories of its own that are otherwise the machine's: what is written
    /// there, this place alone sees. Those of `copies`, such as `/etc`, hold at first what the
    /// machine's hold; those of `empty`, such as `/opt`, nothing. Its `/proc` shows the lab's
    /// processes, for programs that look for themselves there.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn with_own(&self, copies: &[&str], empty: &[&str]) -> Result<Namespace, Error> {
        const MOUNT: &str = r#"mount -t proc proc /proc
        for dir; do
            [ "$dir" != -- ] || { copy=no; continue; }
            new=/run/own$dir
            mkdir -p "$new"
            # Without the machine's root, some of it cannot be read.
            [ "$copy" = no ] || cp -a "$dir/." "$new" 2>/dev/null || true
            mount --bind "$new" "$dir"
        done"#;
        let place = self.place.with_own_mounts(self.name())?;
        let argv = ["env", "copy=yes", "sh", "-euc", MOUNT, "sh"];
        let dirs = copies.iter().chain(&["--"]).chain(empty);
        place.exec(argv.iter().chain(dirs))?;
        Ok(place)
    }

    /// What its kernel holds.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn picture(&self) -> Result<Picture, Error> {
        self.place.run(Picture::take)?
    }

    /// Runs `fault`, and measures from its effect until the node's kernel holds again exactly what
    /// it held before.
    ///
    /// # Errors
    /// The fault failed or had no effect, or the kernel was not as before when `deadline` had
    /// passed: then with the difference.
    pub fn measure_repair(
        &self,
        fault: impl FnOnce() -> Result<(), Error> + Send,
        deadline: std::time::Duration,
    ) -> Result<Repair, Error> {
        repair::measure(&self.place, fault, deadline)
    }

    fn pods_mut(&self) -> MutexGuard<'_, Vec<Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Node {
    type Target = Namespace;
    fn deref(&self) -> &Namespace {
        &self.place
    }
}
