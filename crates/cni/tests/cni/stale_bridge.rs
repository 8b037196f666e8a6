//! A bridge that carries the address of an older lease.

use serde_json::{Value, json};

use crate::scene::{ENV_DUAL, ENV_V4, Node};

fn config(repair: bool) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "repairBridge": repair,
           "delegate": {"isDefaultGateway": true}})
}

const OLD_BRIDGE: &str =
    "ip link add cni0 type bridge; ip addr add 172.30.7.1/24 dev cni0; ip link set cni0 up";

#[test]
fn it_is_named_with_its_cure_in_the_delegates_own_error() {
    let node = Node::new(ENV_V4);
    node.host.ok(OLD_BRIDGE);
    let answer = node.run("ADD", &config(false));
    assert!(!answer.success);
    let object = answer.json();
    // The delegate's own words and code, and ours beside them.
    let msg = object["msg"].as_str().unwrap();
    assert!(
        msg.contains("already has an IP address different from"),
        "{msg}"
    );
    let details = object["details"].as_str().unwrap();
    assert!(
        details.contains(
            "cni0 carries 172.30.7.1/24 of an older lease (this node's is 172.30.80.0/24)"
        ),
        "{details}"
    );
    assert!(details.contains("repairBridge"), "{details}");
    assert!(
        answer.stderr.contains("cni0 carries 172.30.7.1/24"),
        "{}",
        answer.stderr
    );
    assert_eq!(node.held("cbr0"), [""; 0]);
}

#[test]
fn it_is_mended_on_request_when_no_container_is_on_it() {
    let node = Node::new(ENV_DUAL);
    node.host.ok(OLD_BRIDGE);
    node.host
        .ok("ip addr add fd00:0:0:7::1/64 dev cni0; ip addr add 172.30.8.1/24 dev cni0");
    let answer = node.run("ADD", &config(true)).succeeded();
    assert!(
        answer
            .stderr
            .contains("took 172.30.7.1/24, of an older lease, off cni0"),
        "{}",
        answer.stderr
    );
    let addresses = node.host.ok("ip -o addr show cni0");
    assert!(
        addresses.contains("172.30.80.1/24") && addresses.contains("fd00:0:0:1::1/64"),
        "{addresses}"
    );
    for old in ["172.30.7.1", "172.30.8.1", "fd00:0:0:7::1"] {
        assert!(!addresses.contains(old), "{addresses}");
    }
    node.host.ok("ping -c1 -W5 172.30.80.2");
    // The next one finds nothing to say.
    node.run("DEL", &config(true)).succeeded();
    assert_eq!(node.run("ADD", &config(true)).succeeded().stderr, "");
}

#[test]
fn it_is_left_alone_while_something_is_on_it() {
    let node = Node::new(ENV_V4);
    node.host.ok(OLD_BRIDGE);
    node.host
        .ok("ip link add port0 type veth peer name port1; ip link set port0 master cni0");
    let answer = node.run("ADD", &config(true));
    assert!(!answer.success);
    let details = answer.json()["details"].as_str().unwrap().to_owned();
    assert!(details.contains("in use by 1 interface"), "{details}");
    assert!(
        node.host
            .ok("ip -o addr show cni0")
            .contains("172.30.7.1/24")
    );
}

#[test]
fn a_bridge_that_the_delegate_copes_with_is_only_mentioned() {
    let node = Node::new(ENV_DUAL);
    node.host.ok(
        "ip link add br9 type bridge; ip addr add fd00:0:0:7::1/64 dev br9; ip link set br9 up",
    );
    let mut config = config(false);
    config["delegate"]["bridge"] = json!("br9");
    let answer = node.run("ADD", &config).succeeded();
    assert!(
        answer.stderr.contains("br9 carries fd00:0:0:7::1/64"),
        "{}",
        answer.stderr
    );
    node.run("DEL", &config).succeeded();

    // With forceAddress the delegate mends it itself, so there is nothing to say.
    config["delegate"]["forceAddress"] = json!(true);
    assert_eq!(node.run("ADD", &config).succeeded().stderr, "");
}

#[test]
fn one_of_another_length_is_removed_on_request() {
    let node = Node::new(&ENV_V4.replace("172.30.80.1/24", "172.30.80.1/25"));
    node.host
        .ok(&OLD_BRIDGE.replace("172.30.7.1/24", "172.30.80.1/24"));
    // As the bridge plugin makes it: without an address of its own it would lose it with its last port.
    node.host.ok("ip link set cni0 address 02:00:00:00:00:01");
    let answer = node.run("ADD", &config(false));
    let details = answer.json()["details"].as_str().unwrap().to_owned();
    assert!(
        details.contains("cni0 carries 172.30.80.1/24 of an older lease"),
        "{details}"
    );
    node.run("ADD", &config(true)).succeeded();
    assert!(
        node.host
            .ok("ip -o addr show cni0")
            .contains("172.30.80.1/25")
    );
}
