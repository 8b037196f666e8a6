//! The ipsec backend: policies, and a real charon. A kernel without ESP shows everything but packets; the
//! rest runs in a virtual machine (`scripts/test-vm`).

use lab::{Error, Lab, Node, StoreKind, bulk, wait_for};
use model::Family::V4;
use serde_json::{Value, json};

use crate::flow::Traffic;
use crate::mixed;
use crate::scene::{self, SOON, lease_of};
use crate::seen::says;

/// 96 characters.
const PSK: &str = "9f3c1e5a7b2d4c6e8f0a1b3d5c7e9f2a4b6c8d0e1f3a5b7c9d2e4f6a8b0c1d3e5f7a9b2c4d6e8f0a1b3c5d7e9f2a4b6c";

/// Kills the charons that its nodes leave running.
struct Scene(Lab);

impl Drop for Scene {
    fn drop(&mut self) {
        for node in self.0.nodes() {
            if let Ok(pid) = node.read("/run/flannel/charon.pid") {
                let _ = node.output(["kill", "-9", pid.trim()]);
            }
        }
    }
}

fn lab(nodes: usize, store: StoreKind, options: Value) -> Scene {
    let mut backend = json!({ "Type": "ipsec", "PSK": PSK });
    for (key, value) in options.as_object().unwrap() {
        backend[key] = value.clone();
    }
    let lab = scene::lab().nodes(nodes).store(store).backend(backend);
    Scene(lab.build().unwrap())
}

/// Whether a charon is installed; if not, says what was not run.
fn has_charon() -> bool {
    let programs = ["/usr/lib/ipsec/charon", "/usr/sbin/charon-systemd"];
    let found = programs
        .iter()
        .any(|path| std::path::Path::new(path).exists());
    if !found {
        let why = Error::Needs("apt-get install charon-systemd strongswan-swanctl".into());
        lab::not_run("the ipsec backend", &why);
    }
    found
}

/// Whether the kernel of the first node can encrypt; if not, says what was not run.
fn has_esp(lab: &Lab, what: &str) -> bool {
    let tried = encrypt(lab);
    if let Err(why) = &tried {
        lab::not_run(what, why);
    }
    tried.is_ok()
}

fn encrypt(lab: &Lab) -> Result<(), Error> {
    // With the cipher that is used: an emulated kernel takes half a minute to load it, in which charon hangs.
    let state = "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 1 mode tunnel aead 'rfc4106(gcm(aes))' 0x000102030405060708090a0b0c0d0e0f10111213 128";
    let tried = lab.node(1).exec(["sh", "-c", state]);
    let _ = lab.node(1).exec(["ip", "xfrm", "state", "flush"]);
    tried.map(|_| ())
}

fn policies(node: &Node) -> String {
    node.exec(["ip", "xfrm", "policy"]).unwrap()
}

fn swanctl(node: &Node, what: &str) -> String {
    let output = node.output(["swanctl", what]).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn raw_conns(node: &Node) -> String {
    let output = node.output(["swanctl", "--list-conns", "--raw"]).unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    // As older versions call it.
    shown.replace("dpd_action=restart", "dpd_action=start")
}

/// Waits until `look` shows all of `texts`, or none of them.
fn wait_shown(node: &Node, look: impl Fn(&Node) -> String, texts: &[&str], wanted: bool) {
    let probe = || {
        let shown = look(node);
        match texts.iter().find(|text| shown.contains(**text) != wanted) {
            None => Ok(()),
            Some(text) => Err(format!("{text}: {shown}\n{}", node.flanneld().log_tail(20))),
        }
    };
    let what = format!("{}: {texts:?} {wanted}", node.name());
    wait_for(&what, SOON, probe).unwrap();
}

fn subnet_of(node: &Node) -> String {
    node.subnet_env()
        .unwrap()
        .cidr(V4)
        .unwrap()
        .trunc()
        .to_string()
}

fn connection(from: &Node, to: &Node) -> String {
    let (one, two) = (subnet_of(from), subnet_of(to));
    format!("{}-{one}-{two}-{}", from.ipv4(), to.ipv4())
}

#[test]
fn policies_and_connections_are_there_repaired_and_removed() {
    if !has_charon() {
        return;
    }
    let scene = lab(2, StoreKind::Directory, json!({}));
    let (one, two) = (scene.0.node(1), scene.0.node(2));
    for node in scene.0.nodes() {
        node.flanneld().set_args(["-teardown-on-stop"]);
        node.flanneld().start_ready(SOON).unwrap();
    }
    assert_eq!(one.subnet_env().unwrap().mtu, 1423);
    let (own, peer) = (subnet_of(one), subnet_of(two));
    let out = format!("src {own} dst {peer} \n\tdir out priority 0");
    let block = format!("src {own} dst 172.30.0.0/16 \n\tdir out action block");
    wait_shown(one, policies, &[&out, &block, "reqid 11 mode tunnel"], true);
    wait_shown(
        two,
        policies,
        &[&format!("src {own} dst {peer} \n\tdir fwd")],
        true,
    );
    let routes = |node: &Node| node.exec(["ip", "route"]).unwrap();
    wait_shown(one, routes, &["172.30.0.0/16 dev eth0"], true);
    let name = connection(one, two);
    wait_shown(one, |node| swanctl(node, "--list-conns"), &[&name], true);
    // In charon's own words.
    let (own_ip, peer_ip) = (one.ipv4(), two.ipv4());
    let told = [
        format!("local_addrs=[{own_ip}] remote_addrs=[{peer_ip}] version=IKEv2"),
        format!("id={own_ip}"),
        format!("id={peer_ip}"),
        format!("local-ts=[{own}] remote-ts=[{peer}]"),
        "dpd_delay=30".to_owned(),
        "dpd_action=start".to_owned(),
        "close_action=start".to_owned(),
        "mode=TUNNEL".to_owned(),
        "rekey_time=3600".to_owned(),
        "rekey_packets=2000000000".to_owned(),
    ];
    let told: Vec<&str> = told.iter().map(String::as_str).collect();
    wait_shown(one, raw_conns, &told, true);
    // Both know the secret.
    wait_shown(
        one,
        |node| swanctl(node, "--list-sas"),
        &["ESTABLISHED"],
        true,
    );

    // Somebody else's changes.
    let policy = format!("ip xfrm policy delete src {own} dst {peer} dir out");
    scene::run(one, &policy).unwrap();
    wait_shown(one, policies, &[&out], true);
    let changed =
        format!("ip xfrm policy update src {own} dst 172.30.0.0/16 dir out priority 1073745681");
    scene::run(one, &changed).unwrap();
    wait_shown(one, policies, &[&block], true);

    // charon ends: it is started again and told everything.
    let pid = one.read("/run/flannel/charon.pid").unwrap();
    one.exec(["kill", "-9", pid.trim()]).unwrap();
    let again = |node: &Node| node.read("/run/flannel/charon.pid").unwrap();
    wait_shown(one, again, &[pid.trim()], false);
    wait_shown(one, |node| swanctl(node, "--list-conns"), &[&name], true);

    // A peer that leaves, and the end.
    two.flanneld().stop().unwrap();
    let (key, mut lease) = lease_of(&scene.0, two);
    // Or comes back with another address.
    let moved = "192.168.78.77";
    lease["PublicIP"] = json!(moved);
    scene.0.put_lease(&key, &lease.to_string()).unwrap();
    let follows = format!("remote_addrs=[{moved}]");
    wait_shown(one, raw_conns, &[&follows], true);
    wait_shown(one, raw_conns, &[&name], false);
    let tunnel = format!("tmpl src {own_ip} dst {moved}");
    wait_shown(one, policies, &[&tunnel], true);
    wait_shown(one, policies, &[&format!("dst {peer_ip}\n")], false);
    let name = format!("{own_ip}-{own}-{peer}-{moved}");
    scene.0.delete_lease(&key).unwrap();
    wait_shown(one, policies, &[&out], false);
    wait_shown(one, |node| swanctl(node, "--list-conns"), &[&name], false);
    one.flanneld().stop().unwrap();
    for node in [one, two] {
        wait_shown(node, policies, &["172.30."], false);
        let pid = node.read("/run/flannel/charon.pid");
        assert!(pid.is_err(), "{pid:?}\n{}", node.flanneld().log());
    }
}

#[test]
fn a_secret_that_is_too_short_is_named_and_not_shown() {
    let scene = lab(
        1,
        StoreKind::Directory,
        json!({ "PSK": "too short, secret" }),
    );
    let one = scene.0.node(1);
    one.flanneld().start().unwrap();
    let line = says(one.flanneld(), &["Backend.PSK", "at least 96 characters"]);
    assert!(!line.contains("too short, secret"), "{line}");
}

/// Counts packets between pods that arrive unencrypted.
fn count_plaintext(node: &Node) {
    let rules = "add table inet seen; add chain inet seen pre { type filter hook prerouting priority -300; }; add rule inet seen pre iifname eth0 ip saddr 172.30.0.0/16 meta secpath missing counter";
    node.exec(["nft", rules]).unwrap();
}

fn no_plaintext(node: &Node) {
    let seen = node.exec(["nft", "list", "table", "inet", "seen"]).unwrap();
    assert!(seen.contains("packets 0 "), "{}: {seen}", node.name());
}

fn streams(one: &Node, two: &Node) {
    for (from, to) in [(one, two), (two, one)] {
        let (from, to) = (&from.pods()[0], &to.pods()[0]);
        wait_for("a stream from pod to pod", SOON, || {
            bulk(from, to, to.ip(V4).unwrap(), 4 << 20)
        })
        .unwrap();
    }
}

#[test]
fn packets_travel_encrypted_or_not_at_all() {
    if !has_charon() {
        return;
    }
    for encap in [true, false] {
        let scene = lab(3, StoreKind::Directory, json!({ "UDPEncap": encap }));
        if !has_esp(&scene.0, "packets of the ipsec backend") {
            return;
        }
        let lab = &scene.0;
        let (one, two) = (lab.node(1), lab.node(2));
        lab.nodes().iter().for_each(count_plaintext);
        // In a virtual machine charon takes half a minute to start.
        lab.nodes()
            .iter()
            .for_each(|node| node.flanneld().start().unwrap());
        for node in lab.nodes() {
            node.flanneld().wait_ready(SOON).unwrap();
            node.add_pods(1).unwrap();
        }
        let sas = |node: &Node| {
            let log = node.flanneld().log_tail(5);
            format!("{}\n{log}\n{}", node.name(), swanctl(node, "--list-sas"))
        };
        if let Err(error) = lab.wait_mesh(3 * SOON) {
            let all: Vec<String> = lab.nodes().iter().map(sas).collect();
            panic!("{error}\n{}", all.join("\n"));
        }
        streams(one, two);
        if !encap {
            faults(one, two);
        }
        lab.nodes().iter().for_each(no_plaintext);
    }
}

/// New keys while packets flow.
fn rekeys(one: &Node, two: &Node) {
    if !swanctl(one, "--list-algs").contains("ECP_256") {
        let why = Error::Needs("apt-get install libstrongswan-standard-plugins".into());
        lab::not_run("new keys of the ipsec backend", &why);
        return;
    }
    let spis = |node: &Node| -> Vec<String> {
        let (from, to) = (one.ipv4().to_string(), two.ipv4().to_string());
        let list = ["ip", "xfrm", "state", "list", "src", &from, "dst", &to];
        let shown = node.exec(list).unwrap();
        let words: Vec<&str> = shown.split_whitespace().collect();
        let pairs = words.windows(2).filter(|pair| pair[0] == "spi");
        pairs.map(|pair| pair[1].to_owned()).collect()
    };
    let before = spis(one);
    let traffic = Traffic::between(one, two);
    let child = format!("{}-{}", subnet_of(one), subnet_of(two));
    one.exec(["swanctl", "--rekey", "--child", &child]).unwrap();
    for node in [one, two] {
        wait_for("new keys", 3 * SOON, || {
            let now = spis(node);
            match !now.is_empty() && now.iter().all(|spi| !before.contains(spi)) {
                true => Ok(()),
                false => Err(format!("{now:?} after {before:?}")),
            }
        })
        .unwrap();
    }
    // In an emulated machine 2 packets of 387 were lost.
    traffic.nearly_all_arrived("new keys");
}

fn faults(one: &Node, two: &Node) {
    rekeys(one, two);
    // flanneld restarts, charon stays.
    one.flanneld().restart(SOON).unwrap();
    streams(one, two);
    // charon ends without a word.
    let pid = two.read("/run/flannel/charon.pid").unwrap();
    two.exec(["kill", "-9", pid.trim()]).unwrap();
    streams(one, two);
    let started = |node: &Node| node.read("/run/flannel/charon.pid").unwrap();
    wait_shown(two, started, &[pid.trim()], false);
    // Nobody agrees on keys any more: nothing is sent.
    for node in [one, two] {
        node.flanneld().kill9().unwrap();
        let pid = node.read("/run/flannel/charon.pid").unwrap();
        node.exec(["kill", "-9", pid.trim()]).unwrap();
        node.exec(["ip", "xfrm", "state", "flush"]).unwrap();
    }
    assert!(crate::udp::reaches(one, two).is_err());
}

fn change(lab: &Lab, backend: &Value) {
    let config = json!({ "Network": "172.30.0.0/16", "Backend": backend });
    lab.put_config(&config.to_string()).unwrap();
}

fn with_psk() -> Value {
    json!({ "Type": "ipsec", "PSK": PSK })
}

fn by_vxlan(nodes: usize) -> Scene {
    let backend = json!({ "Type": "vxlan" });
    let lab = scene::lab().nodes(nodes).store(StoreKind::Directory);
    let scene = Scene(lab.backend(backend).build().unwrap());
    for node in scene.0.nodes() {
        node.flanneld().start_ready(SOON).unwrap();
        node.add_pods(1).unwrap();
    }
    scene.0.wait_mesh(SOON).unwrap();
    scene
}

fn status(node: &Node) -> String {
    match node.flanneld().http_get("/readyz") {
        Ok((_, body)) => body,
        Err(error) => error.to_string(),
    }
}

/// Where nobody agrees on keys, the former backend stays in use.
#[test]
fn a_change_to_ipsec_waits_for_keys_and_is_taken_back_without_a_lost_packet() {
    if !has_charon() {
        return;
    }
    let scene = by_vxlan(2);
    let (one, two) = (scene.0.node(1), scene.0.node(2));
    if encrypt(&scene.0).is_ok() {
        // There are keys.
        return;
    }
    let traffic = Traffic::between(one, two);
    change(&scene.0, &with_psk());
    let name = connection(one, two);
    wait_shown(one, |node| swanctl(node, "--list-conns"), &[&name], true);
    wait_shown(one, status, &["no keys agreed on yet with"], true);
    let (own, peer) = (subnet_of(one), subnet_of(two));
    let lets_in = format!("src {peer} dst {own} \n\tdir fwd priority 0");
    wait_shown(one, policies, &[&lets_in, "level use"], true);
    let shown = policies(one);
    let out = format!("src {own} dst {peer} \n\tdir out");
    assert!(
        !shown.contains(&out) && !shown.contains("action block"),
        "{shown}"
    );
    // A daemon that is restarted in the middle goes on.
    one.flanneld().restart(SOON).unwrap();
    wait_shown(one, status, &["no keys agreed on yet with"], true);
    change(&scene.0, &json!({ "Type": "vxlan" }));
    for node in [one, two] {
        wait_shown(node, policies, &["172.30."], false);
        wait_shown(
            node,
            |node| swanctl(node, "--list-conns"),
            &["172.30."],
            false,
        );
    }
    traffic.all_arrived("vxlan, ipsec without keys, vxlan");
}

#[test]
fn packets_follow_a_change_from_vxlan_to_ipsec_and_back() {
    if !has_charon() {
        return;
    }
    let scene = by_vxlan(2);
    let (one, two) = (scene.0.node(1), scene.0.node(2));
    if !has_esp(&scene.0, "a change from vxlan to ipsec") {
        return;
    }
    let traffic = Traffic::between(one, two);
    change(&scene.0, &with_psk());
    // In a virtual machine charon takes half a minute to start, and the keys as long again.
    for node in [one, two] {
        let look = || {
            if policies(node).contains("action block") {
                return Ok(());
            }
            let sas = swanctl(node, "--list-sas");
            Err(format!(
                "{}\n{sas}\n{}",
                status(node),
                node.flanneld().log_tail(8)
            ))
        };
        wait_for("all is encrypted", 4 * SOON, look).unwrap();
    }
    for node in [one, two] {
        count_plaintext(node);
    }
    traffic.all_arrived("vxlan to ipsec");
    streams(one, two);
    let traffic = Traffic::between(one, two);
    for node in [one, two] {
        no_plaintext(node);
    }
    change(&scene.0, &json!({ "Type": "vxlan" }));
    for node in [one, two] {
        let look = || {
            let shown = policies(node);
            match shown.contains("172.30.") {
                true => Err(format!("{shown}\n{}", node.flanneld().log_tail(8))),
                false => Ok(()),
            }
        };
        wait_for("ipsec is gone", 4 * SOON, look).unwrap();
    }
    traffic.all_arrived("ipsec to vxlan");
    streams(one, two);
}

#[test]
fn ours_and_upstream_s_are_one_network() {
    if !has_charon() {
        return;
    }
    let scene = lab(3, StoreKind::Etcd { tls: false }, json!({}));
    let lab = &scene.0;
    if !has_esp(lab, "the ipsec backend beside upstream's") {
        return;
    }
    let Some(program) = mixed::program() else {
        return;
    };
    let (one, two, three) = (lab.node(1), lab.node(2), lab.node(3));
    for node in lab.nodes() {
        // Upstream has no routes of its own, and counts on the default one.
        let _ = node.exec(["ip", "route", "add", "default", "dev", "eth0"]);
    }
    let _theirs = mixed::start(lab, one, program, &[]);
    two.flanneld().start_ready(SOON).unwrap();
    three.flanneld().start_ready(SOON).unwrap();
    for node in lab.nodes() {
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON).unwrap();
    streams(one, two);
    streams(three, two);
}

/// Upstream's charon ends with it, and so do the keys: packets are lost until there are new ones, and none leaves
/// unencrypted.
#[test]
fn packets_flow_again_when_ours_takes_upstream_s_place_and_gives_it_back() {
    if !has_charon() {
        return;
    }
    let scene = lab(2, StoreKind::Etcd { tls: false }, json!({}));
    let lab = &scene.0;
    if !has_esp(lab, "the ipsec backend in upstream's place") {
        return;
    }
    let Some(program) = mixed::program() else {
        return;
    };
    let (one, two) = (lab.node(1), lab.node(2));
    for node in lab.nodes() {
        let _ = node.exec(["ip", "route", "add", "default", "dev", "eth0"]);
    }
    let theirs = mixed::start(lab, one, program, &[]);
    two.flanneld().start_ready(SOON).unwrap();
    for node in lab.nodes() {
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(3 * SOON).unwrap();
    lab.nodes().iter().for_each(count_plaintext);
    let subnet = subnet_of(one);
    streams(one, two);
    theirs.kill9().unwrap();
    one.flanneld().start_ready(3 * SOON).unwrap();
    assert_eq!(subnet_of(one), subnet);
    lab.wait_mesh(3 * SOON).unwrap();
    streams(one, two);
    lab.nodes().iter().for_each(no_plaintext);
    one.flanneld().stop().unwrap();
    let _theirs = mixed::start(lab, one, program, &[]);
    lab.wait_mesh(3 * SOON).unwrap();
    streams(one, two);
    lab.nodes().iter().for_each(no_plaintext);
}
