//! Three members of etcd on nodes of the lab. One of them is cut off from the others, while the daemon's connection to it
//! stays.

use std::process::Command;
use std::time::Duration;

use lab::{Lab, Node, Process, wait_for};
use serde_json::Value;

use crate::etcd_faults::good;
use crate::scene::{self, ETCD, run};

/// Elections, on a machine with much else to do.
const LONG: Duration = Duration::from_secs(60);

fn url(node: &Node) -> String {
    format!("http://{}:2379", node.ipv4())
}

fn member(lab: &Lab, node: &Node) -> Process {
    let peer = |node: &Node| format!("http://{}:2380", node.ipv4());
    let members = lab.nodes()[..3].iter();
    let members: Vec<_> = members
        .map(|node| format!("{}={}", node.name(), peer(node)))
        .collect();
    let mut command = Command::new("etcd");
    command
        .args(["--name", node.name(), "--data-dir", "/run/member"])
        .args(["--listen-client-urls", "http://0.0.0.0:2379"])
        .args(["--advertise-client-urls", &url(node)])
        .args(["--listen-peer-urls", &peer(node)])
        .args(["--initial-advertise-peer-urls", &peer(node)])
        .args(["--initial-cluster", &members.join(",")])
        .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
        .args(["--logger", "zap", "--log-level", "error"]);
    let log = lab.shared_dir().join(format!("log/{}-member", node.name()));
    Process::start("etcd", node, &mut command, &log).unwrap()
}

/// Runs `etcdctl` in the daemon's namespace until it succeeds.
fn ctl(lab: &Lab, members: &[usize], args: &[&str]) -> String {
    let urls: Vec<_> = members.iter().map(|n| url(lab.node(*n))).collect();
    let endpoints = format!("--endpoints={}", urls.join(","));
    let mut command = vec!["env", "ETCDCTL_API=3", "etcdctl", &endpoints];
    command.extend(args);
    wait_for(&format!("{args:?}"), LONG, || {
        lab.node(4).exec(&command).map_err(|e| e.to_string())
    })
    .unwrap()
}

fn lead(lab: &Lab, member: usize) {
    let all = [1, 2, 3];
    wait_for("the leader", LONG, || {
        let status = ctl(lab, &all, &["endpoint", "status", "-w", "json"]);
        let status: Value = serde_json::from_str(&status).map_err(|e| e.to_string())?;
        let members = status.as_array().unwrap();
        let wanted = members
            .iter()
            .find(|m| m["Endpoint"] == url(lab.node(member)))
            .ok_or("not all answer")?;
        let id = wanted["Status"]["header"]["member_id"].as_u64().unwrap();
        if wanted["Status"]["leader"].as_u64() == Some(id) {
            return Ok(());
        }
        ctl(lab, &all, &["move-leader", &format!("{id:x}")]);
        Err(format!("{status}"))
    })
    .unwrap();
}

/// Cuts a member off from the two others, or joins it again.
fn cut(lab: &Lab, member: usize, verb: &str) {
    for other in [1, 2, 3].into_iter().filter(|n| *n != member) {
        let ip = lab.node(other).ipv4();
        run(
            lab.node(member),
            &format!("ip route {verb} blackhole {ip}/32"),
        )
        .unwrap();
    }
}

/// A lease is written by way of `members`, and the daemon on the fourth node follows it.
fn followed(lab: &Lab, members: &[usize], n: u8) {
    let path = format!("/coreos.com/network/subnets/172.30.{n}.0-24");
    let value = good(
        &format!("192.168.78.{n}"),
        &format!("02:00:00:00:00:{n:02x}"),
    );
    ctl(lab, members, &["put", &path, &value]);
    let node = lab.node(4);
    wait_for("the new peer", LONG, || {
        if node
            .picture()
            .unwrap()
            .has(&[&format!("route 172.30.{n}.0/24 ")])
        {
            Ok(())
        } else {
            Err(node.flanneld().log_tail(10))
        }
    })
    .unwrap();
    assert_eq!(node.flanneld().ended().unwrap(), None);
}

#[test]
fn a_member_that_is_cut_off_is_left() {
    let lab = scene::lab()
        .nodes(4)
        .pods_per_node(0)
        .store(ETCD)
        .build()
        .unwrap();
    let members: Vec<_> = (1..=3).map(|n| member(&lab, lab.node(n))).collect();
    let config = r#"{"Network":"172.30.0.0/16","Backend":{"Type":"vxlan"}}"#;
    ctl(
        &lab,
        &[1, 2, 3],
        &["put", "/coreos.com/network/config", config],
    );
    lead(&lab, 1);
    let daemon = lab.node(4).flanneld();
    let urls: Vec<_> = (1..=3).map(|n| url(lab.node(n))).collect();
    daemon.set_args([format!("-etcd-endpoints={}", urls.join(","))]);
    daemon.start_ready(LONG).unwrap();
    followed(&lab, &[1, 2, 3], 240);

    // The leader itself, to which the daemon is connected.
    cut(&lab, 1, "add");
    followed(&lab, &[2, 3], 241);
    cut(&lab, 1, "del");
    followed(&lab, &[1, 2, 3], 242);

    // A member that follows, to which it has gone since.
    lead(&lab, 3);
    cut(&lab, 2, "add");
    followed(&lab, &[1, 3], 243);
    // What starts meanwhile gets its subnet back, though that member comes first.
    let before = lab.node(4).subnet_env().unwrap().subnet;
    let order = [2, 1, 3].map(|n| url(lab.node(n))).join(",");
    daemon.set_args([format!("-etcd-endpoints={order}")]);
    let env = daemon.restart(LONG).unwrap();
    assert_eq!(env.subnet, before);
    followed(&lab, &[1, 3], 244);
    cut(&lab, 2, "del");
    followed(&lab, &[1, 2, 3], 245);
    for member in &members {
        member.must_run().unwrap();
    }
}
