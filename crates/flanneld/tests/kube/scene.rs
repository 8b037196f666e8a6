//! The lab with a control plane and the daemon under test.

use std::path::Path;
use std::time::Duration;

use lab::{Daemon, Error, Kube, Lab, LabBuilder, Node, Request, StoreKind, wait_for};
use serde_json::{Value, json};

pub use crate::seen::{says, shows};

/// Long enough for anything that happens at all, also on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Before each of our annotations.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";

/// A lab with a control plane; `None`, and why for everybody to see, where it cannot be had.
pub fn lab(what: &str, shape: impl FnOnce(LabBuilder) -> LabBuilder) -> Option<Lab> {
    let flanneld = Path::new(env!("CARGO_BIN_EXE_flanneld"));
    let builder = Lab::builder()
        .bin_dir(flanneld.parent().unwrap())
        .nodes(2)
        .store(StoreKind::Kubernetes);
    match shape(builder).build() {
        Err(why @ Error::Needs(_)) => {
            lab::not_run(what, &why);
            None
        }
        lab => {
            let lab = lab.unwrap();
            grant_as_shipped(lab.kube().unwrap());
            Some(lab)
        }
    }
}

/// Gives flanneld the rights that the manifest gives it, and no others.
fn grant_as_shipped(kube: &Kube) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kube-flannel.yml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let rights: Vec<&str> = manifest
        .split("\n---\n")
        .filter(|object| {
            let mut kinds = object
                .lines()
                .filter_map(|line| line.strip_prefix("kind: "));
            kinds.any(|kind| kind.contains("Role"))
        })
        .collect();
    assert_eq!(
        rights.len(),
        4,
        "role and binding for Nodes, and for events"
    );
    kube.apply(&rights.join("\n---\n")).unwrap();
}

/// The value of one of our annotations.
pub fn annotation(kube: &Kube, node: &str, name: &str) -> Option<String> {
    let node = kube.node(node).unwrap();
    let value = &node["metadata"]["annotations"][format!("{PREFIX}{name}")];
    value.as_str().map(str::to_owned)
}

/// All of our annotations on a Node, without their prefix.
pub fn annotations(kube: &Kube, node: &str) -> Vec<(String, String)> {
    let node = kube.node(node).unwrap();
    let all = node["metadata"]["annotations"].as_object().cloned();
    let ours = all
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(key, value)| {
            let key = key.strip_prefix(PREFIX)?.to_owned();
            Some((key, value.as_str().unwrap().to_owned()))
        });
    ours.collect()
}

/// A Node's condition `NetworkUnavailable`.
pub fn condition(kube: &Kube, node: &str) -> Option<Value> {
    let node = kube.node(node).unwrap();
    let all = node["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    all.into_iter().find(|c| c["type"] == "NetworkUnavailable")
}

/// Waits until a Node's condition has this status.
pub fn becomes(kube: &Kube, node: &str, status: &str) -> Value {
    let look = || match condition(kube, node) {
        Some(condition) if condition["status"] == status => Ok(condition),
        other => Err(format!("{other:?}")),
    };
    wait_for(&format!("{node}: NetworkUnavailable={status}"), SOON, look).unwrap()
}

/// Waits until `node` holds no line with all of `texts`.
pub fn loses(node: &Node, texts: &[&str]) {
    let look = || {
        let picture = node.picture().unwrap();
        match picture.has(texts) {
            false => Ok(()),
            true => Err(format!("{}\n{picture}", node.flanneld().log_tail(5))),
        }
    };
    wait_for(&format!("{} loses {texts:?}", node.name()), SOON, look).unwrap();
}

/// What flanneld asked the API server for so far, and that none of it went beyond its rights.
pub fn asked(kube: &Kube) -> Vec<String> {
    let requests = kube.requests().unwrap();
    for request in &requests {
        assert!(!request.forbidden(), "refused: {request:?}");
    }
    words(requests)
}

/// The same, where the API server was started anew: it may refuse what it allows a moment later.
pub fn asked_over_a_restart(kube: &Kube) -> Vec<String> {
    words(kube.requests().unwrap())
}

fn words(requests: Vec<Request>) -> Vec<String> {
    for request in &requests {
        let uri = request.uri.split('?').next().unwrap();
        let node = uri.strip_prefix("/api/v1/nodes/");
        let allowed = match request.verb.as_str() {
            "list" | "watch" => uri == "/api/v1/nodes",
            "get" => node.is_some_and(|name| !name.contains('/')) || uri.contains("/pods/"),
            "patch" => {
                node.is_some_and(|path| path.ends_with("/status"))
                    || uri.starts_with("/api/v1/namespaces/default/events/")
            }
            "create" => uri == "/api/v1/namespaces/default/events",
            _ => false,
        };
        assert!(allowed, "beyond the role: {request:?}");
    }
    let words = requests
        .into_iter()
        .map(|r| format!("{} {}", r.verb, r.uri));
    words.collect()
}

/// Waits until there is an event with this reason on a Node; returns its text.
pub fn event(kube: &Kube, node: &str, reason: &str) -> String {
    let look = || {
        let events = kube.api().get("/api/v1/namespaces/default/events").unwrap();
        let all = events["items"].as_array().unwrap();
        let found = all.iter().find(|event| {
            event["reason"] == reason
                && event["involvedObject"]["name"] == node
                && event["source"]["component"] == "flanneld"
        });
        found
            .map(|event| event["message"].as_str().unwrap().to_owned())
            .ok_or_else(|| events.to_string())
    };
    wait_for(&format!("event {reason} on {node}"), SOON, look).unwrap()
}

/// A Node on which flannel runs, as its annotations say.
pub struct Peer {
    pub name: &'static str,
    pub cidrs: Vec<&'static str>,
    /// Without their prefix.
    pub annotations: Vec<(&'static str, String)>,
}

impl Peer {
    /// One of an IPv4 vxlan network: `mac` is its tunnel device's.
    pub fn new(name: &'static str, cidr: &'static str, ip: &str, mac: &str) -> Peer {
        Peer {
            name,
            cidrs: vec![cidr],
            annotations: vec![
                ("kube-subnet-manager", "true".into()),
                ("backend-type", "vxlan".into()),
                ("backend-data", data(mac)),
                ("public-ip", ip.into()),
            ],
        }
    }

    pub fn create(&self, kube: &Kube) {
        let annotations = self.annotations.iter();
        let annotations: serde_json::Map<String, Value> = annotations
            .map(|(name, value)| (format!("{PREFIX}{name}"), value.as_str().into()))
            .collect();
        let more = json!({
            "metadata": {"annotations": annotations},
            "spec": {"podCIDR": self.cidrs[0], "podCIDRs": self.cidrs},
        });
        kube.create_node_with(self.name, &more).unwrap();
    }
}

/// The text of `backend-data` for vxlan.
pub fn data(mac: &str) -> String {
    format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)
}

/// Changes annotations of a Node, given without their prefix.
pub fn annotate(kube: &Kube, node: &str, changes: &[(&str, Option<&str>)]) {
    let names: Vec<String> = changes
        .iter()
        .map(|(name, _)| format!("{PREFIX}{name}"))
        .collect();
    let values = changes.iter().map(|(_, value)| *value);
    kube.annotate(node, names.iter().map(String::as_str).zip(values))
        .unwrap();
}

/// The lines that the daemon has written since its log was `before`.
pub fn since(daemon: &Daemon, before: &str) -> String {
    daemon
        .log()
        .strip_prefix(before)
        .unwrap_or_default()
        .to_owned()
}
