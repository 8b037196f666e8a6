//! The leases in etcd: reads everybody's, and carries out what the own lease asks for.

use std::sync::Arc;
use std::time::Duration;

use model::{Lease, NetConfig, SubnetKey};

use super::client::Client;
use super::etcd_lease::EtcdLease;
use super::failure::Failure;
use super::history::History;
use super::keyspace::Keyspace;
use super::listing::Listing;
use super::own_key::{OwnKey, Revision};
use super::proto::{KeyValue, TxnResponse, path};
use super::replica::Replica;
use crate::Timing;
use crate::event_queue::EventQueue;
use crate::own_lease::driver::{Driver, Execute};
use crate::own_lease::{Answer, Cause, Entry, Event, Look, Request, Who};
use crate::retry::StoreStatus;
use crate::skip_log::SkipLog;
use crate::subnet_allocator::SubnetAllocator;

/// Keys after which the daemon is notified, so that its work overlaps with the rest of the listing.
const BATCH: usize = 1000;
/// After so many listings that do not fit together there is a pause.
const MOST_MISFITS: u32 = 3;
/// A write of the own lease that etcd refuses is retried after about so long.
const REFUSED_AGAIN: Duration = Duration::from_secs(20);

/// The own lease of a node in etcd.
pub(super) type OwnDriver = Driver<Revision>;

/// What is known of etcd, and the work on it.
pub(super) struct Leases {
    client: Arc<Client>,
    keys: Keyspace,
    queue: Arc<EventQueue>,
    who: Who,
    allocator: SubnetAllocator,
    replica: Replica,
    own_key: OwnKey,
    /// Our own key as the present listing shows it.
    own_listed: Option<KeyValue>,
    /// `None`: nothing is being listed.
    listing: Option<Listing>,
    listed: bool,
    /// How many listings in a row were given up because their pages did not fit together.
    misfits: u32,
    /// The connection over which the history is known to be the same.
    known_on: Option<u64>,
    /// An answer showed that etcd has lost data: how, until everything is listed again.
    broken: Option<&'static str>,
}

impl Leases {
    pub(super) fn new(
        client: Arc<Client>,
        keys: Keyspace,
        timing: Timing,
        queue: Arc<EventQueue>,
        status: StoreStatus,
        (config, who): (NetConfig, Who),
    ) -> Leases {
        let life = EtcdLease::new(client.clone(), timing);
        let own_key = OwnKey::new(client.clone(), keys.clone(), config.clone(), life);
        let skipped = SkipLog::new(format!("etcd: keys below {}", keys.below()), status.clone());
        let replica = Replica::new(keys.clone(), queue.clone(), skipped, timing.grace);
        Leases {
            client,
            keys,
            queue,
            allocator: SubnetAllocator::new(config, who.previous, status),
            who,
            replica,
            own_key,
            own_listed: None,
            listing: None,
            listed: false,
            misfits: 0,
            known_on: None,
            broken: None,
        }
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    pub(super) fn keys(&self) -> &Keyspace {
        &self.keys
    }

    pub(super) fn queue(&self) -> &Arc<EventQueue> {
        &self.queue
    }

    /// Returns what is known of etcd's keys.
    pub(super) fn replica(&mut self) -> &mut Replica {
        &mut self.replica
    }

    /// Returns whether the history is known to be the same over `connection`.
    pub(super) fn is_known_on(&self, connection: u64) -> bool {
        self.known_on == Some(connection)
    }

    /// Records that `connection` shows the known history.
    pub(super) fn set_known_on(&mut self, connection: u64) {
        self.known_on = Some(connection);
    }

    /// Records that etcd has lost data.
    pub(super) fn data_lost(&mut self, own: &mut OwnDriver) {
        self.replica.set_data_lost(true);
        own.observe(Event::HistoryLost);
    }

    /// Returns how an answer showed that etcd has lost data, if one did: all leases are to be listed again.
    pub(super) fn broken(&self) -> Option<&'static str> {
        self.broken
    }

    /// Checks whether etcd still has the history that is known. Returns why it has not. One request, whatever the
    /// number of leases.
    pub(super) async fn history_break(&mut self) -> Result<Option<&'static str>, Failure> {
        let question = self.replica.history().question(self.keys.subnets());
        let answer: Result<TxnResponse, Failure> = self.client.call(path::TXN, question).await;
        match answer {
            Ok(answer) => Ok(self.replica.history().break_in(&answer)),
            Err(failure) if History::is_ahead_of(&failure) => Ok(Some("it has lost data")),
            Err(failure) => Err(failure),
        }
    }

    /// Begins to list all leases again, because what is known no longer joins up with what etcd shows.
    pub(super) fn list_again(&mut self, own: &mut OwnDriver) {
        self.broken = None;
        self.own_key.doubtful = true;
        self.begin_listing(own);
    }

    /// Lists all leases, unless that is done.
    pub(super) async fn list(&mut self, own: &mut OwnDriver) -> Result<(), Failure> {
        if self.listed {
            return Ok(());
        }
        while !self.listed {
            self.read(false, own).await?;
        }
        self.check_own(own).await
    }

    /// Takes in a key that a watch shows.
    pub(super) fn written(&mut self, kv: &KeyValue, own: &mut OwnDriver) {
        self.take_in(kv, own);
        if let Some(entry) = self.own_key.entry(kv)
            && own.lease().key() == Some(entry.key)
            && is_newer(kv, own)
        {
            own.observe(Event::Observed(Look::There(entry)));
        }
    }

    /// Takes in a deletion that a watch shows.
    pub(super) fn deleted(&mut self, kv: &KeyValue, own: &mut OwnDriver) {
        self.replica.forget_fault(kv);
        let Ok(key) = self.keys.parse(&kv.key) else {
            return;
        };
        let is_own = own.lease().key() == Some(key);
        if is_own && !is_newer(kv, own) {
            return;
        }
        self.replica.remove(&key);
        if is_own {
            own.observe(Event::Observed(Look::Gone(Cause::Deleted)));
        }
    }

    fn begin_listing(&mut self, own: &mut OwnDriver) {
        self.listing = Some(Listing::new(self.keys.subnets().0));
        self.listed = false;
        self.own_listed = None;
        self.replica.begin_listing();
        own.observe(Event::ListingBegan);
    }

    /// Reads some keys, if there are any left. Returns whether all are read.
    async fn read(&mut self, anew: bool, own: &mut OwnDriver) -> Result<bool, Failure> {
        if anew || (self.listing.is_none() && !self.listed) {
            self.begin_listing(own);
        }
        for _ in 0..BATCH {
            let Some(listing) = &mut self.listing else {
                break;
            };
            let next = listing.next(&self.client, &self.keys.subnets().1).await;
            if let Some(header) = listing.header() {
                self.replica.listing_is_of(header);
            }
            match next {
                Ok(Some(kv)) => {
                    self.replica.history_mut().listed(&kv);
                    self.take_in(&kv, own);
                }
                Ok(None) => {
                    self.known_on = listing.connection();
                    self.end_listing(own);
                }
                // The pages would not fit together.
                Err(Failure::Compacted) => {
                    self.begin_listing(own);
                    self.misfits += 1;
                    if self.misfits.is_multiple_of(MOST_MISFITS) {
                        return Err(Failure::Unreachable(
                            "etcd answers one listing from several histories: do all endpoints belong to one cluster?".into(),
                        ));
                    }
                }
                Err(failure) => {
                    self.begin_listing(own);
                    return Err(failure);
                }
            }
        }
        self.queue.flush();
        Ok(self.listed)
    }

    fn end_listing(&mut self, own: &mut OwnDriver) {
        self.listing = None;
        self.listed = true;
        self.misfits = 0;
        let bumped = self.replica.end_listing();
        self.own_key.listed_at = self.replica.history().revision();
        if self.own_key.doubtful && bumped {
            self.data_lost(own);
        }
        self.replica.remove_unlisted();
    }

    /// Takes in one key as it is now.
    fn take_in(&mut self, kv: &KeyValue, own: &mut OwnDriver) {
        let Some(key) = self.replica.subnet(kv) else {
            return;
        };
        let held = own.lease().key();
        if held == Some(key) {
            self.own_listed = Some(kv.clone());
        }
        if self.replica.is_known(&key, kv) {
            return;
        }
        let lease = self.replica.lease(key, kv);
        let like_ours = lease
            .as_ref()
            .is_some_and(|lease| self.who.likeness(&lease.attrs).is_some());
        if like_ours
            && held != Some(key)
            && let Some(entry) = self.own_key.entry(kv)
        {
            own.observe(Event::Entry(entry));
        }
        self.replica.put(key, kv.mod_revision, lease);
    }

    /// Passes on what a finished listing shows of our own key.
    async fn check_own(&mut self, own: &mut OwnDriver) -> Result<(), Failure> {
        let listed = self.own_listed.take();
        if own.lease().key().is_some() {
            let look = match listed.and_then(|kv| self.own_key.entry(&kv)) {
                Some(entry) => Look::There(entry),
                None => match self.own_key.why_missing().await {
                    Ok(cause) => Look::Gone(cause),
                    Err(failure) => {
                        // The next connection lists again, and checks again.
                        self.listed = false;
                        return Err(failure);
                    }
                },
            };
            if look == Look::Gone(Cause::Lost) && self.replica.set_data_lost(true) {
                self.replica.remove_unlisted();
            }
            own.observe(Event::Observed(look));
        }
        self.replica.set_data_lost(false);
        self.own_key.doubtful = false;
        Ok(())
    }

    /// Takes in that `answer` shows our own key missing or older than it was: if etcd has another history
    /// than before, nobody deleted the key. The connection need not have been interrupted, or not noticeably
    /// so: etcd may be behind a proxy, and a call may be the first to reconnect.
    async fn explain(
        &mut self,
        answer: &Answer<Revision>,
        own: &mut OwnDriver,
    ) -> Result<(), Failure> {
        let Some(key) = own.lease().key().filter(|_| self.listed) else {
            return Ok(());
        };
        let is_older = |entry: &Entry<Revision>| {
            let held = own.lease().held();
            held.is_some_and(|held| {
                entry.key == key && entry.mark.mod_revision < held.mark.mod_revision
            })
        };
        let in_doubt = match answer {
            Answer::Looked { look, .. } => match look {
                Look::There(entry) => is_older(entry),
                Look::Gone(cause) => *cause == Cause::Deleted,
            },
            Answer::Differs(Some(entry)) => is_older(entry),
            _ => false,
        };
        if !in_doubt {
            return Ok(());
        }
        let broken = match self.history_break().await {
            Err(Failure::Compacted) => Some("its history was compacted"),
            broken => broken?,
        };
        if broken.is_some() {
            self.broken = broken;
            self.data_lost(own);
        }
        Ok(())
    }

    /// Remembers what prevented a new lease.
    fn mark_taken(&mut self, key: SubnetKey, answer: &Answer<Revision>) {
        let other = match answer {
            Answer::Written { rival, .. } => *rival,
            Answer::Differs(Some(entry)) => Some(entry.key),
            _ => None,
        };
        for key in [Some(key), other].into_iter().flatten() {
            self.replica.put_unread(key);
        }
    }
}

impl Execute for Leases {
    type Mark = Revision;
    type Error = Failure;

    async fn execute(
        &mut self,
        request: Request<Revision>,
        own: &mut OwnDriver,
    ) -> Result<Answer<Revision>, Failure> {
        let answer = self.carry_out(request, own).await?;
        self.explain(&answer, own).await?;
        Ok(answer)
    }

    fn record(&mut self, lease: Lease, mark: Revision) {
        self.replica.history_mut().wrote(mark.mod_revision);
        self.replica.put(lease.key, mark.mod_revision, Some(lease));
        self.queue.flush();
    }

    fn retry_after(&self, failure: &Failure) -> Option<Duration> {
        matches!(failure, Failure::Refused(_)).then_some(REFUSED_AGAIN)
    }

    async fn release(&mut self) {
        self.own_key.life.release().await;
    }
}

impl Leases {
    async fn carry_out(
        &mut self,
        request: Request<Revision>,
        own: &mut OwnDriver,
    ) -> Result<Answer<Revision>, Failure> {
        match request {
            Request::Read { anew } => {
                let all = self.read(anew, own).await?;
                Ok(Answer::Read { all })
            }
            Request::Pick { lost } => {
                let picked = self.allocator.pick(&self.replica.taken(), lost);
                Ok(Answer::Picked(picked))
            }
            Request::Write {
                key,
                value,
                over,
                reserved,
            } => {
                let answer = self.own_key.write(key, &value, over, reserved).await?;
                let created = matches!(answer, Answer::Written { rival: None, .. });
                if over.is_none() && !created && own.lease().key().is_none() {
                    self.mark_taken(key, &answer);
                }
                Ok(answer)
            }
            Request::Delete { key, over } => {
                let answer = self.own_key.delete(&key, over).await?;
                if answer == Answer::Deleted {
                    self.replica.remove(&key);
                }
                Ok(answer)
            }
            Request::Look { key } => self.own_key.look(&key).await,
            Request::Renew => Ok(match self.own_key.life.renew().await? {
                Some(life) => Answer::Renewed(life),
                None => Answer::LifeOver,
            }),
        }
    }
}

/// Returns whether this state of our own key is later than the one that is known.
fn is_newer(kv: &KeyValue, own: &OwnDriver) -> bool {
    let held = own.lease().held();
    held.is_none_or(|held| held.mark.mod_revision < kv.mod_revision)
}
