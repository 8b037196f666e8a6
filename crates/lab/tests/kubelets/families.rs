//! Both families at once, with rules by nftables: one line more in the manifest's network configuration.

use serde_json::json;

use crate::pods::{Pod, manifest, they_reach_each_other, they_reach_the_outside};
use crate::{SOON, cluster};

#[test]
fn dual_stack_with_nftables() {
    let Some(lab) = cluster("dual-stack on two nodes", 2, |builder| builder.dual()) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let (ipv4, more) = (
        r#""Network": "10.244.0.0/16""#,
        r#""EnableIPv6": true, "IPv6Network": "fd00:30::/48", "EnableNFTables": true"#,
    );
    let manifest = manifest();
    assert!(manifest.contains(ipv4));
    kube.apply(&manifest.replace(ipv4, &format!("{ipv4}, {more}")))
        .unwrap();
    for n in 1..=2 {
        kube.create_pod(&format!("pod{n}"), &format!("n{n}"), &[], &json!({}))
            .unwrap();
    }
    let pods = ["pod1", "pod2"].map(|name| Pod::ready(&lab, name));
    for pod in &pods {
        assert!(
            pod.ips.len() == 2 && pod.ips[0].is_ipv4() && pod.ips[1].is_ipv6(),
            "{:?}",
            pod.ips
        );
    }
    they_reach_each_other(&pods);
    they_reach_the_outside(&lab, &pods);
    kube.wait_nodes_ready(SOON).unwrap();
    for node in lab.nodes() {
        let tables = node.exec(["nft", "list", "tables"]).unwrap();
        assert!(
            tables.contains("ip flannel-ipv4") && tables.contains("ip6 flannel-ipv6"),
            "{tables}"
        );
        for save in ["iptables-save", "ip6tables-save"] {
            let rules = node.exec([save]).unwrap();
            assert!(!rules.contains("FLANNEL"), "{rules}");
        }
    }
}
