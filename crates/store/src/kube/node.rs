//! A Node, as far as it matters to flannel. Read in place: of the 15 KB that a Node may have, a few
//! hundred bytes are looked at.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use ipnet::IpNet;
use model::{Dual, Family};
use serde::Deserialize;

use super::annotations::{Annotations, Prefix};
use super::wire::{Fields, Malformed};

/// The condition that says whether pods can be placed on a Node.
pub(super) const CONDITION: &str = "NetworkUnavailable";

/// The parts of a Node that are read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Node<'a> {
    pub name: Cow<'a, str>,
    pub uid: Cow<'a, str>,
    pub resource_version: Cow<'a, str>,
    /// Seconds of the epoch.
    pub created: u64,
    pub annotations: Annotations<Cow<'a, str>>,
    /// `spec.podCIDR`.
    pub pod_cidr: Cow<'a, str>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Cow<'a, str>>,
    /// The status, not read yet.
    status: Option<&'a [u8]>,
    condition: Option<Condition>,
}

/// The [`CONDITION`] of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
}

impl<'a> Node<'a> {
    /// Reads a Node from its protobuf message (no envelope).
    pub(super) fn from_protobuf(message: &'a [u8], prefix: &Prefix) -> Result<Node<'a>, Malformed> {
        let (mut fields, mut node) = (Fields(message), Node::default());
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => node.read_metadata(value.bytes(), prefix)?,
                2 => node.read_spec(value.bytes())?,
                3 => node.status = Some(value.bytes()),
                _ => {}
            }
        }
        Ok(node)
    }

    fn read_metadata(&mut self, message: &'a [u8], prefix: &Prefix) -> Result<(), Malformed> {
        let mut fields = Fields(message);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => self.name = value.text().into(),
                5 => self.uid = value.text().into(),
                6 => self.resource_version = value.text().into(),
                8 => {
                    let mut time = Fields(value.bytes());
                    while let Some((number, value)) = time.next()? {
                        if number == 1 {
                            self.created = value.number();
                        }
                    }
                }
                12 => {
                    let (mut entry, mut name, mut text) = (Fields(value.bytes()), "", "");
                    while let Some((number, value)) = entry.next()? {
                        match number {
                            1 => name = value.text(),
                            2 => text = value.text(),
                            _ => {}
                        }
                    }
                    self.annotations.take_in(prefix, name, || text.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_spec(&mut self, message: &'a [u8]) -> Result<(), Malformed> {
        let mut fields = Fields(message);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => self.pod_cidr = value.text().into(),
                7 => self.pod_cidrs.push(value.text().into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads a Node from JSON.
    pub(super) fn from_json(json: &'a [u8], prefix: &Prefix) -> Result<Node<'a>, Malformed> {
        let node: Json<'a> =
            serde_json::from_slice(json).map_err(|_| Malformed("a Node that is none"))?;
        let created = node.metadata.created.as_deref();
        let created = created.and_then(|time| humantime::parse_rfc3339(time).ok());
        let mut annotations = Annotations::default();
        for (name, value) in node.metadata.annotations.unwrap_or_default() {
            annotations.take_in(prefix, &name, || Cow::Owned(value));
        }
        let mut conditions = node.status.conditions.unwrap_or_default().into_iter();
        Ok(Node {
            name: node.metadata.name,
            uid: node.metadata.uid,
            resource_version: node.metadata.resource_version,
            created: created
                .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
                .map_or(0, |since| since.as_secs()),
            annotations,
            pod_cidr: node.spec.pod_cidr,
            pod_cidrs: node.spec.pod_cidrs.unwrap_or_default(),
            status: None,
            condition: conditions.find(|condition| condition.kind == CONDITION),
        })
    }

    /// Returns the [`CONDITION`], if the Node has it.
    pub(super) fn condition(&self) -> Option<Condition> {
        let mut status = Fields(self.status.unwrap_or_default());
        while let Ok(Some((number, value))) = status.next() {
            if number != 4 {
                continue;
            }
            let (mut fields, mut condition) = (Fields(value.bytes()), Condition::default());
            while let Ok(Some((number, value))) = fields.next() {
                match number {
                    1 => condition.kind = value.text().into(),
                    2 => condition.status = value.text().into(),
                    5 => condition.reason = value.text().into(),
                    6 => condition.message = value.text().into(),
                    _ => {}
                }
            }
            if condition.kind == CONDITION {
                return Some(condition);
            }
        }
        self.condition.clone()
    }

    /// Returns a number that changes with everything that matters to a peer, and with nothing else: not with
    /// a heartbeat.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let what = (&self.uid, self.created, &self.annotations);
        (what, &self.pod_cidr, &self.pod_cidrs).hash(&mut hasher);
        hasher.finish()
    }

    /// Returns the Node's subnets in the `families` that are in use; the first of each family counts.
    /// Text that is not a subnet is passed to `bad` with the family that it looks like; the other family is
    /// not affected.
    pub(super) fn subnets(
        &self,
        families: &[Family],
        mut bad: impl FnMut(Family, &str),
    ) -> Dual<IpNet> {
        let all = if self.pod_cidrs.is_empty() {
            std::slice::from_ref(&self.pod_cidr)
        } else {
            &self.pod_cidrs
        };
        let (mut subnets, mut seen) = (Dual::default(), Dual::default());
        for text in all.iter().filter(|text| !text.is_empty()) {
            let net: Option<IpNet> = text.parse().ok();
            let looks_like = if text.contains(':') {
                Family::V6
            } else {
                Family::V4
            };
            let family = net.as_ref().map_or(looks_like, Family::of_net);
            if !families.contains(&family) || seen.get(family).is_some() {
                continue;
            }
            seen.set(family, Some(()));
            match net {
                Some(net) => subnets.set(family, Some(net.trunc())),
                None => bad(family, text),
            }
        }
        subnets
    }
}

#[derive(Deserialize, Default)]
struct Json<'a> {
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    spec: Spec<'a>,
    #[serde(default)]
    status: JsonStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow)]
    resource_version: Cow<'a, str>,
    #[serde(borrow, rename = "creationTimestamp")]
    created: Option<Cow<'a, str>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec<'a> {
    #[serde(borrow, rename = "podCIDR")]
    pod_cidr: Cow<'a, str>,
    #[serde(borrow, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<Cow<'a, str>>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonStatus {
    conditions: Option<Vec<Condition>>,
}
