//! From upstream's flannel to ours and back, under pods that talk: real kubelets, upstream's real daemon.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::{Error, Kube, Lab, Namespace, Pinger, wait_for};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::{deploy, must, objects, read};

const SOON: Duration = Duration::from_secs(120);
const UPSTREAM: &str = "upstream/flannel:v0.28.9";
const PODS: &str = "/api/v1/namespaces/kube-flannel/pods";
const DAEMONSET: &str = "/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds";

fn put(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, mode: u32, bytes: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes).unwrap();
}

/// Upstream's image as its manifests expect it: flanneld, the CNI plugin and `cp`, over the layer with iptables of
/// our own image.
fn upstream_image(dir: &Path) -> std::path::PathBuf {
    let upstream = must(&mut Command::new(deploy("../scripts/upstream")));
    let mut ours = tar::Archive::new(fs::File::open(lab::flannel_image().unwrap()).unwrap());
    ours.unpack(dir).unwrap();
    let manifest: Value =
        serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let file = |name: &Value| fs::read(dir.join(name.as_str().unwrap())).unwrap();
    let tools = file(&manifest[0]["Layers"][0]);
    let mut config: Value = serde_json::from_slice(&file(&manifest[0]["Config"])).unwrap();

    let root = dir.join("plugin");
    let programs = file(&manifest[0]["Layers"][1]);
    tar::Archive::new(programs.as_slice())
        .unpack(&root)
        .unwrap();
    let mut layer = Builder::new(Vec::new());
    let mut program = |path: &str, from: &Path| {
        put(
            &mut layer,
            path,
            EntryType::Regular,
            0o755,
            &fs::read(from).unwrap(),
        );
    };
    program("opt/bin/flanneld", Path::new(upstream.trim()));
    program("flannel", &root.join("opt/bin/flannel"));
    program("cp", Path::new("/bin/busybox"));
    for place in ["dev/", "etc/", "proc/", "run/", "sys/", "tmp/"] {
        put(&mut layer, place, EntryType::Directory, 0o755, &[]);
    }
    let layer = layer.into_inner().unwrap();

    config["rootfs"]["diff_ids"][1] = format!("sha256:{}", sha256(dir, &layer)).into();
    let manifest = json!([{"Config": "config.json", "RepoTags": [UPSTREAM], "Layers": ["tools.tar", "upstream.tar"]}]);
    let mut archive = Builder::new(Vec::new());
    for (name, bytes) in [
        ("manifest.json", manifest.to_string().as_bytes()),
        ("config.json", config.to_string().as_bytes()),
        ("tools.tar", &tools),
        ("upstream.tar", &layer),
    ] {
        put(&mut archive, name, EntryType::Regular, 0o644, bytes);
    }
    let image = dir.join("upstream.tar");
    fs::write(&image, archive.into_inner().unwrap()).unwrap();
    image
}

fn sha256(dir: &Path, bytes: &[u8]) -> String {
    let file = dir.join("to-sum");
    fs::write(&file, bytes).unwrap();
    let sum = must(Command::new("sha256sum").arg(&file));
    sum.split_whitespace().next().unwrap().to_owned()
}

/// What people have: upstream's DaemonSet; its other objects have the names that ours have.
fn upstream_daemonset() -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let copy = |name: &str, from: &str, to: &str| {
        json!({
            "name": name, "image": UPSTREAM, "imagePullPolicy": "Never", "command": ["/cp"], "args": ["-f", from, to],
            "volumeMounts": [
                {"name": "cni-plugin", "mountPath": "/opt/cni/bin"}, {"name": "cni", "mountPath": "/etc/cni/net.d"},
                {"name": "flannel-cfg", "mountPath": "/etc/kube-flannel/"},
            ],
        })
    };
    let host = |name: &str, path: &str| json!({"name": name, "hostPath": {"path": path}});
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "kube-flannel-ds", "namespace": "kube-flannel", "labels": {"app": "flannel", "tier": "node"}},
        "spec": {"selector": {"matchLabels": {"app": "flannel"}}, "template": {
            "metadata": {"labels": {"app": "flannel", "tier": "node"}},
            "spec": {
                "hostNetwork": true, "serviceAccountName": "flannel", "priorityClassName": "system-node-critical",
                "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
                "initContainers": [
                    copy("install-cni-plugin", "/flannel", "/opt/cni/bin/flannel"),
                    copy("install-cni", "/etc/kube-flannel/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist"),
                ],
                "containers": [{
                    "name": "kube-flannel", "image": UPSTREAM, "imagePullPolicy": "Never",
                    "command": ["/opt/bin/flanneld"], "args": ["--ip-masq", "--kube-subnet-mgr"],
                    "env": [field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")],
                    "securityContext": {"privileged": false, "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
                    "volumeMounts": [
                        {"name": "run", "mountPath": "/run/flannel"},
                        {"name": "flannel-cfg", "mountPath": "/etc/kube-flannel/"},
                        {"name": "xtables-lock", "mountPath": "/run/xtables.lock"},
                    ],
                }],
                "volumes": [
                    host("run", "/run/flannel"), host("cni-plugin", "/opt/cni/bin"), host("cni", "/etc/cni/net.d"),
                    {"name": "flannel-cfg", "configMap": {"name": "kube-flannel-cfg"}},
                    {"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
                ],
            },
        }},
    })
}

/// Makes the DaemonSet's controller give `node` a new pod, and waits until that one is ready.
fn replace_on(kube: &Kube, node: &str, image: &str) {
    let on_node = || {
        let list = kube.api().get(PODS).unwrap();
        let mut pods = list["items"].as_array().unwrap().clone();
        pods.retain(|pod| pod["spec"]["nodeName"] == node);
        pods
    };
    for old in on_node() {
        let path = format!("{PODS}/{}", old["metadata"]["name"].as_str().unwrap());
        kube.api().delete(&path).unwrap();
    }
    wait_for(&format!("{image} on {node}"), SOON, || {
        let pods = on_node();
        let new = |pod: &Value| {
            pod["spec"]["containers"][0]["image"] == image
                && pod.pointer("/status/containerStatuses/0/ready") == Some(&true.into())
        };
        if pods.len() == 1 && new(&pods[0]) {
            Ok(())
        } else {
            Err(format!("{}", json!(pods)))
        }
    })
    .unwrap();
}

/// What a node tells the others, and the device's own address.
fn identity(lab: &Lab, kube: &Kube) -> Vec<(Value, String)> {
    let of = |node: &lab::Node| {
        let object = kube.node(node.name()).unwrap();
        let own = |(key, _): &(&String, &Value)| key.starts_with("flannel.alpha.coreos.com/");
        let all = object["metadata"]["annotations"].as_object().unwrap();
        let annotations = all.iter().filter(own).map(|(k, v)| {
            // The value may be JSON, whose white space and order mean nothing.
            let text = v.as_str().unwrap();
            (k.clone(), serde_json::from_str(text).unwrap_or(json!(text)))
        });
        let mac = node
            .exec(["cat", "/sys/class/net/flannel.1/address"])
            .unwrap();
        (Value::Object(annotations.collect()), mac)
    };
    lab.nodes().iter().map(of).collect()
}

struct Talker {
    place: Namespace,
    ip: IpAddr,
}

fn talker(lab: &Lab, name: &str, node: &str) -> Talker {
    let kube = lab.kube().unwrap();
    kube.create_pod(name, node, &[], &json!({})).unwrap();
    let pod = kube.wait_pod_ready(name, SOON).unwrap();
    let ip = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
    Talker {
        place: lab.kube_pod(&pod).unwrap(),
        ip,
    }
}

/// Waits until pings from one to the other come back.
fn reach(from: &Talker, to: &Talker) {
    wait_for(
        "a pod reaches another",
        SOON,
        || -> Result<(), io::Error> {
            let output = from
                .place
                .output(["ping", "-c", "1", "-W", "1", &to.ip.to_string()]);
            match output.map_err(io::Error::other)?.status.success() {
                true => Ok(()),
                false => Err(io::Error::other("no answer")),
            }
        },
    )
    .unwrap();
}

#[test]
fn in_place_node_by_node_and_back() {
    let what = "from upstream's flannel to ours under kubelets";
    let dir = tempfile::tempdir().unwrap();
    if !lab::real_root_for(what) {
        return;
    }
    let builder = Lab::builder()
        .nodes(2)
        .kubelets()
        .image(lab::flannel_image().unwrap());
    let lab = match builder.image(upstream_image(dir.path())).build() {
        Err(why @ Error::Needs(_)) => return lab::not_run(what, &why),
        lab => lab.unwrap(),
    };
    let kube = lab.kube().unwrap();

    // Upstream's, and two pods that talk.
    for object in objects(kube, &deploy("kube-flannel.yml")) {
        if object["kind"] != "DaemonSet" {
            kube.apply(&object.to_string()).unwrap();
        }
    }
    kube.apply(&upstream_daemonset().to_string()).unwrap();
    kube.wait_nodes_ready(SOON).unwrap();
    let (one, two) = (talker(&lab, "one", "n1"), talker(&lab, "two", "n2"));
    reach(&one, &two);
    reach(&two, &one);
    let (uid, before) = (
        kube.api().get(DAEMONSET).unwrap()["metadata"]["uid"].clone(),
        identity(&lab, kube),
    );

    // Ours, one node at a time.
    let pings = Pinger::start(&one.place, two.ip, Duration::from_millis(20)).unwrap();
    let by_hand = read("kube-flannel.yml").replace(
        "    rollingUpdate:\n      maxUnavailable: 10%\n    type: RollingUpdate\n",
        "    type: OnDelete\n",
    );
    assert!(by_hand.contains("OnDelete"));
    kube.apply(&by_hand).unwrap();
    let ours = crate::image();
    replace_on(kube, "n1", &ours);
    // One of each: pods that were there, and new ones on both nodes.
    let (three, four) = (talker(&lab, "three", "n1"), talker(&lab, "four", "n2"));
    for (from, to) in [(&one, &four), (&four, &one), (&three, &two), (&two, &three)] {
        reach(from, to);
    }
    replace_on(kube, "n2", &ours);
    reach(&three, &four);
    let pings = pings.stop();
    assert_eq!(pings.lost, 0, "{pings:?}");
    assert_eq!(
        identity(&lab, kube),
        before,
        "others would have to learn something anew"
    );
    assert_eq!(kube.api().get(DAEMONSET).unwrap()["metadata"]["uid"], uid);

    // And back.
    let mut upstream = upstream_daemonset();
    upstream["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
    kube.apply(&upstream.to_string()).unwrap();
    for node in ["n1", "n2"] {
        replace_on(kube, node, UPSTREAM);
    }
    for (from, to) in [(&one, &four), (&four, &one), (&three, &two)] {
        reach(from, to);
    }
    assert_eq!(identity(&lab, kube), before);
}
