//! What a node publishes on its Node, letter for letter.

use serde_json::json;

use crate::scene::{self, SOON, annotations, asked, becomes};

#[test]
fn annotations_and_condition_are_the_contract_s() {
    let Some(lab) = scene::lab("annotations and condition", |lab| lab) else {
        return;
    };
    let kube = lab.kube().unwrap();
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
    for node in lab.nodes() {
        let link = node
            .exec(["ip", "-j", "link", "show", "flannel.1"])
            .unwrap();
        let link: serde_json::Value = serde_json::from_str(&link).unwrap();
        let mac = link[0]["address"].as_str().unwrap();
        let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            annotations(kube, node.name()),
            [
                text("backend-data", &format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)),
                text("backend-type", "vxlan"),
                text("kube-subnet-manager", "true"),
                text("public-ip", &node.ipv4().to_string()),
            ]
        );
        let condition = becomes(kube, node.name(), "False");
        assert_eq!(condition["reason"], "FlannelIsUp");
        assert_eq!(condition["message"], "Flannel is running on this node");
        let subnet = kube.wait_pod_cidrs(node.name(), SOON).unwrap();
        let env = node.subnet_env().unwrap();
        let cidr = env.cidr(model::Family::V4).unwrap();
        assert_eq!(json!(subnet), json!([cidr.trunc().to_string()]));
    }
    for (verb, uri, refused) in asked(kube) {
        assert!(!refused, "{verb} {uri}");
    }
}
