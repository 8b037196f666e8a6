//! The Kubernetes control plane that the tests of flanneld stand on: it must be the real thing.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::time::Duration;

use lab::{Error, Kube, Lab, LabBuilder, Patch, StoreKind, Who, wait_for};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// A lab with a control plane; `None`, and why for everybody to see, where it cannot be had.
fn lab(what: &str, shape: impl FnOnce(LabBuilder) -> LabBuilder) -> Option<Lab> {
    let builder = Lab::builder()
        .nodes(2)
        .without_flanneld()
        .store(StoreKind::Kubernetes);
    match shape(builder).build() {
        Err(why @ Error::Needs(_)) => {
            lab::not_run(what, &why);
            None
        }
        lab => Some(lab.unwrap()),
    }
}

fn cidrs(kube: &Kube, node: &str) -> Vec<String> {
    kube.wait_pod_cidrs(node, SOON).unwrap()
}

#[test]
fn nodes_get_subnets_and_the_role_is_enforced() {
    let Some(lab) = lab("Nodes and roles", |builder| builder) else {
        return;
    };
    let kube = lab.kube().unwrap();
    // Nodes: ours, and one more; each with a subnet of its own.
    kube.create_node("n9").unwrap();
    let mut all: Vec<_> = ["n1", "n2", "n9"].map(|n| cidrs(kube, n)).into();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(
        all.iter()
            .all(|c| c.len() == 1 && c[0].starts_with("172.30.") && c[0].ends_with("/24")),
        "{all:?}"
    );
    let n2 = kube.node("n2").unwrap();
    let ip = json!({"type": "InternalIP", "address": "192.168.78.2"});
    assert!(
        n2["status"]["addresses"].as_array().unwrap().contains(&ip),
        "{n2}"
    );

    // One that brings its own.
    let own = json!({"spec": {"podCIDR": "172.30.200.0/24", "podCIDRs": ["172.30.200.0/24"]}});
    kube.create_node_with("n8", &own).unwrap();
    assert_eq!(cidrs(kube, "n8"), ["172.30.200.0/24"]);

    // What flanneld may do, and may not.
    let flannel = kube.api_as(&Who::Flannel);
    let up = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False",
        "reason": "FlannelIsUp", "message": "Flannel is running on this node"}]}});
    let status = "/api/v1/nodes/n1/status";
    flannel.patch(status, Patch::Strategic, &up).unwrap();
    let n1 = kube.node("n1").unwrap();
    assert_eq!(n1["status"]["conditions"][0]["reason"], "FlannelIsUp");
    assert_eq!(
        flannel.get("/api/v1/nodes").unwrap()["items"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
    let spec = json!({"spec": {"unschedulable": true}});
    let refused = flannel
        .patch("/api/v1/nodes/n1", Patch::Merge, &spec)
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("cannot patch resource \"nodes\""),
        "{refused}"
    );
    let refused = flannel.get("/api/v1/secrets").unwrap_err().to_string();
    assert!(
        refused.contains("403") && refused.contains("kube-flannel:flannel"),
        "{refused}"
    );

    // All of which is on record, and nothing else.
    let requests = kube.requests().unwrap();
    let seen: Vec<_> = requests
        .iter()
        .map(|r| (r.verb.as_str(), r.uri.as_str(), r.status))
        .collect();
    assert_eq!(
        seen,
        [
            ("patch", status, 200),
            ("list", "/api/v1/nodes", 200),
            ("patch", "/api/v1/nodes/n1", 403),
            ("list", "/api/v1/secrets", 403),
        ]
    );
    assert_eq!(requests.iter().filter(|r| r.forbidden()).count(), 2);
    let counts = kube.request_counts().unwrap();
    assert!(counts["PATCH nodes/status"] >= 1, "{counts:?}");

    // A token as pods have it is the same user.
    let token = kube
        .service_account_token("kube-flannel", "flannel", 600)
        .unwrap();
    kube.api()
        .with_token(&token)
        .get("/api/v1/nodes/n1")
        .unwrap();
    assert_eq!(kube.requests().unwrap().len(), 5);
    assert!(
        kube.api()
            .with_token("wrong")
            .get("/api/v1/nodes")
            .unwrap_err()
            .to_string()
            .contains("401")
    );

    // Annotations come and go; a Node too.
    kube.annotate("n9", [("a/b", Some("c")), ("a/d", Some("e"))])
        .unwrap();
    let n9 = kube.annotate("n9", [("a/b", None)]).unwrap();
    assert_eq!(n9["metadata"]["annotations"], json!({"a/d": "e"}));
    kube.heartbeat("n9", "2026-01-01T00:00:00Z").unwrap();
    kube.delete_node("n9").unwrap();
    kube.delete_node("n9").unwrap();
    assert_eq!(kube.nodes().unwrap().len(), 3);

    // kubectl, on the fabric and by a node's own path to the server.
    let names = kube.kubectl(["get", "nodes", "-o", "name"]).unwrap();
    assert_eq!(names, "node/n1\nnode/n2\nnode/n8\n");
    let config = format!(
        "--kubeconfig={}",
        kube.kubeconfig(&Who::Kubelet("n1".into()))
    );
    let name = lab
        .node(1)
        .exec(["kubectl", &config, "get", "node", "n1", "-o", "name"])
        .unwrap();
    assert_eq!(name, "node/n1\n");
    // As pods do it: by the service's address, which the certificate is good for.
    let by_service = [
        "kubectl",
        &config,
        "--server=https://10.96.0.1",
        "get",
        "node",
        "n1",
        "-o",
        "name",
    ];
    assert_eq!(lab.node(1).exec(by_service).unwrap(), "node/n1\n");
}

#[test]
fn the_api_server_goes_and_comes_back() {
    let Some(lab) = lab("the API server's end", |builder| builder) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let before = cidrs(kube, "n1");
    kube.kill9().unwrap();
    assert!(kube.nodes().is_err());
    kube.start().unwrap();
    assert_eq!(cidrs(kube, "n1"), before);
    assert!(
        kube.start()
            .unwrap_err()
            .to_string()
            .contains("runs already")
    );
    kube.stop().unwrap();
    assert!(kube.nodes().is_err());
    kube.start().unwrap();
    // The controller manager has found it again.
    kube.create_node("late").unwrap();
    assert_eq!(cidrs(kube, "late").len(), 1);
    kube.freeze().unwrap();
    kube.thaw().unwrap();
    wait_for("it answers", SOON, || kube.nodes()).unwrap();
}

#[test]
fn two_families_and_the_second_alone() {
    for (ipv4, what) in [(true, "dual-stack"), (false, "IPv6 only")] {
        let Some(lab) = lab(what, |builder| builder.ipv4(ipv4).ipv6(true)) else {
            return;
        };
        let kube = lab.kube().unwrap();
        let cidrs = cidrs(kube, "n2");
        let starts: &[&str] = if ipv4 {
            &["172.30.", "fd00:30:"]
        } else {
            &["fd00:30:"]
        };
        assert_eq!(cidrs.len(), starts.len(), "{cidrs:?}");
        for (cidr, start) in cidrs.iter().zip(starts) {
            assert!(cidr.starts_with(start), "{cidrs:?}");
        }
        let text = lab.node(1).read("/run/lab/kube/net-conf.json").unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["IPv6Network"], "fd00:30::/48");
        let config = kube.kubeconfig(&Who::Flannel);
        let names = [
            "kubectl",
            "--kubeconfig",
            &config,
            "get",
            "nodes",
            "-o",
            "name",
        ];
        assert_eq!(lab.node(1).exec(names).unwrap(), "node/n1\nnode/n2\n");
    }
}
