//! `flannelctl key`, on a file of its own.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn key(what: &str, file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flannelctl"))
        .args(["key", what, "--file"])
        .arg(file)
        .output()
        .unwrap()
}

#[test]
fn a_key_is_made_shown_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wgkey");
    let none = key("show", &file);
    assert!(!none.status.success());
    assert!(String::from_utf8_lossy(&none.stderr).contains("no WireGuard key"));
    let mut shown = Vec::new();
    for _ in 0..2 {
        let made = key("rotate", &file);
        assert!(made.status.success(), "{made:?}");
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        let public = String::from_utf8(key("show", &file).stdout).unwrap();
        assert_eq!(public.trim().len(), 44);
        let said = String::from_utf8(made.stdout).unwrap();
        assert!(said.contains(public.trim()), "{said}");
        let private = std::fs::read_to_string(&file).unwrap();
        assert!(!said.contains(private.trim()) && !public.contains(private.trim()));
        shown.push(public);
    }
    assert_ne!(shown[0], shown[1]);
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "nonsense").unwrap();
    let broken = key("show", &file);
    let said = String::from_utf8_lossy(&broken.stderr).into_owned();
    assert!(
        said.contains("wg genkey") && !said.contains("nonsense"),
        "{said}"
    );
}
