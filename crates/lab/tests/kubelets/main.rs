//! Nodes with real kubelets: what the tests of the manifest stand on must hold.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod families;
mod k3s;
mod looking;
mod manifest;
mod pods;
mod upstreams;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Error, Lab, LabBuilder, wait_for};
use serde_json::json;

const SOON: Duration = Duration::from_secs(90);

/// A cluster of `nodes` with flannel's image and without flannel; `None`, and why for everybody to see, where it
/// cannot be had.
fn cluster(what: &str, nodes: usize, shape: impl FnOnce(LabBuilder) -> LabBuilder) -> Option<Lab> {
    let builder = Lab::builder().nodes(nodes).kubelets();
    let builder = shape(builder).image(lab::flannel_image().unwrap());
    match builder.build() {
        Err(why @ Error::Needs(_)) => {
            lab::not_run(what, &why);
            None
        }
        lab => Some(lab.unwrap()),
    }
}

/// A node whose pods have a plain bridge for a network; `None`, and why for everybody to see, where
/// it cannot be had.
fn node_with_bridge(what: &str) -> Option<Lab> {
    let lab = match Lab::builder().nodes(1).kubelets().build() {
        Err(why @ Error::Needs(_)) => {
            lab::not_run(what, &why);
            return None;
        }
        lab => lab.unwrap(),
    };
    let kube = lab.kube().unwrap();
    let cidr = &kube.wait_pod_cidrs("n1", SOON).unwrap()[0];
    let bridge = json!({
        "cniVersion": "0.3.1", "name": "lab", "plugins": [
            {"type": "bridge", "bridge": "lab0", "isGateway": true,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": cidr}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        ],
    });
    let ready = kube.node("n1").unwrap()["status"]["conditions"].to_string();
    assert!(ready.contains("cni plugin not initialized"), "{ready}");
    let write = format!("cat >/etc/cni/net.d/10-lab.conflist <<'END'\n{bridge}\nEND");
    lab.node(1).exec(["sh", "-c", &write]).unwrap();
    kube.wait_nodes_ready(SOON).unwrap();
    Some(lab)
}

#[test]
fn pods_run_and_the_machine_does_not_change() {
    let Some(lab) = node_with_bridge("pods of a kubelet") else {
        return;
    };
    let (kube, n1) = (lab.kube().unwrap(), lab.node(1));
    kube.create_pod("one", "n1", &[], &json!({})).unwrap();
    let pod = kube.wait_pod_ready("one", SOON).unwrap();
    let ip = pod["status"]["podIP"].as_str().unwrap();
    n1.exec(["ping", "-c1", "-W1", ip]).unwrap();
    let one = lab.kube_pod(&pod).unwrap();
    let addresses = one.exec(["ip", "addr", "show", "eth0"]).unwrap();
    assert!(addresses.contains(ip), "{addresses}");
    let said = kube.kubectl(["exec", "one", "--", "hostname"]).unwrap();
    assert_eq!(said, "one\n");

    // It outlives its kubelet, which finds it again.
    n1.kubelet().unwrap().kill_kubelet().unwrap();
    n1.exec(["ping", "-c1", "-W1", ip]).unwrap();
    n1.kubelet().unwrap().start_kubelet().unwrap();
    wait_for("kubelet answers", SOON, || {
        kube.kubectl(["exec", "one", "--", "true"])
    })
    .unwrap();
    kube.delete_pod("one").unwrap();
    wait_for("the pod is gone", SOON, || match lab.kube_pod(&pod) {
        Ok(_) => Err("a process of it is there"),
        Err(_) => Ok(()),
    })
    .unwrap();

    // What it wrote is its own.
    n1.exec(["test", "-e", "/etc/cni/net.d/10-lab.conflist"])
        .unwrap();
    for path in [
        "/etc/cni/net.d/10-lab.conflist",
        "/var/lib/kubelet/pki",
        "/usr/libexec/kubernetes",
    ] {
        assert!(!Path::new(path).exists(), "{path} is on this machine");
    }
    let said = n1.exec(["touch", "/usr/here"]).unwrap_err().to_string();
    assert!(said.contains("Read-only"), "{said}");
}

/// The cgroups that labs of process `pid` have, in any hierarchy.
fn cgroups(pid: u32) -> Vec<PathBuf> {
    let mark = format!("flannel-lab-{pid}-");
    let mut found = Vec::new();
    let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = left.pop() {
        let below = fs::read_dir(&dir).into_iter().flatten().flatten();
        for entry in below.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())) {
            match entry.file_name().to_string_lossy().starts_with(&mark) {
                true => found.push(entry.path()),
                false => left.push(entry.path()),
            }
        }
    }
    found
}

/// Not a test: what the test below runs as another process. Tells that it has a lab, and waits.
#[test]
#[ignore = "run by the other test"]
fn holder() {
    let Some(lab) = node_with_bridge("a kubelet whose lab is killed") else {
        return;
    };
    let kube = lab.kube().unwrap();
    kube.create_pod("one", "n1", &[], &json!({})).unwrap();
    kube.wait_pod_ready("one", SOON).unwrap();
    println!("\nready");
    let _ = std::io::stdin().lines().next();
}

#[test]
fn nothing_is_left_whatever_the_end() {
    for killed in [true, false] {
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["holder", "--exact", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        if !lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line == "ready")
        {
            assert!(holder.wait().unwrap().success(), "see its message above");
            return lab::not_run(
                "the end of a lab with kubelets",
                &Error::Needs("see above".into()),
            );
        }
        let pid = holder.id();
        let held = cgroups(pid);
        assert!(!held.is_empty());
        if killed {
            holder.kill().unwrap();
        } else {
            drop(holder.stdin.take());
        }
        assert_eq!(holder.wait().unwrap().success(), !killed);
        wait_for("its cgroups are gone", SOON, || match cgroups(pid) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        })
        .unwrap();
        // A process that was left over would hold its cgroup.
    }
}
