//! Leases as files: etcd's keys under a directory, for one machine or on a shared file system.
//!
//! ```text
//! PATH/config                      the network configuration
//! PATH/subnets/172.30.80.0-24      a lease: etcd's JSON value, and "Expires", in seconds of the epoch
//! PATH/.lock                       held for a moment by whoever changes a lease
//! ```
//!
//! A file without `Expires` is a reservation. One whose time is over is no lease any more, and its
//! subnet may be taken; so the clocks of machines that share a directory must agree, to within the
//! renewal margin of an hour.
//!
//! | module | does |
//! |---|---|
//! | [`entry`] | what a file holds |
//! | [`files`], [`file_id`] | looks and changes, complete or not at all |
//! | [`notify`] | being told of changes |
//! | [`thread`], [`reading`], [`listing`] | a file, all files, batch by batch |
//! | [`holding`] | our own lease: taken, kept, defended, lost |
//! | [`follow`] | everybody's leases, for as long as the daemon runs |
//! | [`admin`] | looking and writing by hand |

mod admin;
mod entry;
mod file_id;
mod files;
mod follow;
mod holding;
mod listing;
mod notify;
mod reading;
mod thread;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use model::{Dual, Lease, LeaseAttrs, NetConfig};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::claim;
use crate::feed::Feed;
use crate::patience::Patience;
use crate::task::AbortOnDrop;
use crate::{AcquireError, Claim, News, Store, Timing, Who};
use files::Place;
use follow::Follower;

/// Leases in a directory.
pub struct DirectoryStore {
    place: Arc<Place>,
    timing: Timing,
    feed: Arc<Feed>,
    wish: watch::Sender<Option<LeaseAttrs>>,
    /// At rest, driven by this store's own calls; until it runs as a task.
    follower: Option<Box<Follower>>,
    task: Option<AbortOnDrop>,
}

impl DirectoryStore {
    /// A store in the directory `path`, which is made when it is first needed.
    pub fn new(path: impl Into<PathBuf>, timing: Timing) -> DirectoryStore {
        let (feed, wish) = (Arc::new(Feed::default()), watch::Sender::new(None));
        let place = Arc::new(Place::new(path.into()));
        DirectoryStore {
            place,
            timing,
            feed,
            wish,
            follower: None,
            task: None,
        }
    }

    /// The follower at rest, looking for leases of ours by `public_ip`.
    fn follower(&mut self, public_ip: &Dual<IpAddr>) -> &mut Follower {
        self.task = None;
        self.follower = self
            .follower
            .take()
            .filter(|follower| follower.public_ip == *public_ip);
        self.follower.get_or_insert_with(|| {
            let (place, feed, wish) =
                (self.place.clone(), self.feed.clone(), self.wish.subscribe());
            let mut follower = Follower::new(place, self.timing, feed, wish);
            follower.public_ip = *public_ip;
            Box::new(follower)
        })
    }

    async fn read_config(&self) -> Result<NetConfig, String> {
        let path = self.place.config();
        let read = path.clone();
        let bytes = spawn_blocking(move || std::fs::read(read))
            .await
            .map_err(|e| e.to_string())?;
        let file = path.display();
        let bytes = bytes.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                format!("there is no {file}: write the network configuration there")
            }
            _ => format!("{file}: {e}"),
        })?;
        NetConfig::from_json(&String::from_utf8_lossy(&bytes)).map_err(|e| format!("{file}: {e}"))
    }
}

impl Store for DirectoryStore {
    async fn config(&mut self) -> NetConfig {
        let mut patience = Patience::default();
        loop {
            match self.read_config().await {
                Ok(config) => {
                    patience.over();
                    return config;
                }
                Err(reason) => patience.wait(&reason, false).await,
            }
        }
    }

    async fn own(&mut self, _config: &NetConfig, who: &Who) -> Option<Lease> {
        claim::own_at_last(self.follower(&who.public_ip)).await
    }

    async fn acquire(&mut self, config: &NetConfig, claim: &Claim) -> Result<Lease, AcquireError> {
        self.wish.send_replace(None);
        claim::acquire_at_last(self.follower(&claim.attrs.public_ip), config, claim).await
    }

    async fn publish(&mut self, attrs: LeaseAttrs) {
        self.wish.send_replace(Some(attrs));
    }

    async fn news(&mut self) -> News {
        if self.task.is_none() {
            let public_ip = self.follower.as_ref().map(|follower| follower.public_ip);
            self.follower(&public_ip.unwrap_or_default());
            if let Some(follower) = self.follower.take() {
                self.task = Some(AbortOnDrop::spawn(follower.run()));
            }
        }
        self.feed.news().await
    }
}
