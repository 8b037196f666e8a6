//! Nodes that run pods, and the pods.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use model::Family;
use serde_json::{Value, json};

use super::control::Kube;
use super::images::{BOX_IMAGE, write_box};
use super::kubelet::Kubelet;
use crate::error::Doing;
use crate::fabric::{self, Underlay};
use crate::{Error, Namespace, wait_for};

/// How long a kubelet may take to make its Node known.
const REGISTERED: Duration = Duration::from_secs(60);

impl Kube {
    /// Makes machines of `wires`, all at once, and starts containerd and kubelet on each; waits until the API knows
    /// their Nodes. They are not Ready: that takes a network.
    pub(crate) fn start_kubelets(
        &self,
        wires: Vec<(u8, Namespace)>,
        underlay: Underlay,
        images: &[PathBuf],
    ) -> Result<Vec<(u8, Namespace, Option<Kubelet>)>, Error> {
        let dir = self.dir().join("images");
        std::fs::create_dir_all(&dir).doing(|| dir.display().to_string())?;
        let mut all = vec![dir.join("box.tar")];
        write_box(&all[0])?;
        all.extend(images.iter().cloned());
        let boot = |(index, wires): (u8, Namespace)| {
            let ips = self.node_ips(index, underlay);
            let (place, kubelet) = Kubelet::boot(&wires, self.log_dir(), ips)?;
            kubelet.start(&all)?;
            Ok((index, place, Some(kubelet)))
        };
        let nodes: Result<Vec<_>, Error> = std::thread::scope(|s| {
            let boots: Vec<_> = wires.into_iter().map(|w| s.spawn(|| boot(w))).collect();
            let ends = boots.into_iter().map(|boot| boot.join());
            ends.map(|end| end.unwrap_or_else(|p| std::panic::resume_unwind(p)))
                .collect()
        });
        let nodes = nodes?;
        for (_, place, kubelet) in &nodes {
            let known = self.wait_pod_cidrs(place.name(), REGISTERED);
            known.map_err(|e| {
                let log = kubelet
                    .as_ref()
                    .map(|k| k.log("kubelet"))
                    .unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                Error::Bad(format!("{e}; kubelet's log ends with:\n{tail}"))
            })?;
        }
        Ok(nodes)
    }

    /// The addresses of node `index` of those families that pods have.
    fn node_ips(&self, index: u8, underlay: Underlay) -> Vec<IpAddr> {
        let families = self.networks().families();
        let ips = families.filter_map(|family| match family {
            Family::V4 => underlay.ipv4.then(|| fabric::ipv4(index).into()),
            Family::V6 => underlay.ipv6.then(|| fabric::ipv6(index).into()),
        });
        ips.collect()
    }

    /// Waits until every Node is Ready.
    ///
    /// # Errors
    /// [`Error::Timeout`] tells which are not, and why.
    pub fn wait_nodes_ready(&self, deadline: Duration) -> Result<(), Error> {
        let look = || {
            let nodes = self.nodes().map_err(|e| e.to_string())?;
            let not_ready = nodes
                .iter()
                .filter_map(|node| match condition(node, "Ready") {
                    Some(ready) if ready["status"] == "True" => None,
                    other => Some(format!(
                        "{}: {}",
                        node["metadata"]["name"],
                        other.map_or("no condition Ready", |c| c["message"]
                            .as_str()
                            .unwrap_or("?"))
                    )),
                });
            match not_ready.collect::<Vec<_>>() {
                left if left.is_empty() => Ok(()),
                left => Err(left.join("; ")),
            }
        };
        wait_for("every Node is Ready", deadline, look)
    }

    /// Creates a pod of [`BOX_IMAGE`] in the namespace `default`, on `node`, running `command` (nothing: it sleeps).
    /// `more` is merged into its only container: `{"ports": […]}`.
    ///
    /// # Errors
    /// There is one of that name, or the server finds it wrong.
    pub fn create_pod(
        &self,
        name: &str,
        node: &str,
        command: &[&str],
        more: &Value,
    ) -> Result<Value, Error> {
        let mut container = json!({"name": "box", "image": BOX_IMAGE, "imagePullPolicy": "Never"});
        if !command.is_empty() {
            container["command"] = json!(command);
        }
        if let (Some(container), Some(more)) = (container.as_object_mut(), more.as_object()) {
            container.extend(more.clone());
        }
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                // By the scheduler, so that it waits until the Node is ready for pods.
                "nodeSelector": {"kubernetes.io/hostname": node},
                "terminationGracePeriodSeconds": 0,
                "containers": [container],
            },
        });
        // As soon as the namespace has its service account.
        wait_for("a pod can be made", REGISTERED, || {
            self.api().create(PODS, &pod)
        })
    }

    /// Waits until a pod of the namespace `default` is Ready; returns it.
    ///
    /// # Errors
    /// [`Error::Timeout`] with its conditions and events.
    pub fn wait_pod_ready(&self, name: &str, deadline: Duration) -> Result<Value, Error> {
        let path = format!("{PODS}/{name}");
        let look = || {
            let pod = self.api().get(&path).map_err(|e| e.to_string())?;
            match condition(&pod, "Ready") {
                Some(ready) if ready["status"] == "True" => Ok(pod),
                _ => Err(pod["status"].to_string()),
            }
        };
        wait_for(&format!("pod {name} is Ready"), deadline, look).map_err(|e| {
            let about = format!("involvedObject.name={name}");
            let events = self.kubectl(["get", "events", "--field-selector", &about]);
            Error::Bad(format!("{e}\n{}", events.unwrap_or_default()))
        })
    }

    /// Deletes a pod of the namespace `default` at once.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn delete_pod(&self, name: &str) -> Result<(), Error> {
        self.api()
            .delete(&format!("{PODS}/{name}?gracePeriodSeconds=0"))
    }
}

const PODS: &str = "/api/v1/namespaces/default/pods";

/// An object's condition of that type.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = object.pointer("/status/conditions")?.as_array()?;
    all.iter().find(|condition| condition["type"] == kind)
}
