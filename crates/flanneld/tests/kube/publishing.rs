//! What a node publishes on its Node, letter for letter, and for how long.

use lab::wait_for;
use serde_json::json;

use crate::scene::{
    self, SOON, annotate, annotation, annotations, asked, becomes, condition, says, shows,
};

fn text(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

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
        assert_eq!(
            annotations(kube, node.name()),
            [
                text("backend-data", &scene::data(mac)),
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
    // One request for the Node, one to publish, one list, one watch, one for the condition: whatever
    // the number of peers.
    assert_eq!(asked(kube).len(), 10);

    // A restart changes nothing that peers see: it does not even write.
    let (one, before) = (lab.node(1), asked(kube).len());
    let (said, picture) = (annotations(kube, "n1"), one.picture().unwrap());
    one.flanneld().restart(SOON).unwrap();
    lab.wait_mesh(SOON).unwrap();
    assert_eq!(annotations(kube, "n1"), said);
    assert_eq!(picture.difference(&one.picture().unwrap()), [""; 0]);
    let again = asked(kube).split_off(before);
    assert!(
        again.iter().all(|request| !request.starts_with("patch")),
        "{again:?}"
    );

    // Nor does a tunnel device that is gone: the MAC is the annotations'.
    one.flanneld().stop().unwrap();
    one.exec(["ip", "link", "del", "flannel.1"]).unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    assert_eq!(annotations(kube, "n1"), said);
    lab.wait_mesh(SOON).unwrap();

    // What others write over ours is answered, once.
    annotate(
        kube,
        "n1",
        &[("public-ip", Some("192.0.2.1")), ("backend-type", None)],
    );
    let restored = || match annotations(kube, "n1") == said {
        true => Ok(()),
        false => Err(format!("{:?}", annotations(kube, "n1"))),
    };
    wait_for("the annotations are restored", SOON, restored).unwrap();
    says(one.flanneld(), &["somebody else changed", "Node n1"]);

    // A Node that is made anew is published on again.
    let spec = kube.node("n1").unwrap()["spec"].clone();
    kube.delete_node("n1").unwrap();
    says(one.flanneld(), &["Node n1 was deleted"]);
    kube.create_node_with("n1", &json!({ "spec": spec }))
        .unwrap();
    wait_for("the new Node is published on", SOON, restored).unwrap();
    becomes(kube, "n1", "False");
    lab.wait_mesh(SOON).unwrap();
    asked(kube);
}

/// Administrators' annotations, another prefix, and no condition.
#[test]
fn what_an_administrator_says_is_published() {
    let Some(lab) = scene::lab("administrators' annotations", |lab| lab) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let (one, two) = (lab.node(1), lab.node(2));
    two.exec(["ip", "addr", "add", "192.168.78.202/24", "dev", "eth0"])
        .unwrap();
    annotate(
        kube,
        "n1",
        &[("public-ip-overwrite", Some("192.168.78.201"))],
    );
    annotate(kube, "n2", &[("node-public-ip", Some("192.168.78.202"))]);
    one.flanneld().start_ready(SOON).unwrap();
    two.flanneld().start_ready(SOON).unwrap();
    assert_eq!(
        annotation(kube, "n1", "public-ip").unwrap(),
        "192.168.78.201"
    );
    assert_eq!(
        annotation(kube, "n2", "public-ip").unwrap(),
        "192.168.78.202"
    );
    shows(two, &["dst 192.168.78.201", "flannel.1"]);
    shows(one, &["dst 192.168.78.202", "flannel.1"]);
    // It may change its mind.
    annotate(
        kube,
        "n1",
        &[("public-ip-overwrite", Some("192.168.78.203"))],
    );
    shows(two, &["dst 192.168.78.203", "flannel.1"]);
    scene::loses(two, &["dst 192.168.78.201"]);

    two.flanneld().stop().unwrap();
    two.flanneld().set_args([
        "--kube-annotation-prefix=example.com/net",
        "--set-node-network-unavailable=false",
    ]);
    let status =
        json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": "True"}]}});
    kube.patch_node_status("n2", &status).unwrap();
    two.flanneld().start_ready(SOON).unwrap();
    let node = kube.node("n2").unwrap();
    let ours = &node["metadata"]["annotations"]["example.com/net-public-ip"];
    assert_eq!(*ours, two.ipv4().to_string());
    assert_eq!(condition(kube, "n2").unwrap()["status"], "True");
    asked(kube);
}
