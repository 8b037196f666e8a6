//! `flannelctl lab` and `flannelctl demo` as a person uses them, with real daemons.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The machine's first process buries the dead, and may take its time.
const SOON: Duration = Duration::from_secs(60);

/// A directory for the files of labs, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir =
            std::env::temp_dir().join(format!("flannelctl-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannelctl"));
        command
            .args(args)
            .env("FLANNEL_LAB_DIR", &self.0)
            .env_remove("FLANNEL_LAB")
            .stdin(Stdio::null());
        command
    }

    /// Runs it to the end.
    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what must succeed; returns its standard output.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "{args:?}: {}\n{}",
            output.status,
            both(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail with `status`; returns its standard error.
    fn fails(&self, status: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{args:?}: {}",
            both(&output)
        );
        String::from_utf8(output.stderr).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().flatten();
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Processes that were told of this directory.
    fn processes(&self) -> Vec<String> {
        let needle = self.0.to_str().unwrap();
        let commands = fs::read_dir("/proc").unwrap().flatten();
        let commands = commands.filter_map(|p| fs::read_to_string(p.path().join("cmdline")).ok());
        commands
            .filter(|command| command.contains(needle))
            .collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = self.run(&["lab", "down"]);
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn both(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn a_wrong_command_line_is_refused_by_name() {
    let dir = Dir::new("usage");
    dir.fails(2, &[]);
    assert!(
        dir.fails(2, &["lab", "up", "--nosuch"])
            .contains("--nosuch")
    );
    assert!(
        dir.fails(2, &["lab", "up", "--nodes=0"])
            .contains("--nodes")
    );
    assert!(
        dir.fails(2, &["lab", "up", "--store=paper"])
            .contains("directory, etcd, etcd-tls")
    );
    assert!(
        dir.fails(2, &["lab", "up", "--backend=pigeon"])
            .contains("host-gw")
    );
    assert!(
        dir.fails(2, &["lab", "up", "--backend={\"Port\":1}"])
            .contains("Type")
    );
    assert!(
        dir.fails(2, &["lab", "down", "--name=../x"])
            .contains("--name")
    );
    dir.fails(2, &["lab", "run"]);
    assert!(
        dir.fails(1, &["lab", "down", "--name=ghost"])
            .contains("there is no lab called ghost")
    );
    assert!(dir.ok(&["lab", "status"]).contains("no lab"));
    assert!(dir.ok(&["--help"]).contains("lab"));
}

#[test]
fn a_lab_goes_up_is_used_and_goes_down() {
    let dir = Dir::new("up");
    let told = dir.ok(&["lab", "up", "--nodes=2", "--store=etcd-tls", "--dual"]);
    assert!(told.contains("lab is up"), "{told}");
    assert!(
        dir.fails(1, &["lab", "up"])
            .contains("there is a lab called lab already")
    );
    let status = dir.ok(&["lab", "status"]);
    let pod = status
        .lines()
        .find(|line| line.contains("n2-p1"))
        .unwrap_or_else(|| panic!("{status}"));
    let address = pod
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/24"))
        .unwrap();
    assert!(address.starts_with("172.30."), "{status}");

    dir.ok(&["lab", "exec", "n1-p1", "ping", "-c1", "-W2", address]);
    assert!(
        dir.ok(&["lab", "exec", "n1", "ip", "route"])
            .contains("dev flannel.1 proto 241")
    );
    assert!(
        dir.ok(&["lab", "exec", "n1", "cat", "/run/flannel/subnet.env"])
            .contains("FLANNEL_IPV6_SUBNET=")
    );
    assert!(
        !dir.ok(&["lab", "exec", "fabric", "ip", "link"])
            .contains("flannel")
    );
    dir.fails(7, &["lab", "exec", "n1", "sh", "-c", "exit 7"]);
    assert!(
        dir.fails(1, &["lab", "exec", "n9", "true"])
            .contains("there are fabric, n1, n1-p1, n2, n2-p1")
    );

    dir.ok(&["lab", "down"]);
    assert_eq!(dir.files(), [""; 0]);
    assert_eq!(dir.processes(), [""; 0]);
}

#[test]
fn a_kubernetes_goes_up_and_goes_down() {
    let what = "flannelctl lab up --kube";
    if let Err(why) = lab::check_kubelets().and_then(|()| lab::kube_bin_dir()) {
        assert!(matches!(why, lab::Error::Needs(_)), "{why}");
        return lab::not_run(what, &why);
    }
    let dir = Dir::new("kube");
    let said = dir.fails(2, &["lab", "up", "--kube", "--store=etcd"]);
    assert!(said.contains("--store"), "{said}");
    let said = dir.fails(2, &["lab", "up", "--manifest=x.yml"]);
    assert!(said.contains("--kube"), "{said}");
    let image = lab::flannel_image().unwrap();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kube-flannel.yml");
    let (image, manifest) = (
        format!("--image={}", image.display()),
        format!("--manifest={}", manifest.display()),
    );
    dir.ok(&["lab", "up", "--kube", "--nodes=1", &image, &manifest]);
    let nodes = dir.ok(&[
        "lab",
        "exec",
        "fabric",
        "kubectl",
        "get",
        "nodes",
        "--no-headers",
    ]);
    assert!(
        nodes.starts_with("n1 ") && nodes.contains(" Ready "),
        "{nodes}"
    );
    // The node is a machine of its own.
    assert_eq!(dir.ok(&["lab", "exec", "n1", "hostname"]), "n1\n");
    let processes = dir.ok(&["lab", "exec", "n1", "ps", "-e", "-o", "comm"]);
    for process in ["containerd", "kubelet", "flanneld"] {
        assert!(processes.lines().any(|line| line == process), "{processes}");
    }
    assert!(dir.ok(&["lab", "status"]).contains("--kube"));
    dir.ok(&["lab", "down"]);
    assert!(dir.ok(&["lab", "status"]).contains("no lab"));
}

#[test]
fn a_killed_lab_leaves_nothing() {
    let dir = Dir::new("kill");
    dir.ok(&["lab", "up", "--nodes=1"]);
    let file = dir.0.join("lab.json");
    let running: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let number = |at: &str| running.pointer(at).unwrap().as_u64().unwrap();
    let (holder, guard) = (number("/handles/pid"), number("/handles/guard"));
    assert!(
        Command::new("kill")
            .args(["-9", &holder.to_string()])
            .status()
            .unwrap()
            .success()
    );
    let gone = || match (file.exists(), Path::new(&format!("/proc/{guard}")).exists()) {
        (false, false) => Ok(()),
        seen => Err(format!("file, guard: {seen:?}")),
    };
    lab::wait_for("file and guard are gone", SOON, gone).unwrap();
    assert!(dir.ok(&["lab", "status"]).contains("no lab"));
}

#[test]
fn of_several_that_build_one_name_at_once_one_gets_it() {
    let dir = Dir::new("race");
    let up = |_| {
        let mut command = dir.command(&["lab", "up", "--name=one", "--nodes=1"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let all: Vec<_> = (0..3).map(up).collect();
    let ended: Vec<Output> = all
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect();
    let (good, refused): (Vec<&Output>, Vec<&Output>) =
        ended.iter().partition(|output| output.status.success());
    assert_eq!(good.len(), 1, "{ended:?}");
    for output in refused {
        assert_eq!(output.status.code(), Some(1));
        let said = both(output);
        assert!(said.contains("there is a lab called one already"), "{said}");
    }
    let holders = || {
        let all = dir.processes();
        let holders = all.iter().filter(|command| command.contains("hold"));
        holders.count()
    };
    // The one that holds the lab, and its guard, which is its child.
    assert_eq!(holders(), 2);
    // `lab run` takes the same name only when it is free.
    let said = dir.fails(1, &["lab", "run", "--name=one", "--nodes=1", "--", "true"]);
    assert!(said.contains("there is a lab called one already"), "{said}");
    dir.ok(&["lab", "exec", "--name=one", "n1", "true"]);
    dir.ok(&["lab", "down", "--name=one"]);
    assert_eq!(dir.files(), [""; 0]);
    assert_eq!(dir.processes(), [""; 0]);
    // One that cannot be built leaves the name free.
    dir.fails(
        1,
        &[
            "lab",
            "up",
            "--name=one",
            "--nodes=1",
            "--flanneld-arg=-nosuch",
        ],
    );
    assert_eq!(dir.files(), [""; 0]);
}

#[test]
fn a_lab_that_nobody_waits_for_is_not_kept() {
    let dir = Dir::new("abandoned");
    let mut up = dir
        .command(&["lab", "up", "--nodes=20"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line of progress: the lab is being built.
    let mut line = String::new();
    BufReader::new(up.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(!line.is_empty());
    assert!(
        !dir.processes().is_empty(),
        "the holder is told of the file"
    );
    up.kill().unwrap();
    up.wait().unwrap();
    let gone = || {
        if dir.processes().is_empty() {
            Ok(())
        } else {
            Err(format!("{:?}", dir.processes()))
        }
    };
    lab::wait_for("the holder is gone", SOON, gone).unwrap();
    lab::wait_for("the file is gone", SOON, || {
        if dir.files().is_empty() {
            Ok(())
        } else {
            Err("there")
        }
    })
    .unwrap();
}

#[test]
fn somebody_who_is_not_root_runs_a_lab() {
    // Programs and files where anybody can reach them.
    let dir = Dir::new("nobody");
    let bin = dir.0.join("bin");
    fs::create_dir(&bin).unwrap();
    let built = Path::new(env!("CARGO_BIN_EXE_flannelctl"))
        .parent()
        .unwrap();
    for program in ["flannelctl", "flanneld"] {
        fs::copy(built.join(program), bin.join(program)).expect("cargo build --workspace --bins");
    }
    let root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) && !lab::user_namespace();
    if root {
        chown(&dir.0, Some(65534), Some(65534)).unwrap();
    }
    let as_nobody = |script: &str| {
        let mut command = Command::new("sh");
        command
            .args(["-euc", script])
            .env("CTL", bin.join("flannelctl"))
            .current_dir("/");
        command
            .env_remove("XDG_RUNTIME_DIR")
            .env("TMPDIR", &dir.0)
            .env("FLANNEL_BIN_DIR", &bin);
        if root {
            command.uid(65534).gid(65534);
        }
        let output = command.output().unwrap();
        let told = both(&output);
        assert!(output.status.success(), "{told}");
        told
    };
    let beside = "$CTL lab status; $CTL lab exec n1 ip route";
    let told = as_nobody(&format!(
        "$CTL lab run --nodes=2 --name=mine -- sh -euc '{beside}'"
    ));
    assert!(told.contains("dev flannel.1 proto 241"), "{told}");
    assert!(told.contains("n2-p1    172.30."), "{told}");

    let told = as_nobody(&format!(
        "$CTL lab up --nodes=2; {beside}; $CTL lab down; $CTL lab status"
    ));
    assert!(told.contains("dev flannel.1 proto 241"), "{told}");
    assert!(told.contains("n2-p1    172.30."), "{told}");
    assert!(told.contains("no lab;"), "{told}");
}

#[test]
fn the_demo_works() {
    let dir = Dir::new("demo");
    let told = dir.ok(&["demo"]);
    assert!(told.contains("All of it worked"), "{told}");
    assert_eq!(told.matches("whole again after").count(), 3, "{told}");
    assert!(!told.contains('\x1b'), "no terminal, no colours:\n{told}");
}
