//! Input that nobody should send.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::scene::Scene;

#[test]
fn what_is_no_configuration_is_refused_with_its_place() {
    let scene = Scene::new();
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    for (stdin, named) in [
        (b"".to_vec(), "is empty"),
        (b" \n\t".to_vec(), "is empty"),
        (b"\0".to_vec(), "not a JSON object"),
        (b"{\"name\": \"net\"".to_vec(), "line 1 column"),
        (b"{\"name\": \"net\"} x".to_vec(), "trailing"),
        (b"[1]".to_vec(), "not a JSON object"),
        (b"null".to_vec(), "not a JSON object"),
        ("{\"\u{feff}".as_bytes().to_vec(), "not a JSON object"),
        (deep.into_bytes(), "not a JSON object"),
    ] {
        for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
            let said = scene.run_with(&scene.vars(command), &stdin).failed(6);
            assert!(said.contains(named), "{said}");
        }
        scene.run_with(&scene.vars("VERSION"), &stdin).succeeded();
    }
    assert_eq!(scene.calls(), "");
}

#[test]
fn huge_and_deep_input_costs_little() {
    let scene = Scene::new();
    let begin = Instant::now();
    let said = scene
        .run_with(&scene.vars("ADD"), &vec![b' '; 64 << 20])
        .failed(5);
    assert!(said.contains("longer than 16 MiB"), "{said}");

    // Depth, in every place where something is decoded and where nothing is.
    let deep = format!("{}1{}", "{\"a\":".repeat(400_000), "}".repeat(400_000));
    for key in [
        "unknown",
        "delegate",
        "ipam",
        "runtimeConfig",
        "name",
        "cniVersion",
        "prevResult",
    ] {
        let mut text = scene.config(json!({"delegate": null})).to_string();
        text.pop();
        text += &format!(",\"{key}\":{deep}}}");
        let answer = scene.run_with(&scene.vars("ADD"), text.as_bytes());
        if !answer.success {
            answer.failed(7);
        }
    }
    // Very many keys.
    let keys: Vec<String> = (0..100_000).map(|n| format!("\"k{n}\":0")).collect();
    let config = scene.config(json!({})).to_string();
    let text = format!(
        "{},\"delegate\":{{{}}},{}}}",
        &config[..config.len() - 1],
        keys.join(","),
        keys.join(",")
    );
    assert!(text.len() < 4 << 20);
    scene
        .run_with(&scene.vars("ADD"), text.as_bytes())
        .succeeded();
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn the_environment_is_not_believed() {
    use std::os::unix::ffi::OsStrExt;

    let scene = Scene::new();
    let config = scene.config(json!({})).to_string();
    scene.write("outside", "{\"type\":\"bridge\"}");
    for (name, value) in [
        ("CNI_CONTAINERID", "../outside"),
        ("CNI_CONTAINERID", ".."),
        ("CNI_CONTAINERID", "/etc/passwd"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_IFNAME", "../x"),
        ("CNI_IFNAME", "much-too-long-a-name"),
        ("CNI_COMMAND", "add"),
        ("CNI_COMMAND", "UPDATE"),
    ] {
        for command in ["ADD", "DEL", "CHECK"] {
            let mut vars = scene.vars(command);
            vars.insert(name.into(), value.into());
            let said = scene.run_with(&vars, config.as_bytes()).failed(4);
            assert!(said.contains(name), "{said}");
        }
    }
    assert_eq!(scene.read("outside"), "{\"type\":\"bridge\"}");
    assert_eq!(scene.calls(), "");

    let mut command = Command::new(env!("CARGO_BIN_EXE_flannel"));
    let output = command
        .env_clear()
        .env("CNI_COMMAND", std::ffi::OsStr::from_bytes(b"ADD\xff"))
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("CNI_COMMAND is not UTF-8"));
}

#[test]
fn files_that_would_block_do_not() {
    let scene = Scene::new();
    for name in ["fifo.env", "data/c1"] {
        std::fs::create_dir_all(scene.path("data")).unwrap();
        assert!(
            Command::new("mkfifo")
                .arg(scene.path(name))
                .status()
                .unwrap()
                .success()
        );
    }
    let config = scene.config(json!({"subnetFile": scene.path("fifo.env")}));
    assert!(
        scene
            .run("ADD", &config)
            .failed(5)
            .contains("not a regular file")
    );
    let answer = scene.run("DEL", &scene.config(json!({}))).succeeded();
    assert!(
        answer.stderr.contains("not a regular file"),
        "{}",
        answer.stderr
    );
    assert!(!scene.path("data/c1").exists());
}

#[test]
fn a_person_who_runs_it_is_told_what_it_is() {
    let run = |arg: &str| {
        Command::new(env!("CARGO_BIN_EXE_flannel"))
            .arg(arg)
            .output()
            .unwrap()
    };
    let help = run("--help");
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("CNI_COMMAND"));
    let version = run("--version");
    assert_eq!(
        version.stdout,
        format!("flannel {}\n", env!("CARGO_PKG_VERSION")).as_bytes()
    );
}
