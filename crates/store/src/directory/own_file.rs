//! What the requests of [`crate::own_lease`] mean in a directory: changes of one file.

use model::{Lease, SubnetKey};
use tracing::warn;

use super::entry::Entry;
use super::file_id::FileId;
use super::files::{Blocker, Changed, Look};
use super::follow::{Acquired, Fault, Follower, Seen};
use super::reading::look_at_each;
use crate::own_lease::{self, Action, Answer, Cause, Event, Life, Request, Signature, Value};
use crate::{AcquireError, clock, subnet_allocator};

type OwnEntry = own_lease::Entry<FileId>;

impl Follower {
    /// Passes an event to the own lease's machine, and keeps what it asks for.
    pub(super) fn tell(&mut self, event: Event<FileId>) {
        self.wake = None;
        for action in self.own.on(event, clock::now()) {
            match action {
                Action::WakeAt(at) => self.wake = Some(at),
                action => self.todo.push_back(action),
            }
        }
    }

    /// Does what the own lease asked for. Returns how an acquisition ended, if one did.
    pub(super) async fn work(&mut self) -> Result<Option<Acquired>, Fault> {
        while let Some(action) = self.todo.pop_front() {
            match action {
                Action::Do(request) => match self.carry_out(request).await {
                    Ok(answer) => self.tell(Event::Answer(answer)),
                    Err(fault) => {
                        self.tell(Event::Answer(Answer::Failed));
                        return Err(fault);
                    }
                },
                Action::Acquired(lease) => {
                    self.show(lease.clone());
                    return Ok(Some(Ok(lease)));
                }
                Action::Changed(lease) => self.show(lease),
                Action::Full(why) => return Ok(Some(Err(AcquireError::Full(why)))),
                Action::Revoked(reason) => {
                    self.queue.revoke(reason.to_string());
                    self.queue.flush();
                    return Ok(Some(Err(AcquireError::Held(reason.to_string()))));
                }
                Action::Say(notice) => notice.log(&mut self.waiting),
                Action::WakeAt(_) => {}
            }
        }
        Ok(None)
    }

    /// The daemon is to know our own lease as it is written.
    fn show(&mut self, lease: Lease) {
        let Some(held) = self.own.held() else { return };
        let (key, seen) = (lease.key, Seen::taken(Some(held.mark)));
        self.catalog.saw(key, seen, Some(lease));
        self.queue.flush();
        // Nobody waits for the disk.
        drop(self.begin(move |place| place.sync(&key)));
    }

    async fn carry_out(&mut self, request: Request<FileId>) -> Result<Answer<FileId>, Fault> {
        match request {
            Request::Read { anew } => {
                let all = self.read_some(anew).await?;
                Ok(Answer::Read { all })
            }
            Request::Pick { lost } => Ok(Answer::Picked(self.pick(lost))),
            Request::Write {
                key,
                value,
                over: Some(was),
                reserved,
            } => self.write_over(key, value, was, reserved).await,
            Request::Write {
                key,
                value,
                over: None,
                reserved,
            } => self.create(key, value, reserved).await,
            Request::Delete { key, over } => {
                if self.files(move |place| place.remove(&key, over)).await? {
                    self.catalog.gone(&key);
                    return Ok(Answer::Deleted);
                }
                self.differs(key).await
            }
            Request::Look { key } => {
                let look = match self.look_at_own(key).await? {
                    Some(look) => look,
                    None => return Ok(Answer::Failed),
                };
                Ok(Answer::Looked { look, rival: None })
            }
            Request::Renew => self.renew().await,
        }
    }

    fn pick(&self, lost: u32) -> Result<SubnetKey, String> {
        let taken: Vec<SubnetKey> = self.catalog.taken().collect();
        subnet_allocator::pick(&self.config, &taken, self.who.previous.as_ref(), lost)
    }

    /// When a lease that is written now ends, in seconds of the epoch.
    fn end_of_new_lease(&self) -> u64 {
        self.place.clock.now() + self.timing.ttl.as_secs()
    }

    async fn create(
        &mut self,
        key: SubnetKey,
        value: Value,
        reserved: bool,
    ) -> Result<Answer<FileId>, Fault> {
        let entry = Entry {
            attrs: value.attrs,
            signature: value.signature,
            created: Some(self.place.clock.now_ms()),
            expires: (!reserved).then(|| self.end_of_new_lease()),
        };
        let new = entry.clone();
        let blocker = match self.files(move |place| place.create(&key, &new)).await? {
            Changed::Done(id) => return Ok(self.written(key, entry, id)),
            Changed::Differs(Blocker::File) => key,
            Changed::Differs(Blocker::Overlap(other)) => other,
        };
        if self.own.key().is_none() && self.catalog.version(&blocker).is_none() {
            // Its value is still to be read.
            self.catalog.saw(blocker, Seen::taken(None), None);
        }
        self.differs(blocker).await
    }

    async fn write_over(
        &mut self,
        key: SubnetKey,
        value: Value,
        was: FileId,
        reserved: bool,
    ) -> Result<Answer<FileId>, Fault> {
        let (now, end) = (self.place.clock.now_ms(), self.end_of_new_lease());
        self.change(key, was, move |old| {
            // A question is no renewal: that is the holder's business.
            let question = matches!(value.signature, Some(Signature::Claimant(_)));
            Entry {
                attrs: value.attrs,
                signature: value.signature,
                created: Some(
                    old.as_ref()
                        .map_or(now, |old| old.created.unwrap_or(was.modified_ms())),
                ),
                expires: match old {
                    Some(old) if question => old.expires,
                    _ => (!reserved).then_some(end),
                },
            }
        })
        .await
    }

    /// Writes our file again, with a new end.
    async fn renew(&mut self) -> Result<Answer<FileId>, Fault> {
        let held = self.own.held();
        let Some((key, was, attrs)) =
            held.and_then(|held| Some((held.key, held.mark, held.attrs.clone()?)))
        else {
            return Ok(Answer::LifeOver);
        };
        let value = Value {
            attrs,
            signature: None,
        };
        self.write_over(key, value, was, false).await
    }

    async fn change(
        &mut self,
        key: SubnetKey,
        was: FileId,
        new: impl FnOnce(Option<Entry>) -> Entry + Send + 'static,
    ) -> Result<Answer<FileId>, Fault> {
        let done = self.files(move |place| {
            let mut written = None;
            let changed = place.replace(&key, was, |old| written.insert(new(old)).clone())?;
            Ok((changed, written))
        });
        match done.await? {
            (Changed::Done(id), Some(entry)) => Ok(self.written(key, entry, id)),
            _ => self.differs(key).await,
        }
    }

    fn written(&self, key: SubnetKey, entry: Entry, id: FileId) -> Answer<FileId> {
        let question = matches!(entry.signature, Some(Signature::Claimant(_)));
        let expires = entry.expires;
        let mut entry = self.entry(key, Some(entry), id);
        if !question {
            // From now on we renew it.
            entry.life = self.life(expires);
        }
        Answer::Written { entry, rival: None }
    }

    /// What stands in the way of a change.
    async fn differs(&mut self, key: SubnetKey) -> Result<Answer<FileId>, Fault> {
        Ok(match self.look_at_own(key).await? {
            Some(own_lease::Look::There(entry)) => Answer::Differs(Some(entry)),
            Some(own_lease::Look::Gone(_)) => Answer::Differs(None),
            None => Answer::Failed,
        })
    }

    async fn look_at_own(
        &mut self,
        key: SubnetKey,
    ) -> Result<Option<own_lease::Look<FileId>>, Fault> {
        let looks = self.files(move |place| look_at_each(place, vec![(key, None)]));
        let look = looks.await?.pop();
        let Some((_, look)) = look else {
            return Ok(None);
        };
        if let Look::Bad(reason, None) = &look {
            let file = self.place.subnets().join(key.to_string());
            return Err(Fault(format!("{}: {reason}", file.display())));
        }
        Ok(self.as_seen(key, look))
    }

    /// A look at a file as the own lease's machine takes it; `None` if it shows nothing new.
    pub(super) fn as_seen(&self, key: SubnetKey, look: Look) -> Option<own_lease::Look<FileId>> {
        let (entry, id) = match look {
            Look::Same | Look::Bad(_, None) => return None,
            Look::Gone if self.lost => return Some(own_lease::Look::Gone(Cause::Lost)),
            Look::Gone => return Some(own_lease::Look::Gone(Cause::Deleted)),
            Look::Lease(entry, id) => (Some(entry), id),
            Look::Empty(id) | Look::Bad(_, Some(id)) => (None, id),
        };
        Some(own_lease::Look::There(self.entry(key, entry, id)))
    }

    /// A file as the own lease's machine sees it. `entry`: what can be read in it.
    pub(super) fn entry(&self, key: SubnetKey, entry: Option<Entry>, id: FileId) -> OwnEntry {
        let held = self.own.held().filter(|held| held.key == key);
        let life = match (&entry, held) {
            (Some(Entry { expires: None, .. }), _) => Life::Reserved,
            (Some(Entry { expires, .. }), Some(_)) => self.life(*expires),
            // What nobody can read does not say how long it lives.
            (None, Some(held)) => held.life,
            (_, None) => Life::Foreign,
        };
        let created = entry.as_ref().and_then(|entry| entry.created);
        OwnEntry {
            key,
            signature: entry.as_ref().and_then(|entry| entry.signature),
            attrs: entry.map(|entry| entry.attrs),
            life,
            seniority: created.unwrap_or(id.modified_ms()),
            fits: self.config.fits(&key),
            mark: id,
        }
    }

    fn life(&self, expires: Option<u64>) -> Life {
        let Some(expires) = expires else {
            return Life::Reserved;
        };
        let left = std::time::Duration::from_secs(expires.saturating_sub(self.place.clock.now()));
        let ends = clock::now() + left;
        Life::Until {
            ends,
            renew: ends.saturating_sub(self.timing.margin_of(self.timing.ttl)),
        }
    }

    /// Works off what the own lease asked for. A file that cannot be written does not end the session:
    /// peers' leases can be read all the same.
    pub(super) async fn work_or_retry(&mut self) {
        if let Err(Fault(reason)) = self.work().await {
            if self.waiting.is_due(&reason) {
                warn!("our lease cannot be written: {reason}; retrying");
            }
            self.retry = Some(
                tokio::time::Instant::now() + super::follow::RETRY.mul_f64(0.5 + fastrand::f64()),
            );
        }
    }
}
