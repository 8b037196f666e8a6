//! Container runtimes take the archive, under the name by which a manifest asks for the image.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lab::{Error, Lab, SHARED_DIR, StoreKind, wait_for};

use crate::{image, must, output, unpack};

const SOON: Duration = Duration::from_secs(60);

/// A containerd of its own, with all of its files in a directory.
struct Containerd {
    process: Child,
    dir: tempfile::TempDir,
}

impl Containerd {
    fn start() -> Containerd {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\n  address = {:?}\n[ttrpc]\n  address = {:?}\n",
            path("root"),
            path("state"),
            path("socket"),
            path("ttrpc"),
        );
        fs::write(path("config.toml"), config).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        // Mounts of its own, which the root of a user namespace needs in order to mount at all.
        let process = Command::new("unshare")
            .args(["--mount", "--propagation=private", "containerd"])
            .arg(format!("--config={}", path("config.toml")))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd: scripts/setup test installs it");
        let containerd = Containerd { process, dir };
        wait_for("containerd answers", SOON, || {
            let answer = output(containerd.ctr().arg("version"));
            if answer.status.success() {
                Ok(())
            } else {
                Err(containerd.log())
            }
        })
        .unwrap();
        containerd
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.dir.path().join("socket"))
            .args(["--namespace", "k8s.io"]);
        command
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn containerd_imports_it_under_the_name_that_a_kubelet_asks_for() {
    let containerd = Containerd::start();
    // `native`: plain directories, which every file system can do.
    must(
        containerd
            .ctr()
            .args(["images", "import", "--snapshotter=native"])
            .arg(image()),
    );
    let listed = must(containerd.ctr().args(["images", "list", "--quiet"]));
    // The name has a registry, so nothing is added to it, nor to a kubelet's request.
    assert_eq!(listed.trim(), crate::name());
    let snapshots = must(
        containerd
            .ctr()
            .args(["snapshots", "--snapshotter=native", "list"]),
    );
    assert_eq!(
        snapshots.matches("Committed").count(),
        2,
        "two layers, unpacked: {snapshots}"
    );
    let unpacked = containerd
        .dir
        .path()
        .join("root/io.containerd.snapshotter.v1.native/snapshots");
    let holds_flanneld = |dir: fs::DirEntry| dir.path().join("opt/bin/flanneld").is_file();
    assert!(
        fs::read_dir::<&Path>(&unpacked)
            .unwrap()
            .any(|dir| holds_flanneld(dir.unwrap()))
    );
}

/// As the DaemonSet's pod: in the host's network, root read-only, two capabilities, the runtime's seccomp profile.
#[test]
fn docker_loads_it_and_runs_flanneld_as_a_pod_does() {
    let programs = tempfile::tempdir().unwrap();
    unpack(&image(), programs.path());
    let lab = Lab::builder()
        .nodes(2)
        .store(StoreKind::Directory)
        .bin_dir(programs.path().join("opt/bin"))
        .build()
        .unwrap();
    lab.node(2).flanneld().start_ready(SOON).unwrap();
    let node = lab.node(1);
    let docker = match node.docker() {
        Err(why @ Error::Needs(_)) => return lab::not_run("the image in docker", &why),
        docker => docker.unwrap(),
    };
    docker
        .start(&["--bridge=none", "--iptables=false", "--ip6tables=false"])
        .unwrap();
    docker
        .ctl(["load", "--input", image().to_str().unwrap()])
        .unwrap();
    let name = crate::name();
    node.exec([
        "sh",
        "-c",
        "mkdir -p /run/flannel && touch /run/xtables.lock",
    ])
    .unwrap();
    let store = format!("{SHARED_DIR}/store");
    docker
        .ctl([
            "run",
            "--detach",
            "--name=flanneld",
            "--network=host",
            "--read-only",
            "--cap-drop=ALL",
            "--cap-add=NET_ADMIN",
            "--cap-add=NET_RAW",
            "--security-opt=no-new-privileges",
            "--volume=/run/flannel:/run/flannel",
            "--volume=/run/xtables.lock:/run/xtables.lock",
            &format!("--volume={store}:{store}"),
            &name,
            &format!("--store-dir={store}"),
            "--ip-masq",
        ])
        .unwrap();
    let log = || docker.ctl(["logs", "flanneld"]);
    wait_for("flanneld is up in its container", SOON, || {
        let rules = node
            .exec([
                "sh",
                "-c",
                "iptables-save -t nat | grep -c FLANNEL-POSTRTG || true",
            ])
            .unwrap();
        let up = node.subnet_env().is_ok() && rules.trim() != "0";
        if up {
            Ok(())
        } else {
            Err(format!("{rules}; {:?}", log()))
        }
    })
    .unwrap();
    for node in lab.nodes() {
        node.add_pods(1).unwrap();
    }
    lab.wait_mesh(SOON)
        .unwrap_or_else(|e| panic!("{e}\n{:?}", log()));
}
