//! Nothing outlives a lab, in whatever way its process ends.

#![allow(unsafe_code, reason = "signals")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use lab::{Handles, Lab, StoreKind, SubnetEnv, wait_for};

/// A killed lab's processes are buried by the machine's first process, which may take its time.
const SOON: Duration = Duration::from_secs(60);

/// A lab with all that can be left behind: nodes, pods, etcd, a process that ignores `SIGTERM`.
fn full_lab(file: Option<&str>) -> Lab {
    let builder = Lab::builder()
        .nodes(2)
        .without_flanneld()
        .store(StoreKind::Etcd { tls: true });
    let lab = match file {
        Some(file) => builder.unlink_at_end(file).build().unwrap(),
        None => builder.build().unwrap(),
    };
    let env = "FLANNEL_SUBNET=10.9.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    lab.node(1)
        .add_pods_from(&SubnetEnv::parse(env).unwrap(), 2)
        .unwrap();
    // Its shell ends, it stays: nobody's child.
    lab.node(1)
        .exec([
            "sh",
            "-c",
            "trap '' TERM INT HUP; setsid sleep 1000 >/dev/null 2>&1 &",
        ])
        .unwrap();
    lab
}

/// The kernel's names of all namespaces of a lab: `net:[4026532247]`.
fn namespaces(handles: &Handles) -> BTreeSet<String> {
    let link = |path: String| fs::read_link(path).unwrap().to_string_lossy().into_owned();
    let fds = handles.places.values().flat_map(|p| [p.net, p.mnt]);
    let mut all: BTreeSet<String> = fds
        .map(|fd| link(format!("/proc/{}/fd/{fd}", handles.pid)))
        .collect();
    all.insert(link(format!("/proc/{}/ns/pid", handles.guard)));
    assert_eq!(
        all.len(),
        9,
        "networks: fabric, 2 nodes, 2 pods; files: fabric, 2 nodes; processes: {all:?}"
    );
    all
}

/// Who still holds one of `namespaces`, as a member or by a descriptor.
fn holders(namespaces: &BTreeSet<String>) -> Vec<String> {
    let mut holders = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        for dir in ["ns", "fd"] {
            let links = fs::read_dir(process.path().join(dir))
                .into_iter()
                .flatten()
                .flatten();
            for link in links {
                let to = fs::read_link(link.path()).unwrap_or_default();
                if namespaces.contains(&*to.to_string_lossy()) {
                    let command =
                        fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
                    holders.push(format!(
                        "{} {}: {}",
                        link.path().display(),
                        to.display(),
                        command.replace('\0', " ")
                    ));
                }
            }
        }
    }
    holders
}

fn nothing_is_left(namespaces: &BTreeSet<String>) {
    wait_for(
        "nobody holds a namespace of the lab",
        SOON,
        || match holders(namespaces) {
            left if left.is_empty() => Ok(()),
            left => Err(left.join("\n")),
        },
    )
    .unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(" lab "),
        "a mount of the lab on this machine:\n{mounts}"
    );
    assert!(!std::path::Path::new("/run/lab").exists());
}

#[test]
fn after_drop_and_after_panic() {
    let lab = full_lab(None);
    let names = namespaces(&lab.handles());
    assert!(!holders(&names).is_empty());
    drop(lab);
    nothing_is_left(&names);

    let (send, receive) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let lab = full_lab(None);
        send.send(namespaces(&lab.handles())).unwrap();
        panic!("as a failing test does");
    });
    let names = receive.recv().unwrap();
    assert!(panicked.join().is_err());
    nothing_is_left(&names);
}

/// Not a test: what the tests below run as another process. Tells where its lab is and waits.
#[test]
#[ignore = "run by the other tests"]
fn holder() {
    // A background job of a script is started with SIGINT ignored, and its children inherit that.
    // SAFETY: a plain system call; no handler of ours is replaced.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    let file = std::env::var("LAB_TEST_FILE").ok();
    let lab = full_lab(file.as_deref());
    lab.must_ping().unwrap();
    println!(
        "\nhandles {}",
        serde_json::to_string(&lab.handles()).unwrap()
    );
    let _ = std::io::stdin().lines().next();
}

/// Runs `holder` by way of `command` and waits until it has its lab. Its output must be kept open.
fn hold(command: &mut Command) -> (Child, Handles, Lines<BufReader<ChildStdout>>) {
    command.args(["holder", "--exact", "--ignored", "--nocapture"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let handles = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let json = line.strip_prefix("handles ")?;
        Some(serde_json::from_str(json).unwrap())
    });
    let handles = handles.expect("the holder failed: see its message above");
    (child, handles, lines)
}

#[test]
fn after_kill_9_and_after_ctrl_c() {
    for (i, signal) in [libc::SIGKILL, libc::SIGINT].into_iter().enumerate() {
        let file = std::env::temp_dir().join(format!("lab-leftover-{}-{i}", std::process::id()));
        fs::write(&file, "").unwrap();
        let exe = std::env::current_exe().unwrap();
        let (mut child, handles, _output) = hold(Command::new(exe).env("LAB_TEST_FILE", &file));
        let names = namespaces(&handles);
        // SAFETY: a plain system call, to our own child.
        assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
        let status = child.wait().unwrap();
        assert!(!status.success());
        nothing_is_left(&names);
        wait_for("the file is gone", SOON, || {
            if file.exists() {
                Err("still there")
            } else {
                Ok(())
            }
        })
        .unwrap();
    }
}

#[test]
fn not_root() {
    // By descriptor: nobody need not be able to walk to where this program lies.
    let exe = fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let fd = exe.as_raw_fd();
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", &format!("/proc/self/fd/{fd}")])
        .current_dir("/");
    if nix_is_root() {
        command.uid(65534).gid(65534);
    }
    // SAFETY: one system call between fork and exec: the descriptor stays open over the exec.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(fd, libc::F_SETFD, 0) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        })
    };
    let (mut child, handles, _output) = hold(&mut command);
    let status = fs::read_to_string(format!("/proc/{}/status", handles.pid)).unwrap();
    assert!(
        !status.contains("\nUid:\t0\t"),
        "it should not be the machine's root:\n{status}"
    );
    let names = namespaces(&handles);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    nothing_is_left(&names);
}

fn nix_is_root() -> bool {
    // SAFETY: cannot fail.
    unsafe { libc::geteuid() == 0 }
}
