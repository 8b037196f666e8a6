//! What `flannelctl` does to a whole cluster, from where an administrator sits: the connectivity test and the bundle.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Output;

use lab::{Lab, Who, wait_for};
use serde_json::Value;

use crate::pods::manifest;
use crate::{SOON, cluster};

/// A secret that a variable of flannel's DaemonSet holds, as where somebody put it there by hand.
const PASSWORD: &str = "hunter2-of-the-lab";

fn ctl(lab: &Lab, command: &[&str]) -> Output {
    let kubeconfig = lab.kube().unwrap().kubeconfig(&Who::Admin);
    let words = [command, &["--kubeconfig", &kubeconfig]].concat();
    let words = [&["flannelctl"], &words[..]].concat();
    lab.fabric().output(words).unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Waits until no namespace of a test is left.
fn nothing_is_left(lab: &Lab) {
    let kube = lab.kube().unwrap();
    wait_for("the test's namespace is gone", SOON, || {
        let all = kube.kubectl(["get", "namespaces", "-o", "name"]);
        let all = all.map_err(|e| e.to_string())?;
        if all.contains("flannel-connectivity") {
            Err(all)
        } else {
            Ok(())
        }
    })
    .unwrap();
}

/// The pairs that were tested, by who asks and whom: names and results of the checks.
fn pairs(output: &Output) -> BTreeMap<(String, String), BTreeMap<String, String>> {
    let found: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(output)));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = found["pairs"].as_array().unwrap().iter();
    pairs
        .map(|pair| {
            let checks = pair["checks"].as_array().unwrap().iter();
            let checks = checks.map(|check| (text(&check["name"]), text(&check["result"])));
            ((text(&pair["from"]), text(&pair["to"])), checks.collect())
        })
        .collect()
}

#[test]
fn connectivity_and_bundle_of_a_cluster() {
    let Some(lab) = cluster("flannelctl on a cluster", 3, |builder| builder.dual()) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let (manifest, ipv4) = (manifest(), r#""Network": "10.244.0.0/16""#);
    assert!(manifest.contains(ipv4));
    let dual = r#""Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:30::/48""#;
    kube.apply(&manifest.replace(ipv4, dual)).unwrap();
    kube.wait_nodes_ready(SOON).unwrap();

    every_node_reports(&lab);
    all_pairs_are_good(&lab);
    a_broken_tunnel_is_named(&lab);
    a_test_that_is_interrupted_leaves_nothing(&lab);
    a_node_that_is_down_is_named_and_keeps_nothing(&lab);
    a_bundle_of_all_nodes(&lab);
}

fn every_node_reports(lab: &Lab) {
    let good = wait_for("every node is ready", SOON, || {
        let output = ctl(lab, &["status"]);
        if output.status.code() == Some(0) {
            Ok(said(&output))
        } else {
            Err(said(&output))
        }
    })
    .unwrap();
    let lines: Vec<&str> = good.lines().collect();
    assert!(lines[0].starts_with("NODE") && lines.len() == 4, "{good}");
    for (line, node) in lines[1..].iter().zip(["n1", "n2", "n3"]) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..2], [node, "yes"], "{good}");
        assert_eq!(words[3..5], ["vxlan", "2+0"], "{good}");
    }
    let versions = said(&ctl(lab, &["version"]));
    let ours = env!("CARGO_PKG_VERSION");
    for node in ["n1", "n2", "n3"] {
        let line = versions.lines().find(|line| line.starts_with(node));
        let line = line.unwrap_or_else(|| panic!("{versions}"));
        assert!(
            line.contains(ours) && line.contains("flannel-rs"),
            "{versions}"
        );
    }
}

fn all_pairs_are_good(lab: &Lab) {
    let output = ctl(lab, &["connectivity", "-o", "json", "--throughput"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let pairs = pairs(&output);
    assert_eq!(pairs.len(), 6, "{pairs:?}");
    let mut flows = 0;
    for (pair, checks) in &pairs {
        for name in [
            "IPv4 UDP",
            "IPv4 full size",
            "IPv4 TCP",
            "IPv6 UDP",
            "IPv6 full size",
            "IPv6 TCP",
        ] {
            assert_eq!(
                checks.get(name).map(String::as_str),
                Some("good"),
                "{pair:?} {name}"
            );
        }
        // The lab has no kube-proxy.
        assert_eq!(checks.get("IPv4 service").map(String::as_str), Some("skip"));
        flows += usize::from(checks.contains_key("IPv4 throughput"));
    }
    assert_eq!(flows, 3, "one from each node: {pairs:?}");
    nothing_is_left(lab);
}

fn a_broken_tunnel_is_named(lab: &Lab) {
    let rules = [
        "add table ip t",
        "add chain ip t in { type filter hook input priority -300; }",
        "add rule ip t in udp dport 8472 drop",
    ];
    for rule in rules {
        lab.node(3).exec(["nft", rule]).unwrap();
    }
    let file = lab.shared_dir().join("found.xml");
    let output = ctl(
        lab,
        &["connectivity", "--count=2", "--junit=/run/lab/found.xml"],
    );
    lab.node(3).exec(["nft", "delete table ip t"]).unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("n1 > n3: IPv4 UDP: no probe"), "{text}");
    assert!(
        text.contains("FROM \\ TO") && text.contains("LOST"),
        "{text}"
    );
    assert!(!text.contains("n1 > n2: "), "{text}");
    assert!(
        !text.contains("IPv6 UDP: "),
        "the tunnel of IPv6 is another one: {text}"
    );
    let junit = std::fs::read_to_string(file).unwrap();
    assert!(junit.contains("classname=\"n1 &gt; n3\""), "{junit}");
    nothing_is_left(lab);
}

fn a_test_that_is_interrupted_leaves_nothing(lab: &Lab) {
    let kube = lab.kube().unwrap();
    let kubeconfig = kube.kubeconfig(&Who::Admin);
    let command = format!(
        "flannelctl connectivity --kubeconfig {kubeconfig} --count=30 & pid=$!; \
        until [ -e /run/lab/go ]; do sleep 0.1; done; kill -INT $pid; wait $pid; echo ended with $?"
    );
    let interrupted = std::thread::scope(|scope| {
        let run = scope.spawn(|| lab.fabric().output(["bash", "-mc", &command]).unwrap());
        wait_for("a pod of the test is there", SOON, || {
            let pods = kube.kubectl(["get", "pods", "-A", "-o", "name"]);
            match pods.map_err(|e| e.to_string())? {
                pods if pods.contains("pod/node-") => Ok(()),
                pods => Err(pods),
            }
        })
        .unwrap();
        std::fs::write(lab.shared_dir().join("go"), "").unwrap();
        run.join().unwrap()
    });
    let text = said(&interrupted);
    assert!(text.contains("ended with 130"), "{text}");
    nothing_is_left(lab);
}

fn a_node_that_is_down_is_named_and_keeps_nothing(lab: &Lab) {
    lab.node(3).kubelet().unwrap().kill_kubelet().unwrap();
    let output = ctl(lab, &["connectivity", "--start-limit=15", "--count=1"]);
    // Its kubelet is still down: nobody confirms the end of its pod.
    nothing_is_left(lab);
    lab.node(3).kubelet().unwrap().start_kubelet().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("n3: its pod did not start within 15 s"),
        "{text}"
    );
    assert!(!text.contains("is still there"), "{text}");
}

fn a_bundle_of_all_nodes(lab: &Lab) {
    let kube = lab.kube().unwrap();
    // A node whose kubelet is gone does not answer; and somebody put a password into the DaemonSet.
    lab.node(3).kubelet().unwrap().kill_kubelet().unwrap();
    let set = format!("FLANNELD_ETCD_PASSWORD={PASSWORD}");
    let set = [
        "-n",
        "kube-flannel",
        "set",
        "env",
        "daemonset/kube-flannel-ds",
        &set,
    ];
    let paused = r#"{"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}}"#;
    let patch = [
        "-n",
        "kube-flannel",
        "patch",
        "daemonset/kube-flannel-ds",
        "-p",
        paused,
    ];
    kube.kubectl(patch).unwrap();
    kube.kubectl(set).unwrap();
    let output = ctl(lab, &["bundle", "-o", "-", "--limit=30"]);
    lab.node(3).kubelet().unwrap().start_kubelet().unwrap();
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&output.stdout[..]));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let (_, name) = path.split_once('/').unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(name.to_owned(), text);
    }
    for (name, part) in [
        ("README.txt", "2 of 3 nodes answered"),
        ("README.txt", "- n3: "),
        ("n3/ERROR.txt", "n3"),
        ("n1/flanneld/status.json", "\"backend\":\"vxlan\""),
        ("n2/flanneld/subnet.env", "FLANNEL_SUBNET="),
        ("n2/kernel/flannel-objects.txt", "dev flannel.1"),
        ("n1/README.txt", "Not collected"),
        ("n1/pod/log.txt", "subnet.env"),
        ("cluster/nodes.json", "\"n3\""),
        ("cluster/configmaps.json", "net-conf.json"),
        ("cluster/daemonsets.json", "FLANNELD_ETCD_PASSWORD"),
    ] {
        let text = files.get(name);
        let text = text.unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
        if name != "n3/ERROR.txt" {
            assert!(text.contains(part), "{name}: {text}");
        }
    }
    // Every secret of the lab: the password, the tokens of everybody, the keys of the servers.
    let mut secrets = vec![PASSWORD.to_owned()];
    let tokens = std::fs::read_to_string(lab.shared_dir().join("kube/tokens.csv"));
    let tokens = tokens.unwrap();
    secrets.extend(
        tokens
            .lines()
            .filter_map(|line| line.split(',').next().map(str::to_owned)),
    );
    for node in 1..=2 {
        let find = "cat /var/lib/kubelet/pods/*/volumes/kubernetes.io~projected/*/token";
        let text = lab.node(node).exec(["sh", "-c", find]).unwrap();
        assert!(text.contains("eyJ"), "a pod's token");
        secrets.extend(text.split_whitespace().map(str::to_owned));
    }
    for (name, text) in &files {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{name} holds {secret}");
        }
    }
}
