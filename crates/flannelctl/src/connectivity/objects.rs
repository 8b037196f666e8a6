//! The objects that a test makes in Kubernetes, all in one namespace, and how its pods are.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::agent::PORT;
use crate::kube_args::PROGRAM;

/// What all objects of a test are labelled with.
pub(super) const LABEL: &str = "app.kubernetes.io/name=flannel-connectivity";

/// The label of a namespace that says, in Unix time, when its test has ended in any case.
const UNTIL: &str = "flannel-rs.ends-before";

/// What the name of every test's namespace begins with.
pub(super) const PREFIX: &str = "flannel-connectivity-";

/// Seconds that a pod of a small test lives, whatever became of the test; and of the largest one.
const LIFE: u64 = 1800;
const LONGEST_LIFE: u64 = 6 * 3600;

/// Pairs that are tested in a second where no packet arrives: 256 at a time, each in 20 seconds.
const PAIRS_A_SECOND: u64 = 12;

/// Seconds of one measurement of throughput, in both families.
const FLOW: u64 = 10;

/// Returns how many seconds the pods of a test live at most. `wait`: until the last one has started; `flows`: how many
/// measurements of throughput.
pub(super) fn life(wait: u64, pairs: usize, flows: usize) -> u64 {
    let [pairs, flows] = [pairs, flows].map(|count| count as u64);
    let test = (pairs / PAIRS_A_SECOND).saturating_add(flows.saturating_mul(FLOW));
    (LIFE + wait).saturating_add(test).min(LONGEST_LIFE)
}

fn labels() -> Value {
    json!({"app.kubernetes.io/name": "flannel-connectivity"})
}

/// The namespace of a test that begins at `now`, in Unix time, and whose pods live so many seconds.
pub(super) fn namespace(name: &str, now: u64, life: u64) -> Value {
    let mut labels = labels();
    labels[UNTIL] = json!((now + 2 * life).to_string());
    labels["pod-security.kubernetes.io/enforce"] = json!("restricted");
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// Whether the test of this namespace has ended without removing it.
pub(super) fn is_left_over(namespace: &Value, now: u64) -> bool {
    let until = namespace["metadata"]["labels"][UNTIL].as_str();
    let until = until.and_then(|until| until.parse::<u64>().ok());
    let name = namespace["metadata"]["name"].as_str();
    name.is_some_and(|name| name.starts_with(PREFIX)) && until.is_some_and(|until| until < now)
}

/// Whether the server's namespace is the one that this test has made.
pub(super) fn is_same(theirs: &Value, ours: &Value) -> bool {
    let until = |namespace: &Value| namespace["metadata"]["labels"][UNTIL].clone();
    until(theirs).is_string() && until(theirs) == until(ours)
}

/// The name of the pod, and of the service, on the node with this number.
pub(super) fn name(node: usize) -> String {
    format!("node-{node}")
}

/// The pod on a node: it echoes. Placed without the scheduler, so that no taint and no cordon keeps it from its node.
pub(super) fn pod(number: usize, node: &str, image: &str, token: &str, life: u64) -> Value {
    let mut labels = labels();
    labels["node"] = json!(name(number));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name(number), "labels": labels},
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "activeDeadlineSeconds": life,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65534, "runAsGroup": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "agent",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": [PROGRAM, "connectivity-agent", "serve", token, life.to_string()],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}

/// The service that leads to one pod, in all families of the cluster.
pub(super) fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name(number), "labels": labels()},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"node": name(number)},
            "ports": [{"name": "echo", "protocol": "TCP", "port": PORT, "targetPort": PORT}],
        },
    })
}

/// How far a pod is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PodState {
    Running(Vec<IpAddr>),
    /// Not yet, and why.
    Waiting(String),
    /// It never will.
    Failed(String),
}

/// Reads how far a pod is.
pub(super) fn state(pod: &Value) -> PodState {
    let status = &pod["status"];
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let container = &status["containerStatuses"][0];
    let message = || {
        let waiting = &container["state"]["waiting"];
        let ended = &container["state"]["terminated"];
        let conditions = status["conditions"].as_array();
        let condition = conditions
            .into_iter()
            .flatten()
            .find_map(|condition| text(&condition["message"]));
        let parts = [
            text(&waiting["reason"]).or(text(&ended["reason"])),
            text(&waiting["message"]).or(text(&ended["message"])),
            text(&status["message"]).or(condition),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            "its kubelet has not started it: is the node up?".to_owned()
        } else {
            parts.join(": ")
        }
    };
    let ips = status["podIPs"].as_array().into_iter().flatten();
    let ips: Vec<IpAddr> = ips
        .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
        .collect();
    match status["phase"].as_str() {
        Some("Running") if !ips.is_empty() && container["ready"] == true => PodState::Running(ips),
        Some("Failed" | "Succeeded") => PodState::Failed(message()),
        _ => PodState::Waiting(message()),
    }
}

/// The addresses of a service.
pub(super) fn addresses(service: &Value) -> Vec<IpAddr> {
    let all = service["spec"]["clusterIPs"].as_array();
    all.into_iter()
        .flatten()
        .filter_map(|ip| ip.as_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_read_as_its_kubelet_left_it() {
        let running = json!({"status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}],
            "containerStatuses": [{"ready": true}]}});
        assert_eq!(
            state(&running),
            PodState::Running(vec!["10.244.1.2".parse().unwrap()])
        );
        let pulling = json!({"status": {"phase": "Pending", "containerStatuses": [
            {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}});
        assert_eq!(
            state(&pulling),
            PodState::Waiting("ErrImagePull: no such image".into())
        );
        let failed = json!({"status": {"phase": "Failed", "message": "no room"}});
        assert_eq!(state(&failed), PodState::Failed("no room".into()));
        let PodState::Waiting(text) = state(&json!({})) else {
            panic!("a pod that nobody started")
        };
        assert!(text.contains("is the node up?"));
    }

    #[test]
    fn pods_of_a_large_test_live_longer_and_none_for_ever() {
        assert_eq!(life(120, 200, 0), LIFE + 120 + 200 / 12);
        // Throughput of 500 nodes takes 50 minutes, 7 s each.
        assert!(life(120, 200, 500) > 3500 + LIFE);
        assert_eq!(life(900, usize::MAX, usize::MAX), LONGEST_LIFE);
    }

    #[test]
    fn only_a_namespace_whose_test_is_over_is_left_over() {
        let made = namespace("flannel-connectivity-1", 1000, LIFE);
        assert!(!is_left_over(&made, 1000 + LIFE));
        assert!(is_left_over(&made, 1001 + 2 * LIFE));
        // Somebody has copied the labels.
        assert!(!is_left_over(&namespace("mine", 1000, LIFE), u64::MAX));
        assert!(is_same(&made, &made));
        assert!(!is_same(&namespace("n", 1001, LIFE), &made));
        assert!(!is_same(&json!({"metadata": {}}), &json!({"metadata": {}})));
        assert!(!is_left_over(
            &json!({"metadata": {"labels": {}}}),
            u64::MAX
        ));
    }
}
