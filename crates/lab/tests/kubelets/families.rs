//! Other families than IPv4 alone: another line in the manifest's network configuration.

use lab::Lab;
use serde_json::json;

use crate::pods::{Pod, manifest, they_reach_each_other, they_reach_the_outside};
use crate::{SOON, cluster};

/// Applies the manifest with `network` for its IPv4 network, and makes a pod on each of two nodes, which must reach each other
/// and the outside.
fn two_pods(lab: &Lab, network: &str) -> [Pod; 2] {
    let kube = lab.kube().unwrap();
    let (manifest, ipv4) = (manifest(), r#""Network": "10.244.0.0/16""#);
    assert!(manifest.contains(ipv4));
    kube.apply(&manifest.replace(ipv4, network)).unwrap();
    for (pod, node) in [("pod1", "n1"), ("pod2", "n2")] {
        kube.create_pod(pod, node, &[], &json!({})).unwrap();
    }
    let pods = ["pod1", "pod2"].map(|name| Pod::ready(lab, name));
    they_reach_each_other(&pods);
    they_reach_the_outside(lab, &pods);
    kube.wait_nodes_ready(SOON).unwrap();
    pods
}

#[test]
fn dual_stack_with_nftables() {
    let Some(lab) = cluster("dual-stack on two nodes", 2, |builder| builder.dual()) else {
        return;
    };
    let network = r#""Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:30::/48", "EnableNFTables": true"#;
    for pod in two_pods(&lab, network) {
        let families: Vec<bool> = pod.ips.iter().map(|ip| ip.is_ipv4()).collect();
        assert_eq!(families, [true, false], "{:?}", pod.ips);
    }
    for node in lab.nodes() {
        let tables = node.exec(["nft", "list", "tables"]).unwrap();
        for table in ["ip flannel-ipv4", "ip6 flannel-ipv6"] {
            assert!(tables.contains(table), "{tables}");
        }
        for save in ["iptables-save", "ip6tables-save"] {
            let rules = node.exec([save]).unwrap();
            assert!(!rules.contains("FLANNEL"), "{rules}");
        }
    }
}

#[test]
fn ipv6_alone() {
    let shape = |builder: lab::LabBuilder| builder.ipv4(false).ipv6(true);
    let Some(lab) = cluster("IPv6 alone on two nodes", 2, shape) else {
        return;
    };
    let network = r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:30::/48""#;
    for pod in two_pods(&lab, network) {
        assert!(pod.ips.len() == 1 && pod.ips[0].is_ipv6(), "{:?}", pod.ips);
    }
}
