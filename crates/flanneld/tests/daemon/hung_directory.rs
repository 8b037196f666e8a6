//! A directory on a file system that hangs, as a network file system does whose server is gone: every call on it waits for
//! ever. The daemon goes on, says so, and can be stopped.

use std::process::Command;
use std::time::Duration;

use lab::{Lab, Node, Process, wait_for};

use crate::etcd_faults::good;
use crate::scene::{self, SOON, mesh};

/// A call is given up after 10 s or so.
const LONG: Duration = Duration::from_secs(60);

/// Mounts a file system over `dir` that answers nothing as long as the process runs.
fn hang(lab: &Lab, node: &Node, dir: &str) -> Process {
    let options = "fd=3,rootmode=40000,user_id=0,group_id=0";
    let script = format!(
        "mkdir -p {dir} && exec 3<>/dev/fuse && mount -i -t fuse -o {options} hung {dir} && echo hung && exec sleep 1000"
    );
    let log = lab.shared_dir().join(format!("log/{}-hung", node.name()));
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let process = Process::start("a hung file system", node, &mut command, &log).unwrap();
    wait_for("it hangs", SOON, || {
        process.must_run().map_err(|e| e.to_string())?;
        let said = process.log_tail(5);
        if said.contains("hung") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .unwrap();
    process
}

/// `/healthz` answers at once, and `/readyz` as `status` says.
fn answers(node: &Node, status: u16) {
    let daemon = node.flanneld();
    assert_eq!(daemon.http_get("/healthz").unwrap().0, 200);
    wait_for("/readyz", LONG, || match daemon.http_get("/readyz") {
        Ok((seen, _)) if seen == status => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .unwrap();
}

#[test]
fn a_daemon_on_a_hung_directory_says_so_and_can_be_stopped() {
    let lab = scene::lab().nodes(1).build().unwrap();
    let node = lab.node(1);
    let _hung = hang(&lab, node, "/run/hung");
    let daemon = node.flanneld();
    daemon.set_args(["-store-dir=/run/hung"]);
    daemon.start().unwrap();
    wait_for("it is named", LONG, || {
        let log = daemon.log();
        let named = |line: &&str| line.contains("WARN") && line.contains("/run/hung");
        log.lines().find(named).map(|_| ()).ok_or(log.clone())
    })
    .unwrap();
    answers(node, 503);
    daemon.stop().unwrap();
}

#[test]
fn a_directory_that_hangs_for_a_while_costs_nothing() {
    let lab = scene::lab().nodes(2).build().unwrap();
    lab.start().unwrap();
    mesh(&lab);
    let node = lab.node(1);
    let before = node.picture().unwrap();
    let hung = hang(&lab, node, "/run/lab/store");
    lab.put_lease(
        "172.30.250.0-24",
        &good("192.168.78.250", "02:00:00:00:00:fa"),
    )
    .unwrap();
    wait_for("it is noticed", LONG, || {
        let log = node.flanneld().log_tail(20);
        if log.contains("does not answer") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .unwrap();
    assert_eq!(node.flanneld().http_get("/healthz").unwrap().0, 200);
    let changed = before.difference(&node.picture().unwrap());
    assert!(changed.is_empty(), "{changed:#?}");
    node.exec(["umount", "-l", "/run/lab/store"]).unwrap();
    hung.kill9().unwrap();
    wait_for("the new peer", LONG, || {
        if node.picture().unwrap().has(&["route 172.30.250.0/24 "]) {
            Ok(())
        } else {
            Err(node.flanneld().log_tail(10))
        }
    })
    .unwrap();
    answers(node, 200);
    assert_eq!(node.flanneld().ended().unwrap(), None);
}
