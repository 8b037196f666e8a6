//! The host beneath the daemon: which interface and address it takes, what it waits for, what it
//! says of itself while something is missing.

use lab::{Node, StoreKind, wait_for};
use model::Family;
use serde_json::json;

use crate::scene::{self, ETCD, SOON, lease_of, mesh, run, says, shows};

const ENV: &str = "/run/flannel/subnet.env";

/// Counts the lines of a node's log that hold `text`.
fn lines(node: &Node, text: &str) -> usize {
    let log = node.flanneld().log();
    log.lines().filter(|line| line.contains(text)).count()
}

/// Waits until `/readyz` refuses, naming `text`.
fn not_ready(node: &Node, text: &str) {
    let look = || match node.flanneld().http_get("/readyz") {
        Ok((503, body)) if body.contains(text) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait_for("/readyz says why not", SOON, look).unwrap();
}

#[test]
fn an_interface_that_comes_late_is_waited_for() {
    let lab = scene::lab()
        .nodes(1)
        .flanneld_args(["-iface=late0"])
        .build()
        .unwrap();
    let node = lab.node(1);
    node.flanneld().start().unwrap();
    says(node.flanneld(), &["late0", "waiting for it"]);
    not_ready(node, "late0 is not there");
    run(node, "ip link add late0 type bridge\nip link set late0 up").unwrap();
    says(node.flanneld(), &["late0", "no IPv4 address"]);
    run(node, "ip addr add 10.99.0.1/24 dev late0").unwrap();
    node.flanneld().wait_ready(SOON).unwrap();
    assert_eq!(lines(node, "waiting for it"), 2, "one line for each reason");
    shows(node, &["link flannel.1 ", "local 10.99.0.1 "]);
}

#[test]
fn a_default_route_that_comes_late_is_waited_for() {
    let lab = scene::lab().nodes(1).build().unwrap();
    let node = lab.node(1);
    run(node, "ip route del default").unwrap();
    node.flanneld().start().unwrap();
    says(
        node.flanneld(),
        &["no IPv4 default route", "waiting for it"],
    );
    // A DHCP client's work on a device of our own counts for nothing.
    run(
        node,
        "ip link add flannel.7 type bridge
         ip link set flannel.7 up
         ip addr add 192.168.50.2/24 dev flannel.7
         ip route add default via 192.168.50.1 dev flannel.7",
    )
    .unwrap();
    not_ready(node, "default route");
    run(
        node,
        "ip route add default via 192.168.78.254 dev eth0 metric 500",
    )
    .unwrap();
    node.flanneld().wait_ready(SOON).unwrap();
    shows(node, &["link flannel.1 ", "local 192.168.78.1 "]);
}

#[test]
fn flags_with_nothing_behind_them_and_patterns_that_match_all() {
    for args in [
        &["-iface=", "-iface-regex=", "-iface-can-reach="][..],
        &["-iface-regex=[eno|ens|enp]"],
        &["-iface-regex=.*"],
    ] {
        let lab = scene::lab()
            .nodes(1)
            .store(ETCD)
            .flanneld_args(args.iter().copied())
            .build()
            .unwrap();
        lab.start().unwrap();
        let node = lab.node(1);
        assert_eq!(
            lease_of(&lab, node).1["PublicIP"],
            json!(node.ipv4()),
            "{args:?}"
        );
    }
}

#[test]
fn a_public_address_chooses_the_interface_that_has_it() {
    let lab = scene::lab()
        .nodes(1)
        .flanneld_args(["-public-ip=10.99.0.1"])
        .build()
        .unwrap();
    let node = lab.node(1);
    run(
        node,
        "ip link add second0 type bridge
         ip link set second0 up
         ip addr add 10.99.0.1/24 dev second0",
    )
    .unwrap();
    node.flanneld().start_ready(SOON).unwrap();
    says(node.flanneld(), &["using interface second0"]);
    shows(node, &["link flannel.1 ", "local 10.99.0.1 "]);
}

/// A network that contains the nodes' own: nobody is cut off.
#[test]
fn a_lease_that_covers_the_underlay_is_not_used() {
    for store in [ETCD, StoreKind::Directory] {
        let lab = scene::lab()
            .nodes(2)
            .store(store)
            .config("Network", json!("192.168.0.0/16"))
            .config("SubnetMin", json!("192.168.77.0"))
            .config("SubnetMax", json!("192.168.80.0"))
            .build()
            .unwrap();
        lab.start().unwrap();
        let node = lab.node(1);
        says(node.flanneld(), &["192.168.0.0/16 overlaps", "eth0"]);
        let key = "192.168.78.0-24";
        for node in lab.nodes() {
            let own = node.subnet_env().unwrap().cidr(Family::V4).unwrap();
            assert_ne!(own.to_string(), "192.168.78.0/24");
        }
        let lease = json!({
            "PublicIP": "192.168.78.77",
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:77"},
        });
        lab.put_lease(key, &lease.to_string()).unwrap();
        says(node.flanneld(), &[key, "is not used"]);
        mesh(&lab);
        node.exec(["ping", "-c1", "-W5", "192.168.78.2"]).unwrap();
    }
}

#[test]
fn a_node_is_ready_when_its_device_is_there() {
    let lab = scene::lab().nodes(1).build().unwrap();
    let node = lab.node(1);
    run(
        node,
        "ip link add other type vxlan id 1 dev eth0 dstport 8472\nip link set other up",
    )
    .unwrap();
    node.flanneld().start().unwrap();
    says(node.flanneld(), &["not announced as ready"]);
    not_ready(node, "flannel.1");
    assert!(node.read(ENV).is_err(), "subnet.env is there");
    run(node, "ip link del other").unwrap();
    node.flanneld().wait_ready(SOON).unwrap();
    assert_eq!(lines(node, "not announced as ready"), 1);
}

#[test]
fn an_address_that_is_refused_counts() {
    let lab = scene::lab().nodes(1).dual().build().unwrap();
    let node = lab.node(1);
    node.exec(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
        .unwrap();
    node.flanneld().start().unwrap();
    says(node.flanneld(), &["not announced as ready"]);
    not_ready(node, "flannel-v6.1");
}

#[test]
fn subnet_env_is_kept_as_it_was_written() {
    let lab = scene::lab().nodes(1).build().unwrap();
    lab.start().unwrap();
    let node = lab.node(1);
    let written = node.read(ENV).unwrap();
    for damage in [
        "rm -f",
        "truncate -s0",
        "sed -i s/FLANNEL/OTHER/",
        "rm -rf /run/flannel",
    ] {
        let command = format!("{damage} {ENV}");
        node.exec(command.split_whitespace()).unwrap();
        let look = || match node.read(ENV) {
            Ok(text) if text == written => Ok(()),
            other => Err(format!("{other:?}")),
        };
        wait_for(
            &format!("the file is there again after {damage}"),
            SOON,
            look,
        )
        .unwrap();
    }
    assert_eq!(lines(node, "somebody had deleted or changed it"), 1);
}

/// Whoever may write leases may not fill the log, nor forge it.
#[test]
fn a_lease_that_changes_all_the_time_does_not_fill_the_log() {
    let lab = scene::lab().nodes(1).store(ETCD).build().unwrap();
    lab.start().unwrap();
    let node = lab.node(1);
    let (key, before) = ("172.30.250.0-24", node.flanneld().log().len());
    for n in 0..110 {
        let kind = format!(
            "{n}\n2026-01-01T00:00:00Z  INFO forged\u{202e}{}",
            "x".repeat(100_000)
        );
        let lease = json!({"PublicIP": "192.168.78.99", "BackendType": kind});
        lab.put_lease(key, &lease.to_string()).unwrap();
    }
    says(node.flanneld(), &[key, "is not used"]);
    // It has seen them all when it has seen what came after them.
    let good = json!({
        "PublicIP": "192.168.78.98",
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:98"},
    });
    lab.put_lease("172.30.251.0-24", &good.to_string()).unwrap();
    says(node.flanneld(), &["subnet added", "172.30.251.0/24"]);
    let log = node.flanneld().log();
    let new: Vec<&str> = log[before..].lines().collect();
    assert!(new.len() <= 20, "{} lines", new.len());
    assert!(new.iter().all(|line| line.len() < 1000), "a long line");
    assert!(
        !new.iter().any(|line| line.starts_with("2026-01-01")),
        "a forged line"
    );
    assert!(!log.contains('\u{202e}'));
}
