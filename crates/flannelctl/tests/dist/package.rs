//! The Debian package: installed, upgraded, removed and purged on a bare machine.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use flate2::read::MultiGzDecoder;
use lab::{Debian, Machine, StoreKind, SubnetEnv};

use crate::machines::{build, complaints, install, lab, next_package, package};
use crate::machines::{packages_for, possible, property};
use crate::{script, succeed};

/// Every file and directory of the machine, but for what dpkg and systemd keep books in.
fn files(machine: &Machine) -> Vec<String> {
    let list = machine
        .exec([
            "find",
            "/",
            "-xdev",
            "-not",
            "-path",
            "/var/lib/dpkg/*",
            "-not",
            "-path",
            "/var/log/*",
            "-not",
            "-path",
            "/root/*",
            "-not",
            "-path",
            "/var/cache/*",
            "-not",
            "-path",
            "/tmp/*",
            "-not",
            "-path",
            "/var/tmp/*",
            "-not",
            "-path",
            "/var/lib/systemd/*",
        ])
        .unwrap();
    let run = machine.exec(["find", "/run/flannel", "/run/systemd/system"]);
    let mut files: Vec<String> = list.lines().map(String::from).collect();
    files.extend(run.unwrap_or_default().lines().map(String::from));
    files.sort();
    files
}

#[test]
fn installed_upgraded_removed_purged() {
    life(Debian::Bookworm);
}

#[test]
fn installed_upgraded_removed_purged_on_debian_13() {
    life(Debian::Trixie);
}

fn life(release: Debian) {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Directory);
    let machine = Machine::boot_release(lab.node(1), release).unwrap();
    let os = machine.read("/etc/os-release").unwrap();
    assert!(os.contains(release.codename()), "{os}");
    let before = files(&machine);

    // Installed: all there, nothing runs, and nothing will at the next boot.
    install(&machine, package());
    assert_eq!(property(&machine, "flanneld", "ActiveState"), "inactive");
    assert_eq!(property(&machine, "flanneld", "UnitFileState"), "disabled");
    assert_eq!(machine.exec(["dpkg", "--verify", "flannel"]).unwrap(), "");
    let version = machine.exec(["/usr/sbin/flanneld", "-version"]).unwrap();
    assert!(version.contains("flannel-rs v"), "{version}");
    for plugin in ["/usr/lib/cni/flannel", "/opt/cni/bin/flannel"] {
        let versions = machine
            .exec([
                "sh",
                "-c",
                &format!("echo '{{}}' | CNI_COMMAND=VERSION {plugin}"),
            ])
            .unwrap();
        assert!(versions.contains("1.1.0"), "{plugin}: {versions}");
    }
    let lock = machine.exec(["stat", "-c", "%a %U", "/run/xtables.lock"]);
    assert_eq!(lock.unwrap(), "600 root\n");
    assert_eq!(
        machine
            .exec(["sysctl", "-n", "net.ipv4.ip_forward"])
            .unwrap(),
        "1\n"
    );

    // Enabled and running, then upgraded: the new program runs, the settings are the old ones.
    machine
        .write(
            "/etc/flannel/flanneld.env",
            "FLANNELD_STORE_DIR=/var/lib/flannel\n",
        )
        .unwrap();
    let config = r#"{"Network": "10.9.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    machine.write("/var/lib/flannel/config", config).unwrap();
    machine
        .exec(["systemctl", "enable", "--now", "flanneld"])
        .unwrap();
    let first = property(&machine, "flanneld", "MainPID");
    install(&machine, next_package());
    assert_eq!(property(&machine, "flanneld", "ActiveState"), "active");
    assert_eq!(property(&machine, "flanneld", "UnitFileState"), "enabled");
    assert_ne!(property(&machine, "flanneld", "MainPID"), first);
    let settings = machine.read("/etc/flannel/flanneld.env").unwrap();
    assert_eq!(settings, "FLANNELD_STORE_DIR=/var/lib/flannel\n");
    assert_eq!(complaints(&machine), [""; 0]);

    // Removed: stopped, settings and network stay.
    machine.exec(["dpkg", "--remove", "flannel"]).unwrap();
    assert_eq!(property(&machine, "flanneld", "ActiveState"), "inactive");
    machine.read("/etc/flannel/flanneld.env").unwrap();
    machine.exec(["ip", "link", "show", "flannel.1"]).unwrap();
    SubnetEnv::parse(&machine.read("/run/flannel/subnet.env").unwrap()).unwrap();
    let plugin = machine.exec(["test", "-L", "/opt/cni/bin/flannel"]);
    assert!(plugin.is_err(), "the plugin's link leads nowhere");

    // Purged: nothing of ours is left but the leases.
    let purged = machine.exec(["dpkg", "--purge", "flannel"]).unwrap();
    assert!(purged.contains("/var/lib/flannel"), "{purged}");
    machine.exec(["rm", "-r", "/var/lib/flannel"]).unwrap();
    let after = files(&machine);
    let more: Vec<_> = after.iter().filter(|f| !before.contains(f)).collect();
    let less: Vec<_> = before.iter().filter(|f| !after.contains(f)).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "left {more:?}, taken {less:?}"
    );
}

#[test]
fn somebody_elses_plugin_stays() {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Directory);
    let machine = Machine::boot(lab.node(1)).unwrap();
    machine
        .write("/opt/cni/bin/flannel", "another's\n")
        .unwrap();
    install(&machine, package());
    machine.exec(["dpkg", "--purge", "flannel"]).unwrap();
    assert_eq!(machine.read("/opt/cni/bin/flannel").unwrap(), "another's\n");
}

/// As while an image is made: a root without a running systemd.
#[test]
fn without_a_running_systemd() {
    if !possible() {
        return;
    }
    let lab = lab(StoreKind::Directory);
    let machine = Machine::boot(lab.node(1)).unwrap();
    machine.copy_in(package(), "/root/flannel.deb").unwrap();
    let script = "mount -t tmpfs none /run && dpkg -i /root/flannel.deb && test -L /opt/cni/bin/flannel && dpkg -P flannel";
    let said = machine
        .exec(["unshare", "--mount", "sh", "-ec", script])
        .unwrap();
    assert!(!said.contains("warning"), "{said}");
}

/// The directories of an archive whose mode is not 0755.
fn wrong_directories(archive: impl Read) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    // An apk is several archives, one after the other.
    archive.set_ignore_zeros(true);
    let mut wrong = Vec::new();
    let mut directories = 0;
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        if !entry.header().entry_type().is_dir() {
            continue;
        }
        directories += 1;
        let mode = entry.header().mode().unwrap();
        if mode != 0o755 {
            wrong.push(format!("{:o} {}", mode, entry.path().unwrap().display()));
        }
    }
    assert!(directories > 10, "{directories} directories");
    wrong
}

/// The archives that `tar` reads, and what an rpm says of itself.
#[test]
fn packages_of_other_distributions() {
    if !packages_for("packages of other distributions") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let notices = dir.path().join("notices");
    fs::write(&notices, "others' licences\n").unwrap();
    let out = dir.path().join("out");
    let paths = succeed(
        script("packages")
            .env("NOTICES", &notices)
            .arg("-o")
            .arg(&out)
            .args(["rpm", "apk", "archlinux", "tar"]),
    );
    let paths: Vec<&Path> = paths.lines().map(Path::new).collect();
    assert_eq!(paths.len(), 4, "{paths:?}");
    let starts = |path: &Path, magic: &[u8]| fs::read(path).unwrap().starts_with(magic);
    assert!(starts(paths[0], &[0xed, 0xab, 0xee, 0xdb]), "no rpm");
    assert!(
        starts(paths[2], &[0x28, 0xb5, 0x2f, 0xfd]),
        "not compressed by zstd"
    );
    let list = |path: &Path| succeed(Command::new("tar").arg("-tzf").arg(path));
    let (apk, tar) = (list(paths[1]), list(paths[3]));
    // The service of Alpine's init; the others have systemd's unit.
    assert!(apk.lines().any(|l| l == "etc/init.d/flanneld"), "{apk}");
    assert!(!tar.contains("init.d"), "{tar}");
    for file in [
        "usr/sbin/flanneld",
        "usr/bin/flannelctl",
        "usr/libexec/cni/flannel",
        "usr/share/doc/flannel/LICENSE",
        "usr/share/doc/flannel/THIRD-PARTY-NOTICES.gz",
    ] {
        assert!(apk.lines().any(|l| l == file), "{file} is not in {apk}");
        let ends = |l: &str| l.ends_with(&format!("/{file}"));
        assert!(tar.lines().any(ends), "{file} is not in {tar}");
    }
    // apk reads a mode with any other bit as 0, and pacman calls it wrong.
    let wrong = wrong_directories(MultiGzDecoder::new(fs::File::open(paths[1]).unwrap()));
    assert_eq!(wrong, [""; 0], "apk");
    let zstd = Command::new("zstd").arg("-dc").arg(paths[2]).output();
    let wrong = wrong_directories(zstd.unwrap().stdout.as_slice());
    assert_eq!(wrong, [""; 0], "the Arch package");
    assert!(
        [".post-install", ".post-upgrade", ".pre-deinstall"]
            .iter()
            .all(|script| apk.contains(script)),
        "{apk}"
    );
}

/// The service for OpenRC reads settings as systemd does: nothing in them is run.
#[test]
fn openrc_reads_the_same_settings() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("settings");
    let evil = dir.path().join("evil");
    let text = format!(
        "# comment\n; comment\nFLANNELD_OPTIONS=-v=2 -iface=eth0\nFLANNELD_IP_MASQ=\"true\"\n\
         not a variable\nFLANNELD_ETCD_PREFIX='/a b'\nFLANNELD_IFACE=$(touch {evil:?})\nFLANNELD_V=1"
    );
    fs::write(&settings, text).unwrap();
    let said = succeed(
        Command::new("sh")
            .arg("-ec")
            .arg(". \"$service\"; read_settings; echo \"$command_args\"; env")
            .env("service", crate::project().join("dist/openrc/flanneld"))
            .env("settings", &settings),
    );
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("-v=2 -iface=eth0"));
    let mut set: Vec<&str> = lines.filter(|l| l.starts_with("FLANNELD_")).collect();
    set.sort_unstable();
    let iface = format!("FLANNELD_IFACE=$(touch {evil:?})");
    assert_eq!(
        set,
        [
            "FLANNELD_ETCD_PREFIX=/a b",
            iface.as_str(),
            "FLANNELD_IP_MASQ=true",
            "FLANNELD_V=1"
        ]
    );
    assert!(!evil.exists());
}

#[test]
fn same_input_same_package() {
    if !packages_for("the same input gives the same package") {
        return;
    }
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [first, second] = [&one, &two].map(|dir| fs::read(build("0.1.0", dir.path())).unwrap());
    assert!(first == second, "two builds of the same differ");
}
