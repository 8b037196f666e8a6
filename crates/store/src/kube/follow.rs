//! The task that follows all Nodes: list, watch, list again where that is needed, and never give up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::body::Body;
use super::events::Trouble;
use super::failure::Failure;
use super::frames::{Event, Frames};
use super::history::History;
use super::node::Node;
use super::node_index::NodeIndex;
use super::nodes_client::NodesClient;
use super::own_sight::OwnSight;
use super::wire::Malformed;
use crate::Timing;
use crate::backoff::Backoff;
use crate::clock::sleep_until_some;
use crate::event_queue::EventQueue;
use crate::reachability::Reachability;
use crate::retry_log::RetryLog;

/// Nodes after which the daemon is notified, so that its work overlaps with the rest of the listing.
const BATCH: usize = 500;
/// A watch that lasted for so long was a good one.
const LASTING: Duration = Duration::from_secs(5);
/// How long to wait, more or less, after the API server has refused a request.
const REFUSED: Duration = Duration::from_secs(5);
/// How many refusals are retried soon and without a warning.
const PATIENT_REFUSALS: u32 = 4;
/// Over how long the nodes of a cluster spread the events that all of them have to write.
const EVENTS_OVER: Duration = Duration::from_secs(5);
/// How long an API server that lags behind is given to catch up.
const LAGGING: Duration = Duration::from_secs(1);
/// How often to check that the API server is still the one to follow.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A watch over a connection without pings on which nothing arrives for so long is dead: an API server sends
/// a bookmark every minute.
const SILENCE: Duration = Duration::from_secs(150);

/// Follows all Nodes.
pub(super) struct Follower {
    nodes: NodesClient,
    own: OwnSight,
    index: NodeIndex,
    queue: Arc<EventQueue>,
    troubles: mpsc::Sender<Trouble>,
    timing: Timing,
    history: History,
    reachability: Reachability,
    refusals: RetryLog,
    /// When the Nodes that an API server has lost count as deleted.
    sweep_at: Option<Instant>,
}

/// Why a watch ended.
enum End {
    /// It had lasted as long as it was asked to.
    Over,
    /// What is known no longer continues in what the API server sends.
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
    /// `index` holds the Nodes other than ours, `own` passes ours on.
    pub(super) fn new(
        nodes: NodesClient,
        (own, index): (OwnSight, NodeIndex),
        queue: Arc<EventQueue>,
        troubles: mpsc::Sender<Trouble>,
        timing: Timing,
    ) -> Follower {
        Follower {
            nodes,
            own,
            index,
            queue,
            troubles,
            timing,
            history: History::default(),
            reachability: Reachability::new("the API server"),
            refusals: RetryLog::default(),
            sweep_at: None,
        }
    }

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
            if joined.is_some() {
                self.nodes.activity().watch_restarted();
            }
            let lasted = joined.is_some_and(|at: Instant| at.elapsed() >= LASTING);
            if lasted {
                backoff.reset();
            }
            let mut wait = None;
            match end {
                End::Over => debug!("the watch is over: opening another one"),
                End::ListAgain(why) => {
                    info!("API server: {why}: listing all Nodes again");
                    self.history.list_again();
                }
                End::Failed(failure) => {
                    self.history.interrupt();
                    let refused = !failure.is_away();
                    refusals = if refused { refusals + 1 } else { 0 };
                    wait = match &failure {
                        Failure::Busy(wait, _) => Some(*wait),
                        // An API server that has just started does not know yet who may do what.
                        _ if refusals > PATIENT_REFUSALS => Some(REFUSED),
                        _ => None,
                    };
                    let text = failure.to_string();
                    if refused && refusals > PATIENT_REFUSALS && self.refusals.is_due(&text) {
                        warn!("{text}; retrying");
                    }
                    // The end of a connection is no outage yet: the next one may follow at once.
                    if lasted {
                        debug!("API server: {text}");
                    } else {
                        self.reachability.set_unreachable(&self.queue, &text);
                    }
                }
            }
            match wait {
                Some(wait) => tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64())).await,
                None => backoff.wait().await,
            }
        }
    }

    /// Lists if that is needed, and watches until the watch ends.
    async fn session(&mut self, joined: &mut Option<Instant>) -> Result<Infallible, End> {
        if self.history.is_doubtful() && self.history.is_lost(self.nodes.newest().await?) {
            return Err(self.lost());
        }
        if self.history.position().is_none() {
            self.list().await?;
        }
        let position = self.history.position().unwrap_or_default();
        let (body, deadline) = self.nodes.watch(position).await?;
        self.history.joined();
        *joined = Some(Instant::now());
        self.reachability
            .set_reachable(&self.queue, &self.nodes.place());
        self.watch(body, deadline).await
    }

    /// Takes in the events of a watch until it ends.
    async fn watch(&mut self, mut body: Body, deadline: Instant) -> Result<Infallible, End> {
        let mut frames = Frames::new(body.encoding);
        let place = self.nodes.place();
        let mut last_arrival = Instant::now();
        let mut look_at = last_arrival + LOOK_EVERY;
        loop {
            while let Some(frame) = frames.next()? {
                let event = frames.read(frame, self.nodes.prefix())?;
                self.take_in(event)?;
            }
            if self.index.must_list_again() {
                return Err(End::ListAgain(
                    "a subnet that two Nodes claimed was given up",
                ));
            }
            self.queue.flush();
            let away = |reason| End::Failed(Failure::Away(reason));
            let silent = last_arrival + SILENCE;
            let deadline = if body.unwatched {
                deadline.min(silent)
            } else {
                deadline
            };
            tokio::select! {
                more = timeout_at(deadline, body.more(&mut frames.buffer)) => match more {
                    Ok(Ok(true)) => {
                        last_arrival = Instant::now();
                        self.nodes.activity().heard();
                    }
                    Ok(Ok(false)) => return Err(End::Over),
                    Ok(Err(reason)) => return Err(away(format!("{}: {reason}", self.nodes.place()))),
                    Err(_) => {
                        self.nodes.hang_up().await;
                        return Err(away("the watch is silent, or did not end in time".into()));
                    }
                },
                () = tokio::time::sleep_until(look_at) => {
                    look_at = Instant::now() + LOOK_EVERY;
                    if self.nodes.has_moved() {
                        return Err(self.moved(&place));
                    }
                }
                () = sleep_until_some(self.sweep_at) => self.sweep(),
            }
        }
    }

    fn take_in(&mut self, event: Event<'_>) -> Result<(), End> {
        let node = match event {
            Event::Put(node) => {
                self.observe(&node);
                node
            }
            Event::Gone(node) => {
                self.gone(&node);
                node
            }
            Event::Bookmark(node) => node,
            Event::Error(status) => {
                return Err(status.into_failure(None, &self.nodes.place()).into());
            }
        };
        self.history.reached(&node.resource_version);
        Ok(())
    }

    fn observe(&mut self, node: &Node<'_>) {
        if self.own.is(node) {
            self.own.observe(node);
        } else if let Some(problem) = self.index.observe(node) {
            report_skipped(&self.troubles, node, &problem);
        }
    }

    fn gone(&mut self, node: &Node<'_>) {
        if self.own.is(node) {
            warn!(
                "Node {} was deleted: continuing with what is known until it is created again",
                node.name
            );
            self.own.gone();
        } else {
            self.index.gone(&node.name);
        }
    }

    /// Reads all Nodes.
    async fn list(&mut self) -> Result<(), End> {
        let begun = self.nodes.list(self.history.freshness()).await;
        if let Err(Failure::Ahead(reason)) = begun {
            // Lost data, or one of several API servers that lags behind the others.
            if self.history.is_lost(self.nodes.newest().await?) {
                return Err(self.lost());
            }
            return Err(Failure::Busy(LAGGING, reason).into());
        }
        let mut list = begun?;
        let (own, index, troubles) = (&self.own, &mut self.index, &self.troubles);
        let (mut own_exists, mut unsaid) = (false, 0);
        index.begin();
        loop {
            let mut take = |node: &Node<'_>| {
                if own.is(node) {
                    own_exists = true;
                    own.observe(node);
                } else if let Some(problem) = index.observe(node) {
                    report_skipped(troubles, node, &problem);
                }
                unsaid += 1;
                if unsaid == BATCH {
                    unsaid = 0;
                    self.queue.flush();
                }
            };
            if !list.read(&mut take).await? {
                break;
            }
        }
        let version = list.finish()?;
        if !own_exists {
            self.own.gone();
        }
        if self.history.listed(&version) {
            self.sweep_at = Some(Instant::now() + self.timing.grace);
            warn!(
                "the API server has lost data; Nodes that are missing now are kept for {} s more",
                self.timing.grace.as_secs()
            );
        } else {
            self.sweep();
        }
        let count = self.index.count();
        info!(
            peers = count.peers,
            others = count.others,
            "listed the other Nodes"
        );
        Ok(())
    }

    fn sweep(&mut self) {
        self.sweep_at = None;
        self.index.sweep();
    }

    /// The API server, or the certificates for it, have changed since the watch at `place` began.
    fn moved(&mut self, place: &str) -> End {
        self.history.interrupt();
        if self.nodes.place() == place {
            return End::Over;
        }
        // Perhaps of another cluster: its versions cannot be compared with those that are known.
        self.own.history_lost();
        End::ListAgain("it is another one now")
    }

    fn lost(&mut self) -> End {
        self.history.regress();
        self.own.history_lost();
        End::ListAgain("it has lost data")
    }
}

/// Reports a Node that is skipped: not at once, for every node of the cluster finds the same. Of very many at
/// a time some reports are lost.
fn report_skipped(troubles: &mpsc::Sender<Trouble>, node: &Node<'_>, problem: &str) {
    let trouble = Trouble {
        reason: "FlannelPeerSkipped",
        message: format!("not used as a peer: {problem}"),
        node: Some(node.name.to_string()),
    };
    let (troubles, delay) = (troubles.clone(), EVENTS_OVER.mul_f64(fastrand::f64()));
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        let _ = troubles.try_send(trouble);
    });
}
