//! `flannelctl explain` on nodes of the lab: on healthy ones, and with each fault made.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::net::IpAddr;
use std::time::Duration;

use lab::{Lab, Node, StoreKind, wait_for};
use model::Family;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const CTL: &str = env!("CARGO_BIN_EXE_flannelctl");

/// Runs `flannelctl explain -o json ARGS`; returns exit status and answer.
fn explain(node: &Node, args: &[&str]) -> (i32, Value) {
    let output = node
        .output([&[CTL, "explain", "-o", "json"], args].concat())
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}{error}"));
    (output.status.code().unwrap(), json)
}

fn started(builder: lab::LabBuilder) -> Lab {
    let lab = builder.pods_per_node(1).build().unwrap();
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
    lab
}

fn two_nodes() -> Lab {
    started(Lab::builder().nodes(2).store(StoreKind::Directory))
}

fn sh(node: &Node, script: &str) -> String {
    node.exec(["sh", "-c", script]).unwrap()
}

/// The first pod of each of the first two nodes.
fn pods(lab: &Lab, family: Family) -> [String; 2] {
    [1, 2].map(|n| {
        let pod = &lab.node(n).pods()[0];
        pod.ip(family).unwrap().to_string()
    })
}

/// The step that is named as broken, with its text and remedy; waits until there is this one.
#[track_caller]
fn breaks(lab: &Lab, step: &str, text: &str, remedy: &str) {
    let [from, to] = pods(lab, Family::V4);
    breaks_between(lab.node(1), &[&from, &to], step, text, remedy);
}

#[track_caller]
fn breaks_between(node: &Node, args: &[&str], step: &str, text: &str, remedy: &str) {
    let look = || {
        let (status, json) = explain(node, args);
        let steps = json["steps"].as_array().unwrap();
        let broken = steps.iter().find(|step| step["level"] == "fail");
        let holds = |key: &str, part: &str| {
            let whole = broken.and_then(|step| step[key].as_str());
            whole.is_some_and(|whole| whole.contains(part))
        };
        if json["broken"] == step && status == 3 && holds("text", text) && holds("remedy", remedy) {
            Ok(())
        } else {
            Err(format!("{status}: {json:#}"))
        }
    };
    wait_for(&format!("{step}: {text}"), SOON, look).unwrap();
}

#[track_caller]
fn is_whole(node: &Node, args: &[&str]) -> Value {
    let (status, json) = explain(node, args);
    assert_eq!((status, &json["broken"]), (0, &Value::Null), "{json:#}");
    json
}

/// A node without its daemon: what is broken stays so.
fn kill(node: &Node) {
    node.flanneld().freeze().unwrap();
}

#[test]
fn a_way_that_is_whole_is_shown_from_both_ends() {
    let lab = started(Lab::builder().nodes(2).store(StoreKind::Directory).dual());
    for family in Family::ALL {
        let [from, to] = pods(&lab, family);
        let json = is_whole(lab.node(1), &[&from, &to]);
        let steps = json["steps"].as_array().unwrap();
        for name in [
            "flanneld",
            "source",
            "forwarding",
            "lease",
            "device",
            "route",
            "neighbour",
            "fdb",
            "routing",
            "rules",
            "underlay",
            "mtu",
            "return",
            "probe",
        ] {
            let is = |step: &&Value| step["name"] == name && step["level"] == "ok";
            assert!(steps.iter().any(|step| is(&step)), "{name}: {json:#}");
        }
        let json = is_whole(lab.node(2), &[&from, &to]);
        assert!(json["way"].as_str().unwrap().contains("receiving node"));
    }
    // Nodes, by subnet and by public address; two ends on one node; words for people.
    let [one, two] = [1, 2].map(|n| lab.node(n));
    let subnet = two.subnet_env().unwrap().cidr(Family::V4).unwrap().trunc();
    let publics = [one, two].map(|node| node.ipv4().to_string());
    is_whole(one, &[&publics[0], &subnet.to_string()]);
    let [from, _] = pods(&lab, Family::V4);
    is_whole(one, &[&from, &publics[1]]);
    let second = one.add_pods(1).unwrap()[0].ips()[0].to_string();
    is_whole(one, &[&from, &second]);
    let text = one.exec([CTL, "explain", &from, &publics[1]]).unwrap();
    assert!(text.contains("nothing is broken on this node"), "{text}");
    assert!(text.contains("$ ip route get"), "{text}");
}

#[test]
fn what_was_typed_wrongly_is_said() {
    let lab = two_nodes();
    let [from, to] = pods(&lab, Family::V4);
    let fails = |node: &Node, args: [&str; 2], what: &str| {
        let output = node
            .output([&[CTL, "explain"][..], &args].concat())
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(what), "{error}");
    };
    let node = lab.node(1);
    fails(
        node,
        ["web-1", &to],
        "\"web-1\" is neither an address nor a subnet",
    );
    fails(node, [&from, "fd00::1"], "one is IPv4 and the other IPv6");
    let home = format!("{to} is on the node {}", lab.node(2).ipv4());
    fails(node, ["172.30.99.1", &to], &home);
    fails(
        node,
        [&from, "172.30.99.0/24"],
        "no lease is 172.30.99.0/24",
    );
}

/// What flanneld would repair at once, on a node whose flanneld does nothing.
#[test]
fn objects_of_the_kernel_that_are_missing_or_wrong() {
    let lab = two_nodes();
    let (node, other) = (lab.node(1), lab.node(2));
    let subnet = other
        .subnet_env()
        .unwrap()
        .cidr(Family::V4)
        .unwrap()
        .trunc();
    let gateway: IpAddr = subnet.network();
    let faults = [
        (
            "fdb",
            "bridge fdb replace",
            "M=$(ip neigh show dev flannel.1 | awk '{print $3}' | head -1); bridge fdb del $M dev flannel.1 dst OTHER",
        ),
        (
            "fdb",
            "bridge fdb",
            "M=$(ip neigh show dev flannel.1 | awk '{print $3}' | head -1); bridge fdb replace $M dev flannel.1 dst 192.168.78.99 self permanent",
        ),
        (
            "neighbour",
            "ip neigh replace",
            "ip neigh del GATEWAY dev flannel.1",
        ),
        (
            "neighbour",
            "ip neigh replace",
            "ip neigh replace GATEWAY lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent",
        ),
        ("route", "ip route replace", "ip route del SUBNET"),
        ("device", "flannel.1", "ip link set flannel.1 down"),
        ("device", "flannel.1", "ip link del flannel.1"),
    ];
    for (step, text, script) in faults {
        kill(node);
        let script = script
            .replace("OTHER", &other.ipv4().to_string())
            .replace("GATEWAY", &gateway.to_string())
            .replace("SUBNET", &subnet.to_string());
        sh(node, &script);
        let [from, to] = pods(&lab, Family::V4);
        // A daemon that does nothing would be waited for.
        let args = [&from, &to, "--no-probe", "--socket=/run/none"];
        breaks_between(node, &args, step, text, "systemctl start flanneld");
        node.flanneld().thaw().unwrap();
        wait_for("it is repaired", SOON, || {
            let (status, json) = explain(node, &args);
            if status == 0 {
                Ok(())
            } else {
                Err(format!("{json:#}"))
            }
        })
        .unwrap();
    }
}

/// What flanneld leaves alone, each put right again afterwards.
#[test]
fn faults_of_the_host() {
    let lab = two_nodes();
    let node = lab.node(1);
    let [_, to] = pods(&lab, Family::V4);
    let faults = [
        (
            "forwarding",
            "net.ipv4.ip_forward is 0",
            "sysctl -w net.ipv4.ip_forward=1",
            "echo 0 >/proc/sys/net/ipv4/ip_forward",
            "echo 1 >/proc/sys/net/ipv4/ip_forward",
        ),
        (
            "routing",
            "100: from all to TO/32 blackhole",
            "ip rule",
            "ip rule add to TO priority 100 blackhole",
            "ip rule del to TO priority 100 blackhole",
        ),
        (
            "routing",
            "goes out of eth0 through 192.168.78.254, not of flannel.1",
            "ip route show table all match TO",
            "ip route add TO via 192.168.78.254",
            "ip route del TO via 192.168.78.254",
        ),
        (
            "routing",
            "goes out of eth0",
            "ip rule",
            "ip route add default via 192.168.78.254 table 99; ip rule add priority 99 iif cni0 lookup 99",
            "ip rule del priority 99; ip route flush table 99",
        ),
        (
            "rules",
            "the way out is refused by nft",
            "put one before it that accepts",
            "nft add table ip wall; nft 'add chain ip wall f { type filter hook forward priority 10; }'; nft add rule ip wall f ip daddr TO drop",
            "nft delete table ip wall",
        ),
        (
            "source",
            "cni0 has the subnet of",
            "ip link set cni0 up",
            "ip link set cni0 down",
            "ip link set cni0 up",
        ),
        (
            "underlay",
            "no way to the other node",
            "ip route",
            "ip route add unreachable OTHER/32",
            "ip route del unreachable OTHER/32",
        ),
    ];
    let other = lab.node(2).ipv4().to_string();
    for fault in faults {
        let fill = |text: &str| text.replace("TO", &to).replace("OTHER", &other);
        let fault = [fault.0, fault.1, fault.2, fault.3, fault.4]
            .map(|part| fill(&part.replace("OTHER", "~")).replace('~', &other));
        let [step, text, remedy, broken, repaired] = fault.each_ref().map(String::as_str);
        sh(node, broken);
        breaks(&lab, step, text, remedy);
        sh(node, repaired);
    }
}

/// What is wrong beyond this node.
#[test]
fn faults_on_the_way_and_at_the_other_end() {
    let lab = two_nodes();
    let (node, other) = (lab.node(1), lab.node(2));
    let [from, to] = pods(&lab, Family::V4);
    // A container that is not there, and one whose node nobody knows.
    let subnet = other
        .subnet_env()
        .unwrap()
        .cidr(Family::V4)
        .unwrap()
        .trunc();
    let nobody = subnet.hosts().nth(200).unwrap().to_string();
    breaks_between(
        node,
        &[&from, &nobody],
        "destination",
        "the tunnel of its node",
        "explain",
    );
    breaks_between(
        node,
        &[&from, "172.30.199.7"],
        "lease",
        "no lease covers",
        "start flanneld",
    );
    breaks_between(
        node,
        &[&from, "10.96.0.1"],
        "lease",
        "outside the flannel network",
        "Service",
    );
    // A lease that this node refuses.
    let lease = r#"{"PublicIP":"192.168.78.77","BackendType":"host-gw"}"#;
    lab.put_lease("172.30.200.0-24", lease).unwrap();
    breaks_between(
        node,
        &[&from, "172.30.200.5"],
        "lease",
        "is refused: its backend is host-gw",
        "delete that lease",
    );
    // The tunnel's port is closed.
    sh(
        other,
        "nft add table ip wall; nft 'add chain ip wall in { type filter hook prerouting priority -300; }'; \
         nft add rule ip wall in udp dport 8472 drop",
    );
    breaks(
        &lab,
        "tunnel",
        "nothing comes back through the tunnel",
        "UDP 8472",
    );
    sh(other, "nft delete table ip wall");
    // The way between the nodes takes no full packets. (A bridge leaves room for a VLAN tag.)
    let fabric = |mtu: &str| {
        let args = ["ip", "link", "set", "n2", "mtu", mtu];
        lab.fabric().exec(args).unwrap();
    };
    fabric("1396");
    breaks(
        &lab,
        "mtu",
        "the largest that arrive have 1350",
        "\"MTU\": 1350",
    );
    fabric("1500");
    is_whole(node, &[&from, &to]);
    // The other node is gone.
    sh(other, "ip link set eth0 down");
    breaks(&lab, "underlay", "does not answer", "is the node up");
    sh(other, "ip link set eth0 up");
}

#[test]
fn host_gw_is_explained_too() {
    let builder = Lab::builder().nodes(2).store(StoreKind::Directory);
    let lab = started(builder.backend(json!({"Type": "host-gw"})));
    let [from, to] = pods(&lab, Family::V4);
    let json = is_whole(lab.node(1), &[&from, &to]);
    assert!(json.to_string().contains("through 192.168.78."), "{json:#}");
    kill(lab.node(1));
    sh(lab.node(1), "ip route flush proto 241");
    breaks(
        &lab,
        "route",
        "ip route replace",
        "systemctl start flanneld",
    );
}
