//! The same network twice on one host: the second daemon waits for the first one's end.

#![allow(unsafe_code, reason = "another user for one thread")]

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use lab::{Daemon, Instance, Lab, Node, StoreKind, holds_for};

use crate::scene::{self, SOON, mesh, says};

fn second(node: &Node, args: &[&str]) -> Daemon {
    node.another(Instance {
        name: "second".into(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        subnet_file: "/run/flannel-2/subnet.env".into(),
        healthz_port: 10472,
        ..Instance::default()
    })
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

#[test]
fn the_second_daemon_waits_for_the_first_ones_end() {
    let lab = started();
    let node = lab.node(1);
    let before = node.picture().unwrap();
    let leases = lab.leases().unwrap();
    let second = second(node, &[]);
    second.start().unwrap();
    // As the lab's own process namespace counts.
    let pid = node.flanneld().pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pids = status.lines().find(|line| line.starts_with("NSpid:"));
    let pid = format!("(pid {})", pids.unwrap().split_whitespace().last().unwrap());
    says(
        &second,
        &["WARN", "another flanneld", &pid, "waiting until it ends"],
    );
    let (status, body) = second.http_get("/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(body.contains("another flanneld"), "{body}");
    let (ours, theirs) = (node.flanneld().log().len(), second.log().len());
    let still = || {
        let changed = before.difference(&node.picture().unwrap());
        let lines = [&node.flanneld().log()[ours..], &second.log()[theirs..]].concat();
        match changed.is_empty() && lines.is_empty() && lab.leases().unwrap() == leases {
            true => Ok(()),
            false => Err(format!("{changed:#?}\n{lines}")),
        }
    };
    holds_for("neither does anything", Duration::from_secs(3), still).unwrap();

    let env = node.subnet_env().unwrap();
    node.flanneld().kill9().unwrap();
    assert_eq!(second.wait_ready(SOON).unwrap().subnet, env.subnet);
    let changed = before.difference(&node.picture().unwrap());
    assert!(changed.is_empty(), "{changed:#?}");

    // And the other way round.
    node.flanneld().start().unwrap();
    says(node.flanneld(), &["WARN", "another flanneld"]);
    second.stop().unwrap();
    node.flanneld().wait_ready(SOON).unwrap();
    mesh(&lab);
}

#[test]
fn a_name_that_another_user_holds_keeps_no_daemon_waiting() {
    let lab = scene::lab()
        .nodes(1)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let node = lab.node(1);
    let held = node.run(|| {
        // SAFETY: takes no pointers; changes the user of this thread alone, which ends with the closure.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
        assert_eq!(changed, 0);
        let name = SocketAddr::from_abstract_name("flannel-rs device flannel.1").unwrap();
        UnixListener::bind_addr(&name).unwrap()
    });
    let held = held.unwrap();
    lab.start().unwrap();
    node.flanneld().wait_ready(SOON).unwrap();
    says(
        node.flanneld(),
        &["WARN", "device flannel.1", "going on without it"],
    );
    drop(held);
}

#[test]
fn a_name_that_is_bound_and_cannot_be_asked_keeps_no_daemon_waiting() {
    let lab = scene::lab()
        .nodes(1)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let node = lab.node(1);
    let held = node.run(|| {
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind("\0flannel-rs device flannel.1").unwrap();
        socket
    });
    let held = held.unwrap();
    lab.start().unwrap();
    node.flanneld().wait_ready(SOON).unwrap();
    says(
        node.flanneld(),
        &[
            "WARN",
            "device flannel.1",
            "takes no connection",
            "waiting for an answer",
        ],
    );
    says(
        node.flanneld(),
        &[
            "WARN",
            "device flannel.1",
            "takes no connection",
            "going on without it",
        ],
    );
    drop(held);
}
