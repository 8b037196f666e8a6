//! Kubelets with the directories of k3s, as `docs/install/k3s.md` has them.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::pods::{Pod, manifest, they_reach_each_other, they_reach_the_outside};
use crate::{SOON, cluster};

/// Where everybody else has them.
const BIN_DIR: &str = "/opt/cni/bin";
const CONF_DIR: &str = "/etc/cni/net.d";

/// What the page says for a value of the chart.
fn value(page: &str, key: &str) -> String {
    let line = page.lines().find_map(|line| line.trim().strip_prefix(key));
    line.unwrap_or_else(|| panic!("{key} is not in {page}"))
        .trim()
        .to_owned()
}

#[test]
fn the_cni_directories_of_k3s() {
    let Some(lab) = cluster("kubelets with k3s' directories", 2, |builder| builder) else {
        return;
    };
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/install/k3s.md");
    let page = fs::read_to_string(page).unwrap();
    let (bin, conf) = (value(&page, "cniBinDir:"), value(&page, "cniConfDir:"));
    let here = format!(
        "mkdir -p {bin} {conf} && mv {BIN_DIR}/* {bin} && \
         sed -i 's,{BIN_DIR},{bin},; s,{CONF_DIR},{conf},' /etc/containerd/config.toml"
    );
    for node in lab.nodes() {
        node.exec(["sh", "-ec", &here]).unwrap();
        node.kubelet().unwrap().restart_containerd().unwrap();
    }
    let mut ours = manifest();
    for (path, wanted) in [(BIN_DIR, &bin), (CONF_DIR, &conf)] {
        let volume = format!("            path: {path}\n");
        assert!(ours.contains(&volume), "{volume}");
        ours = ours.replace(&volume, &format!("            path: {wanted}\n"));
    }
    // k3s' default, which the page names.
    let masquerade = "            - \"--ip-masq\"\n";
    assert!(page.contains("--ip-masq-ipv6=false") && ours.contains(masquerade));
    let both = format!("{masquerade}            - --ip-masq-ipv6=false\n");
    ours = ours.replace(masquerade, &both);

    let kube = lab.kube().unwrap();
    kube.apply(&ours).unwrap();
    for (pod, node) in [("pod1", "n1"), ("pod2", "n2")] {
        kube.create_pod(pod, node, &[], &json!({})).unwrap();
    }
    let pods = ["pod1", "pod2"].map(|name| Pod::ready(&lab, name));
    they_reach_each_other(&pods);
    they_reach_the_outside(&lab, &pods);
    kube.wait_nodes_ready(SOON).unwrap();
    for node in lab.nodes() {
        let elsewhere = node.exec(["ls", BIN_DIR, CONF_DIR]).unwrap();
        assert_eq!(elsewhere, format!("{CONF_DIR}:\n\n{BIN_DIR}:\n"), "used");
    }
}
