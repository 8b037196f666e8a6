//! Requests about this machine's own Node: read, patch, wait for a change.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use model::{Family, LeaseAttrs};
use serde_json::Value;
use tokio::time::timeout;

use super::annotations::Prefix;
use super::failure::Failure;
use super::frames::{Event, Frames};
use super::http::{Ask, Client};
use super::node::{Condition, Node};
use super::own::{OwnNode, condition_patch};
use super::wire::Malformed;

/// Merges the conditions by their type, and everything else by key.
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";
/// Of the answer to a patch only the metadata matter, not the 15 KB that the Node may have.
const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
/// No Node is larger.
const LARGEST: usize = 16 << 20;
/// The watch of one Node ends after a minute; one that has not ended by then is dead.
const UNCHANGED: Duration = Duration::from_secs(75);

/// Asks and writes to one Node.
#[derive(Clone)]
pub(super) struct OwnClient {
    client: Arc<Client>,
    name: Arc<str>,
    prefix: Prefix,
    families: Vec<Family>,
}

impl OwnClient {
    pub(super) fn new(
        client: Arc<Client>,
        name: Arc<str>,
        prefix: Prefix,
        families: Vec<Family>,
    ) -> OwnClient {
        OwnClient {
            client,
            name,
            prefix,
            families,
        }
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn families(&self) -> &[Family] {
        &self.families
    }

    /// Reads the Node.
    pub(super) async fn get(&self) -> Result<OwnNode, Failure> {
        let path = format!("/api/v1/nodes/{}", self.name);
        let answer = self
            .client
            .send(&Ask::get(&path, "application/json"))
            .await?;
        let json = answer.whole(LARGEST).await.map_err(Failure::Away)?;
        let node = Node::from_json(&json, &self.prefix);
        let node = node.map_err(|e| Failure::Refused(e.to_string()))?;
        Ok(OwnNode::of(&node, &self.families))
    }

    /// Has the Node publish `attrs`, as [`OwnNode::publication`] says; returns it as it is then.
    pub(super) async fn publish(
        &self,
        mut own: OwnNode,
        attrs: &LeaseAttrs,
        unchanged: bool,
    ) -> Result<OwnNode, Failure> {
        if let Some(patch) = own.publication(attrs, &self.families, &self.prefix, unchanged) {
            self.patch(&mut own, &patch).await?;
        }
        Ok(own)
    }

    /// Sets a condition of the Node; returns it as it is then.
    pub(super) async fn set_condition(
        &self,
        mut own: OwnNode,
        condition: Condition,
    ) -> Result<OwnNode, Failure> {
        self.patch(&mut own, &condition_patch(&condition)).await?;
        own.condition = Some(condition);
        Ok(own)
    }

    async fn patch(&self, own: &mut OwnNode, patch: &Value) -> Result<(), Failure> {
        let path = format!("/api/v1/nodes/{}/status", self.name);
        let body = (STRATEGIC_MERGE, Bytes::from(patch.to_string()));
        let ask = Ask::with_body(Method::PATCH, &path, METADATA_ONLY, body);
        let answer = self.client.send(&ask).await?.whole(LARGEST).await;
        let answer = answer.map_err(Failure::Away)?;
        // An answer that cannot be read counts as lost: the patch may be in force.
        match Node::from_json(&answer, &self.prefix) {
            Ok(metadata) if !metadata.resource_version.is_empty() => {
                own.patched(&metadata);
                Ok(())
            }
            _ => Err(Failure::Away(format!(
                "{}: the answer to a patch is no metadata",
                self.client.place()
            ))),
        }
    }

    /// Waits until the Node is no longer as `own`, or for about a minute: `None`.
    pub(super) async fn change(&self, own: &OwnNode) -> Result<Option<OwnNode>, Failure> {
        let path = format!(
            "/api/v1/nodes?watch=true&timeoutSeconds=60&fieldSelector=metadata.name%3D{}&resourceVersion={}",
            self.name, own.resource_version
        );
        let mut body = self
            .client
            .send(&Ask::get(&path, "application/json"))
            .await?;
        let mut frames = Frames::new(body.encoding);
        loop {
            let malformed = |error: Malformed| Failure::Away(error.to_string());
            while let Some(frame) = frames.next().map_err(malformed)? {
                match frames.read(frame, &self.prefix).map_err(malformed)? {
                    Event::Put(node) => return Ok(Some(OwnNode::of(&node, &self.families))),
                    Event::Bookmark(_) => {}
                    Event::Gone(_) | Event::Error(_) => return Ok(None),
                }
            }
            match timeout(UNCHANGED, body.more(&mut frames.buffer)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return Ok(None),
                Ok(Err(reason)) => return Err(Failure::Away(reason)),
            }
        }
    }
}
