//! Others who undo what the daemon does, again and again: that costs little, fills no log, and is
//! said once.

#![allow(unsafe_code, reason = "another user for one thread")]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Error, Instance, Lab, Node, StoreKind, holds_for, wait_for};
use model::Family::V4;
use serde_json::json;

use crate::scene::{self, Peer, SOON, alone, mesh, run, says};

/// How long a fight is watched.
const SPAN: Duration = Duration::from_secs(5);

/// What a daemon may use of a processor meanwhile. An optimised one needs a quarter of it.
const SHARE: f64 = 0.2;

/// Lines in the log, in that time: one for each of the first repairs, and one that names the fight.
const LINES: usize = 12;

/// A shell script in a loop, killed at the end.
struct Script(Child);

impl Script {
    fn repeat(node: &Node, commands: &str) -> Script {
        let script = format!("while :; do {commands}\ndone");
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", &script]).stdout(Stdio::null());
        Script(node.spawn(shell.stderr(Stdio::null())).unwrap())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started() -> Lab {
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    lab
}

/// Watches a daemon during a fight.
fn costs_little(node: &Node, label: &str) {
    let daemon = node.flanneld();
    let (log, cpu, began) = (
        daemon.log().len(),
        daemon.usage().unwrap().cpu,
        Instant::now(),
    );
    let few_lines = || match daemon.log()[log..].lines().count() {
        0..=LINES => Ok(()),
        n => Err(format!("{n} lines: {}", &daemon.log()[log..])),
    };
    holds_for("the log grows slowly", SPAN, few_lines).unwrap();
    let used = daemon.usage().unwrap().cpu - cpu;
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
    let lines = daemon.log()[log..].lines().count();
    eprintln!(
        "fight, {label:<30} {:.1} % of a processor, {lines} lines",
        share * 100.0
    );
    assert!(share < SHARE, "{label}: {share:.2} of a processor");
}

/// Lets `script` run in a loop against the first of two nodes. The fight is named once, by what begins with
/// `named`; the network is whole in the end.
fn fights(label: &str, script: impl FnOnce(&Node, &Peer) -> String, named: &str) {
    let _alone = alone();
    let lab = started();
    let node = lab.node(1);
    let peer = Peer::of(lab.node(2), V4);
    let script = script(node, &peer);
    {
        let _script = Script::repeat(node, &script);
        says(node.flanneld(), &["keeps undoing", named]);
        costs_little(node, label);
    }
    let log = node.flanneld().log();
    let named = log.lines().filter(|line| line.contains("keeps undoing"));
    assert!(named.count() <= 2, "{log}");
    let whole = || match node
        .picture()
        .unwrap()
        .has(&[&format!("route {} ", peer.subnet)])
    {
        true => lab.must_ping(),
        false => Err(Error::Bad(node.flanneld().log_tail(5))),
    };
    wait_for("the network is whole again", 3 * SOON, whole).unwrap();
}

#[test]
fn a_route_that_is_rewritten_in_a_loop() {
    let script = |node: &Node, peer: &Peer| {
        let subnet = peer.subnet;
        let lines = format!(
            "route replace {subnet} via 192.168.78.98 dev eth0\n\
             route replace {subnet} via 192.168.78.99 dev eth0\n"
        );
        node.write("/run/batch", &lines.repeat(1000)).unwrap();
        node.exec(["ip", "-batch", "/run/batch"]).unwrap();
        "ip -batch /run/batch".to_owned()
    };
    fights("a route, in bulk", script, "`ip route replace");
}

#[test]
fn addresses_of_a_dhcp_client() {
    let script = |_: &Node, _: &Peer| {
        "for n in 1 2 3 4; do ip addr replace 192.0.2.$n/24 dev flannel.1; done; sleep 0.02".into()
    };
    fights("an address", script, "`ip address del 192.0.2.");
}

#[test]
fn a_device_that_is_set_down_and_up_in_a_loop() {
    let script = |_: &Node, _: &Peer| "ip link set flannel.1 down; ip link set flannel.1 up".into();
    fights("the device, down and up", script, "flannel.1");
}

#[test]
fn a_device_that_is_deleted_in_a_loop() {
    let script = |_: &Node, _: &Peer| "ip link del flannel.1; sleep 0.01".into();
    fights("the device itself", script, "`ip link add flannel.1");
}

#[test]
fn an_underlay_that_comes_and_goes_in_a_loop() {
    let _alone = alone();
    let lab = started();
    let node = lab.node(1);
    {
        let flap = "ip addr del 192.168.78.1/24 dev eth0; ip addr add 192.168.78.1/24 dev eth0
             ip route add default via 192.168.78.254; sleep 0.05";
        let _script = Script::repeat(node, flap);
        says(
            node.flanneld(),
            &["has no IPv4 address", "keeping what is there"],
        );
        costs_little(node, "the underlay's address");
    }
    // The script may have been stopped between its commands.
    run(
        node,
        "ip addr replace 192.168.78.1/24 dev eth0
         ip route replace default via 192.168.78.254",
    )
    .unwrap();
    let whole = || lab.must_ping();
    wait_for("the network is whole again", 3 * SOON, whole).unwrap();
}

#[test]
fn rules_that_are_flushed_in_a_loop() {
    let _alone = alone();
    let lab = scene::lab()
        .nodes(2)
        .store(StoreKind::Directory)
        .flanneld_args(["-ip-masq", "-iptables-resync=1"])
        .build()
        .unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    {
        let flush =
            "iptables -t nat -F; nft delete table inet flannel-guard-172.30.0.0-16; sleep 0.02";
        let _script = Script::repeat(node, flush);
        says(node.flanneld(), &["repaired the traffic rules"]);
        says(
            node.flanneld(),
            &["repaired the rules against forged packets"],
        );
        costs_little(node, "rules");
    }
    let whole = || {
        let shown = node.exec(["nft", "list", "ruleset"]).unwrap();
        match shown.contains("FLANNEL-POSTRTG") && shown.contains("flannel-guard-172.30.0.0-16") {
            true => lab.must_ping(),
            false => Err(Error::Bad(shown)),
        }
    };
    wait_for("the rules are whole again", 3 * SOON, whole).unwrap();
}

#[test]
fn two_daemons_of_one_vni() {
    let _alone = alone();
    let lab = started();
    let node = lab.node(1);
    node.flanneld().stop().unwrap();
    // A lock that counts for neither of them.
    let names = ["device flannel.1"].map(|name| {
        let name = SocketAddr::from_abstract_name(format!("flannel-rs {name}")).unwrap();
        let bound = node.run(|| {
            // SAFETY: takes no pointers; changes the user of this thread alone, which ends here.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
            assert_eq!(changed, 0);
            UnixListener::bind_addr(&name).unwrap()
        });
        bound.unwrap()
    });
    node.flanneld().start_ready(SOON).unwrap();
    let config = json!({"Network": "10.60.0.0/16", "Backend": {"Type": "vxlan"}});
    let dir = lab.shared_dir().join("store-2");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config"), config.to_string()).unwrap();
    let second = node.another(Instance {
        name: "second".into(),
        args: vec!["-store-dir=/run/lab/store-2".into()],
        subnet_file: "/run/flannel-2/subnet.env".into(),
        healthz_port: 10472,
        ..Instance::default()
    });
    second.start().unwrap();
    says(node.flanneld(), &["keeps undoing", "another flanneld"]);
    costs_little(node, "two daemons of one VNI");
    second.stop().unwrap();
    drop(names);
    let whole = || lab.must_ping();
    wait_for("the network is whole again", 3 * SOON, whole).unwrap();
}
