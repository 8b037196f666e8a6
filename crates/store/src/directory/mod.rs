//! Leases as files: etcd's keys under a directory, for one machine or on a shared file system.
//!
//! ```text
//! PATH/config                      the network configuration
//! PATH/subnets/172.30.80.0-24      a lease: etcd's JSON value, and "Expires", in seconds of the epoch
//! PATH/.lock                       held for a moment by whoever changes a lease
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
//! | [`notify`] | being told of changes |
//! | [`thread`], [`reading`], [`listing`] | a file, all files, batch by batch |
//! | [`own_file`] | what the requests of [`crate::own_lease`] mean here |
//! | [`disk_clock`] | the clock by which leases end |
//! | [`follow`] | everybody's leases, for as long as the daemon runs |
//! | [`admin`] | looking and writing by hand |

mod admin;
mod disk_clock;
mod entry;
mod file_id;
mod files;
mod follow;
mod listing;
mod notify;
mod own_file;
mod reading;
mod thread;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use model::{Lease, LeaseAttrs, NetConfig};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::event_queue::EventQueue;
use crate::retry::{Retry, StoreStatus};
use crate::task::AbortOnDrop;
use crate::{AcquireError, Claim, Store, StoreEvent, Timing, Who};
use files::Place;
use follow::Follower;
use thread::PATIENCE;

/// Leases in a directory.
pub struct DirectoryStore {
    place: Arc<Place>,
    timing: Timing,
    queue: Arc<EventQueue>,
    desired: watch::Sender<Option<LeaseAttrs>>,
    status: StoreStatus,
    /// At rest, driven by this store's own calls; until it runs as a task.
    follower: Option<Box<Follower>>,
    task: Option<AbortOnDrop>,
}

impl DirectoryStore {
    /// A store in the directory `path`, which is made when it is first needed.
    pub fn new(path: impl Into<PathBuf>, timing: Timing) -> DirectoryStore {
        let (queue, desired) = (Arc::new(EventQueue::default()), watch::Sender::new(None));
        let place = Arc::new(Place::new(path.into()));
        DirectoryStore {
            place,
            timing,
            queue,
            desired,
            status: StoreStatus::default(),
            follower: None,
            task: None,
        }
    }

    /// The follower at rest, looking for the lease of `who`.
    fn follower(&mut self, config: &NetConfig, who: &Who) -> &mut Follower {
        self.task = None;
        self.follower = self
            .follower
            .take()
            .filter(|follower| follower.is_for(config, who));
        self.follower.get_or_insert_with(|| {
            Box::new(Follower::new(
                self.place.clone(),
                self.timing,
                self.queue.clone(),
                self.desired.subscribe(),
                (config.clone(), who.clone(), self.status.clone()),
            ))
        })
    }

    fn parse_config(&self, read: io::Result<Vec<u8>>) -> Result<NetConfig, String> {
        let path = self.place.config();
        let file = path.display();
        let bytes = read.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                format!("there is no {file}: write the network configuration there")
            }
            _ => format!("{file}: {e}"),
        })?;
        NetConfig::from_json(&String::from_utf8_lossy(&bytes)).map_err(|e| format!("{file}: {e}"))
    }
}

impl Store for DirectoryStore {
    async fn config(&mut self) -> NetConfig {
        let mut retry = Retry::reporting_to(&self.status);
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
            match self.parse_config(read) {
                Ok(config) => {
                    retry.over();
                    return config;
                }
                Err(reason) => retry.wait(&reason, false).await,
            }
        }
    }

    async fn own(&mut self, config: &NetConfig, who: &Who) -> Option<Lease> {
        self.follower(config, who).find_own().await
    }

    async fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        self.desired.send_replace(None);
        // Devices are as `own` was told.
        let known = self.follower.as_ref();
        let devices = known.map(|follower| follower.who.devices.clone());
        let who = Who {
            public_ip: claim.attrs.public_ip,
            previous: claim.previous,
            devices: devices.unwrap_or_default(),
        };
        let follower = self.follower(config, &who);
        follower.acquire(claim.attrs.clone()).await
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        self.desired.send_replace(Some(attrs));
    }

    fn status(&self) -> StoreStatus {
        self.status.clone()
    }

    async fn next_event(&mut self) -> StoreEvent {
        if self.task.is_none()
            && let Some(follower) = self.follower.take()
        {
            self.task = Some(AbortOnDrop::spawn(follower.run()));
        }
        self.queue.next_event().await
    }
}
