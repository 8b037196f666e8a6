//! Requests about all Nodes: list, watch, and which resource version is the newest.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::annotations::Prefix;
use super::body::{Body, Encoding};
use super::failure::Failure;
use super::http::{Ask, Client};
use super::listing::List;
use super::node::Node;
use super::wire::Malformed;
use crate::activity::Activity;

const NODES: &str = "/api/v1/nodes";
const LIST: &str = "application/vnd.kubernetes.protobuf,application/json;q=0.5";
const WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch,\
                     application/vnd.kubernetes.protobuf,application/json;q=0.5";
const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
/// How long a watch is asked for, in seconds: random, so that a cluster's do not end together.
const WATCH_FOR: std::ops::Range<u64> = 300..600;
/// How much longer a watch may last before it counts as dead.
const OVERTIME: Duration = Duration::from_secs(30);
/// One Node's worth of JSON metadata.
const LARGEST: usize = 4 << 20;

/// From which state on a list is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness<'a> {
    /// Any state that the API server holds in memory: it costs etcd nothing.
    Any,
    /// No older than this resource version.
    NotOlderThan(&'a str),
    /// What etcd says now.
    Newest,
}

/// Asks for all Nodes.
#[derive(Clone)]
pub(super) struct NodesClient {
    client: Arc<Client>,
    prefix: Prefix,
}

impl NodesClient {
    pub(super) fn new(client: Arc<Client>, prefix: Prefix) -> NodesClient {
        NodesClient { client, prefix }
    }

    pub(super) fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Returns the server's address, for messages.
    pub(super) fn place(&self) -> String {
        self.client.place()
    }

    /// Whether server, certificates or proxy have changed since the last request.
    pub(super) fn has_moved(&self) -> bool {
        self.client.has_moved()
    }

    /// Returns what the API server was asked and how it answered.
    pub(super) fn activity(&self) -> &Activity {
        self.client.activity()
    }

    /// Closes the connection: the next request opens another one.
    pub(super) async fn hang_up(&self) {
        self.client.hang_up().await;
    }

    /// Begins to list all Nodes.
    pub(super) async fn list(&self, freshness: Freshness<'_>) -> Result<NodeList, Failure> {
        let path = match freshness {
            Freshness::Any => format!("{NODES}?resourceVersion=0"),
            Freshness::NotOlderThan(version) => {
                format!("{NODES}?resourceVersionMatch=NotOlderThan&resourceVersion={version}")
            }
            Freshness::Newest => NODES.to_owned(),
        };
        let body = self.client.send(&Ask::list(&path, LIST)).await?;
        Ok(NodeList {
            client: self.clone(),
            list: List::new(body.encoding),
            body,
        })
    }

    /// Begins to watch all Nodes from `position` on. Returns when the watch is over at the latest, too.
    pub(super) async fn watch(&self, position: &str) -> Result<(Body, Instant), Failure> {
        let seconds = fastrand::u64(WATCH_FOR);
        let path = format!(
            "{NODES}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={position}"
        );
        let body = self.client.send(&Ask::get(&path, WATCH)).await?;
        let deadline = Instant::now() + Duration::from_secs(seconds) + OVERTIME;
        Ok((body, deadline))
    }

    /// Returns the newest resource version, which every API server asks etcd for. One that is not a
    /// number counts as newer than any.
    pub(super) async fn newest(&self) -> Result<u64, Failure> {
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
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|_| malformed(Malformed("a list without metadata")))?;
        Ok(answer.metadata.version.parse().unwrap_or(u64::MAX))
    }
}

/// A list that is still arriving.
pub(super) struct NodeList {
    client: NodesClient,
    list: List,
    body: Body,
}

impl NodeList {
    /// Passes the Nodes that have arrived to `take`. Returns whether there may be more.
    pub(super) async fn read(&mut self, mut take: impl FnMut(&Node<'_>)) -> Result<bool, Failure> {
        while let Some(range) = self.list.next().map_err(malformed)? {
            let bytes = self.list.buffer.get(range).unwrap_or_default();
            let node = match self.body.encoding {
                Encoding::Protobuf => Node::from_protobuf(bytes, &self.client.prefix),
                Encoding::Json => Node::from_json(bytes, &self.client.prefix),
            };
            take(&node.map_err(malformed)?);
        }
        let more = self.body.more_soon(&mut self.list.buffer).await;
        more.map_err(|reason| Failure::Away(format!("{}: {reason}", self.client.place())))
    }

    /// Returns the list's resource version.
    ///
    /// # Errors
    /// The list was cut off.
    pub(super) fn finish(self) -> Result<String, Failure> {
        self.list.finish().map_err(malformed)?;
        Ok(self.list.resource_version().to_owned())
    }
}

fn malformed(malformed: Malformed) -> Failure {
    Failure::Away(format!("the API server's answer: {malformed}"))
}
