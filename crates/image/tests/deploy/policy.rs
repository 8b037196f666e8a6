//! `deploy/admission-policy.yml`: who may change whose Node, with tokens as pods have them.

use lab::{Api, Kube, Patch, Who, wait_for};
use serde_json::{Value, json};

use crate::{SOON, cluster, deploy};

const PREFIX: &str = "flannel.alpha.coreos.com";

fn annotation(key: &str, value: &str) -> Value {
    json!({"metadata": {"annotations": {key: value}}})
}

fn public_ip(value: &str) -> Value {
    annotation(&format!("{PREFIX}/public-ip"), value)
}

fn status(api: &Api, node: &str, patch: &Value) -> Result<Value, String> {
    let path = format!("/api/v1/nodes/{node}/status");
    api.patch(&path, Patch::Strategic, patch)
        .map_err(|e| e.to_string())
}

/// A pod of flannel on a node, and the token that a kubelet would give it.
fn flannel_on(kube: &Kube, node: &str) -> Api {
    let pods = "/api/v1/namespaces/kube-flannel/pods";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("kube-flannel-{node}")},
        "spec": {
            "nodeName": node, "serviceAccountName": "flannel", "hostNetwork": true,
            "containers": [{"name": "kube-flannel", "image": "flannel"}],
        },
    });
    let pod = kube.api().create(pods, &pod).unwrap();
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": 3600, "boundObjectRef": {
            "kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
        }},
    });
    // As the node's kubelet, who may ask for pods of its own node only.
    let kubelet = kube.api_as(&Who::Kubelet(node.into()));
    let path = "/api/v1/namespaces/kube-flannel/serviceaccounts/flannel/token";
    let answer = kubelet.create(path, &request).unwrap();
    kube.api()
        .with_token(answer["status"]["token"].as_str().unwrap())
}

#[test]
fn what_speaks_for_a_node_changes_that_node_only() {
    let Some(lab) = cluster("the admission policy") else {
        return;
    };
    let kube = lab.kube().unwrap();
    let apply = |file: &str| {
        kube.kubectl(["apply", "-f", deploy(file).to_str().unwrap()])
            .unwrap()
    };
    apply("kube-flannel.yml");
    let flannel = flannel_on(kube, "n1");

    // Without the policy one node's flannel can speak for all of them: that is what it is for.
    status(&flannel, "n2", &public_ip("192.168.78.66")).unwrap();
    let label = json!({"metadata": {"labels": {"drawn-by": "a-status-patch"}}});
    let drawn = status(&flannel, "n2", &label).unwrap();
    assert_eq!(drawn["metadata"]["labels"]["drawn-by"], "a-status-patch");
    apply("admission-policy.yml");
    wait_for("the policy is in force", SOON, || {
        match status(&flannel, "n2", &public_ip("192.168.78.67")) {
            Err(refusal) if refusal.contains("flannel-own-node") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .unwrap();
    // The server finds no fault in the expressions' types.
    let policy =
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/flannel-own-node";
    let checked = wait_for("the expressions were checked", SOON, || {
        let policy = kube.api().get(policy).unwrap();
        let seen = policy["status"]["observedGeneration"].is_number();
        if seen {
            Ok(policy["status"].clone())
        } else {
            Err(policy["status"].to_string())
        }
    });
    let warnings = checked.unwrap()["typeChecking"]["expressionWarnings"].clone();
    assert_eq!(warnings, Value::Null, "{warnings}");

    flannel_changes_its_own_node_as_it_must(&flannel);
    flannel_changes_nothing_else(kube, &flannel);
    kubelets_do_their_work(kube);
    administrators_do_as_they_like(kube);
}

fn flannel_changes_its_own_node_as_it_must(flannel: &Api) {
    let all = json!({"metadata": {"annotations": {
        format!("{PREFIX}/kube-subnet-manager"): "true",
        format!("{PREFIX}/backend-type"): "vxlan",
        format!("{PREFIX}/backend-data"): "{\"VNI\":1,\"VtepMAC\":\"ce:9c:a9:08:50:03\"}",
        format!("{PREFIX}/public-ip"): "192.168.78.1",
    }}});
    status(flannel, "n1", &all).unwrap();
    status(flannel, "n1", &public_ip("192.168.78.101")).unwrap();
    for value in ["False", "True"] {
        let condition = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": value,
            "reason": "FlannelIsUp", "message": "Flannel is running on this node"}]}});
        status(flannel, "n1", &condition).unwrap();
    }
    let removed = json!({"metadata": {"annotations": {format!("{PREFIX}/public-ip"): null}}});
    status(flannel, "n1", &removed).unwrap();
}

fn flannel_changes_nothing_else(kube: &Kube, flannel: &Api) {
    let ready = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "False", "reason": "x", "message": "x"}]}});
    let nobody = kube
        .service_account_token("kube-flannel", "flannel", 600)
        .unwrap();
    let nobody = kube.api().with_token(&nobody);
    let refusals = [
        (
            flannel,
            "n2",
            public_ip("192.168.78.1"),
            "speaks for node [n1]",
        ),
        (
            flannel,
            "n2",
            ready("NetworkUnavailable"),
            "speaks for node [n1]",
        ),
        (
            flannel,
            "n1",
            annotation("other.example/key", "x"),
            "annotations",
        ),
        (
            flannel,
            "n1",
            json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}}),
            "labels",
        ),
        (flannel, "n1", ready("Ready"), "NetworkUnavailable"),
        (
            flannel,
            "n1",
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.168.78.66"}]}}),
            "status",
        ),
        (
            flannel,
            "n1",
            json!({"status": {"capacity": {"cpu": "1000"}}}),
            "status",
        ),
        (
            &nobody,
            "n1",
            public_ip("192.168.78.1"),
            "speaks for node []",
        ),
        (
            &nobody,
            "n1",
            ready("NetworkUnavailable"),
            "speaks for node []",
        ),
    ];
    for (who, node, patch, why) in refusals {
        let before = kube.node(node).unwrap();
        let refusal = status(who, node, &patch).expect_err(&patch.to_string());
        assert!(
            refusal.contains("flannel-own-node") && refusal.contains(why),
            "{patch}: {refusal}"
        );
        assert!(refusal.contains(" 403 "), "{refusal}");
        assert_eq!(kube.node(node).unwrap(), before);
    }
}

fn kubelets_do_their_work(kube: &Kube) {
    // Its own Node: made, kept alive, annotated.
    let kubelet = kube.api_as(&Who::Kubelet("n3".into()));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n3", "annotations": {"a": "b"}}});
    kubelet.create("/api/v1/nodes", &node).unwrap();
    let alive = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "x"}]}});
    status(&kubelet, "n3", &alive).unwrap();
    status(&kubelet, "n3", &public_ip("192.168.78.3")).unwrap();

    // What is of the nodes' group without being the kubelet that NodeRestriction knows, and may patch Nodes.
    let role = "kubectl-test-nodes";
    kube.kubectl([
        "create",
        "clusterrole",
        role,
        "--verb=patch,get",
        "--resource=nodes,nodes/status",
    ])
    .unwrap();
    kube.kubectl([
        "create",
        "clusterrolebinding",
        role,
        &format!("--clusterrole={role}"),
        "--user=odd",
    ])
    .unwrap();
    let odd = |patch: &Value| {
        let patch = patch.to_string();
        let args = [
            "patch",
            "node",
            "n2",
            "--as=odd",
            "--as-group=system:nodes",
            "-p",
            &patch,
        ];
        kube.kubectl(args).map_err(|e| e.to_string())
    };
    odd(&annotation("other.example/key", "x")).unwrap();
    let refusal = odd(&public_ip("192.168.78.1")).unwrap_err();
    assert!(refusal.contains("odd speaks for node [odd]"), "{refusal}");
}

fn administrators_do_as_they_like(kube: &Kube) {
    let overwrite = annotation(&format!("{PREFIX}/public-ip-overwrite"), "203.0.113.2");
    status(kube.api(), "n2", &overwrite).unwrap();
    kube.kubectl(["label", "node", "n2", "a=b"]).unwrap();
    kube.kubectl([
        "annotate",
        "node",
        "n2",
        &format!("{PREFIX}/public-ip-overwrite-"),
    ])
    .unwrap();
}
