//! The image's flanneld as a pod runs it: its root is the image, read-only, and of root's capabilities it has two.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::time::Duration;

use lab::{Lab, Node, StoreKind, wait_for};
use serde_json::json;
use tempfile::TempDir;

use crate::{image, must, unpack};

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

#[test]
fn the_plugin_is_installed_without_any_capability() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    unpack(&image(), &root);
    let conf = root.join("etc/cni/net.d/10-flannel.conflist");
    fs::write(&conf, "{}").unwrap();
    symlink("/nowhere", root.join("opt/cni/bin/flannel")).unwrap();
    let install = || {
        let script = "mount --bind /proc \"$1/proc\" && shift && exec capsh \"$@\"";
        must(
            Command::new("unshare")
                .args([
                    "--mount",
                    "--propagation=private",
                    "sh",
                    "-euc",
                    script,
                    "sh",
                ])
                .arg(&root)
                .arg("--quiet")
                .arg(format!("--chroot={}", root.display()))
                .arg(format!("--drop={}", all_but(&[])))
                .args([
                    "--no-new-privs",
                    "--shell=/opt/bin/flannelctl",
                    "--",
                    "install",
                ])
                .arg("--withdraw-conf=/etc/cni/net.d/10-flannel.conflist"),
        )
    };
    assert!(install().contains("removed /etc/cni/net.d/10-flannel.conflist"));
    assert!(!conf.exists());
    let [from, to] =
        ["opt/bin/flannel", "opt/cni/bin/flannel"].map(|f| fs::read(root.join(f)).unwrap());
    assert!(from == to);
    assert!(install().contains("up to date"));
}
