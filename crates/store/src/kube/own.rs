//! Our own Node: what it says, and what it should say.

use bytes::Bytes;
use hyper::Method;
use ipnet::IpNet;
use model::{Dual, Family, LeaseAttrs};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::SystemTime;

use super::annotations::{Annotations, Key, Prefix};
use super::http::{Ask, Client, Failure};
use super::node::{CONDITION, Condition, Node};
use super::peer;

/// Merges the conditions by their type, and everything else by key.
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";
/// Of the answer to a patch only the version matters, not the 15 KB that the Node may have.
const METADATA_ONLY: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
/// More than any Node has.
const LARGEST: usize = 16 << 20;

/// What our Node says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Own {
    /// Another one after the Node was deleted and made again.
    pub uid: String,
    /// Orders what we hear of it; 0 if it is no number.
    pub version: u64,
    /// As it is called in requests.
    pub resource_version: String,
    pub created: u64,
    pub annotations: Annotations<String>,
    /// Its subnets in the families that are in use.
    pub subnets: Dual<IpNet>,
    /// Text in place of a subnet that is none.
    pub bad_subnets: Dual<String>,
    pub condition: Option<Condition>,
}

impl Own {
    pub(super) fn of(node: &Node<'_>, families: &[Family]) -> Own {
        let mut bad_subnets = Dual::default();
        let subnets = node.subnets(families, |family, text| {
            bad_subnets.set(family, Some(text.to_owned()));
        });
        Own {
            uid: node.uid.to_string(),
            version: node.resource_version.parse().unwrap_or(0),
            resource_version: node.resource_version.to_string(),
            created: node.created,
            annotations: node.annotations.map(|text| text.to_string()),
            subnets,
            bad_subnets,
            condition: node.condition(),
        }
    }

    /// We have written `attrs`, and the Node's version is `version` now; 0 if that is not known.
    pub(super) fn wrote(&mut self, version: u64, attrs: &LeaseAttrs, families: &[Family]) {
        let written = peer::wanted(attrs, families, &self.annotations, |_| {});
        self.annotations.publish(written);
        self.version = self.version.max(version);
    }
}

/// What our Node should say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct DesiredNode {
    /// Under our annotations.
    pub attrs: Option<LeaseAttrs>,
    /// Whether the network stands.
    pub network: Option<bool>,
}

/// The condition that tells whether the network stands.
fn condition(stands: bool) -> Condition {
    let (status, reason, message) = match stands {
        true => ("False", "FlannelIsUp", "Flannel is running on this node"),
        false => (
            "True",
            "FlannelIsDown",
            "Flannel's network was taken down on this node",
        ),
    };
    Condition {
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        ..Condition::default()
    }
}

/// What has to be written for the Node to say what is wished; `None` when it does. `first`: we have not
/// written the condition before, and its reason and text are to be ours.
pub(super) fn difference(
    own: &Own,
    wish: &DesiredNode,
    families: &[Family],
    prefix: &Prefix,
    first: bool,
) -> Option<Value> {
    let mut patch = Map::new();
    if let Some(attrs) = &wish.attrs {
        let wanted = peer::wanted(attrs, families, &own.annotations, |_| {});
        let mut changes = Map::new();
        for key in Key::ALL.into_iter().take(Key::PUBLISHED) {
            if wanted.get(key) != own.annotations.get(key) {
                changes.insert(prefix.name(key), json!(wanted.get(key)));
            }
        }
        if !changes.is_empty() {
            patch.insert("metadata".into(), json!({ "annotations": changes }));
        }
    }
    if let Some(stands) = wish.network {
        let wanted = condition(stands);
        let there = own.condition.as_ref();
        let same = there.is_some_and(|there| {
            there.status == wanted.status
                && (!first || (there.reason == wanted.reason && there.message == wanted.message))
        });
        if !same {
            let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
            let condition = json!({
                "type": CONDITION,
                "status": wanted.status,
                "reason": wanted.reason,
                "message": wanted.message,
                "lastTransitionTime": now,
                "lastHeartbeatTime": now,
            });
            patch.insert("status".into(), json!({ "conditions": [condition] }));
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Writes to the Node's status; returns the version that it has then.
pub(super) async fn patch(client: &Client, name: &str, patch: &Value) -> Result<u64, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(rename = "resourceVersion")]
        version: String,
    }
    let path = format!("/api/v1/nodes/{name}/status");
    let body = (STRATEGIC_MERGE, Bytes::from(patch.to_string()));
    let ask = Ask::with_body(Method::PATCH, &path, METADATA_ONLY, body);
    let answer = client.send(&ask).await?.whole(LARGEST).await;
    let answer = answer.map_err(Failure::Away)?;
    // The patch is in force, whatever the answer looks like.
    let answer: Option<Answer> = serde_json::from_slice(&answer).ok();
    Ok(answer
        .and_then(|answer| answer.metadata.version.parse().ok())
        .unwrap_or(0))
}

/// Asks for our Node.
pub(super) async fn get(
    client: &Client,
    name: &str,
    families: &[Family],
    prefix: &Prefix,
) -> Result<Own, Failure> {
    let path = format!("/api/v1/nodes/{name}");
    let answer = client.send(&Ask::get(&path, "application/json")).await?;
    let json = answer.whole(LARGEST).await.map_err(Failure::Away)?;
    let node = Node::from_json(&json, prefix).map_err(|e| Failure::Refused(e.to_string()))?;
    Ok(Own::of(&node, families))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(json: &str) -> Own {
        let prefix = Prefix::parse("f.io").unwrap();
        Own::of(
            &Node::from_json(json.as_bytes(), &prefix).unwrap(),
            &Family::ALL,
        )
    }

    fn patch(own: &Own, wish: &DesiredNode, families: &[Family], first: bool) -> Option<Value> {
        let patch = difference(own, wish, families, &Prefix::parse("f.io").unwrap(), first);
        patch.map(|mut patch| {
            for key in ["lastTransitionTime", "lastHeartbeatTime"] {
                if let Some(condition) = patch.pointer_mut("/status/conditions/0") {
                    condition.as_object_mut().unwrap().remove(key);
                }
            }
            patch
        })
    }

    #[test]
    fn only_what_differs_is_written_and_what_is_of_no_use_is_taken_away() {
        let attrs = LeaseAttrs::from_json(
            br#"{"PublicIP":"10.0.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:03"}}"#,
        )
        .unwrap();
        let wish = DesiredNode {
            attrs: Some(attrs),
            network: None,
        };
        let bare = own(r#"{"metadata":{"name":"n"}}"#);
        assert_eq!(
            patch(&bare, &wish, &[Family::V4], true).unwrap(),
            json!({"metadata":{"annotations":{
                "f.io/kube-subnet-manager":"true",
                "f.io/backend-type":"vxlan",
                "f.io/backend-data":"{\"VNI\":1,\"VtepMAC\":\"ce:9c:a9:08:50:03\"}",
                "f.io/public-ip":"10.0.0.1"}}})
        );
        let old = own(r#"{"metadata":{"annotations":{
                "f.io/kube-subnet-manager":"true","f.io/backend-type":"vxlan","f.io/public-ip":"10.0.0.9",
                "f.io/backend-data":"{\"VNI\":1,\"VtepMAC\":\"ce:9c:a9:08:50:03\"}",
                "f.io/public-ipv6":"fd00::1","f.io/public-ip-overwrite":"192.0.2.1"}}}"#);
        assert_eq!(
            patch(&old, &wish, &[Family::V4], true).unwrap(),
            json!({"metadata":{"annotations":{
                "f.io/public-ip":"192.0.2.1","f.io/public-ipv6":null}}})
        );
    }

    #[test]
    fn the_condition_is_ours_at_first_and_its_status_later() {
        let wish = DesiredNode {
            attrs: None,
            network: Some(true),
        };
        let ours = json!({"status":{"conditions":[{"type":"NetworkUnavailable","status":"False",
            "reason":"FlannelIsUp","message":"Flannel is running on this node"}]}});
        assert_eq!(patch(&own("{}"), &wish, &[], true).unwrap(), ours);
        let others = own(
            r#"{"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"NetworkUnavailable","status":"False","reason":"RouteCreated"}]}}"#,
        );
        assert_eq!(patch(&others, &wish, &[], true).unwrap(), ours);
        assert_eq!(patch(&others, &wish, &[], false), None);
        let down = DesiredNode {
            attrs: None,
            network: Some(false),
        };
        let patch = patch(&others, &down, &[], false).unwrap();
        assert_eq!(patch["status"]["conditions"][0]["status"], "True");
    }
}
