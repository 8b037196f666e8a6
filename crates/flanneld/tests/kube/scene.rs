//! The lab with a control plane and the daemon under test.

use std::path::Path;
use std::time::Duration;

use lab::{Daemon, Error, Kube, Lab, LabBuilder, Node, StoreKind, Who, wait_for};
use serde_json::Value;

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
        lab => Some(lab.unwrap()),
    }
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

/// Waits until a line of the daemon's log holds all of `texts`; returns it.
pub fn says(daemon: &Daemon, texts: &[&str]) -> String {
    let look = || {
        let log = daemon.log();
        let line = log
            .lines()
            .find(|line| texts.iter().all(|text| line.contains(text)));
        line.map(String::from).ok_or(log.clone())
    };
    wait_for(&format!("{} says {texts:?}", daemon.name()), SOON, look).unwrap()
}

/// Waits until `node` holds a line with all of `texts`.
pub fn shows(node: &Node, texts: &[&str]) {
    let look = || {
        let picture = node.picture().unwrap();
        match picture.has(texts) {
            true => Ok(()),
            false => Err(format!("{}\n{picture}", node.flanneld().log_tail(5))),
        }
    };
    wait_for(&format!("{} shows {texts:?}", node.name()), SOON, look).unwrap();
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

/// What flanneld asked the API server for: verb and address, and whether it was refused.
pub fn asked(kube: &Kube) -> Vec<(String, String, bool)> {
    let _ = Who::Flannel;
    let requests = kube.requests().unwrap().into_iter();
    let ours = requests.filter(|request| request.agent.starts_with("flanneld/"));
    ours.map(|request| {
        let refused = request.forbidden();
        (request.verb, request.uri, refused)
    })
    .collect()
}
