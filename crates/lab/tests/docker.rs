//! A docker on a node runs containers, apart from the machine's own, and leaves nothing behind.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::explicit_write,
    clippy::print_stdout,
    reason = "tests"
)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Docker, Lab, wait_for};

/// A killed lab's processes are buried by the machine's first process, which may take its time.
const SOON: Duration = Duration::from_secs(60);

/// Whether docker can run here; says so, uncaptured, if not.
fn possible() -> bool {
    lab::real_root_for("docker on a node")
}

fn lab() -> Lab {
    Lab::builder().nodes(1).without_flanneld().build().unwrap()
}

/// A docker with a container that sleeps.
fn docker(lab: &Lab) -> Docker {
    let docker = lab.node(1).docker().unwrap();
    docker.start::<&str>(&[]).unwrap();
    docker.import_busybox("busybox").unwrap();
    docker
        .run("sleeper", &[], "busybox", &["sleep", "1000"])
        .unwrap();
    docker
}

/// The cgroups of dockers of process `pid`. One that is gone held no process any more.
fn cgroups(pid: u32) -> Vec<String> {
    let found = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc"])
        .arg("mount -t cgroup2 cgroup2 /sys/fs/cgroup && find /sys/fs/cgroup -maxdepth 3 -name \"$1\"")
        .args(["sh", &format!("flannel-lab-{pid}-*-docker")])
        .output()
        .unwrap();
    assert!(found.status.success(), "{found:?}");
    let found = String::from_utf8(found.stdout).unwrap();
    found.lines().map(String::from).collect()
}

#[test]
fn runs_containers_and_ends_with_them() {
    if !possible() {
        return;
    }
    let lab = lab();
    let docker = docker(&lab);
    let sleeper = docker.container("sleeper").unwrap();
    let within = docker.exec(&sleeper, &["ip", "addr", "show", "eth0"]);
    assert!(within.unwrap().contains(&sleeper.ip().to_string()));
    let from_outside = sleeper.exec(["ip", "addr", "show", "eth0"]).unwrap();
    assert!(from_outside.contains(&sleeper.ip().to_string()));
    let ping = ["ping", "-c1", "-W5", &sleeper.ip().to_string()].map(String::from);
    lab.node(1).exec(ping).unwrap();
    assert_eq!(cgroups(std::process::id()).len(), 1);
    // Containers and their shims outlive the daemon, not the value.
    docker.kill9().unwrap();
    lab.node(1)
        .exec(["ping", "-c1", "-W5", &sleeper.ip().to_string()])
        .unwrap();
    drop(docker);
    assert_eq!(cgroups(std::process::id()), [""; 0]);
}

/// Not a test: what the test below runs as another process.
#[test]
#[ignore = "run by the other tests"]
fn holder() {
    let lab = lab();
    let _docker = docker(&lab);
    println!("\nrunning");
    let _ = std::io::stdin().lines().next();
}

#[test]
fn after_kill_9() {
    if !possible() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["holder", "--exact", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines
        .find(|line| line.as_ref().is_ok_and(|line| line == "running"))
        .expect("the holder failed: see its message above")
        .unwrap();
    let pid = child.id();
    assert_eq!(cgroups(pid).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("its cgroup is gone", SOON, || match cgroups(pid) {
        left if left.is_empty() => Ok(()),
        left => Err(left.join(" ")),
    })
    .unwrap();
}
