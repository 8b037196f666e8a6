//! The extension backend: networks that commands make, alone and beside upstream's flanneld.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::{Flow, Lab, LabBuilder, Node, StoreKind, wait_for};
use model::Family::V4;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::mixed;
use crate::scene::{self, SOON, lease_of};
use crate::seen::{says, shows};
use crate::udp::reaches;

/// Returns the script of `docs/backends.md`, vxlan by hand, as a reader would copy it.
fn documented_vxlan() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/backends.md");
    let page = fs::read_to_string(page).unwrap();
    let mark = "<!-- run by flanneld: a_vxlan_network_by_commands_outlives_restarts_and_follows_its_peers -->\n```sh\n";
    let (_, block) = page.split_once(mark).unwrap();
    let (script, _) = block.split_once("```\n").unwrap();
    script.to_owned()
}

/// The device that [`documented_vxlan`] creates.
const DEVICE: &str = "my0";

/// WireGuard by hand.
const WIREGUARD: &str = r#"set -eu
dev=fxw
case $1 in
pre)
    [ -e /run/fxw.key ] || (umask 077; wg genkey >/run/fxw.key)
    ip link show "$dev" >/dev/null 2>&1 || ip link add "$dev" type wireguard
    wg set "$dev" listen-port 51899 private-key /run/fxw.key
    wg show "$dev" public-key
    ;;
post)
    ip address replace "${SUBNET%/*}/32" dev "$dev"
    ip link set "$dev" mtu 1420 up
    ip route replace "$NETWORK" dev "$dev" scope link
    ;;
add)
    read -r key
    wg set "$dev" peer "$key" endpoint "$PUBLIC_IP:51899" allowed-ips "$SUBNET"
    ;;
remove)
    read -r key
    wg set "$dev" peer "$key" remove
    ;;
esac
"#;

/// The options of a backend whose commands are one script, and the directory that holds it.
fn by_script(text: &str) -> (TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("net");
    fs::write(&script, text).unwrap();
    let line = |what: &str| format!("sh {} {what}", script.display());
    let backend = json!({
        "Type": "extension",
        "PreStartupCommand": line("pre"),
        "PostStartupCommand": line("post"),
        "SubnetAddCommand": line("add"),
        "SubnetRemoveCommand": line("remove"),
    });
    (dir, backend)
}

/// host-gw by hand, with commands that fail when there is nothing to do.
fn host_gw() -> Value {
    json!({
        "Type": "extension",
        "SubnetAddCommand": "ip route add $SUBNET via ${PUBLIC_IP}",
        "SubnetRemoveCommand": "ip route del $SUBNET via $PUBLIC_IP",
    })
}

fn lab(nodes: usize, backend: &Value) -> LabBuilder {
    scene::lab().nodes(nodes).backend(backend.clone())
}

fn start_all(lab: &Lab) {
    for node in lab.nodes() {
        node.flanneld().start_ready(SOON).unwrap();
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
}

fn flow(from: &Node, to: &Node) -> Flow {
    let to = &to.pods()[0];
    let every = Duration::from_millis(20);
    Flow::start(&from.pods()[0], to, to.ip(V4).unwrap(), every).unwrap()
}

/// A change from vxlan to commands that make the same, and back, while daemons run.
#[test]
fn a_running_network_changes_to_commands_and_back() {
    let (_dir, by_hand) = by_script(&documented_vxlan());
    let lab = lab(3, &json!({ "Type": "vxlan" }))
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    start_all(&lab);
    let (one, two) = (lab.node(1), lab.node(2));
    let talk = flow(one, two);
    let config = |backend: &Value| {
        let config = json!({ "Network": "172.30.0.0/16", "Backend": backend });
        lab.put_config(&config.to_string()).unwrap();
    };
    let changed = |there: &str, gone: &str| {
        for node in lab.nodes() {
            let look = || {
                let links = node.exec(["ip", "-o", "link"]).map_err(|e| e.to_string())?;
                let routes = node.exec(["ip", "route"]).map_err(|e| e.to_string())?;
                if links.contains(there) && !links.contains(gone) && !routes.contains(gone) {
                    Ok(())
                } else {
                    Err(format!("{links}{routes}{}", node.flanneld().log_tail(8)))
                }
            };
            wait_for(&format!("{there}, no {gone}"), SOON, look).unwrap();
        }
        lab.wait_mesh(SOON).unwrap();
    };
    config(&by_hand);
    changed(DEVICE, "flannel.1");
    for node in lab.nodes() {
        let (_, lease) = lease_of(&lab, node);
        assert_eq!(lease["BackendType"], "extension", "{lease}");
    }
    config(&json!({ "Type": "vxlan" }));
    let routes_left = || {
        for node in lab.nodes() {
            let routes = node.exec(["ip", "route"]).map_err(|e| e.to_string())?;
            if routes.contains(&format!("dev {DEVICE}"))
                || lease_of(&lab, node).1.get("Also").is_some()
            {
                return Err(format!("{routes}{}", node.flanneld().log_tail(8)));
            }
        }
        Ok(())
    };
    wait_for("no route of the commands", SOON, routes_left).unwrap();
    lab.wait_mesh(SOON).unwrap();
    assert_eq!(talk.stop().broken, None);
}

/// A command that takes long does not hold up the daemon; it is run once for a change.
#[test]
fn a_slow_command_of_a_changed_configuration_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("net");
    let (began, goes_on) = (dir.path().join("began"), dir.path().join("on"));
    let text = format!(
        "echo x >>{}\nuntil [ -e {} ]; do sleep 0.1; done\necho data\n",
        began.display(),
        goes_on.display()
    );
    fs::write(&script, text).unwrap();
    let lab = lab(2, &json!({ "Type": "vxlan" }))
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    start_all(&lab);
    let (one, two) = (lab.node(1), lab.node(2));
    let mut backend = host_gw();
    backend["PreStartupCommand"] = json!(format!("sh {}", script.display()));
    let config = json!({ "Network": "172.30.0.0/16", "Backend": backend });
    lab.put_config(&config.to_string()).unwrap();
    let begun = || {
        fs::read_to_string(&began)
            .map(|text| text.len())
            .unwrap_or(0)
    };
    wait_for("both run it", SOON, || {
        if begun() == 4 { Ok(()) } else { Err(begun()) }
    })
    .unwrap();
    // The daemon repairs what somebody deletes.
    let route = subnet_of(two);
    one.exec(["ip", "route", "del", &route]).unwrap();
    let repaired = || {
        if has_route(one, &route) {
            Ok(())
        } else {
            Err("no route")
        }
    };
    wait_for("the route is there again", SOON, repaired).unwrap();
    fs::write(&goes_on, "").unwrap();
    let published = || {
        let (_, lease) = lease_of(&lab, one);
        if lease["BackendData"] == "data" {
            Ok(())
        } else {
            Err(lease)
        }
    };
    wait_for("its output is published", SOON, published).unwrap();
    // Another option: its output is still known.
    let mut config = config;
    config["Backend"]["CommandTimeout"] = json!(30);
    lab.put_config(&config.to_string()).unwrap();
    says(
        one.flanneld(),
        &["the network configuration changed: the commands change"],
    );
    assert_eq!(begun(), 4);
    lab.wait_mesh(SOON).unwrap();
}

fn has_route(node: &Node, subnet: &str) -> bool {
    let said = node.exec(["ip", "route", "show", subnet]).unwrap();
    !said.trim().is_empty()
}

fn subnet_of(node: &Node) -> String {
    let env = node.subnet_env().unwrap();
    env.cidr(V4).unwrap().trunc().to_string()
}

fn wait_route(node: &Node, subnet: &str, wanted: bool) {
    let look = || {
        if has_route(node, subnet) == wanted {
            Ok(())
        } else {
            Err(node.flanneld().log())
        }
    };
    let what = format!("{}: route to {subnet}: {wanted}", node.name());
    wait_for(&what, SOON, look).unwrap();
}

#[test]
fn a_vxlan_network_by_commands_outlives_restarts_and_follows_its_peers() {
    // What a command writes to its standard error is not published.
    let script = documented_vxlan();
    let (_dir, backend) = by_script(&script.replace("pre)\n", "pre)\n    echo no data >&2\n"));
    let lab = lab(3, &backend)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    start_all(&lab);
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    let mac =
        |node: &Node| scene::ip_json(node, &format!("link show {DEVICE}"))[0]["address"].clone();
    assert_eq!(lease_of(&lab, one).1["BackendData"], mac(one));

    let flow = flow(two, one);
    one.flanneld().restart(SOON).unwrap();
    one.flanneld().kill9().unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    lab.wait_mesh(SOON).unwrap();
    assert_eq!(flow.stop().broken, None);

    // Another MAC: what was added with the old one goes.
    let old = mac(one);
    one.flanneld().stop().unwrap();
    one.exec(["ip", "link", "del", DEVICE]).unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    lab.wait_mesh(SOON).unwrap();
    let entries = two.exec(["bridge", "fdb", "show", "dev", DEVICE]).unwrap();
    assert!(!entries.contains(old.as_str().unwrap()), "{entries}");

    // A peer that leaves, first while the daemon runs and then while it does not.
    let (of_three, of_two) = (subnet_of(three), subnet_of(two));
    three.flanneld().stop().unwrap();
    lab.delete_lease(&lease_of(&lab, three).0).unwrap();
    wait_route(one, &of_three, false);
    wait_route(two, &of_three, false);
    one.flanneld().stop().unwrap();
    two.flanneld().stop().unwrap();
    lab.delete_lease(&lease_of(&lab, two).0).unwrap();
    assert!(has_route(one, &of_two));
    one.flanneld().start_ready(SOON).unwrap();
    wait_route(one, &of_two, false);
}

#[test]
fn a_wireguard_network_by_commands_carries_packets() {
    let (_dir, backend) = by_script(WIREGUARD);
    let lab = lab(2, &backend)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let tried = lab
        .node(1)
        .exec(["ip", "link", "add", "trial", "type", "wireguard"]);
    if let Err(error) = tried {
        lab::not_run("wireguard by commands", &error);
        return;
    }
    start_all(&lab);
}

#[test]
fn commands_that_fail_are_tried_again_and_their_trouble_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let may = dir.path().join("may");
    let script = dir.path().join("net");
    let text = format!(
        "[ -e {}.$1 ] || {{ echo \"$1: not allowed yet\" >&2; exit 3; }}\n[ $1 != add ] || ip route add $SUBNET via $PUBLIC_IP\n",
        may.display()
    );
    fs::write(&script, text).unwrap();
    let line = |what: &str| format!("sh {} {what}", script.display());
    let backend = json!({
        "Type": "extension",
        "PreStartupCommand": line("pre"),
        "PostStartupCommand": line("post"),
        "SubnetAddCommand": line("add"),
    });
    let lab = lab(2, &backend)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let allow = |what: &str| fs::write(format!("{}.{what}", may.display()), "").unwrap();
    let (one, two) = (lab.node(1), lab.node(2));
    one.flanneld().start().unwrap();
    two.flanneld().start().unwrap();
    says(
        one.flanneld(),
        &["PreStartupCommand", "exit status: 3: pre: not allowed yet"],
    );
    allow("pre");
    says(
        one.flanneld(),
        &["PostStartupCommand", "post: not allowed yet"],
    );
    assert!(one.subnet_env().is_err(), "announced too early");
    allow("post");
    one.flanneld().wait_ready(SOON).unwrap();
    two.flanneld().wait_ready(SOON).unwrap();
    says(
        one.flanneld(),
        &["SubnetAddCommand", "exit status: 3: add: not allowed yet"],
    );
    assert!(!has_route(one, &subnet_of(two)));
    allow("add");
    wait_route(one, &subnet_of(two), true);
}

#[test]
fn restarts_interrupt_nothing_although_commands_are_not_repeatable() {
    let lab = lab(2, &host_gw())
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    start_all(&lab);
    let (one, two) = (lab.node(1), lab.node(2));
    let flow = flow(one, two);
    one.flanneld().restart(SOON).unwrap();
    // A route that was lost is there again after a restart, as with upstream's.
    let subnet = subnet_of(two);
    one.flanneld().stop().unwrap();
    one.exec(["ip", "route", "del", &subnet]).unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    wait_route(one, &subnet, true);
    wait_for("the pods reach each other", SOON, || reaches(one, two)).unwrap();
    assert_eq!(flow.stop().broken, None);
}

#[test]
fn a_stop_that_tears_the_network_down_removes_the_peers() {
    let lab = lab(2, &host_gw())
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let (one, two) = (lab.node(1), lab.node(2));
    one.flanneld().set_args(["-teardown-on-stop"]);
    start_all(&lab);
    let subnet = subnet_of(two);
    one.flanneld().stop().unwrap();
    assert!(!has_route(one, &subnet), "{}", one.flanneld().log());
    let left = one.run(|| {
        Path::new("/run/flannel/commands")
            .read_dir()
            .map(Iterator::count)
    });
    assert!(matches!(left.unwrap(), Ok(0) | Err(_)));
}

#[test]
fn ours_and_upstream_s_are_one_network() {
    let Some(program) = mixed::program() else {
        return;
    };
    let (_dir, vxlan) = by_script(&documented_vxlan());
    for backend in [vxlan, host_gw()] {
        let lab = lab(3, &backend)
            .store(StoreKind::Etcd { tls: true })
            .build()
            .unwrap();
        let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
        let theirs = mixed::start(&lab, one, program, &[]);
        two.flanneld().start_ready(SOON).unwrap();
        let _theirs = mixed::start(&lab, three, program, &[]);
        for node in lab.nodes() {
            node.add_pods(1).unwrap();
        }
        lab.wait_mesh(SOON).unwrap();
        let published = |node| lease_of(&lab, node).1["BackendData"].clone();
        assert_eq!(published(one).is_string(), published(two).is_string());
        // Ours in the place of theirs, under traffic.
        let flow = flow(three, one);
        theirs.kill9().unwrap();
        one.flanneld().start_ready(SOON).unwrap();
        lab.wait_mesh(SOON).unwrap();
        shows(one, &["route", &subnet_of(three)]);
        // And back. Upstream gives up when a command for a peer fails, as `ip route add` does where the route is there:
        // then it is as after a reboot.
        one.flanneld().stop().unwrap();
        if !backend["PreStartupCommand"].is_string() {
            one.exec(["ip", "route", "del", &subnet_of(three)]).unwrap();
            one.exec(["ip", "route", "del", &subnet_of(two)]).unwrap();
        }
        let _again = mixed::start(&lab, one, program, &[]);
        lab.wait_mesh(SOON).unwrap();
        assert_eq!(flow.stop().broken, None);
    }
}
