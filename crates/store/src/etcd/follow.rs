//! The task that follows etcd: list, watch, list again where that is needed, and never give up.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use model::{Dual, LeaseAttrs};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::acquire::Mark;
use super::client::{Client, Failure, Watch};
use super::holding::{Holding, Term};
use super::keyspace::Keyspace;
use super::listing::{Listing, Position};
use super::proto::{KeyValue, RangeRequest, RangeResponse, WatchCreate, WatchResponse, path};
use crate::Timing;
use crate::backoff::Backoff;
use crate::catalog::Catalog;
use crate::claim::{Candidate, same_node};
use crate::complaints::{Complaints, Waiting};
use crate::feed::Feed;
use crate::presence::Presence;

/// etcd confirms a watch at once.
const CONFIRM: std::time::Duration = std::time::Duration::from_secs(10);
/// A connection that stood for so long was a good one.
const LASTING: std::time::Duration = std::time::Duration::from_secs(5);
const DELETE: i32 = 1;

/// What is known of etcd, and the work on it. First the store's own calls drive it, one after the
/// other (own, acquire); then [`Follower::run`] does, for good.
pub(super) struct Follower {
    pub client: Arc<Client>,
    pub keys: Keyspace,
    pub timing: Timing,
    pub feed: Arc<Feed>,
    pub catalog: Catalog<i64>,
    pub complaints: Complaints,
    pub waiting: Waiting,
    /// Our public addresses: leases with them are ours.
    pub public_ip: Dual<IpAddr>,
    pub candidates: Vec<Candidate<Mark>>,
    /// An etcd lease for a key that is about to be created.
    pub granted: Option<Term>,
    /// `None`: nothing is being listed.
    pub listing: Option<Listing>,
    /// `None`: not everything is known.
    pub position: Option<Position>,
    pub holding: Option<Holding>,
    /// Our own key as the present listing shows it.
    pub own_seen: Option<KeyValue>,
    /// The present listing ought to show our own key.
    pub own_expected: bool,
    /// etcd went back in time, or is another one: what is missing there was lost, not deleted.
    pub regressed: bool,
    /// When the keys that a regressed etcd has lost count as gone.
    pub sweep_at: Option<Instant>,
    /// What the daemon wants to have published.
    pub wish: watch::Receiver<Option<LeaseAttrs>>,
    /// A watch has run before: what follows must join up with it.
    interrupted: bool,
    presence: Presence,
}

/// Why a watch ended.
enum End {
    /// What is known no longer joins up with what etcd tells.
    ListAgain(&'static str),
    /// The connection comes from an address that this node has given up: nothing would come back
    /// over it, and only silence would tell.
    Moved,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        match failure {
            Failure::Compacted => End::ListAgain("its history was compacted"),
            failure => End::Failed(failure),
        }
    }
}

impl Follower {
    pub(super) fn new(
        client: Arc<Client>,
        keys: Keyspace,
        timing: Timing,
        feed: Arc<Feed>,
        wish: watch::Receiver<Option<LeaseAttrs>>,
    ) -> Follower {
        Follower {
            client,
            keys,
            timing,
            catalog: Catalog::new(feed.clone()),
            feed,
            complaints: Complaints::default(),
            waiting: Waiting::default(),
            public_ip: Dual::default(),
            candidates: Vec::new(),
            granted: None,
            listing: None,
            position: None,
            holding: None,
            own_seen: None,
            own_expected: false,
            regressed: false,
            sweep_at: None,
            wish,
            interrupted: false,
            presence: Presence::new("etcd"),
        }
    }

    /// Follows etcd for ever.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let mut joined = None;
            let end = match self.session(&mut joined).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let lasted = joined.is_some_and(|at: Instant| at.elapsed() >= LASTING);
            if lasted {
                backoff.reset();
            }
            match end {
                End::ListAgain(why) => {
                    info!("etcd: {why}: listing all leases again");
                    self.list_anew();
                }
                // The end of a connection is no outage yet: the next one may follow at once.
                End::Failed(failure) if lasted => debug!("etcd: {failure}"),
                End::Moved => debug!("etcd: this node has another address: connecting anew"),
                End::Failed(failure) => self.presence.away(&self.feed, &failure.to_string()),
            }
            backoff.shared_by(self.catalog.iter().count());
            backoff.wait().await;
        }
    }

    /// From one connection to its end.
    async fn session(
        &mut self,
        joined: &mut Option<Instant>,
    ) -> Result<std::convert::Infallible, End> {
        match self.position {
            None => {
                if self.listing.is_none() {
                    self.list_anew();
                }
                while self.listing.is_some() {
                    self.read_some().await?;
                }
                self.check_own_in_listing().await?;
            }
            Some(at) if self.interrupted => self.check_joint(at).await?,
            Some(_) => {}
        }
        self.interrupted = true;
        let mut watch = self.open_watch().await?;
        *joined = Some(Instant::now());
        self.presence
            .back(&self.feed, &watch.endpoint().to_string());
        self.do_chores().await?;
        loop {
            let chore = [self.next_chore(), self.sweep_at]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                answer = self.client.next(&mut watch) => {
                    let answer = answer?;
                    self.take_in(answer).await?;
                }
                () = until(chore) => {
                    self.do_chores().await?;
                    self.sweep_if_due();
                }
                Ok(()) = self.wish.changed() => {
                    if self.has_moved() {
                        self.client.leave(watch.connection()).await;
                        return Err(End::Moved);
                    }
                    self.do_chores().await?;
                }
            }
            self.feed.flush();
        }
    }

    /// Opens the watch behind the position, and waits until etcd has confirmed it.
    async fn open_watch(&mut self) -> Result<Watch, End> {
        let at = self.position.unwrap_or_default();
        let (key, range_end) = self.keys.subnets();
        let create = WatchCreate {
            key,
            range_end,
            start_revision: at.revision + 1,
            progress_notify: true,
            fragment: true,
        };
        let mut watch = self.client.watch(create).await?;
        let first = match timeout(CONFIRM, self.client.next(&mut watch)).await {
            Ok(first) => first?,
            Err(_) => {
                self.client.leave(watch.connection()).await;
                return Err(Failure::Away(format!(
                    "{}: the watch is not confirmed",
                    watch.endpoint()
                ))
                .into());
            }
        };
        let cluster = first.header.as_ref().map_or(0, |header| header.cluster_id);
        // A proxy that joins watches of several clients (`etcd grpc-proxy`) does not fill in the id.
        if cluster != 0 && cluster != at.cluster {
            self.regressed = true;
            return Err(End::ListAgain("this is another cluster than before"));
        }
        self.take_in(first).await?;
        Ok(watch)
    }

    /// Takes in what a watch tells.
    async fn take_in(&mut self, answer: WatchResponse) -> Result<(), End> {
        if answer.compact_revision > 0 {
            return Err(End::ListAgain("its history was compacted"));
        }
        if answer.canceled {
            return Err(Failure::Refused(format!("the watch: {}", answer.cancel_reason)).into());
        }
        let mut reached = 0;
        for event in &answer.events {
            let Some(kv) = &event.kv else { continue };
            reached = reached.max(kv.mod_revision);
            match event.kind {
                DELETE => self.key_deleted(kv).await?,
                _ => {
                    let key = self.read_key(kv);
                    if key.is_some() && key == self.holding.as_ref().map(|own| own.key) {
                        self.own_changed(kv).await?;
                    }
                }
            }
        }
        if answer.events.is_empty() && !answer.created {
            // A sign of life: there was nothing for us up to here.
            reached = answer.header.map_or(0, |header| header.revision);
        }
        if let Some(at) = self.position.as_mut().filter(|_| !answer.fragment) {
            at.revision = at.revision.max(reached);
        }
        Ok(())
    }

    async fn key_deleted(&mut self, kv: &KeyValue) -> Result<(), Failure> {
        self.complaints.settled(kv.key.as_ref());
        let Ok(key) = self.keys.parse(&kv.key) else {
            return Ok(());
        };
        self.catalog.gone(&key);
        match &self.holding {
            Some(own) if own.key == key && own.mod_revision < kv.mod_revision => {
                self.own_deleted().await
            }
            _ => Ok(()),
        }
    }

    /// After an interruption: is this the etcd that we knew, no younger than it was, and is our key
    /// there? One request, whatever the number of leases.
    async fn check_joint(&mut self, at: Position) -> Result<(), End> {
        let key = match &self.holding {
            Some(own) => self.keys.subnet(&own.key),
            None => self.keys.config(),
        };
        let query = RangeRequest {
            key: Bytes::from(key),
            ..RangeRequest::default()
        };
        let answer: RangeResponse = self.client.call(path::RANGE, query).await?;
        let header = answer.header.unwrap_or_default();
        if header.cluster_id != at.cluster || header.revision < at.revision {
            self.regressed = true;
            return Err(End::ListAgain("it has lost what it knew"));
        }
        let Some(own) = &self.holding else {
            return Ok(());
        };
        match answer.kvs.first() {
            Some(kv) if kv.mod_revision >= own.mod_revision => Ok(()),
            Some(_) => {
                self.regressed = true;
                Err(End::ListAgain("it has lost what it knew"))
            }
            // Deleted, as the watch will tell. Unless it does not: then the listing shows.
            None => Err(End::ListAgain("our lease is not there")),
        }
    }

    /// What a finished listing says about our own lease.
    async fn check_own_in_listing(&mut self) -> Result<(), Failure> {
        let (seen, expected) = (self.own_seen.take(), std::mem::take(&mut self.own_expected));
        let regressed = self.regressed;
        let Some(own) = self.holding.as_mut().filter(|_| expected) else {
            self.regressed = false;
            return Ok(());
        };
        let ours = |kv: &KeyValue| {
            LeaseAttrs::from_json(&kv.value)
                .is_ok_and(|attrs| same_node(&attrs, &own.attrs.public_ip))
        };
        match seen {
            Some(kv) if regressed && ours(&kv) => {
                // An older state of our own key, whose etcd lease may be as old.
                own.mod_revision = kv.mod_revision;
                own.create_revision = kv.create_revision;
                if let Some(term) = &mut own.term {
                    term.renew = Instant::now();
                }
                self.publish().await?;
            }
            Some(kv) => {
                own.mod_revision = own.mod_revision.min(if regressed { 0 } else { i64::MAX });
                self.own_changed(&kv).await?;
            }
            None => self.own_deleted().await?,
        }
        self.regressed = false;
        Ok(())
    }

    /// Everything has been read. What an etcd that lost data does not show is not gone yet: its
    /// owner is about to notice, and to publish it again.
    pub(super) fn end_of_listing(&mut self) {
        if self.regressed {
            self.sweep_at = Some(Instant::now() + self.timing.grace);
            warn!(
                "etcd has lost what it knew; leases that are missing now are kept for {} s more",
                self.timing.grace.as_secs()
            );
        } else {
            self.sweep_at = None;
            self.catalog.sweep();
        }
    }

    fn sweep_if_due(&mut self) {
        if self.sweep_at.is_some_and(|at| Instant::now() >= at) {
            self.sweep_at = None;
            self.catalog.sweep();
        }
    }
}

/// Sleeps until then; for ever if there is no such time.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
