//! The stores that a daemon is measured on, filled and changed the quick way.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::SHARED_DIR;
use serde_json::json;

use crate::etcd::Etcd;
use crate::fleet::{NETWORK, Peer};
use crate::stage::Stage;

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// etcd.
    Etcd,
    /// A directory.
    Directory,
}

impl Kind {
    /// Its name in tables and results.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Etcd => "etcd",
            Kind::Directory => "directory",
        }
    }
}

/// A store with a fleet in it.
pub struct Target {
    keeper: Keeper,
    peers: u32,
    /// More that a flanneld is told.
    also: Vec<String>,
}

enum Keeper {
    Etcd(Box<Etcd>),
    Directory(PathBuf),
}

impl Target {
    /// Opens the store of `kind` on `stage`; there are no leases in it.
    ///
    /// # Errors
    /// The store is not there.
    pub fn open(kind: Kind, stage: &Stage) -> anyhow::Result<Target> {
        let keeper = match kind {
            Kind::Etcd => {
                let etcd = stage.etcd()?;
                Keeper::Etcd(Box::new(Etcd::connect(
                    stage.rival(),
                    &etcd.endpoint(),
                    etcd.prefix(),
                )?))
            }
            Kind::Directory => {
                let dir = stage.shared_dir().join("bench");
                fs::create_dir_all(dir.join("subnets")).context("store directory")?;
                fs::write(dir.join("config"), config(false)).context("store directory: config")?;
                Keeper::Directory(dir)
            }
        };
        Ok(Target {
            keeper,
            peers: 0,
            also: Vec::new(),
        })
    }

    /// Which store it is.
    pub fn kind(&self) -> Kind {
        match self.keeper {
            Keeper::Etcd(_) => Kind::Etcd,
            Keeper::Directory(_) => Kind::Directory,
        }
    }

    /// How many peers are in it.
    pub fn peers(&self) -> u32 {
        self.peers
    }

    /// What a flanneld must be told, apart from what the lab tells every one.
    pub fn flanneld_args(&self) -> Vec<String> {
        let mut args = match self.keeper {
            Keeper::Etcd(_) => Vec::new(),
            Keeper::Directory(_) => vec![format!("--store-dir={SHARED_DIR}/bench")],
        };
        args.extend(self.also.iter().cloned());
        args
    }

    /// From now on, a flanneld is told `args` too.
    pub fn also(&mut self, args: &[&str]) {
        self.also = args.iter().map(|arg| arg.to_string()).collect();
    }

    /// Writes a network configuration that says which kind of traffic rules there are to be.
    ///
    /// # Errors
    /// The store refuses.
    pub fn set_nftables(&self, stage: &Stage, on: bool) -> anyhow::Result<()> {
        match &self.keeper {
            Keeper::Etcd(_) => Ok(stage.put_config(&config(on))?),
            Keeper::Directory(dir) => {
                fs::write(dir.join("config"), config(on)).context("store directory: config")
            }
        }
    }

    /// Adds peers until there are `count`.
    ///
    /// # Errors
    /// The store refuses.
    pub fn fill(&mut self, count: u32) -> anyhow::Result<()> {
        let mut new = (self.peers..count).map(Peer);
        match &mut self.keeper {
            Keeper::Etcd(etcd) => etcd.put_all(new)?,
            Keeper::Directory(dir) => new.try_for_each(|peer| write(dir, peer))?,
        }
        self.peers = self.peers.max(count);
        Ok(())
    }

    /// Puts one lease; returns when that began and how long it took the store.
    ///
    /// # Errors
    /// The store refuses.
    pub fn put(&mut self, peer: Peer) -> anyhow::Result<(Instant, Duration)> {
        match &mut self.keeper {
            Keeper::Etcd(etcd) => etcd.put(peer),
            Keeper::Directory(dir) => {
                let began = Instant::now();
                write(dir, peer)?;
                Ok((began, began.elapsed()))
            }
        }
    }

    /// Removes leases by their keys below `subnets/`; one that is not there is no error.
    ///
    /// # Errors
    /// The store refuses.
    pub fn remove(&mut self, keys: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let mut keys = keys.into_iter();
        match &mut self.keeper {
            Keeper::Etcd(etcd) => etcd.delete_all(keys),
            Keeper::Directory(dir) => keys.try_for_each(|key| {
                let file = dir.join("subnets").join(key);
                match fs::remove_file(&file) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                    done => done.with_context(|| file.display().to_string()),
                }
            }),
        }
    }
}

fn config(nftables: bool) -> String {
    let backend = json!({"Type": "vxlan"});
    json!({"Network": NETWORK, "SubnetLen": 24, "EnableNFTables": nftables, "Backend": backend})
        .to_string()
}

/// Under another name first: a reader never sees half of it.
fn write(dir: &std::path::Path, peer: Peer) -> anyhow::Result<()> {
    let (half, whole) = (dir.join(".bench.tmp"), dir.join("subnets").join(peer.key()));
    fs::write(&half, peer.value())
        .and_then(|()| fs::rename(&half, &whole))
        .with_context(|| whole.display().to_string())
}
