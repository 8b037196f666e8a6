//! The task that follows all Nodes: list, watch, list again where that is needed, and never give up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::{Dual, Family, SubnetKey};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::annotations::Prefix;
use super::body::{Body, Encoding};
use super::events::Trouble;
use super::finding::{Served, served};
use super::frames::{Event, Frames};
use super::http::{Ask, Client, Failure};
use super::keeper::{Seen, until};
use super::listing::List;
use super::node::Node;
use super::node_index::NodeIndex;
use super::own::Own;
use super::wire::Malformed;
use crate::Timing;
use crate::backoff::Backoff;
use crate::event_queue::EventQueue;
use crate::reachability::Reachability;
use crate::retry::{Assigned, StoreStatus};
use crate::retry_log::RetryLog;

const NODES: &str = "/api/v1/nodes";
pub(super) const LIST: &str = "application/vnd.kubernetes.protobuf,application/json;q=0.5";
const WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch,\
                     application/vnd.kubernetes.protobuf,application/json;q=0.5";
const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
/// Nodes after which the daemon is told, so that its work overlaps with the rest of the listing.
const BATCH: usize = 500;
/// A watch that stood for so long was a good one.
const LASTING: Duration = Duration::from_secs(5);
/// How long a watch is asked for, in seconds: random, so that a cluster's do not end together.
const WATCH_FOR: std::ops::Range<u64> = 300..600;
/// How much longer a watch may last before it counts as dead.
const OVERTIME: Duration = Duration::from_secs(30);
/// When the API server says no, it is asked again after about so long.
const REFUSED: Duration = Duration::from_secs(5);
/// How often it may say no before that is said and waited for.
const PATIENT_REFUSALS: u32 = 4;
/// Over how long the nodes of a cluster spread what they all have to tell.
const EVENTS_OVER: Duration = Duration::from_secs(5);
/// How long an API server that lags behind is given to catch up.
const LAGGING: Duration = Duration::from_secs(1);
/// How often it is looked whether the API server is still the one to follow.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A watch over a connection without pings that says nothing for so long is dead: an API server sends a
/// bookmark every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// One Node's worth of JSON metadata.
const LARGEST: usize = 4 << 20;

pub(super) struct Follower {
    pub client: Arc<Client>,
    pub name: Arc<str>,
    pub prefix: Prefix,
    pub families: Vec<Family>,
    /// The configured networks of these families.
    pub networks: Dual<IpNet>,
    /// Where the subnets that our Node has are made known.
    pub status: StoreStatus,
    /// Our lease.
    pub own: SubnetKey,
    /// The version of our Node when we took it: an API server that lags behind may show older ones.
    pub since: u64,
    pub node_index: NodeIndex,
    pub queue: Arc<EventQueue>,
    pub seen: watch::Sender<Seen>,
    pub troubles: mpsc::Sender<Trouble>,
    pub timing: Timing,
    pub reachability: Reachability,
    /// What was said of refusals.
    pub refusal: RetryLog,
    /// Up to which resource version everything is known; `None`: list.
    pub position: Option<String>,
    /// Up to which one it was, when the Nodes have to be listed again: no older state will do.
    pub known: Option<String>,
    /// A watch broke off: what follows must join up with it.
    pub interrupted: bool,
    /// The API server went back in time: what is missing there was lost, not deleted.
    pub regressed: bool,
    /// When the Nodes that a regressed API server has lost count as gone.
    pub sweep_at: Option<Instant>,
}

/// Why a watch ended.
enum End {
    /// It had lasted as long as it was asked to.
    Over,
    /// What is known no longer joins up with what the API server tells.
    ListAgain(&'static str),
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        match failure {
            Failure::Expired(_) => End::ListAgain("its history does not reach back far enough"),
            failure => End::Failed(failure),
        }
    }
}

impl From<Malformed> for End {
    fn from(malformed: Malformed) -> End {
        End::Failed(Failure::Away(format!(
            "the API server's answer: {malformed}"
        )))
    }
}

impl Follower {
    /// Follows the Nodes for ever.
    pub(super) async fn run(mut self) {
        let (mut backoff, mut refusals) = (Backoff::default(), 0_u32);
        loop {
            let mut joined = None;
            let end = match self.session(&mut joined).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            self.queue.flush();
            let lasted = joined.is_some_and(|at: Instant| at.elapsed() >= LASTING);
            if lasted {
                backoff.reset();
            }
            let mut wait = None;
            match end {
                End::Over => debug!("the watch is over: opening another one"),
                End::ListAgain(why) => {
                    info!("API server: {why}: listing all Nodes again");
                    self.known = self.position.take().or(self.known.take());
                }
                End::Failed(failure) => {
                    self.interrupted = true;
                    let refused = !failure.is_away();
                    refusals = if refused { refusals + 1 } else { 0 };
                    wait = match &failure {
                        Failure::Busy(wait, _) => Some(*wait),
                        // An API server that has just started does not know yet who may do what.
                        _ if refusals > PATIENT_REFUSALS => Some(REFUSED),
                        _ => None,
                    };
                    let text = failure.to_string();
                    if refused && refusals > PATIENT_REFUSALS && self.refusal.is_due(&text) {
                        warn!("{text}; trying again");
                    }
                    // The end of a connection is no outage yet: the next one may follow at once.
                    match lasted {
                        true => debug!("API server: {text}"),
                        false => self.reachability.away(&self.queue, &text),
                    }
                }
            }
            match wait {
                Some(wait) => tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64())).await,
                None => backoff.wait().await,
            }
        }
    }

    /// From one watch to its end.
    async fn session(&mut self, joined: &mut Option<Instant>) -> Result<Infallible, End> {
        if self.interrupted && self.position.is_some() {
            self.check_joint().await?;
        }
        let position = match self.position.clone() {
            Some(position) => position,
            None => self.list().await?,
        };
        self.interrupted = false;
        let seconds = fastrand::u64(WATCH_FOR);
        let path = format!(
            "{NODES}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={position}"
        );
        let body = self.client.send(&Ask::get(&path, WATCH)).await?;
        let began = Instant::now();
        *joined = Some(began);
        self.reachability.back(&self.queue, &self.client.place());
        self.watch(body, began + Duration::from_secs(seconds) + OVERTIME)
            .await
    }

    /// Takes in what a watch tells, until it ends.
    async fn watch(&mut self, mut body: Body, deadline: Instant) -> Result<Infallible, End> {
        let mut frames = Frames::new(body.encoding);
        let place = self.client.place();
        let mut heard = Instant::now();
        let mut look_at = heard + LOOK_EVERY;
        loop {
            while let Some(frame) = frames.next()? {
                let event = frames.read(frame, &self.prefix)?;
                self.take_in(event)?;
            }
            if self.node_index.must_list_again() {
                return Err(End::ListAgain(
                    "a subnet that two Nodes claimed was given up",
                ));
            }
            self.queue.flush();
            let away = |reason| End::Failed(Failure::Away(reason));
            let silent = heard + SILENCE;
            let deadline = if body.unwatched {
                deadline.min(silent)
            } else {
                deadline
            };
            tokio::select! {
                more = timeout_at(deadline, body.more(&mut frames.buffer)) => match more {
                    Ok(Ok(true)) => heard = Instant::now(),
                    Ok(Ok(false)) => return Err(End::Over),
                    Ok(Err(reason)) => return Err(away(format!("{}: {reason}", self.client.place()))),
                    Err(_) => {
                        self.client.hang_up().await;
                        return Err(away("the watch is silent, or did not end in time".into()));
                    }
                },
                () = tokio::time::sleep_until(look_at) => {
                    look_at = Instant::now() + LOOK_EVERY;
                    if self.client.has_moved().await {
                        return Err(self.moved(&place));
                    }
                }
                () = until(self.sweep_at) => self.sweep(),
            }
        }
    }

    fn take_in(&mut self, event: Event<'_>) -> Result<(), End> {
        let node = match event {
            Event::Put(node) => {
                self.saw(&node);
                node
            }
            Event::Gone(node) => {
                self.gone(&node);
                node
            }
            Event::Bookmark(node) => node,
            Event::Error(status) => {
                return Err(status.into_failure(None, &self.client.place()).into());
            }
        };
        if !node.resource_version.is_empty() {
            let position = self.position.get_or_insert_default();
            position.clear();
            position.push_str(&node.resource_version);
        }
        Ok(())
    }

    fn saw(&mut self, node: &Node<'_>) {
        if *node.name != *self.name {
            if let Some(problem) = self.node_index.saw(node) {
                self.tell(node, problem);
            }
            return;
        }
        let own = Own::of(node, &self.families);
        if own.version < self.since {
            return;
        }
        let Served { key, faults } = served(&own, &self.networks);
        // A Node that was just created has no subnet yet: until it has, nothing is decided.
        let gone = key.is_none() && !own.subnets.is_empty();
        if key.is_some_and(|key| key != self.own) || gone {
            self.status.assign(Assigned::of(&own.subnets, key));
            let why = match key {
                Some(key) => {
                    let nets = key.nets().iter().map(|(_, net)| net.to_string());
                    let nets = nets.collect::<Vec<_>>().join(", ");
                    format!(
                        "Node {} has podCIDR {nets} now, not {}",
                        self.name, self.own
                    )
                }
                None => format!(
                    "Node {} no longer has podCIDR {}: {}",
                    self.name,
                    self.own,
                    faults
                        .into_iter()
                        .map(|(_, text)| text)
                        .collect::<Vec<_>>()
                        .join("; ")
                ),
            };
            self.queue.revoke(why);
        }
        self.seen.send_modify(|seen| seen.own = Some(Box::new(own)));
    }

    fn gone(&mut self, node: &Node<'_>) {
        if *node.name != *self.name {
            self.node_index.gone(&node.name);
            return;
        }
        warn!(
            "Node {} was deleted: going on with what is known until it is back",
            self.name
        );
        self.own_is_gone();
    }

    /// What is known of our Node from now on does not follow on what was known before.
    fn own_is_gone(&self) {
        self.seen.send_modify(|seen| {
            seen.own = None;
            seen.epoch += 1;
        });
    }

    /// Has an event written on a Node that is skipped: not at once, for every node of the cluster sees the
    /// same. Of very many at a time some are lost.
    fn tell(&self, node: &Node<'_>, problem: String) {
        let trouble = Trouble {
            reason: "FlannelPeerSkipped",
            message: format!("not used as a peer: {problem}"),
            node: Some(node.name.to_string()),
        };
        let (troubles, delay) = (self.troubles.clone(), EVENTS_OVER.mul_f64(fastrand::f64()));
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = troubles.try_send(trouble);
        });
    }

    /// Reads all Nodes; returns the list's resource version.
    async fn list(&mut self) -> Result<String, End> {
        // From the server's memory wherever that will do: it costs etcd nothing.
        let path = match &self.known {
            _ if self.regressed => NODES.to_owned(),
            Some(known) => {
                format!("{NODES}?resourceVersionMatch=NotOlderThan&resourceVersion={known}")
            }
            None => format!("{NODES}?resourceVersion=0"),
        };
        let mut body = match self.client.send(&Ask::list(&path, LIST)).await {
            Err(Failure::Ahead(reason)) => {
                // Lost, or one of several API servers that lags behind the others?
                let known = self.known.clone().unwrap_or_default();
                if self.newest().await? < number(&known) {
                    return Err(self.went_back());
                }
                return Err(Failure::Busy(LAGGING, reason).into());
            }
            body => body?,
        };
        let mut list = List::new(body.encoding);
        let (mut own_is_there, mut since) = (false, 0);
        self.node_index.begin();
        loop {
            while let Some(range) = list.next()? {
                let bytes = list.buffer.get(range).unwrap_or_default();
                let node = match body.encoding {
                    Encoding::Protobuf => Node::from_protobuf(bytes, &self.prefix)?,
                    Encoding::Json => Node::from_json(bytes, &self.prefix)?,
                };
                own_is_there |= *node.name == *self.name;
                self.saw(&node);
                since += 1;
                if since == BATCH {
                    since = 0;
                    self.queue.flush();
                }
            }
            let more = body.more_soon(&mut list.buffer).await;
            let place = || self.client.place();
            if !more.map_err(|reason| Failure::Away(format!("{}: {reason}", place())))? {
                break;
            }
        }
        list.finish()?;
        let version = list.resource_version().to_owned();
        self.end_of_listing(own_is_there);
        self.position = Some(version.clone());
        Ok(version)
    }

    fn end_of_listing(&mut self, own_is_there: bool) {
        if !own_is_there {
            self.own_is_gone();
        }
        if std::mem::take(&mut self.regressed) {
            self.sweep_at = Some(Instant::now() + self.timing.grace);
            warn!(
                "the API server has lost what it knew; Nodes that are missing now are kept for {} s more",
                self.timing.grace.as_secs()
            );
        } else {
            self.sweep();
        }
        let count = self.node_index.count();
        info!(
            peers = count.peers,
            others = count.others,
            "listed the other Nodes"
        );
    }

    fn sweep(&mut self) {
        self.sweep_at = None;
        self.node_index.sweep();
    }

    /// After an interruption: is this the API server that we knew, no younger than it was? One small
    /// request, whatever the number of Nodes.
    async fn check_joint(&mut self) -> Result<(), End> {
        let then = self.position.as_deref().and_then(number);
        if self.newest().await? < then {
            return Err(self.went_back());
        }
        Ok(())
    }

    /// The newest resource version that there is, which every API server asks etcd for; `None` if it is
    /// not a number.
    async fn newest(&self) -> Result<Option<u64>, End> {
        #[derive(Deserialize)]
        struct Answer {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(rename = "resourceVersion")]
            version: String,
        }
        let path = format!("{NODES}?limit=1");
        let answer = self.client.send(&Ask::get(&path, METADATA_ONLY)).await?;
        let answer = answer.whole(LARGEST).await.map_err(Failure::Away)?;
        let answer: Answer =
            serde_json::from_slice(&answer).map_err(|_| Malformed("a list that is none"))?;
        Ok(number(&answer.metadata.version).or(Some(u64::MAX)))
    }

    /// The API server, or the certificates for it, are others than when the watch at `place` began.
    fn moved(&mut self, place: &str) -> End {
        self.interrupted = true;
        if self.client.place() == place {
            return End::Over;
        }
        // Perhaps of another cluster: its versions say nothing of those that are known.
        self.since = 0;
        self.own_is_gone();
        End::ListAgain("it is another one now")
    }

    fn went_back(&mut self) -> End {
        self.regressed = true;
        self.since = 0;
        self.own_is_gone();
        self.position = None;
        End::ListAgain("it has lost what it knew")
    }
}

fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}
