//! Nodes as API objects: made, changed and removed by hand where no kubelet does it.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::api::Patch;
use super::control::Kube;
use crate::fabric::{self, Underlay};
use crate::{Error, wait_for};

const NODES: &str = "/api/v1/nodes";

impl Kube {
    /// The Node of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<Value, Error> {
        self.api().get(&node_path(name))
    }

    /// All Nodes.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn nodes(&self) -> Result<Vec<Value>, Error> {
        let list = self.api().get(NODES)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Creates a Node with nothing but a name; the controller manager then gives it podCIDRs. Does not wait for them.
    ///
    /// # Errors
    /// There is one already.
    pub fn create_node(&self, name: &str) -> Result<Value, Error> {
        self.create_node_with(name, &json!({}))
    }

    /// Creates a Node like `more`, an object that may have `metadata`, `spec` and `status`: with `spec.podCIDRs` it
    /// keeps those.
    ///
    /// # Errors
    /// There is one already, or the server finds it wrong.
    pub fn create_node_with(&self, name: &str, more: &Value) -> Result<Value, Error> {
        let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        merge(&mut node, more);
        self.api().create(NODES, &node)
    }

    /// Creates the Node of the lab's node `index`, as its kubelet would.
    pub(crate) fn register(&self, index: u8, underlay: Underlay) -> Result<(), Error> {
        let name = format!("n{index}");
        let mut addresses = vec![json!({"type": "Hostname", "address": name})];
        let ips = [
            (underlay.ipv4, IpAddr::from(fabric::ipv4(index))),
            (underlay.ipv6, IpAddr::from(fabric::ipv6(index))),
        ];
        for (_, ip) in ips.iter().filter(|(there, _)| *there) {
            addresses.push(json!({"type": "InternalIP", "address": ip}));
        }
        self.create_node_with(&name, &json!({"status": {"addresses": addresses}}))
            .map(drop)
    }

    /// Waits until the Node has podCIDRs, and returns them.
    ///
    /// # Errors
    /// It had none when `deadline` had passed.
    pub fn wait_pod_cidrs(&self, name: &str, deadline: Duration) -> Result<Vec<String>, Error> {
        let look = || {
            let node = self.node(name).map_err(|e| e.to_string())?;
            let cidrs = node.pointer("/spec/podCIDRs").and_then(Value::as_array);
            let cidrs = cidrs.ok_or_else(|| format!("its spec is {}", node["spec"]))?;
            let texts = cidrs.iter().filter_map(Value::as_str).map(String::from);
            Ok::<_, String>(texts.collect())
        };
        wait_for(&format!("Node {name} has podCIDRs"), deadline, look)
    }

    /// Merges `patch` into a Node: `{"metadata": {"annotations": {"key": null}}}` removes one.
    ///
    /// # Errors
    /// There is no such Node, or the server finds the result wrong.
    pub fn patch_node(&self, name: &str, patch: &Value) -> Result<Value, Error> {
        self.api().patch(&node_path(name), Patch::Merge, patch)
    }

    /// Merges `patch` into a Node's status, as kubelets do: `{"status": {"addresses": …}}`; conditions are merged by type.
    ///
    /// # Errors
    /// As [`Kube::patch_node`].
    pub fn patch_node_status(&self, name: &str, patch: &Value) -> Result<Value, Error> {
        let path = format!("{}/status", node_path(name));
        self.api().patch(&path, Patch::Strategic, patch)
    }

    /// Sets or removes annotations of a Node.
    ///
    /// # Errors
    /// As [`Kube::patch_node`].
    pub fn annotate<'a>(
        &self,
        name: &str,
        annotations: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Result<Value, Error> {
        let all: serde_json::Map<String, Value> = annotations
            .into_iter()
            .map(|(key, value)| (key.to_string(), json!(value)))
            .collect();
        self.patch_node(name, &json!({"metadata": {"annotations": all}}))
    }

    /// Tells the server what a kubelet tells it every ten seconds or so: this Node is alive.
    ///
    /// # Errors
    /// There is no such Node.
    pub fn heartbeat(&self, name: &str, time: &str) -> Result<Value, Error> {
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": time});
        self.patch_node_status(name, &json!({"status": {"conditions": [ready]}}))
    }

    /// Deletes a Node; one that is not there is no error.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn delete_node(&self, name: &str) -> Result<(), Error> {
        self.api().delete(&node_path(name))
    }
}

fn node_path(name: &str) -> String {
    format!("{NODES}/{name}")
}

/// Puts `more` into `into`, objects into objects.
fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => more.iter().for_each(|(key, value)| {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }),
        (into, more) => *into = more.clone(),
    }
}
