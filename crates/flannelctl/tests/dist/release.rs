//! `scripts/release` and `scripts/verify`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::machines::packages_for;
use crate::{project, succeed};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A directory with a key pair in it.
fn key(dir: &Path, name: &str) -> PathBuf {
    let key = dir.join(name);
    succeed(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key),
    );
    key
}

/// Makes a release of small programs.
fn release(dir: &Path, name: &str, key: &Path) -> PathBuf {
    let programs = dir.join("programs");
    fs::create_dir_all(&programs).unwrap();
    for program in ["flanneld", "flannelctl", "flannel"] {
        fs::copy("/bin/true", programs.join(program)).unwrap();
    }
    let bin = lab::flannel_bin_dir().unwrap();
    let out = dir.join(name);
    succeed(
        Command::new(project().join("scripts/release"))
            .arg(format!("v{VERSION}"))
            .arg(&out)
            .env("PROGRAMS", &programs)
            .env("FLANNELCTL", bin.join("flannelctl"))
            .env("FLANNEL_IMAGE_TOOL", bin.join("flannel-image"))
            .env("KEY", key),
    );
    out
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let read = |path: PathBuf| fs::read(path).unwrap();
    entries
        .map(|e| (e.file_name().into_string().unwrap(), read(e.path())))
        .collect()
}

/// What `scripts/verify` says of a release, if it refuses it.
fn refused(dir: &Path, key: &Path) -> Option<String> {
    let output = Command::new(project().join("scripts/verify"))
        .arg(dir)
        .arg(key.with_extension("pub"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then_some(said)
}

#[test]
fn a_release_is_reproducible_and_any_change_of_it_is_found() {
    if !packages_for("a release") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let signer = key(dir.path(), "signer");
    let first = release(dir.path(), "first", &signer);
    let content = files(&first);
    for end in [
        ".deb",
        ".rpm",
        ".apk",
        ".pkg.tar.zst",
        ".deb.cdx.json",
        ".tar.gz.cdx.json",
        ".tgz",
        "kube-flannel.yml",
        "THIRD-PARTY-NOTICES",
        "SHA256SUMS.sig",
    ] {
        let names = content.keys();
        assert_eq!(names.filter(|n| n.ends_with(end)).count(), 1, "{end}");
    }
    assert_eq!(refused(&first, &signer), None);

    let second = release(dir.path(), "second", &signer);
    let again = files(&second);
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&content), names(&again));
    for (name, bytes) in &content {
        assert!(again[name] == *bytes, "{name} differs from build to build");
    }

    for (name, bytes) in &content {
        let mut changed = bytes.clone();
        let last = changed.len() / 2;
        changed[last] ^= 1;
        fs::write(second.join(name), changed).unwrap();
        let said = refused(&second, &signer).unwrap_or_else(|| panic!("{name}: nothing found"));
        assert!(
            said.starts_with("scripts/verify: ") || said.contains(name),
            "{said}"
        );
        fs::write(second.join(name), bytes).unwrap();
    }
    assert_eq!(refused(&second, &signer), None);

    let said = refused(&second, &key(dir.path(), "other")).unwrap();
    assert!(said.contains("not a signature of SHA256SUMS by"), "{said}");
    fs::write(second.join("more.deb"), "").unwrap();
    let said = refused(&second, &signer).unwrap();
    assert!(said.contains("more.deb: not part of the release"), "{said}");
    fs::remove_file(second.join("more.deb")).unwrap();
    fs::rename(second.join("NOTICE"), dir.path().join("NOTICE")).unwrap();
    assert!(refused(&second, &signer).unwrap().contains("missing"));
    symlink(dir.path().join("NOTICE"), second.join("NOTICE")).unwrap();
    let said = refused(&second, &signer).unwrap();
    assert!(said.contains("NOTICE: not a plain file"), "{said}");
    let private = Command::new(project().join("scripts/verify"))
        .arg(&first)
        .arg(&signer)
        .output()
        .unwrap();
    assert!(!private.status.success(), "a private key is no public one");
}

/// What the schema of CycloneDX 1.5 asks for, of what such a document holds.
#[test]
fn bills_of_materials_are_what_cyclonedx_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flannel_1+2~3_amd64.deb");
    fs::write(&file, "a package").unwrap();
    let bin = lab::flannel_bin_dir().unwrap();
    let bill = |args: &[&str]| -> Value {
        succeed(
            Command::new(bin.join("flannel-image"))
                .current_dir(project())
                .arg("sbom")
                .args(args)
                .arg(&file),
        );
        let written = dir.path().join("flannel_1+2~3_amd64.deb.cdx.json");
        serde_json::from_slice(&fs::read(written).unwrap()).unwrap()
    };
    let with_lab = bill(&["--with-lab"]);
    let foreign = bill(&["--target", "s390x-unknown-linux-gnu"]);
    for sbom in [&with_lab, &foreign] {
        assert_eq!(sbom["bomFormat"], "CycloneDX");
        assert_eq!(sbom["specVersion"], "1.5");
        assert!(sbom["version"].as_u64().unwrap() >= 1);
        let subject = &sbom["metadata"]["component"];
        assert_eq!(subject["hashes"][0]["alg"], "SHA-256");
        let hash = subject["hashes"][0]["content"].as_str().unwrap();
        assert!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()));
        let mut refs = BTreeSet::new();
        for component in [subject]
            .into_iter()
            .chain(sbom["components"].as_array().unwrap())
        {
            let text = |key: &str| component[key].as_str().unwrap_or_default();
            assert!(
                ["file", "library", "application"].contains(&text("type")),
                "{component}"
            );
            assert!(
                !text("name").is_empty() && !text("version").is_empty(),
                "{component}"
            );
            assert!(text("purl").starts_with("pkg:"), "{component}");
            assert!(
                refs.insert(text("bom-ref").to_owned()),
                "twice: {component}"
            );
            for licence in component["licenses"].as_array().unwrap() {
                let named = licence["license"]["id"].is_string();
                assert!(named != licence["expression"].is_string(), "{component}");
            }
        }
        for dependency in sbom["dependencies"].as_array().unwrap() {
            assert!(
                refs.contains(dependency["ref"].as_str().unwrap()),
                "{dependency}"
            );
            let on = dependency["dependsOn"].as_array().unwrap();
            let known = |name: &Value| refs.contains(name.as_str().unwrap());
            assert!(on.iter().all(known), "{dependency}");
        }
    }
    let has = |sbom: &Value, what: &str| sbom.to_string().contains(what);
    assert!(has(&with_lab, "pkg:cargo/lab@") && !has(&foreign, "pkg:cargo/lab@"));
    assert!(has(&with_lab, "musl C library") && !has(&foreign, "musl C library"));
}
