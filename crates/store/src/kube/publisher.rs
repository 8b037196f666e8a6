//! What the requests of [`crate::own_lease`] mean here: the annotations of our Node are the key, its
//! podCIDRs assign the subnet.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::{Dual, Lease, LeaseAttrs, SubnetKey};
use tracing::{info, warn};

use super::annotations::Annotations;
use super::failure::Failure;
use super::own::{NodeMark, OwnNode};
use super::own_client::OwnClient;
use super::served::Served;
use crate::clock;
use crate::event_queue::EventQueue;
use crate::own_lease::driver::{Driver, Execute};
use crate::own_lease::{
    Answer, Cause, Entry, Event, Life, Look, Notice, OwnLease, Policy, Request,
};
use crate::retry::{Assigned, StoreStatus};
use crate::retry_log::RetryLog;

/// After so many conflicts in a row a patch no longer requires that the Node is unchanged: others write to
/// it all the time, but not our annotations.
const CONFLICTS: u32 = 3;

/// Our Node as it was last seen, and the way to change it.
pub(super) struct Publisher {
    client: OwnClient,
    /// Our subnets.
    key: SubnetKey,
    networks: Dual<IpNet>,
    queue: Arc<EventQueue>,
    status: StoreStatus,
    /// What is to be published.
    desired: LeaseAttrs,
    /// `None`: there is no Node.
    own: Option<OwnNode>,
    /// The uid of the last Node that existed.
    uid: String,
    /// The latest version that was seen: older states are outdated, also after the Node was gone.
    version: u64,
    conflicts: u32,
    /// What the API server made of our last write, and what was written, if they differ: something changes it
    /// on the way (an admission webhook), and writing it again would not help.
    altered: Option<(Annotations<String>, LeaseAttrs)>,
}

/// Another subnet was assigned before ours could be published.
#[derive(Debug)]
pub(super) struct Reassigned;

impl Publisher {
    /// For the Node `own`, to which the subnets `key` are assigned.
    pub(super) fn new(
        client: OwnClient,
        (key, own): (SubnetKey, OwnNode),
        networks: Dual<IpNet>,
        desired: LeaseAttrs,
        (queue, status): (Arc<EventQueue>, StoreStatus),
    ) -> Publisher {
        Publisher {
            client,
            key,
            networks,
            queue,
            status,
            desired,
            uid: own.uid.clone(),
            version: own.version,
            own: Some(own),
            conflicts: 0,
            altered: None,
        }
    }

    /// Returns the own lease at its beginning; `None` if there is no Node.
    pub(super) fn driver(&self) -> Option<Driver<NodeMark>> {
        let own = self.own.as_ref()?;
        let policy = Policy {
            contended: false,
            ..Policy::default()
        };
        let lease = OwnLease::assigned(
            self.entry(own),
            self.desired.clone(),
            clock::writer_id(),
            policy,
            clock::now(),
        );
        let mut driver = Driver::new(lease, self.queue.clone(), self.status.clone());
        driver.observe(Event::Want(self.desired.clone()));
        Some(driver)
    }

    pub(super) fn client(&self) -> &OwnClient {
        &self.client
    }

    pub(super) fn own(&self) -> Option<&OwnNode> {
        self.own.as_ref()
    }

    /// Returns our lease as it is published.
    pub(super) fn lease(&self) -> Lease {
        Lease {
            key: self.key,
            attrs: self.desired.clone(),
            seniority: self.own.as_ref().map_or(0, |own| own.created),
        }
    }

    /// Has `attrs` published.
    pub(super) fn desire(&mut self, attrs: LeaseAttrs, driver: &mut Driver<NodeMark>) {
        if attrs != self.desired {
            self.desired = attrs.clone();
            driver.publish(attrs);
        }
    }

    /// Returns why the subnets are no longer ours, if others are assigned to the Node. A Node that was
    /// just created has none yet: until it has, nothing is decided.
    pub(super) fn reassigned(&self) -> Option<String> {
        let own = self.own.as_ref()?;
        let served = Served::of(own, &self.networks);
        let name = self.client.name();
        match served.key {
            Some(key) if key == self.key => None,
            Some(key) => {
                let nets = key.nets().iter().map(|(_, net)| net.to_string());
                let nets = nets.collect::<Vec<_>>().join(", ");
                Some(format!(
                    "Node {name} has podCIDR {nets} now, not {}",
                    self.key
                ))
            }
            None if own.subnets.is_empty() => None,
            None => Some(format!(
                "Node {name} no longer has podCIDR {}: {}",
                self.key,
                served.text()
            )),
        }
    }

    /// Takes in the Node as a watch or an answer shows it.
    pub(super) fn observe(
        &mut self,
        own: OwnNode,
        driver: &mut Driver<NodeMark>,
    ) -> Look<NodeMark> {
        let key = Served::of(&own, &self.networks).key;
        self.status.assign(Assigned::of(&own.subnets, key));
        if own.uid != self.uid {
            info!(
                "Node {} was created again: publishing on it again",
                self.client.name()
            );
            self.uid.clone_from(&own.uid);
            driver.observe(Event::Observed(Look::Gone(Cause::Lost)));
        }
        let entry = self.entry(&own);
        self.wrote(own);
        Look::There(entry)
    }

    /// Whether no later state than `own` was seen.
    pub(super) fn is_current(&self, own: &OwnNode) -> bool {
        own.version >= self.version
    }

    /// Takes in that versions of earlier states cannot be compared with those of later ones.
    pub(super) fn history_lost(&mut self) {
        self.version = 0;
    }

    /// Takes in that there is no Node, or that nothing is known of it any more.
    pub(super) fn gone(&mut self) -> Look<NodeMark> {
        self.own = None;
        Look::Gone(Cause::Lost)
    }

    /// Takes in the Node as the answer to our own write shows it.
    pub(super) fn wrote(&mut self, own: OwnNode) {
        self.version = own.version;
        self.own = Some(own);
    }

    /// Reads the Node.
    pub(super) async fn look(
        &mut self,
        driver: &mut Driver<NodeMark>,
    ) -> Result<Look<NodeMark>, Failure> {
        match self.client.get().await {
            Ok(own) => Ok(self.observe(own, driver)),
            Err(Failure::NotFound(_)) => {
                if self.own.is_some() {
                    warn!(
                        "Node {} was deleted: continuing with what is known until it is created again",
                        self.client.name()
                    );
                }
                Ok(self.gone())
            }
            Err(failure) => Err(failure),
        }
    }

    fn entry(&self, own: &OwnNode) -> Entry<NodeMark> {
        let altered = self.altered.as_ref();
        let altered = altered.filter(|(after, _)| *after == own.annotations);
        Entry {
            key: self.key,
            attrs: match altered {
                Some((_, attrs)) => Some(attrs.clone()),
                None => own.published(&self.desired, self.client.families()),
            },
            signature: None,
            // A Node keeps its podCIDR for as long as it exists.
            life: Life::Reserved,
            seniority: own.created,
            fits: true,
            mark: own.mark(),
        }
    }

    async fn write(
        &mut self,
        attrs: &LeaseAttrs,
        driver: &mut Driver<NodeMark>,
    ) -> Result<Answer<NodeMark>, Failure> {
        let Some(own) = self.own.clone() else {
            return Ok(Answer::Differs(None));
        };
        let unchanged = self.conflicts < CONFLICTS;
        match self.client.publish(own, attrs, unchanged).await {
            Ok(own) => {
                self.conflicts = 0;
                let shown = own.published(attrs, self.client.families());
                self.altered = if shown.as_ref() == Some(attrs) {
                    None
                } else {
                    if self.altered.is_none() {
                        warn!(
                            "Node {}: the API server accepts what this node publishes but shows something else: does an \
                         admission webhook change it?",
                            self.client.name()
                        );
                    }
                    Some((own.annotations.clone(), attrs.clone()))
                };
                let entry = self.entry(&own);
                self.wrote(own);
                let rival = None;
                Ok(Answer::Written { entry, rival })
            }
            // Another Node of the same name is refused as invalid, another state as a conflict.
            Err(Failure::Conflict(_) | Failure::Invalid(_)) if unchanged => {
                self.conflicts += 1;
                Ok(Answer::Differs(match self.look(driver).await? {
                    Look::There(entry) => Some(entry),
                    Look::Gone(_) => None,
                }))
            }
            // The Node may be gone, or somebody refuses the patch in this way: that is tried again later.
            Err(failure @ Failure::NotFound(_)) => match self.look(driver).await? {
                Look::There(_) => Err(failure),
                Look::Gone(_) => Ok(Answer::Differs(None)),
            },
            Err(failure) => {
                self.conflicts = 0;
                Err(failure)
            }
        }
    }
}

impl Execute for Publisher {
    type Mark = NodeMark;
    type Error = Failure;

    async fn execute(
        &mut self,
        request: Request<NodeMark>,
        own: &mut Driver<NodeMark>,
    ) -> Result<Answer<NodeMark>, Failure> {
        match request {
            Request::Write { value, .. } => self.write(&value.attrs, own).await,
            Request::Look { .. } => Ok(Answer::Looked {
                look: self.look(own).await?,
                rival: None,
            }),
            // Not asked for where the subnet is assigned.
            Request::Read { .. } => Ok(Answer::Read { all: true }),
            Request::Pick { .. } => Ok(Answer::Picked(Ok(self.key))),
            Request::Delete { .. } => Ok(Answer::Deleted),
            Request::Renew => Ok(Answer::Renewed(Life::Reserved)),
        }
    }

    fn record(&mut self, lease: Lease, _: NodeMark) {
        self.queue.lease(lease.key, Some(lease));
        self.queue.flush();
    }

    fn say(&self, notice: &Notice, log: &mut RetryLog) {
        let Notice::Overwritten(..) = notice else {
            return notice.log(log);
        };
        let text = format!(
            "somebody else changed what this node publishes on Node {}: writing it again",
            self.client.name()
        );
        if log.is_due(&text) {
            warn!("{text}");
        }
    }

    fn retry_after(&self, _: &Failure) -> Option<Duration> {
        None
    }
}
