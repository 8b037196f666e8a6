//! Nodes that have no usable subnet yet: waited for, and said to everybody who asks.

use lab::{Daemon, Kube, Node, wait_for};
use serde_json::json;

use crate::scene::{self, SOON, asked, becomes, condition, event, says, shows};

/// The daemon runs, is not ready, and says why.
fn waits(daemon: &Daemon, texts: &[&str]) {
    says(daemon, texts);
    let (status, text) = daemon.http_get("/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(texts.iter().all(|t| text.contains(t)), "{text}");
    let (status, _) = daemon.http_get("/healthz").unwrap();
    assert_eq!(status, 200);
}

/// Makes the node's Node anew, like `spec`.
fn remake(kube: &Kube, node: &Node, spec: &serde_json::Value) {
    kube.delete_node(node.name()).unwrap();
    kube.create_node_with(node.name(), &json!({ "spec": spec }))
        .unwrap();
}

#[test]
fn a_node_without_a_fitting_subnet_waits_for_one() {
    let Some(lab) = scene::lab("podCIDRs to come", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    kube.wait_pod_cidrs("n1", SOON).unwrap();
    let daemon = one.flanneld();

    // No Node at all; then one outside of the network; then one that fits.
    kube.delete_node("n1").unwrap();
    daemon.start().unwrap();
    says(daemon, &["there is no Node n1"]);
    remake(
        kube,
        one,
        &json!({"podCIDR": "10.9.1.0/24", "podCIDRs": ["10.9.1.0/24"]}),
    );
    waits(
        daemon,
        &[
            "Node n1",
            "spec.podCIDRs",
            "10.9.1.0/24",
            "Network 172.30.0.0/16",
        ],
    );
    assert!(one.subnet_env().is_err(), "a subnet that does not fit");
    let told = event(kube, "n1", "PodCIDROutsideNetwork");
    assert!(told.contains("10.9.1.0/24"), "{told}");
    remake(
        kube,
        one,
        &json!({"podCIDR": "172.30.9.0/24", "podCIDRs": ["172.30.9.0/24"]}),
    );
    let env = daemon.wait_ready(SOON).unwrap();
    let cidr = env.cidr(model::Family::V4).unwrap();
    assert_eq!(cidr.to_string(), "172.30.9.0/24");

    // Under a running daemon: another subnet is another lease, and a supervisor's work.
    remake(
        kube,
        one,
        &json!({"podCIDR": "172.30.10.0/24", "podCIDRs": ["172.30.10.0/24"]}),
    );
    assert!(!daemon.wait_ended(SOON).unwrap().success());
    says(daemon, &["172.30.9.0-24 is lost", "172.30.10.0/24"]);
    daemon.start_ready(SOON).unwrap();
    asked(kube);
}

/// In dual-stack with a Node that has one podCIDR, that family is served and the other one reported;
/// when the Node has both, the next daemon serves both.
#[test]
fn a_node_with_one_of_two_subnets_serves_that_one() {
    let Some(lab) = scene::lab("one podCIDR of two", |lab| lab.dual().nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    kube.wait_pod_cidrs("n1", SOON).unwrap();
    // SubnetLen is the controller manager's business.
    let conf = json!({"Network": "172.30.0.0/16", "SubnetLen": 16, "EnableIPv6": true,
        "IPv6Network": "fd00:30::/48", "Backend": {"Type": "vxlan"}});
    one.write("/run/dual.json", &conf.to_string()).unwrap();
    one.flanneld()
        .set_args(["--net-config-path=/run/dual.json"]);
    let four = json!({"podCIDR": "172.30.9.0/24", "podCIDRs": ["172.30.9.0/24"]});
    remake(kube, one, &four);
    let env = one.flanneld().start_ready(SOON).unwrap();
    assert_eq!(
        env.cidr(model::Family::V4).unwrap().to_string(),
        "172.30.9.0/24"
    );
    assert!(env.cidr(model::Family::V6).is_none());
    says(
        one.flanneld(),
        &["SubnetLen has no effect with -kube-subnet-mgr"],
    );
    says(
        one.flanneld(),
        &[
            "serving 172.30.9.0-24 alone",
            "no IPv6 subnet in spec.podCIDRs",
        ],
    );
    let (status, text) = one.flanneld().http_get("/readyz").unwrap();
    assert!(status == 200 && text.contains("no IPv6 subnet"), "{text}");
    event(kube, "n1", "NoPodCIDR");
    becomes(kube, "n1", "False");
    let names: Vec<String> = scene::annotations(kube, "n1")
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert!(!names.contains(&"public-ipv6".to_owned()), "{names:?}");
    // A peer of which one family is broken is a peer in the other.
    let mut peer = scene::Peer::new(
        "p1",
        "172.30.101.0/24",
        "192.168.78.101",
        "4e:00:00:00:00:01",
    );
    peer.cidrs.push("fd00:30:0:65::/64");
    peer.annotations.push(("public-ipv6", "nowhere".into()));
    peer.create(kube);
    shows(one, &["route 172.30.101.0/24", "flannel.1"]);

    let both =
        json!({"podCIDR": "172.30.9.0/24", "podCIDRs": ["172.30.9.0/24", "fd00:30:0:9::/64"]});
    remake(kube, one, &both);
    assert!(!one.flanneld().wait_ended(SOON).unwrap().success());
    assert!(
        one.subnet_env().is_ok(),
        "the IPv4 subnet is still this node's"
    );
    let env = one.flanneld().start_ready(SOON).unwrap();
    assert!(env.cidr(model::Family::V6).is_some());
    says(
        one.flanneld(),
        &[
            "Node p1 is used in one family only",
            "public-ipv6",
            "nowhere",
        ],
    );
    shows(one, &["route 172.30.101.0/24", "flannel.1"]);
    asked(kube);
}

/// The Node comes back with another podCIDR, or none, while flanneld is stopped: the files of the former
/// subnet are withdrawn. A restart alone, and an API server that does not answer, keep them.
#[test]
fn files_of_a_subnet_that_the_node_no_longer_has_are_withdrawn() {
    let Some(lab) = scene::lab("recreated Node", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let (one, conf) = (lab.node(1), "/run/net.d/10-flannel.conflist");
    kube.wait_pod_cidrs("n1", SOON).unwrap();
    one.write("/run/cni-conf.json", r#"{"name":"cbr0","plugins":[]}"#)
        .unwrap();
    one.flanneld().set_args([
        "--cni-conf-source=/run/cni-conf.json",
        "--cni-conf-file=/run/net.d/10-flannel.conflist",
    ]);
    one.flanneld().start_ready(SOON).unwrap();
    one.flanneld().stop().unwrap();
    let stand = || (one.subnet_env().is_ok(), one.read(conf).is_ok());
    kube.stop().unwrap();
    one.flanneld().start().unwrap();
    says(one.flanneld(), &["waiting:"]);
    assert_eq!(stand(), (true, true), "nothing is known of the subnet");
    one.flanneld().stop().unwrap();
    kube.start().unwrap();

    // Without a subnet. The controller manager would assign one.
    remake(
        kube,
        one,
        &json!({"podCIDR": "10.9.1.0/24", "podCIDRs": ["10.9.1.0/24"]}),
    );
    one.flanneld().start().unwrap();
    says(one.flanneld(), &["-subnet-file", "withdrawn", "10.9.1.0"]);
    assert_eq!(stand(), (false, false));
    remake(
        kube,
        one,
        &json!({"podCIDR": "172.30.9.0/24", "podCIDRs": ["172.30.9.0/24"]}),
    );
    one.flanneld().wait_ready(SOON).unwrap();
    assert_eq!(stand(), (true, true));
    // Under a running daemon: withdrawn before it ends.
    remake(
        kube,
        one,
        &json!({"podCIDR": "172.30.10.0/24", "podCIDRs": ["172.30.10.0/24"]}),
    );
    assert!(!one.flanneld().wait_ended(SOON).unwrap().success());
    assert_eq!(stand(), (false, false));
}

/// The network configuration is waited for.
#[test]
fn a_configuration_that_is_not_there_yet_is_waited_for() {
    let Some(lab) = scene::lab("net-conf.json to come", |lab| lab.nodes(1)) else {
        return;
    };
    let (kube, one) = (lab.kube().unwrap(), lab.node(1));
    let conf = json!({"Network": "172.30.0.0/16", "Backend": {"Type": "vxlan"}});
    one.flanneld()
        .set_args(["--net-config-path=/run/none.json"]);
    one.flanneld().start().unwrap();
    waits(one.flanneld(), &["-net-config-path /run/none.json"]);
    one.write("/run/none.json", &conf.to_string()).unwrap();
    one.flanneld().wait_ready(SOON).unwrap();
    asked(kube);
}

/// `-cni-conf-source`: there when the network stands, not before; repaired; what its source says.
#[test]
fn the_cni_configuration_follows_the_network() {
    let Some(lab) = scene::lab("CNI configuration", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let (one, file) = (lab.node(1), "/run/net.d/10-flannel.conflist");
    let conf = r#"{"name":"cbr0","cniVersion":"1.0.0","plugins":[{"type":"flannel"}]}"#;
    one.write("/run/cni-conf.json", conf).unwrap();
    let args = [
        "--cni-conf-source=/run/cni-conf.json",
        "--cni-conf-file=/run/net.d/10-flannel.conflist",
    ];
    one.flanneld().set_args(args);
    kube.delete_node("n1").unwrap();
    one.flanneld().start().unwrap();
    says(one.flanneld(), &["there is no Node n1"]);
    assert!(one.read(file).is_err(), "before the network");
    kube.create_node("n1").unwrap();
    one.flanneld().wait_ready(SOON).unwrap();
    let holds = |want: &str| {
        let look = || match one.read(file) {
            Ok(text) if text == want => Ok(()),
            other => Err(format!("{other:?}")),
        };
        wait_for("the CNI configuration is in place", SOON, look).unwrap();
    };
    assert_eq!(one.read(file).unwrap(), conf);
    one.exec(["rm", file]).unwrap();
    holds(conf);
    let newer = conf.replace("1.0.0", "1.1.0");
    one.write("/run/cni-conf.json", &newer).unwrap();
    holds(&newer);
    // What is no configuration does not take its place, and is said.
    one.write("/run/cni-conf.json", "{").unwrap();
    says(
        one.flanneld(),
        &["-cni-conf-source /run/cni-conf.json", "not JSON"],
    );
    assert_eq!(one.read(file).unwrap(), newer);
    assert_eq!(one.flanneld().http_get("/readyz").unwrap().0, 503);
    one.flanneld().stop().unwrap();
    assert_eq!(
        one.read(file).unwrap(),
        newer,
        "a stop leaves the network in place"
    );
}

/// `-teardown-on-stop`: nobody is to place pods here any more, and nothing is left; and only then.
#[test]
fn a_stop_that_takes_the_network_down_says_so() {
    let Some(lab) = scene::lab("teardown", |lab| lab) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let (one, file) = (lab.node(1), "/run/net.d/10-flannel.conflist");
    one.write("/run/cni-conf.json", r#"{"name":"cbr0","plugins":[]}"#)
        .unwrap();
    let clean = one.picture().unwrap();
    let args = [
        "--cni-conf-source=/run/cni-conf.json",
        "--cni-conf-file=/run/net.d/10-flannel.conflist",
        "--ip-masq",
        "--ip-blackhole-route",
    ];
    one.flanneld().set_args(args);
    one.flanneld().start_ready(SOON).unwrap();
    lab.node(2).flanneld().start_ready(SOON).unwrap();
    becomes(kube, "n1", "False");
    shows(one, &["route", "flannel.1"]);
    one.flanneld().stop().unwrap();
    assert_eq!(condition(kube, "n1").unwrap()["status"], "False");
    assert!(one.read(file).is_ok() && one.subnet_env().is_ok());
    shows(one, &["route", "flannel.1"]);

    one.flanneld()
        .set_args(args.into_iter().chain(["--teardown-on-stop"]));
    one.flanneld().start_ready(SOON).unwrap();
    shows(one, &["route", "flannel.1"]);
    assert!(one.flanneld().stop().unwrap().success());
    let down = condition(kube, "n1").unwrap();
    assert_eq!(down["status"], "True");
    assert_eq!(down["reason"], "FlannelIsDown");
    assert!(one.read(file).is_err() && one.subnet_env().is_err());
    let left = clean.difference(&one.picture().unwrap());
    assert_eq!(left, [""; 0], "{}", one.flanneld().log_tail(12));
    let rules = one.exec(["iptables-save"]).unwrap();
    assert!(!rules.contains("flannel"), "{rules}");
    // And up again.
    one.flanneld().start_ready(SOON).unwrap();
    becomes(kube, "n1", "False");
    asked(kube);
}

#[test]
fn a_missing_interface_is_an_event_at_the_start_and_later() {
    let Some(lab) = scene::lab("an interface that is missing", |lab| lab.nodes(1)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let one = lab.node(1);
    kube.wait_pod_cidrs("n1", SOON).unwrap();
    one.flanneld().set_args(["--iface=late0"]);
    one.flanneld().start().unwrap();
    waits(one.flanneld(), &["late0"]);
    let text = event(kube, "n1", "InterfaceMissing");
    assert!(text.contains("late0"), "{text}");
    one.exec([
        "sh",
        "-c",
        "ip link add late0 type veth peer name late1 && ip link set late1 up && \
         ip addr add 192.168.90.1/24 dev late0 && ip link set late0 up",
    ])
    .unwrap();
    one.flanneld().wait_ready(SOON).unwrap();

    // The same one goes while the daemon runs: the Event counts up, or there is another one.
    let count = |kube: &Kube| -> i64 {
        let events = kube.api().get("/api/v1/namespaces/default/events").unwrap();
        let all = events["items"].as_array().unwrap().iter();
        let of = all.filter(|event| event["reason"] == "InterfaceMissing");
        of.filter_map(|event| event["count"].as_i64()).sum()
    };
    let before = count(kube);
    one.exec(["ip", "link", "del", "late0"]).unwrap();
    wait_for("the Event counts up", SOON, || match count(kube) {
        now if now > before => Ok(()),
        now => Err(format!("{now}")),
    })
    .unwrap();
}
