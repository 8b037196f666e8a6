//! What is in the archive.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::{image, must, name, parts, read, sha256, unpack};

#[test]
fn names_digests_and_size_are_right() {
    let files = read(&image());
    let (manifest, config, layers) = parts(&files);
    assert_eq!(manifest["RepoTags"], serde_json::json!([name()]));
    let id = manifest["Config"].as_str().unwrap();
    assert_eq!(id, format!("{}.json", sha256(&files[id])));
    let digests: Vec<String> = layers
        .iter()
        .map(|l| format!("sha256:{}", sha256(l)))
        .collect();
    assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(digests));
    assert_eq!(config["config"]["Entrypoint"][0], "/opt/bin/flanneld");
    let size: usize = layers.iter().map(|l| l.len()).sum();
    assert!(size <= 20_000_000, "{size} bytes");
}

#[test]
fn nothing_in_it_has_a_date_or_an_owner() {
    for layer in parts(&read(&image())).2 {
        let mut last = String::new();
        for entry in tar::Archive::new(layer).entries().unwrap() {
            let entry = entry.unwrap();
            let (path, header) = (
                entry.path().unwrap().to_str().unwrap().to_owned(),
                entry.header(),
            );
            let owner = (header.uid().unwrap(), header.gid().unwrap());
            assert_eq!((owner, header.mtime().unwrap()), ((0, 0), 0), "{path}");
            assert_eq!(
                header.mode().unwrap() & 0o7022,
                if header.entry_type().is_symlink() {
                    0o022
                } else {
                    0
                },
                "{path}"
            );
            let path = path.trim_end_matches('/').to_owned();
            assert!(last < path, "{path} after {last}");
            last = path;
        }
    }
}

#[test]
fn it_holds_our_programs_and_what_they_call_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    unpack(&image(), dir.path());
    let list = |path: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(dir.path().join(path)).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert_eq!(
        list("opt/bin"),
        [
            "flannel",
            "flannelctl",
            "flanneld",
            "install-conf",
            "mk-docker-opts.sh"
        ]
        .map(String::from)
        .into()
    );
    assert_eq!(list("usr/bin"), ["cp".to_owned()].into(), "a shell?");
    let programs = list("usr/sbin");
    for name in &programs {
        assert!(name == "nft" || name.contains("tables"), "{name}");
    }
    for family in ["iptables", "ip6tables"] {
        for variant in ["", "-nft", "-legacy"] {
            for part in ["", "-save", "-restore"] {
                assert!(programs.contains(&format!("{family}{variant}{part}")));
            }
        }
    }
    for empty in [
        "run/flannel",
        "etc/cni/net.d",
        "etc/kube-flannel",
        "opt/cni/bin",
        "proc",
        "sys",
        "dev",
    ] {
        assert!(list(empty).is_empty(), "{empty}");
    }

    // They start there: nothing that they are linked with is missing.
    let versions = [
        ("/usr/sbin/nft", "nftables v"),
        ("/usr/sbin/iptables", "iptables v"),
        ("/usr/sbin/ip6tables-legacy-save", "(legacy)"),
        ("/opt/bin/flanneld", env!("CARGO_PKG_VERSION")),
        ("/opt/bin/flannelctl", env!("CARGO_PKG_VERSION")),
    ];
    for (program, version) in versions {
        let said = must(
            Command::new("chroot")
                .arg(dir.path())
                .args([program, "--version"]),
        );
        assert!(said.contains(version), "{program}: {said}");
    }
}

#[test]
fn the_same_programs_make_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    unpack(&image(), &root);
    let programs = root.join("opt/bin");
    let make = |out: &str| {
        let out = dir.path().join(out);
        must(
            Command::new(env!("CARGO_BIN_EXE_flannel-image"))
                .args(["archive", "--programs"])
                .arg(&programs)
                .arg("--out")
                .arg(&out),
        );
        let sbom = fs::read(out.join("flannel-rs.cdx.json")).unwrap();
        (fs::read(out.join("flannel-rs.tar")).unwrap(), sbom)
    };
    let first = make("first");
    // Another day, another user.
    for file in fs::read_dir(&programs).unwrap() {
        let path = file.unwrap().path();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        must(Command::new("touch").args(["-d", "2001-02-03"]).arg(&path));
    }
    assert!(
        make("second") == first,
        "two images of the same programs differ"
    );
}

/// What the Containerfile copies is what the archive holds.
#[test]
fn a_tree_has_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let (unpacked, written) = (dir.path().join("unpacked"), dir.path().join("written"));
    unpack(&image(), &unpacked);
    must(
        Command::new(env!("CARGO_BIN_EXE_flannel-image"))
            .args(["tree", "--programs"])
            .arg(unpacked.join("opt/bin"))
            .arg("--out")
            .arg(&written),
    );
    // The bill of materials is of these sources, the image perhaps of older ones.
    let sbom = "--exclude=sbom.cdx.json";
    must(
        Command::new("diff")
            .args(["--recursive", "--no-dereference", sbom])
            .args([&unpacked, &written]),
    );
    for program in ["opt/bin/flanneld", "usr/sbin/nft"] {
        let mode = fs::metadata(written.join(program))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o755, "{program}");
    }
}

#[test]
fn the_bill_of_materials_lists_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    unpack(&image(), dir.path());
    let inside = fs::read(dir.path().join("usr/share/flannel-rs/sbom.cdx.json")).unwrap();
    let beside = fs::read(image().with_extension("cdx.json")).unwrap();
    assert!(inside == beside);
    let sbom: Value = serde_json::from_slice(&inside).unwrap();
    assert_eq!(
        (&sbom["bomFormat"], &sbom["specVersion"]),
        (&"CycloneDX".into(), &"1.5".into())
    );
    let components = sbom["components"].as_array().unwrap();
    let texts = |key: &str| -> BTreeSet<&str> {
        components
            .iter()
            .map(|c| c[key].as_str().unwrap())
            .collect()
    };
    let purls = texts("purl");
    assert_eq!(purls.len(), components.len(), "one of them twice");
    for crate_name in ["flanneld", "cni", "flannelctl"] {
        assert!(
            purls
                .contains(format!("pkg:cargo/{crate_name}@{}", env!("CARGO_PKG_VERSION")).as_str())
        );
    }
    assert!(purls.iter().any(|p| p.starts_with("pkg:cargo/tokio@1.")));
    assert!(
        !purls
            .iter()
            .any(|p| p.contains("/proptest@") || p.contains("/cc@")),
        "what only builds and tests need"
    );
    assert!(
        purls.iter().any(|p| p.starts_with("pkg:generic/rust@1.")),
        "what every program has"
    );
    // Every package whose files are there, and no other, each with its licence text.
    let documented = fs::read_dir(dir.path().join("usr/share/doc")).unwrap();
    let mut documented: BTreeSet<String> = documented
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(documented.remove("flannel-rs"));
    for name in ["LICENSE", "NOTICE", "THIRD-PARTY-NOTICES.gz"] {
        let file = dir.path().join("usr/share/doc/flannel-rs").join(name);
        assert!(fs::metadata(&file).unwrap().len() > 500, "{name}");
    }
    let listed: BTreeSet<String> = purls
        .iter()
        .filter_map(|p| {
            Some(
                p.strip_prefix("pkg:deb/debian/")?
                    .split('@')
                    .next()?
                    .to_owned(),
            )
        })
        .collect();
    assert_eq!(listed, documented);
    assert!(listed.contains("iptables") && listed.contains("nftables") && listed.contains("libc6"));
    for component in components {
        assert!(
            !component["licenses"].as_array().unwrap().is_empty(),
            "no licence: {component}"
        );
        assert!(!component["version"].as_str().unwrap().is_empty());
    }
}

#[test]
fn programs_that_need_libraries_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["flanneld", "flannel", "flannelctl"] {
        fs::copy("/usr/sbin/nft", dir.path().join(name)).unwrap();
    }
    let output = crate::output(
        Command::new(env!("CARGO_BIN_EXE_flannel-image"))
            .args(["archive", "--programs"])
            .arg(dir.path())
            .arg("--out")
            .arg(dir.path().join("out")),
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("flanneld needs ") && said.contains("statically linked"),
        "{said}"
    );
    assert!(!dir.path().join("out").exists());
}
