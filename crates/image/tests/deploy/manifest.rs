//! `deploy/kube-flannel.yml` in a real API server.

use std::fs;
use std::process::Command;

use lab::{Kube, Patch, Who};
use model::{BackendType, NetConfig};
use serde_json::{Value, json};

use crate::{cluster, deploy, helm, image, names, objects, one, read};

const DAEMONSET: &str = "/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds";
const CONFIG: &str = "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg";

#[test]
fn the_manifests_are_the_chart_rendered() {
    let Some(helm) = helm("the manifests are the chart") else {
        return;
    };
    let output = Command::new(deploy("../scripts/manifests"))
        .arg("check")
        .env("HELM", helm)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", crate::said(&output));
}

#[test]
fn it_is_created_as_the_guide_says_and_replaces_upstreams_in_place() {
    let Some(lab) = cluster("the manifest in an API server") else {
        return;
    };
    let kube = lab.kube().unwrap();
    let file = deploy("kube-flannel.yml");
    let file = file.to_str().unwrap();

    // What people have: by their own tool, by an older flannel.
    kube.apply(&upstream().to_string()).unwrap();
    let uid = kube.api().get(DAEMONSET).unwrap()["metadata"]["uid"].clone();
    // Client-side, as the guides say, and again as the server's own matter. A field that the server does not know
    // would be an error.
    for how in [
        &["apply", "--validate=strict", "-f", file][..],
        &["apply", "--server-side", "--force-conflicts", "-f", file],
    ] {
        kube.kubectl(how).unwrap();
        let daemonset = kube.api().get(DAEMONSET).unwrap();
        assert_eq!(
            daemonset["metadata"]["uid"], uid,
            "it was not replaced in place"
        );
        assert_eq!(names(&daemonset, "initContainers"), ["install-cni-plugin"]);
        assert_eq!(names(&daemonset, "containers"), ["kube-flannel"]);
        let containers = &daemonset["spec"]["template"]["spec"]["containers"];
        assert_eq!(containers[0]["image"], image());
        assert_eq!(containers[0]["command"], json!(["/opt/bin/flanneld"]));
    }
    // Nothing to do: the server has every field as it was written.
    for how in [
        &["diff", "-f", file][..],
        &["diff", "--server-side", "-f", file],
    ] {
        kube.kubectl(how).unwrap();
    }
    let directory = deploy("");
    kube.kubectl([
        "apply",
        "--dry-run=server",
        "-k",
        directory.to_str().unwrap(),
    ])
    .unwrap();
    assert!(with_own_registry(kube).contains("image: registry.example/flannel:v9\n"));
    kube.kubectl(["delete", "-f", file]).unwrap();
    kube.api()
        .get("/apis/rbac.authorization.k8s.io/v1/clusterroles/flannel")
        .unwrap_err();
}

#[test]
fn the_network_configuration_is_what_sed_makes_of_it() {
    let Some(lab) = cluster("sed on the manifest") else {
        return;
    };
    let kube = lab.kube().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let edited = dir.path().join("kube-flannel.yml");
    fs::copy(deploy("kube-flannel.yml"), &edited).unwrap();
    let conf = |objects: &[Value]| {
        let config = one(objects, "ConfigMap", "kube-flannel-cfg");
        serde_json::from_str::<Value>(config["data"]["cni-conf.json"].as_str().unwrap()).unwrap();
        NetConfig::from_json(config["data"]["net-conf.json"].as_str().unwrap()).unwrap()
    };
    assert_eq!(
        conf(&objects(kube, &edited)).backend.kind,
        BackendType::Vxlan
    );

    crate::must(
        Command::new("sed")
            .args(["s/vxlan/host-gw/", "-i"])
            .arg(&edited),
    );
    let (before, after) = (
        read("kube-flannel.yml"),
        fs::read_to_string(&edited).unwrap(),
    );
    let changed: Vec<_> = before
        .lines()
        .zip(after.lines())
        .filter(|(a, b)| a != b)
        .collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(
        conf(&objects(kube, &edited)).backend.kind,
        BackendType::HostGw
    );
    // The lab has the namespace and the role already; `create` wants to make them.
    let file = edited.to_str().unwrap();
    kube.kubectl(["delete", "--ignore-not-found", "-f", file])
        .unwrap();
    kube.kubectl(["create", "-f", file]).unwrap();
    let config = kube.api().get(CONFIG).unwrap();
    assert!(
        config["data"]["net-conf.json"]
            .as_str()
            .unwrap()
            .contains("host-gw")
    );
}

#[test]
fn the_service_account_may_do_what_flannel_needs_and_nothing_else() {
    let Some(lab) = cluster("RBAC of the manifest") else {
        return;
    };
    let kube = lab.kube().unwrap();
    kube.kubectl(["apply", "-f", deploy("kube-flannel.yml").to_str().unwrap()])
        .unwrap();
    let rules = |path: &str| kube.api().get(path).unwrap()["rules"].clone();
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    assert_eq!(
        rules(&format!("{roles}/clusterroles/flannel")),
        json!([
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        ])
    );
    assert_eq!(
        rules(&format!("{roles}/namespaces/default/roles/flannel-events")),
        json!([{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}])
    );

    let flannel = kube.api_as(&Who::Flannel);
    flannel.get("/api/v1/nodes").unwrap();
    flannel.get("/api/v1/nodes/n1").unwrap();
    let note = json!({"metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": "192.168.78.1"}}});
    flannel
        .patch("/api/v1/nodes/n1/status", Patch::Strategic, &note)
        .unwrap();
    let events = |namespace: &str| format!("/api/v1/namespaces/{namespace}/events");
    flannel
        .create(&events("default"), &event("default"))
        .unwrap();

    let refused = [
        flannel.create(&events("kube-system"), &event("kube-system")),
        flannel.get("/api/v1/pods"),
        flannel.get("/api/v1/namespaces/kube-system/secrets"),
        flannel.get(CONFIG),
        flannel.patch("/api/v1/nodes/n1", Patch::Merge, &note),
    ];
    for answer in refused {
        let answer = answer.unwrap_err().to_string();
        assert!(answer.contains(" 403 "), "{answer}");
    }
}

#[test]
fn the_pods_have_no_more_rights_than_they_need() {
    let Some(lab) = cluster("rights of the pods") else {
        return;
    };
    let objects = objects(lab.kube().unwrap(), &deploy("kube-flannel.yml"));
    one(&objects, "Namespace", "kube-flannel");
    one(&objects, "ServiceAccount", "flannel");
    let pod = &one(&objects, "DaemonSet", "kube-flannel-ds")["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    assert!(pod.get("hostPID").is_none() && pod.get("hostIPC").is_none());
    for (container, added) in [
        ("initContainers", Value::Null),
        ("containers", json!(["NET_ADMIN", "NET_RAW"])),
    ] {
        let rights = &pod[container][0]["securityContext"];
        assert_eq!(rights["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(rights["capabilities"]["add"], added);
        assert_eq!(rights["readOnlyRootFilesystem"], true);
        assert_eq!(rights["allowPrivilegeEscalation"], false);
        assert!(rights.get("privileged").is_none());
    }
    let of_the_host: Vec<&str> = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|v| v["hostPath"]["path"].as_str())
        .collect();
    assert_eq!(
        of_the_host,
        [
            "/run/flannel",
            "/opt/cni/bin",
            "/etc/cni/net.d",
            "/run/xtables.lock",
            "/var/lib/flannel",
            "/dev/net",
        ]
    );
}

/// What an overlay over `deploy/` makes of it, as its kustomization says.
fn with_own_registry(kube: &Kube) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (base, overlay) = (dir.path().join("base"), dir.path().join("overlay"));
    fs::create_dir_all(&base).unwrap();
    fs::create_dir_all(&overlay).unwrap();
    for file in ["kube-flannel.yml", "kustomization.yaml"] {
        fs::copy(deploy(file), base.join(file)).unwrap();
    }
    let image = image();
    let name = image.split(":v").next().unwrap();
    let text = format!(
        "resources: [../base]\nimages: [{{name: {name}, newName: registry.example/flannel, newTag: v9}}]\n"
    );
    fs::write(overlay.join("kustomization.yaml"), text).unwrap();
    kube.kubectl(["kustomize", overlay.to_str().unwrap()])
        .unwrap()
}

fn event(namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": "n1.flannel", "namespace": namespace},
        "involvedObject": {"kind": "Node", "name": "n1"},
        "reason": "Test", "message": "a test", "type": "Warning",
    })
}

/// The shape of what others install: the names that ours must share, and more containers than ours has.
fn upstream() -> Value {
    let labels = json!({"app": "flannel", "tier": "node", "k8s-app": "flannel"});
    let meta = |name: &str| json!({"name": name, "namespace": "kube-flannel", "labels": labels});
    let mount =
        json!([{"name": "run", "mountPath": "/run/flannel"}, {"name": "old", "mountPath": "/old"}]);
    let container = |name: &str| json!({"name": name, "image": "example/flannel:v0.28.9", "command": ["cp"], "args": ["-f"], "volumeMounts": mount});
    json!({
        "apiVersion": "v1", "kind": "List",
        "items": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("kube-flannel-cfg"),
             "data": {"net-conf.json": "{}", "cni-conf.json": "{}"}},
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta("kube-flannel-ds"), "spec": {
                "selector": {"matchLabels": {"app": "flannel"}},
                "template": {"metadata": {"labels": {"app": "flannel", "tier": "node"}}, "spec": {
                    "hostNetwork": true,
                    "serviceAccountName": "flannel",
                    "initContainers": [container("install-cni-plugin"), container("install-cni")],
                    "containers": [container("kube-flannel")],
                    "volumes": [{"name": "run", "hostPath": {"path": "/run/flannel"}}, {"name": "old", "emptyDir": {}}],
                }},
            }},
        ],
    })
}
