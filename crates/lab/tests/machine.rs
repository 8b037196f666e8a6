//! A machine with systemd: boots, is a machine of its own, and leaves nothing behind.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Lab, Machine, wait_for};

/// A killed lab's processes are buried by the machine's first process, which may take its time.
const SOON: Duration = Duration::from_secs(60);

/// Whether machines can run here; says so if not.
fn possible() -> bool {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    lab::real_root_for(&format!("{test}, on a machine with systemd"))
}

fn lab() -> Lab {
    Lab::builder().nodes(2).without_flanneld().build().unwrap()
}

/// Cgroups of machines of process `pid`, in whatever hierarchy.
fn cgroups(pid: u32) -> Vec<String> {
    let prefix = format!("flannel-lab-{pid}-");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let unified = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (at, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| at.to_string())
    });
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::"));
    let dir = format!(
        "{}{}",
        unified.expect("a cgroup2 mount"),
        own.expect("a cgroup2 membership")
    );
    let entries = fs::read_dir(&dir).unwrap().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

#[test]
fn is_a_machine_of_its_own() {
    if !possible() {
        return;
    }
    let lab = lab();
    let machine = Machine::boot(lab.node(1)).unwrap();
    assert_eq!(machine.exec(["cat", "/proc/1/comm"]).unwrap(), "systemd\n");
    assert_eq!(machine.exec(["uname", "-n"]).unwrap(), "n1\n");
    assert!(
        machine
            .read("/etc/os-release")
            .unwrap()
            .contains("bookworm")
    );

    // Its network is the node's; the other node answers, and its sysctls can be set.
    let eth0 = machine.exec(["ip", "-br", "address", "show", "eth0"]);
    assert!(eth0.unwrap().contains("192.168.78.1/24"));
    let peer = lab.node(2).ipv4().to_string();
    machine.exec(["ping", "-c1", "-W5", &peer]).unwrap();
    machine
        .exec(["sysctl", "-w", "net.ipv4.ip_forward=0"])
        .unwrap();
    assert_eq!(
        lab.node(1)
            .exec(["cat", "/proc/sys/net/ipv4/ip_forward"])
            .unwrap(),
        "0\n"
    );
    let swappiness = fs::read_to_string("/proc/sys/vm/swappiness").unwrap();
    let set = format!("vm.swappiness={}", swappiness.trim());
    let refused = machine
        .exec(["sysctl", "-w", &set])
        .unwrap_err()
        .to_string();
    assert!(refused.contains("vm.swappiness"), "{refused}");

    // Its files are its own.
    machine
        .write(
            "/etc/systemd/system/hello.service",
            "[Service]\nExecStart=/usr/local/bin/hello\n",
        )
        .unwrap();
    let script = std::env::temp_dir().join(format!("lab-hello-{}", std::process::id()));
    fs::write(&script, "#!/bin/sh\necho hello from $(uname -n)\n").unwrap();
    Command::new("chmod")
        .arg("755")
        .arg(&script)
        .status()
        .unwrap();
    machine.copy_in(&script, "/usr/local/bin/hello").unwrap();
    fs::remove_file(&script).unwrap();
    machine.exec(["systemctl", "start", "hello"]).unwrap();
    wait_for("the unit's output is in the journal", SOON, || {
        let journal = machine.journal("hello").map_err(|e| e.to_string())?;
        match journal.contains("hello from n1") {
            true => Ok(()),
            false => Err(journal),
        }
    })
    .unwrap();
    assert!(!Path::new("/usr/local/bin/hello").exists());
    let root = lab::debian_root(lab::Debian::Bookworm).unwrap();
    assert!(!root.join("usr/local/bin/hello").exists());

    // Nothing of our environment is in its programs'.
    let environment = machine.exec(["env"]).unwrap();
    assert!(!environment.contains("CARGO"), "{environment}");
}

#[test]
fn several_at_once_then_nothing() {
    if !possible() {
        return;
    }
    let lab = lab();
    let machines: Vec<Machine> = lab
        .nodes()
        .iter()
        .map(|node| Machine::boot(node).unwrap())
        .collect();
    let ids = machines.iter().map(|m| m.read("/etc/machine-id").unwrap());
    assert_eq!(ids.collect::<BTreeSet<String>>().len(), 2);
    // Only this test has a second node.
    let seconds = || {
        cgroups(std::process::id())
            .iter()
            .filter(|c| c.ends_with("-n2"))
            .count()
    };
    assert_eq!(seconds(), 1);
    drop(machines);
    assert_eq!(seconds(), 0);
}

/// Not a test: what the test below runs as another process.
#[test]
#[ignore = "run by the other tests"]
fn holder() {
    let lab = lab();
    let machine = Machine::boot(lab.node(1)).unwrap();
    println!("\nbooted {}", machine.name());
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
        .find(|line| line.as_ref().is_ok_and(|l| l.starts_with("booted")))
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
