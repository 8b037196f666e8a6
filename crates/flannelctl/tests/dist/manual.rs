//! Manual pages and shell completions.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::{project, script, succeed};

/// The pages as they are installed.
fn pages(into: &tempfile::TempDir) -> Vec<PathBuf> {
    succeed(
        script("install")
            .env("DESTDIR", into.path())
            .env("MAN_DATE", "2026-11-21"),
    );
    let dir = into.path().join("usr/local/share/man/man8");
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn pages_are_well_formed_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let pages = pages(&dir);
    for page in &pages {
        let lint = Command::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .arg(page)
            .output()
            .expect("mandoc (apt-get install mandoc)");
        let said = String::from_utf8_lossy(&lint.stdout);
        assert!(lint.status.success(), "{}: {said}", page.display());
        let text = fs::read_to_string(page).unwrap();
        assert!(!text.contains('@'), "{}: a placeholder", page.display());
    }
    let names: Vec<_> = pages.iter().filter_map(|p| p.file_name()).collect();
    for name in [
        "flanneld.8",
        "flannelctl.8",
        "flannelctl-lab-up.8",
        "flannel-cni.8",
        "mk-docker-opts.sh.8",
    ] {
        assert!(names.contains(&name.as_ref()), "{name} among {names:?}");
    }
    assert!(!names.contains(&"flannelctl-manual.8".as_ref()), "hidden");

    let page = dir.path().join("usr/local/share/man/man8/flanneld.8");
    let text = succeed(Command::new("mandoc").args(["-T", "utf8"]).arg(page));
    // Bold is written over itself there.
    let text: String = {
        let letters: Vec<char> = text.chars().collect();
        let over = |i: &usize| letters.get(i + 1) != Some(&'\u{8}') && letters[*i] != '\u{8}';
        (0..letters.len())
            .filter(over)
            .map(|i| letters[i])
            .collect()
    };
    for flag in flanneld::flags::FLAGS.iter().filter(|f| !f.help.is_empty()) {
        assert!(text.contains(&format!(" -{}", flag.name)), "-{}", flag.name);
        assert!(text.contains(&flanneld::flags::env_name(flag.name)));
    }
    assert!(
        text.contains("/usr/local/libexec/flannel") || !text.contains("/usr/libexec"),
        "paths are those of the prefix"
    );
}

#[test]
fn bash_completes() {
    let dir = tempfile::tempdir().unwrap();
    pages(&dir);
    let complete = |program: &str, words: &str| {
        let file = dir
            .path()
            .join("usr/local/share/bash-completion/completions")
            .join(program);
        let line = format!(
            "source {}; COMP_WORDS=({program} {words}); COMP_CWORD=1; \
             _{program} {program} {words} {program}; echo \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        succeed(Command::new("bash").args(["--norc", "-c", &line]))
    };
    assert_eq!(complete("flannelctl", "conf"), "config\n");
    assert!(complete("flanneld", "--etcd-pr").contains("--etcd-prefix"));
    assert_eq!(complete("flannelctl", "manu"), "\n", "hidden");

    let share = dir.path().join("usr/local/share");
    let zsh = fs::read_to_string(share.join("zsh/site-functions/_flanneld")).unwrap();
    assert!(zsh.starts_with("#compdef flanneld"));
    let fish = fs::read_to_string(share.join("fish/vendor_completions.d/flannelctl.fish"));
    assert!(fish.unwrap().contains("complete -c flannelctl"));
}

#[test]
fn sample_of_settings_names_flags_that_exist() {
    let sample = fs::read_to_string(project().join("dist/flanneld.env")).unwrap();
    let names: Vec<&str> = sample
        .lines()
        .filter_map(|line| line.strip_prefix('#').unwrap_or(line).split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("FLANNELD_") && *name != "FLANNELD_OPTIONS")
        .collect();
    assert!(names.len() >= 8, "{names:?}");
    let known: Vec<String> = flanneld::flags::FLAGS
        .iter()
        .map(|flag| flanneld::flags::env_name(flag.name))
        .collect();
    for name in names {
        assert!(known.contains(&name.to_string()), "{name} is no flag");
    }
}
