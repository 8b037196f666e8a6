//! Leases as files: etcd's keys under a directory, for one machine or on a shared file system.
//!
//! ```text
//! PATH/config                      the network configuration
//! PATH/subnets/172.30.80.0-24      a lease: etcd's JSON value, and "Expires", in seconds of the epoch
//! PATH/.lock                       locked for a moment by each change of a lease
//! ```
//!
//! A file without `Expires` is a reservation. One whose time is over is no lease any more, and its
//! subnet may be taken. "Now" is the file system's time, so that machines that share a directory agree
//! on it whatever their own clocks say.
//!
//! | module | does |
//! |---|---|
//! | [`entry`] | what a file holds |
//! | [`files`], [`file_id`] | looks and changes, complete or not at all |
//! | [`worker`], [`listing`] | file work on other threads; all files, batch by batch |
//! | [`replica`] | what is known of the directory |
//! | [`own_file`], [`leases`] | the own lease looked after, everybody's read |
//! | [`disk_clock`] | the clock by which leases end |
//! | [`follow`] | everybody's leases, for as long as the daemon runs |
//! | [`admin`] | the administrator's access |

mod admin;
mod disk_clock;
mod entry;
mod file_id;
mod files;
mod follow;
mod leases;
mod listing;
mod own_file;
mod replica;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::{Lease, LeaseAttrs, NetConfig};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::config_file;
use crate::retry::{Retry, StoreStatus};
use crate::store_task::{Resting, StoreTask};
use crate::task::AbortOnDrop;
use crate::{AcquireError, Claim, Store, StoreEvent, Timing, Who};
use files::Place;
use leases::Leases;
use worker::PATIENCE;

/// Leases in a directory.
pub struct DirectoryStore {
    place: Arc<Place>,
    timing: Timing,
    work: StoreTask<Leases>,
    following_config: Option<AbortOnDrop>,
}

impl DirectoryStore {
    /// Creates a store in the directory `path`, which is created when it is first needed.
    pub fn new(path: impl Into<PathBuf>, timing: Timing) -> DirectoryStore {
        DirectoryStore {
            place: Arc::new(Place::new(path.into())),
            timing,
            work: StoreTask::new(),
            following_config: None,
        }
    }

    fn search(&mut self, config: &NetConfig, who: &Who) -> &mut Resting<Leases> {
        self.work.search(config, who, |queue, status| {
            let search = (config.clone(), who.clone());
            Leases::new(
                self.place.clone(),
                self.timing,
                queue.clone(),
                status.clone(),
                search,
            )
        })
    }
}

fn parse_config(file: &Path, read: io::Result<Vec<u8>>) -> Result<NetConfig, String> {
    let file = file.display();
    let bytes = read.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no {file}: write the network configuration there")
        }
        _ => format!("{file}: {e}"),
    })?;
    NetConfig::from_json(&String::from_utf8_lossy(&bytes)).map_err(|e| format!("{file}: {e}"))
}

impl Store for DirectoryStore {
    async fn config(&mut self) -> NetConfig {
        let mut retry = Retry::reporting_to(self.work.status());
        loop {
            let path = self.place.config();
            let mut reading = spawn_blocking(move || std::fs::read(path));
            // One thread at most hangs in a file system that does not answer.
            let read = loop {
                match timeout(PATIENCE, &mut reading).await {
                    Ok(read) => break read.unwrap_or_else(|e| Err(io::Error::other(e))),
                    Err(_) => {
                        let root = self.place.root().display();
                        let reason = format!("{root}: the file system does not answer");
                        retry.wait(&reason, false).await;
                    }
                }
            };
            match parse_config(&self.place.config(), read) {
                Ok(config) => {
                    retry.over();
                    return config;
                }
                Err(reason) => retry.wait(&reason, false).await,
            }
        }
    }

    async fn own(&mut self, config: &NetConfig, who: &Who) -> Option<Lease> {
        self.search(config, who).find().await
    }

    async fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        self.work.publish(None);
        let who = self.work.claimant(claim);
        let search = self.search(config, &who);
        search.acquire(claim.attrs.clone()).await
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        self.work.publish(Some(attrs));
    }

    fn status(&self) -> StoreStatus {
        self.work.status().clone()
    }

    async fn next_event(&mut self) -> StoreEvent {
        self.following_config.get_or_insert_with(|| {
            let path = self.place.config();
            let queue = self.work.queue().clone();
            let poll = self.timing.poll;
            AbortOnDrop::spawn(config_file::follow(path, poll, queue, parse_config))
        });
        self.work.next_event().await
    }
}
