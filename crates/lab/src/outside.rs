//! The way into a lab that another process holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::error::Doing;
use crate::{Error, Lab, Namespace};

/// Where the namespaces of a lab can be found while the process that holds it lives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Handles {
    /// The process that holds the lab.
    pub pid: u32,
    /// The first process of the lab's process namespace.
    pub guard: i32,
    /// By name (`fabric`, `n1`, `n1-p1`), its descriptors in process `pid`.
    pub places: BTreeMap<String, PlaceHandles>,
}

/// Descriptors of one place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlaceHandles {
    /// Its network namespace.
    pub net: i32,
    /// Its mount namespace.
    pub mnt: i32,
    /// Its process namespace.
    pub pid: i32,
    /// Of a whole machine: its host name, IPC and cgroup namespaces.
    pub others: Vec<i32>,
}

impl Handles {
    pub(crate) fn of(lab: &Lab) -> Handles {
        let pods = lab.pods();
        let nodes = lab.nodes.iter().map(|node| &**node);
        let all = std::iter::once(&lab.fabric)
            .chain(nodes)
            .chain(pods.iter().map(|pod| &***pod));
        let handles = |p: &Namespace| PlaceHandles {
            net: p.net().as_raw_fd(),
            mnt: p.mnt().as_raw_fd(),
            pid: p.pid().as_raw_fd(),
            others: p.others().iter().map(AsRawFd::as_raw_fd).collect(),
        };
        Handles {
            pid: std::process::id(),
            guard: lab.ground.guard().pid(),
            places: all.map(|p| (p.name().to_string(), handles(p))).collect(),
        }
    }

    /// Enters the lab's user namespace, where it has one of its own. To be called while the
    /// process has one thread.
    ///
    /// # Errors
    /// The lab is not this user's, or is gone.
    pub fn enter_user_namespace(&self) -> Result<(), Error> {
        let theirs = format!("/proc/{}/ns/user", self.pid);
        let id = |path: &str| std::fs::read_link(path).doing(|| path.into());
        if id(&theirs)? == id("/proc/self/ns/user")? {
            return Ok(());
        }
        setns(open(&theirs)?, CloneFlags::CLONE_NEWUSER)
            .doing(|| "enter the lab's user namespace".into())
    }

    /// Opens the place called `name`.
    ///
    /// # Errors
    /// There is none of that name (says which there are), or the lab is gone.
    pub fn open(&self, name: &str) -> Result<Namespace, Error> {
        let known = || self.places.keys().cloned().collect::<Vec<_>>().join(", ");
        let place = self
            .places
            .get(name)
            .ok_or_else(|| Error::Bad(format!("no {name} in this lab; there are {}", known())))?;
        let fd = |fd: i32| open(&format!("/proc/{}/fd/{fd}", self.pid));
        let others = place.others.iter().map(|other| fd(*other));
        Ok(Namespace::foreign(
            name,
            fd(place.net)?,
            fd(place.mnt)?,
            fd(place.pid)?,
            others.collect::<Result<_, _>>()?,
        ))
    }
}

fn open(path: &str) -> Result<OwnedFd, Error> {
    Ok(File::open(Path::new(path)).doing(|| path.into())?.into())
}
