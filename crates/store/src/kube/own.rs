//! This machine's own Node: what it says, what it should say, and the patches from one to the other.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::SystemTime;

use ipnet::IpNet;
use model::{Dual, Family, LeaseAttrs};
use serde_json::{Map, Value, json};

use super::annotations::{Annotations, Key, Prefix};
use super::node::{CONDITION, Condition, Node};
use super::peer;

/// What our Node says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OwnNode {
    /// Changes when the Node is deleted and created again.
    pub uid: String,
    /// Orders the states of the Node; 0 if the resource version is not a number.
    pub version: u64,
    /// As it is written in requests.
    pub resource_version: String,
    /// When the Node was created, in seconds of the epoch.
    pub created: u64,
    pub annotations: Annotations<String>,
    /// Its subnets in the families that are in use.
    pub subnets: Dual<IpNet>,
    /// Text in place of a subnet that cannot be parsed.
    pub bad_subnets: Dual<String>,
    pub condition: Option<Condition>,
}

/// Identifies what our Node publishes: equal as long as nobody changed it, whatever else changes on the Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeMark(u64);

impl OwnNode {
    pub(super) fn of(node: &Node<'_>, families: &[Family]) -> OwnNode {
        let mut bad_subnets = Dual::default();
        let subnets = node.subnets(families, |family, text| {
            bad_subnets.set(family, Some(text.to_owned()));
        });
        OwnNode {
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

    /// Takes over the metadata that the answer to a patch holds.
    pub(super) fn patched(&mut self, metadata: &Node<'_>) {
        self.uid = metadata.uid.to_string();
        self.version = metadata.resource_version.parse().unwrap_or(0);
        self.resource_version = metadata.resource_version.to_string();
        self.annotations = metadata.annotations.map(|text| text.to_string());
    }

    pub(super) fn mark(&self) -> NodeMark {
        let mut hasher = DefaultHasher::new();
        self.uid.hash(&mut hasher);
        for key in Key::published() {
            self.annotations.get(key).hash(&mut hasher);
        }
        NodeMark(hasher.finish())
    }

    /// Returns what the Node publishes, with the node's own address where an administrator has overwritten
    /// it: `desired`, if that is what it publishes. `None`: something that this program would not have written.
    pub(super) fn published(
        &self,
        desired: &LeaseAttrs,
        families: &[Family],
    ) -> Option<LeaseAttrs> {
        if self.publishes(desired, families) {
            return Some(desired.clone());
        }
        let mut attrs = peer::attrs(&self.annotations, families, |_, _| {}).ok()?;
        for family in families.iter().copied() {
            let overwrite = peer::address(&self.annotations, peer::keys(family).overwrite, family);
            if let Ok(Some(overwrite)) = overwrite
                && attrs.public_ip.get(family) == Some(&overwrite)
            {
                let own = desired.public_ip.get(family).copied();
                attrs.public_ip.set(family, own);
            }
        }
        self.publishes(&attrs, families).then_some(attrs)
    }

    fn publishes(&self, attrs: &LeaseAttrs, families: &[Family]) -> bool {
        let wanted = peer::wanted(attrs, families, &self.annotations, |_| {});
        Key::published().all(|key| wanted.get(key) == self.annotations.get(key))
    }

    /// Returns the patch after which the Node publishes `attrs`; `None` if it does already. It is refused
    /// for another Node of the same name and, if `unchanged`, for another state of this one.
    pub(super) fn publication(
        &self,
        attrs: &LeaseAttrs,
        families: &[Family],
        prefix: &Prefix,
        unchanged: bool,
    ) -> Option<Value> {
        let wanted = peer::wanted(attrs, families, &self.annotations, |_| {});
        let mut changes = Map::new();
        for key in Key::published() {
            if wanted.get(key) != self.annotations.get(key) {
                changes.insert(prefix.name(key), json!(wanted.get(key)));
            }
        }
        if changes.is_empty() {
            return None;
        }
        let mut metadata = json!({ "annotations": changes });
        if !self.uid.is_empty() {
            metadata["uid"] = json!(self.uid);
        }
        if unchanged && !self.resource_version.is_empty() {
            metadata["resourceVersion"] = json!(self.resource_version);
        }
        Some(json!({ "metadata": metadata }))
    }

    /// Whether the condition says that the network is `available`. `in_our_words`: its reason and text are
    /// ours, too.
    pub(super) fn has_condition(&self, available: bool, in_our_words: bool) -> bool {
        let wanted = condition(available);
        self.condition.as_ref().is_some_and(|there| {
            there.status == wanted.status
                && (!in_our_words
                    || (there.reason == wanted.reason && there.message == wanted.message))
        })
    }
}

/// What our Node should say, as far as it is known yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct DesiredNode {
    /// In its annotations.
    pub attrs: Option<LeaseAttrs>,
    /// In its condition: whether pods can be placed here.
    pub network: Option<bool>,
}

/// The condition that says whether pods can be placed here.
pub(super) fn condition(available: bool) -> Condition {
    let (status, reason, message) = if available {
        ("False", "FlannelIsUp", "Flannel is running on this node")
    } else {
        (
            "True",
            "FlannelIsDown",
            "Flannel's network was taken down on this node",
        )
    };
    Condition {
        kind: CONDITION.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
    }
}

/// Returns the patch that sets `condition` now.
pub(super) fn condition_patch(condition: &Condition) -> Value {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let condition = json!({
        "type": condition.kind,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    });
    json!({ "status": { "conditions": [condition] } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(json: &str) -> OwnNode {
        let prefix = Prefix::parse("f.io").unwrap();
        OwnNode::of(
            &Node::from_json(json.as_bytes(), &prefix).unwrap(),
            &Family::ALL,
        )
    }

    fn attrs(ip: &str) -> LeaseAttrs {
        let json = format!(
            r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:03"}}}}"#
        );
        LeaseAttrs::from_json(json.as_bytes()).unwrap()
    }

    fn publication(own: &OwnNode, unchanged: bool) -> Option<Value> {
        let prefix = Prefix::parse("f.io").unwrap();
        own.publication(&attrs("10.0.0.1"), &[Family::V4], &prefix, unchanged)
    }

    #[test]
    fn only_what_differs_is_written_and_what_is_of_no_use_is_removed() {
        let bare = own(r#"{"metadata":{"name":"n"}}"#);
        assert_eq!(
            publication(&bare, true).unwrap(),
            json!({"metadata":{"annotations":{
                "f.io/kube-subnet-manager":"true",
                "f.io/backend-type":"vxlan",
                "f.io/backend-data":"{\"VNI\":1,\"VtepMAC\":\"ce:9c:a9:08:50:03\"}",
                "f.io/public-ip":"10.0.0.1"}}})
        );
        let old = own(
            r#"{"metadata":{"uid":"u","resourceVersion":"7","annotations":{
                "f.io/kube-subnet-manager":"true","f.io/backend-type":"vxlan","f.io/public-ip":"10.0.0.9",
                "f.io/backend-data":"{\"VNI\":1,\"VtepMAC\":\"ce:9c:a9:08:50:03\"}",
                "f.io/public-ipv6":"fd00::1","f.io/public-ip-overwrite":"192.0.2.1"}}}"#,
        );
        assert_eq!(
            publication(&old, false).unwrap(),
            json!({"metadata":{"uid":"u","annotations":{
                "f.io/public-ip":"192.0.2.1","f.io/public-ipv6":null}}})
        );
        let patch = publication(&old, true).unwrap();
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn what_is_published_is_read_as_it_was_meant() {
        let published = |ip: &str, more: &str| {
            own(&format!(
                r#"{{"metadata":{{"annotations":{{"f.io/kube-subnet-manager":"true","f.io/backend-type":"vxlan",
                "f.io/backend-data":"{{\"VNI\":1,\"VtepMAC\":\"ce:9c:a9:08:50:03\"}}","f.io/public-ip":"{ip}"{more}}}}}}}"#
            ))
        };
        let says = |own: &OwnNode| own.published(&attrs("10.0.0.1"), &[Family::V4]);
        assert_eq!(says(&published("10.0.0.1", "")), Some(attrs("10.0.0.1")));
        assert_eq!(says(&published("10.0.0.2", "")), Some(attrs("10.0.0.2")));
        let overwrite = r#","f.io/public-ip-overwrite":"192.0.2.1""#;
        assert_eq!(
            says(&published("192.0.2.1", overwrite)),
            Some(attrs("10.0.0.1"))
        );
        // The overwrite is not in force yet; and what nobody of us writes.
        assert_eq!(says(&published("10.0.0.1", overwrite)), None);
        assert_eq!(
            says(&published(
                "10.0.0.1",
                r#","f.io/kube-subnet-manager":"no""#
            )),
            None
        );
        let old = published("10.0.0.1", "");
        assert_eq!(old.mark(), published("10.0.0.1", overwrite).mark());
        assert_ne!(old.mark(), published("10.0.0.2", "").mark());
        assert_eq!(publication(&old, true), None);
    }

    #[test]
    fn a_condition_in_other_words_may_stay_unless_ours_are_wanted() {
        let none = own("{}");
        assert!(!none.has_condition(true, false) && !none.has_condition(false, false));
        let others = own(
            r#"{"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"NetworkUnavailable","status":"False","reason":"RouteCreated"}]}}"#,
        );
        assert!(others.has_condition(true, false) && !others.has_condition(true, true));
        assert!(!others.has_condition(false, false));
        let patch = condition_patch(&condition(true));
        let patch = &patch["status"]["conditions"][0];
        assert_eq!(
            (&patch["type"], &patch["status"], &patch["reason"]),
            (
                &json!("NetworkUnavailable"),
                &json!("False"),
                &json!("FlannelIsUp")
            )
        );
        assert_eq!(patch["message"], "Flannel is running on this node");
    }
}
