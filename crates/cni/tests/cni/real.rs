//! Debian's bridge, host-local and loopback, in namespaces.

use std::fs;

use serde_json::{Value, json};

use crate::scene::{ENV_DUAL, ENV_V4, Node, PLUGINS, feed};

fn config() -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
           "delegate": {"hairpinMode": true, "isDefaultGateway": true}})
}

fn addresses(result: &Value) -> Vec<&str> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter()
        .map(|ip| ip["address"].as_str().unwrap())
        .collect()
}

#[test]
fn a_container_is_attached_checked_and_detached() {
    for (env, expected) in [
        (ENV_V4, &["172.30.80.2/24"][..]),
        (ENV_DUAL, &["172.30.80.2/24", "fd00:0:0:1::2/64"]),
    ] {
        let node = Node::new(env);
        let result = node.run("ADD", &config()).succeeded().json();
        assert_eq!(addresses(&result), expected);
        for address in expected {
            let own = address.split('/').next().unwrap();
            let gateway = own.replace(".2", ".1").replace("::2", "::1");
            node.host.ok(&format!("ping -c1 -W5 {own}"));
            node.pod.ok(&format!("ping -c1 -W5 {gateway}"));
        }
        let mtu = if env == ENV_V4 {
            "mtu 1450"
        } else {
            "mtu 1430"
        };
        assert!(node.pod.ok("ip link show eth0").contains(mtu));
        assert!(
            node.pod
                .ok("ip route")
                .contains("172.30.0.0/16 via 172.30.80.1")
        );
        assert_eq!(
            node.host
                .ok("iptables -t nat -S")
                .matches("MASQUERADE")
                .count(),
            0
        );

        let mut check = config();
        check["prevResult"] = result.clone();
        node.run("CHECK", &check).succeeded();
        node.pod.ok("ip addr flush dev eth0");
        assert!(
            !node.run("CHECK", &check).success,
            "bridge's CHECK sees that the address is gone"
        );

        node.run("DEL", &check).succeeded();
        node.run("DEL", &check).succeeded();
        assert!(!node.pod.sh("ip link show eth0").success);
        assert_eq!(node.held("cbr0"), [""; 0]);
        assert!(!node.saved().exists());
    }
}

#[test]
fn the_delegate_masquerades_where_flanneld_does_not() {
    let node = Node::new(&ENV_V4.replace("IPMASQ=true", "IPMASQ=false"));
    node.run("ADD", &config()).succeeded();
    assert!(node.host.ok("iptables -t nat -S").contains("MASQUERADE"));
    node.run("DEL", &config()).succeeded();
    assert!(!node.host.ok("iptables -t nat -S").contains("MASQUERADE"));
}

#[test]
fn upstreams_saved_files_are_understood_and_ours_are_what_upstream_would_hand_on() {
    let node = Node::new(ENV_V4);
    // As upstream writes it: sorted keys, no more than bridge needs.
    node.run("ADD", &config()).succeeded();
    let mut saved: Value = serde_json::from_slice(&fs::read(node.saved()).unwrap()).unwrap();
    let origin = saved.as_object_mut().unwrap().remove("flannelAttachment");
    assert_eq!(origin.unwrap()["netns"], node.pod.net());
    let text = r#"{"cniVersion":"1.0.0","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"172.30.80.0/24"}]],"routes":[{"dst":"172.30.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;
    assert_eq!(saved, serde_json::from_str::<Value>(text).unwrap());
    fs::write(node.saved(), text).unwrap();
    assert_eq!(node.held("cbr0"), ["172.30.80.2"]);
    node.run("DEL", &config()).succeeded();
    assert_eq!(node.held("cbr0"), [""; 0]);

    // Upstream's DEL gives the delegate the file as it is.
    node.run("ADD", &config()).succeeded();
    let bridge = node.host.command(format!("{PLUGINS}/bridge"));
    feed(bridge, &node.vars("DEL"), &fs::read(node.saved()).unwrap()).succeeded();
    assert_eq!(node.held("cbr0"), [""; 0]);
    assert!(!node.pod.sh("ip link show eth0").success);
}

#[test]
fn an_add_that_fails_leaks_no_address_and_takes_no_interface_away() {
    let node = Node::new(ENV_V4);
    // The container has such an interface already, of another plugin.
    node.pod
        .ok("ip link add eth0 type veth peer name eth9; ip addr add 198.51.100.7/24 dev eth0");
    let answer = node.run("ADD", &config());
    assert!(!answer.success);
    assert!(answer.text().contains("eth0"), "{}", answer.text());
    let details = answer.json()["details"].as_str().unwrap().to_owned();
    assert!(
        details.contains("eth0 was in the namespace before"),
        "{details}"
    );
    assert_eq!(node.held("cbr0"), [""; 0]);
    assert!(!node.saved().exists());
    assert!(
        node.pod
            .ok("ip -o addr show eth0")
            .contains("198.51.100.7/24")
    );
    // Nor does the runtime's DEL.
    node.run("DEL", &config()).succeeded();
    node.pod.ok("ip link show eth0");
}

#[test]
fn an_add_again_without_the_saved_file_leaves_the_living_container_alone() {
    let node = Node::new(ENV_V4);
    node.run("ADD", &config()).succeeded();
    fs::remove_file(node.saved()).unwrap();
    assert!(!node.run("ADD", &config()).success);
    node.host.ok("ping -c1 -W5 172.30.80.2");
    assert_eq!(node.held("cbr0"), ["172.30.80.2"]);
}

#[test]
fn del_works_on_a_read_only_file_system() {
    let node = Node::new(ENV_V4);
    node.run("ADD", &config()).succeeded();
    node.host.ok("mount --bind /var/lib/cni/flannel /var/lib/cni/flannel; mount -o remount,bind,ro /var/lib/cni/flannel");
    for _ in 0..2 {
        let answer = node.run("DEL", &config()).succeeded();
        assert!(answer.stderr.contains("Read-only"), "{}", answer.stderr);
    }
    assert_eq!(node.held("cbr0"), [""; 0]);
    assert!(!node.pod.sh("ip link show eth0").success);
}

#[test]
fn a_broken_file_and_no_flanneld_still_give_the_address_back() {
    let node = Node::new(ENV_V4);
    node.run("ADD", &config()).succeeded();
    fs::write(node.saved(), "").unwrap();
    fs::remove_file(node.scene.path("run/flannel/subnet.env")).unwrap();
    node.run("DEL", &config()).succeeded();
    assert_eq!(node.held("cbr0"), [""; 0]);
    assert!(!node.pod.sh("ip link show eth0").success);
}

#[test]
fn two_interfaces_of_one_container_both_go() {
    let node = Node::new(ENV_V4);
    let second = [("CNI_IFNAME", "net1")];
    node.run("ADD", &config()).succeeded();
    // Without the route of the first, which is there already.
    let mut other = config();
    other["delegate"] = json!({"isDefaultGateway": false, "isGateway": false});
    node.pod.ok("ip route flush dev eth0 proto boot");
    node.run_for("ADD", &other, &second).succeeded();
    assert_eq!(node.held("cbr0").len(), 2);
    node.run_for("DEL", &other, &second).succeeded();
    node.run("DEL", &config()).succeeded();
    assert_eq!(node.held("cbr0"), [""; 0]);
    assert!(!node.pod.sh("ip link show eth0").success);
    assert!(!node.pod.sh("ip link show net1").success);
}

#[test]
fn a_second_add_does_not_take_the_first_away() {
    let node = Node::new(ENV_V4);
    node.run("ADD", &config()).succeeded();
    assert!(!node.run("ADD", &config()).success);
    node.host.ok("ping -c1 -W5 172.30.80.2");
    node.run("DEL", &config()).succeeded();
    assert_eq!(node.held("cbr0"), [""; 0]);
}

#[test]
fn a_lost_power_cut_file_and_a_gone_namespace_still_give_the_address_back() {
    let mut node = Node::new(ENV_V4);
    node.run("ADD", &config()).succeeded();
    fs::write(node.saved(), "").unwrap();
    node.pod = crate::scene::Namespace::new("");
    node.run("DEL", &config()).succeeded();
    assert_eq!(node.held("cbr0"), [""; 0]);
    assert!(!node.saved().exists());
}

/// The delegate was replaced by an older one after ADD, or was killed at an ADD that it would have refused.
#[test]
fn del_and_gc_work_with_a_delegate_that_does_not_speak_the_version_any_more() {
    for command in ["DEL", "GC"] {
        let node = Node::new(ENV_V4);
        node.run("ADD", &config()).succeeded();
        let saved = fs::read_to_string(node.saved()).unwrap();
        fs::write(
            node.saved(),
            saved.replace(r#""cniVersion":"1.0.0""#, r#""cniVersion":"1.1.0""#),
        )
        .unwrap();
        let mut config = gc_of_all();
        config["prevResult"] = json!({"cniVersion": "1.1.0", "ips": []});
        let answer = node.run(command, &config);
        if command == "DEL" {
            answer.succeeded();
        }
        assert_eq!(node.held("cbr0"), [""; 0], "{command}");
        assert!(!node.pod.sh("ip link show eth0").success, "{command}");
        assert!(!node.saved().exists(), "{command}");
    }
}

#[test]
fn loopback_can_be_a_delegate() {
    let node = Node::new(ENV_V4);
    node.pod.ok("ip link set lo down");
    let mut config = config();
    config["delegate"] = json!({"type": "loopback"});
    let mut vars = node.vars("ADD");
    vars.insert("CNI_IFNAME".into(), "lo".into());
    let plugin = || node.host.command(env!("CARGO_BIN_EXE_flannel"));
    feed(plugin(), &vars, config.to_string().as_bytes()).succeeded();
    assert!(node.pod.ok("ip link show lo").contains("LOOPBACK,UP"));
    vars.insert("CNI_COMMAND".into(), "DEL".into());
    feed(plugin(), &vars, config.to_string().as_bytes()).succeeded();
    assert!(!node.pod.ok("ip link show lo").contains("LOOPBACK,UP"));
}

#[test]
fn gc_gives_back_the_addresses_of_containers_that_are_no_more() {
    let node = Node::new(ENV_V4);
    node.run("ADD", &config()).succeeded();
    assert_eq!(node.held("cbr0"), ["172.30.80.2"]);
    let mut gc = config();
    gc["cniVersion"] = json!("1.1.0");
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    node.run("GC", &gc).succeeded();
    assert_eq!(node.held("cbr0"), ["172.30.80.2"]);
    gc["cni.dev/valid-attachments"] = json!([]);
    node.run("GC", &gc).succeeded();
    assert_eq!(node.held("cbr0"), [""; 0]);
    assert!(!node.saved().exists());
}

/// A GC of which nothing is valid.
fn gc_of_all() -> Value {
    let mut gc = config();
    gc["cniVersion"] = json!("1.1.0");
    gc["cni.dev/valid-attachments"] = json!([]);
    gc
}

#[test]
fn gc_gives_back_the_address_of_an_interface_of_any_name() {
    let mut node = Node::new(ENV_V4);
    node.run_for("ADD", &config(), &[("CNI_IFNAME", "net1")])
        .succeeded();
    let mut gc = gc_of_all();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "net1"}]);
    node.run("GC", &gc).succeeded();
    assert_eq!(node.held("cbr0"), ["172.30.80.2"]);
    node.pod = crate::scene::Namespace::new("");
    // The container lives, but not by this interface.
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    node.run("GC", &gc).succeeded();
    assert_eq!(node.held("cbr0"), [""; 0]);
    assert!(!node.saved().exists());
}

#[test]
fn gc_takes_the_interface_with_the_address_where_the_namespace_lives() {
    // By its path, and by a process in it where the path is gone.
    for bound in [false, true] {
        let node = Node::new(ENV_V4);
        if bound {
            node.host.ok("mkdir -p /run/netns; touch /run/netns/c1");
            let bind = format!("mount --bind {} /run/netns/c1", node.pod.net());
            node.host.ok(&bind);
            node.run_for("ADD", &config(), &[("CNI_NETNS", "/run/netns/c1")])
                .succeeded();
            node.host.ok("umount /run/netns/c1; rm /run/netns/c1");
        } else {
            node.run("ADD", &config()).succeeded();
        }
        node.run("GC", &gc_of_all()).succeeded();
        assert_eq!(node.held("cbr0"), [""; 0]);
        assert!(!node.pod.sh("ip link show eth0").success);
        assert_eq!(node.host.ok("ip -o link show master cni0"), "");
    }
}

#[test]
fn gc_does_not_touch_a_namespace_that_is_another_containers_by_now() {
    let node = Node::new(ENV_V4);
    node.run("ADD", &config()).succeeded();
    // The same path and number, but somebody else's interface.
    node.pod.ok("ip link del eth0; ip link add eth0 type veth peer name eth9; ip addr add 198.51.100.7/24 dev eth0");
    node.run("GC", &gc_of_all()).succeeded();
    assert_eq!(node.held("cbr0"), [""; 0]);
    node.pod.ok("ip link show eth0");
}

#[test]
fn status_knows_that_an_old_bridge_plugin_would_refuse() {
    let node = Node::new(ENV_V4);
    let mut config = config();
    config["cniVersion"] = json!("1.1.0");
    let speaks: Value = {
        let bridge = node.host.command(format!("{PLUGINS}/bridge"));
        feed(bridge, &node.vars("VERSION"), b"{\"cniVersion\":\"1.0.0\"}")
            .succeeded()
            .json()
    };
    let speaks_1_1 = speaks["supportedVersions"]
        .as_array()
        .unwrap()
        .contains(&json!("1.1.0"));
    let add = node.run("ADD", &config);
    assert_eq!(add.success, speaks_1_1);
    let status = node.run("STATUS", &config);
    assert_eq!(
        status.success,
        speaks_1_1,
        "STATUS says what ADD would: {}",
        status.text()
    );
    if !speaks_1_1 {
        assert!(
            status
                .failed(50)
                .contains("bridge does not speak CNI 1.1.0")
        );
    }
}
