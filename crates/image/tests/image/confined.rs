//! The image's flanneld as a pod runs it: its root is the image, read-only, and of root's capabilities it has two.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use lab::{Lab, Node, StoreKind, wait_for};
use serde_json::json;
use tempfile::TempDir;

use crate::{image, output, unpack};

const SOON: Duration = Duration::from_secs(30);
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
/// The two, as `/proc/PID/status` shows them.
const TWO: &str = "0000000000003000";

/// All capabilities but these, by number, as `capsh --drop` takes them.
fn all_but(kept: &[u32]) -> String {
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
    let all = 0..=last.trim().parse().unwrap();
    let dropped = all
        .filter(|c| !kept.contains(c))
        .map(|c: u32| c.to_string());
    dropped.collect::<Vec<_>>().join(",")
}

/// A directory of programs for a lab whose `flanneld` is the image's, confined.
fn programs() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    unpack(&image(), &root);
    // Where a runtime mounts what the manifest names; and the lab's leases.
    fs::create_dir_all(root.join("run/lab")).unwrap();
    fs::write(root.join("run/xtables.lock"), "").unwrap();
    let script = format!(
        r#"#!/bin/sh
exec unshare --mount --propagation=private /bin/sh -euc '
root=$1
shift
mount --bind "$root" "$root"
for dir in proc sys dev run/lab; do mount --rbind "/$dir" "$root/$dir"; done
mkdir -p /run/flannel
: >>/run/xtables.lock
for file in run/flannel run/xtables.lock; do mount --bind "/$file" "$root/$file"; done
mount --bind "$root/proc/sys" "$root/proc/sys"
for dir in "" /proc/sys; do mount -o remount,bind,ro "$root$dir"; done
exec capsh --quiet --chroot="$root" --drop={} --no-new-privs --shell=/opt/bin/flanneld -- "$@"
' sh {} "$@"
"#,
        all_but(&[NET_ADMIN, NET_RAW]),
        root.display()
    );
    let flanneld = dir.path().join("flanneld");
    fs::write(&flanneld, script).unwrap();
    fs::set_permissions(&flanneld, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// That its flanneld has no more rights than it should.
fn confined(node: &Node) {
    let pid = node.flanneld().pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = |key: &str| {
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {key} in {status}"))
            .trim()
    };
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(value(set), TWO, "{set}");
    }
    assert_eq!((value("Name"), value("NoNewPrivs")), ("flanneld", "1"));
    let refused = fs::write(format!("/proc/{pid}/root/etc/anything"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

fn lab(programs: &TempDir, nftables: bool) -> Lab {
    let lab = Lab::builder()
        .nodes(2)
        .dual()
        .store(StoreKind::Directory)
        .config("EnableNFTables", json!(nftables))
        .flanneld_args(["-ip-masq", "-iptables-resync=1"])
        .bin_dir(programs.path())
        .build();
    lab.unwrap()
}

/// Waits for rules of ours that `show` prints, for both families.
fn rules(node: &Node, show: &str, needle: &str) {
    wait_for("the traffic rules stand", SOON, || {
        let shown = node.exec(["sh", "-c", show]).unwrap();
        if shown.matches(needle).count() >= 2 {
            Ok(())
        } else {
            Err(shown)
        }
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", node.flanneld().log_tail(20)));
}

#[test]
fn two_capabilities_and_a_read_only_root_are_enough() {
    let programs = programs();
    let masquerade = "-A FLANNEL-POSTRTG";
    {
        let lab = lab(&programs, false);
        // One of the two uses the old variant, whose lock is a file of the host.
        let hint =
            "for t in iptables ip6tables; do $t-legacy -t mangle -N KUBE-IPTABLES-HINT; done";
        lab.node(2).exec(["sh", "-c", hint]).unwrap();
        lab.start().unwrap();
        lab.wait_mesh(SOON).unwrap();
        lab.nodes().iter().for_each(confined);
        rules(
            lab.node(1),
            "iptables-nft-save -t nat; ip6tables-nft-save -t nat",
            masquerade,
        );
        rules(
            lab.node(2),
            "iptables-legacy-save -t nat; ip6tables-legacy-save -t nat",
            masquerade,
        );

        // Broken, it mends: the device, and with it all that was on it.
        lab.node(1)
            .exec(["ip", "link", "delete", "flannel.1"])
            .unwrap();
        lab.node(1)
            .exec(["iptables-nft", "-t", "nat", "-F", "FLANNEL-POSTRTG"])
            .unwrap();
        lab.wait_mesh(SOON).unwrap();
        rules(
            lab.node(1),
            "iptables-nft-save -t nat; ip6tables-nft-save -t nat",
            masquerade,
        );
    }
    let lab = lab(&programs, true);
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
    lab.nodes().iter().for_each(confined);
    rules(lab.node(1), "nft list ruleset", "chain postrtg");
}

/// Runs a program of the image in the tree `root`, without any capability.
fn in_the_image(root: &Path, program: &str, args: &[&str]) -> Output {
    let script = "mount --bind /proc \"$1/proc\" && shift && exec capsh \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--propagation=private",
            "sh",
            "-euc",
            script,
            "sh",
        ])
        .arg(root)
        .arg("--quiet")
        .arg(format!("--chroot={}", root.display()))
        .arg(format!("--drop={}", all_but(&[])))
        .args(["--no-new-privs", &format!("--shell={program}"), "--"])
        .args(args);
    output(&mut command)
}

/// What a program of the image printed, which must succeed.
fn said(root: &Path, program: &str, args: &[&str]) -> String {
    let output = in_the_image(root, program, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_plugin_is_installed_without_any_capability() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    unpack(&image(), &root);
    let conf = root.join("etc/cni/net.d/10-flannel.conflist");
    fs::write(&conf, "{}").unwrap();
    symlink("/nowhere", root.join("opt/cni/bin/flannel")).unwrap();
    let install = || {
        let withdraw = "--withdraw-conf=/etc/cni/net.d/10-flannel.conflist";
        said(&root, "/opt/bin/flannelctl", &["install", withdraw])
    };
    assert!(install().contains("removed /etc/cni/net.d/10-flannel.conflist"));
    assert!(!conf.exists());
    let [from, to] =
        ["opt/bin/flannel", "opt/cni/bin/flannel"].map(|f| fs::read(root.join(f)).unwrap());
    assert!(from == to);
    assert!(install().contains("up to date"));
}

/// What upstream's manifests of all times run in their init containers.
#[test]
fn it_answers_to_the_names_of_upstream_s_programs() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    unpack(&image(), &root);
    let file = |path: &str| fs::read(root.join(path)).unwrap();
    // A key of a ConfigMap is a link in a pod.
    fs::write(root.join("etc/kube-flannel/data"), "{}").unwrap();
    symlink("data", root.join("etc/kube-flannel/cni-conf.json")).unwrap();
    let conf = [
        "/etc/kube-flannel/cni-conf.json",
        "/etc/cni/net.d/10-flannel.conflist",
    ];

    said(
        &root,
        "/bin/cp",
        &["-f", "/flannel", "/opt/cni/bin/flannel"],
    );
    assert!(file("opt/bin/flannel") == file("opt/cni/bin/flannel"));
    said(&root, "/opt/bin/install-conf", &conf);
    assert_eq!(file("etc/cni/net.d/10-flannel.conflist"), b"{}");
    fs::write(root.join("etc/kube-flannel/data"), "{ }").unwrap();
    said(&root, "/usr/bin/cp", &["-f", conf[0], conf[1]]);
    assert_eq!(file("etc/cni/net.d/10-flannel.conflist"), b"{ }");
    // Nothing else is left in the host's directories.
    assert_eq!(fs::read_dir(root.join("etc/cni/net.d")).unwrap().count(), 1);
    let script = String::from_utf8(file("opt/bin/mk-docker-opts.sh")).unwrap();
    assert!(script.starts_with("#!/bin/sh"));

    let refused = in_the_image(&root, "/bin/cp", &["-r", "/etc", "/opt/cni/bin"]);
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.starts_with("cp: option -r"), "{why}");
    // What is only for workstations is not in it.
    let lab = in_the_image(&root, "/opt/bin/flannelctl", &["lab", "status"]);
    assert_eq!(lab.status.code(), Some(2));
}

/// `kubectl exec POD -- flannelctl check`: with the rights of the pod, on a node where nothing is wrong.
#[test]
fn check_reports_no_fault_inside_a_pod_of_a_healthy_node() {
    let programs = programs();
    let lab = lab(&programs, false);
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
    let node = lab.node(1);
    let wrapper = fs::read_to_string(programs.path().join("flanneld")).unwrap();
    let check = programs.path().join("check");
    let wrapper = wrapper.replace("--shell=/opt/bin/flanneld", "--shell=/opt/bin/flannelctl");
    fs::write(&check, wrapper).unwrap();
    fs::set_permissions(&check, fs::Permissions::from_mode(0o755)).unwrap();
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let check = check.to_str().unwrap();
    let found = node
        .output([
            "env",
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            check,
            "check",
            "--json",
            "--",
            &store,
        ])
        .unwrap();
    let text = String::from_utf8_lossy(&found.stdout);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| {
        panic!("{e}: {text} {}", String::from_utf8_lossy(&found.stderr));
    });
    assert_eq!(found["fail"], 0, "{found:#}");
    let checks = found["checks"].as_array().unwrap();
    for about in ["kernel", "cni"] {
        let skipped = |c: &&serde_json::Value| c["level"] == "skip" && c["about"] == about;
        assert!(checks.iter().any(|c| skipped(&c)), "{about}: {found:#}");
    }
    // What the tools of the image show of the host's rules.
    let read = |c: &serde_json::Value| c["about"] == "firewall" && c["level"] == "ok";
    assert!(checks.iter().any(read), "{found:#}");
}
