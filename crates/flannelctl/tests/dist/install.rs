//! `make install` and `make uninstall`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::{script, succeed};

/// Every file below `dir`, with its mode.
fn tree(dir: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            if meta.is_dir() {
                assert_eq!(meta.permissions().mode() & 0o7777, 0o755, "{path:?}");
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().into();
                found.insert(name, meta.permissions().mode() & 0o7777);
            }
        }
    }
    found
}

/// What is installed beside pages, for a prefix and the directories that depend on it.
fn expected(prefix: &str, cni: &str, nm: &str, zsh: &str) -> BTreeMap<String, u32> {
    let program = |name: String| (name, 0o755);
    let file = |name: String| (name, 0o644);
    let mut all = BTreeMap::from([
        program(format!("{prefix}/sbin/flanneld")),
        program(format!("{prefix}/bin/flannelctl")),
        program(format!("{cni}/flannel")),
        program(format!("{prefix}/libexec/flannel/mk-docker-opts.sh")),
        file("etc/flannel/flanneld.env".into()),
        file(format!("{nm}/conf.d/50-flannel.conf")),
    ]);
    for name in [
        "lib/systemd/system/flanneld.service",
        "lib/systemd/network/50-flannel.link",
        "lib/systemd/network/50-flannel.network",
        "lib/modules-load.d/flannel.conf",
        "lib/sysctl.d/50-flannel.conf",
        "lib/tmpfiles.d/flannel.conf",
        "share/flannel/docker.service.d/flannel.conf",
        "share/bash-completion/completions/flanneld",
        "share/bash-completion/completions/flannelctl",
        "share/fish/vendor_completions.d/flanneld.fish",
        "share/fish/vendor_completions.d/flannelctl.fish",
    ] {
        all.insert(format!("{prefix}/{name}"), 0o644);
    }
    for program in ["flanneld", "flannelctl"] {
        all.insert(format!("{prefix}/share/zsh/{zsh}/_{program}"), 0o644);
    }
    all
}

fn without_pages(all: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let (pages, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = all
        .clone()
        .into_iter()
        .partition(|(name, _)| name.contains("/man/man8/"));
    assert!(pages.len() >= 5);
    assert!(pages.iter().all(|(_, mode)| *mode == 0o644), "{pages:?}");
    rest
}

#[test]
fn files_modes_and_paths() {
    let dir = tempfile::tempdir().unwrap();
    let install = |what: &str, prefix: Option<&str>, to: &Path| {
        let mut command = script("install");
        command.arg(what).env("DESTDIR", to);
        if let Some(prefix) = prefix {
            command.env("PREFIX", prefix);
        }
        succeed(&mut command)
    };

    let local = dir.path().join("local");
    install("install", None, &local);
    assert_eq!(
        without_pages(&tree(&local)),
        expected(
            "usr/local",
            "opt/cni/bin",
            "etc/NetworkManager",
            "site-functions"
        )
    );
    let unit = fs::read_to_string(local.join("usr/local/lib/systemd/system/flanneld.service"));
    let unit = unit.unwrap();
    assert!(
        unit.contains("\nExecStart=/usr/local/sbin/flanneld "),
        "{unit}"
    );
    let docker = local.join("usr/local/share/flannel/docker.service.d/flannel.conf");
    let docker = fs::read_to_string(docker).unwrap();
    assert!(docker.contains(" /usr/local/libexec/flannel/mk-docker-opts.sh "));

    let usr = dir.path().join("usr");
    install("install", Some("/usr"), &usr);
    assert_eq!(
        without_pages(&tree(&usr)),
        expected(
            "usr",
            "opt/cni/bin",
            "usr/lib/NetworkManager",
            "vendor-completions"
        )
    );

    // What the administrator wrote survives both.
    let settings = local.join("etc/flannel/flanneld.env");
    fs::write(&settings, "FLANNELD_IFACE=eth1\n").unwrap();
    install("install", None, &local);
    assert_eq!(
        fs::read_to_string(&settings).unwrap(),
        "FLANNELD_IFACE=eth1\n"
    );
    install("uninstall", None, &local);
    let left: Vec<String> = tree(&local).into_keys().collect();
    assert_eq!(left, ["etc/flannel/flanneld.env"]);
}

#[test]
fn without_programs_it_says_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let output = script("install")
        .env("BIN_DIR", empty.path())
        .env("DESTDIR", empty.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("flanneld: build it (make programs)"),
        "{said}"
    );
    assert_eq!(tree(empty.path()).len(), 0, "nothing is half installed");
}
