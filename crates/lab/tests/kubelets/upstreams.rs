//! Upstream's own manifest, in which nothing but the image's name is changed.

use std::fs;
use std::path::Path;
use std::process::Command;

use lab::Error;
use serde_json::json;

use crate::pods::{Pod, manifest, they_reach_each_other, they_reach_the_outside};
use crate::{SOON, cluster};

/// What upstream publishes, with our image for each of theirs; `None`, and why for everybody to see, where it cannot
/// be had.
fn upstreams_manifest(what: &str) -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/upstream");
    let output = Command::new(script).arg("source").output().unwrap();
    let dir = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() || dir.trim().is_empty() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        lab::not_run(what, &Error::Needs(said));
        return None;
    }
    let theirs = Path::new(dir.trim()).join("Documentation/kube-flannel.yml");
    let theirs = fs::read_to_string(theirs).unwrap();
    let name = |line: &str| line.trim().strip_prefix("image: ").map(str::to_owned);
    let ours = manifest().lines().find_map(name).unwrap();
    let images: Vec<String> = theirs.lines().filter_map(name).collect();
    assert_eq!(images.len(), 3, "{images:?}");
    let replaced = images
        .iter()
        .fold(theirs, |text, image| text.replace(image.as_str(), &ours));
    Some(replaced)
}

/// Applies a manifest, and has pods of two nodes talk.
fn it_makes_a_network(what: &str, manifest: &str) {
    let Some(lab) = cluster(what, 2, |builder| builder) else {
        return;
    };
    let kube = lab.kube().unwrap();
    kube.apply(manifest).unwrap();
    for (pod, node) in [("pod1", "n1"), ("pod2", "n2")] {
        kube.create_pod(pod, node, &[], &json!({})).unwrap();
    }
    let pods = ["pod1", "pod2"].map(|name| Pod::ready(&lab, name));
    they_reach_each_other(&pods);
    they_reach_the_outside(&lab, &pods);
    kube.wait_nodes_ready(SOON).unwrap();
}

#[test]
fn with_nothing_but_the_image_s_name_changed() {
    let what = "upstream's manifest with our image";
    if let Some(manifest) = upstreams_manifest(what) {
        it_makes_a_network(what, &manifest);
    }
}

/// Before 0.28, and in the manifests of kops, Talos, RKE2 and kubespray, `cp` brings the CNI configuration, and no
/// probe asks flanneld.
#[test]
fn in_the_form_that_installers_have() {
    let what = "an installer's manifest with our image";
    let Some(manifest) = upstreams_manifest(what) else {
        return;
    };
    let install = "        - /opt/bin/install-conf\n        args:\n";
    let older = "        - cp\n        args:\n        - -f\n";
    assert!(manifest.contains(install), "{manifest}");
    let manifest = manifest.replace(install, older);
    let (before, rest) = manifest
        .split_once("        - --healthz-port=8081\n")
        .unwrap();
    let (_, after) = rest.split_once("        resources:\n").unwrap();
    let manifest = format!("{before}        resources:\n{after}");
    it_makes_a_network(what, &manifest);
}
