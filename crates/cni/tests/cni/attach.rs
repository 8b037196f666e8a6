//! ADD, DEL and CHECK against recorders.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::scene::Scene;

fn mode(scene: &Scene, name: &str) -> u32 {
    fs::metadata(scene.path(name)).unwrap().permissions().mode() & 0o7777
}

#[test]
fn add_saves_for_root_only_and_passes_the_answer_on_byte_for_byte() {
    let scene = Scene::new();
    let result = b" {\"ips\": [ ],\n\n \"odd\": \"\xff\"}\n\n";
    scene.write("bin/answer.ADD", result);
    let mut vars = scene.vars("ADD");
    vars.insert("CNI_ARGS".into(), "K8S_POD_NAME=p".into());
    let config = scene.config(json!({})).to_string();
    let answer = scene.run_with(&vars, config.as_bytes()).succeeded();
    assert_eq!(answer.stdout, result);
    assert_eq!(
        answer.stderr, "recorder speaking\n",
        "the delegate's stderr and nothing else"
    );
    assert_eq!(
        (mode(&scene, "data"), mode(&scene, "data/c1")),
        (0o700, 0o600)
    );
    assert_eq!(
        fs::read_dir(scene.path("data")).unwrap().count(),
        1,
        "no temporary file is left"
    );

    let given = scene.read("bin/env.ADD");
    for (key, value) in vars {
        assert!(
            given.lines().any(|line| line == format!("{key}={value}")),
            "{key} in {given}"
        );
    }
}

#[test]
fn del_uses_what_was_saved_and_forgets_it_and_is_content_with_nothing() {
    let scene = Scene::new();
    let config = scene.config(json!({"delegate": {"mark": "first"}}));
    scene.run("ADD", &config).succeeded();
    // Both the configuration and the lease have changed since; flanneld may even be gone.
    fs::remove_file(scene.path("subnet.env")).unwrap();
    let now = scene.config(json!({"delegate": {"type": "other"}, "name": "renamed"}));
    scene.run("DEL", &now).succeeded();
    assert_eq!(scene.read("bin/stdin.DEL"), scene.read("bin/stdin.ADD"));
    assert!(!scene.path("data/c1").exists());

    let again = scene.run("DEL", &now).succeeded();
    assert!(again.stdout.is_empty() && again.stderr.is_empty());
    assert_eq!(scene.calls(), "ADD c1\nDEL c1\n");

    // Neither a namespace nor any directory is needed for it.
    let mut vars = scene.vars("DEL");
    vars.remove("CNI_NETNS");
    fs::remove_dir_all(scene.path("data")).unwrap();
    scene
        .run_with(&vars, now.to_string().as_bytes())
        .succeeded();
}

#[test]
fn a_del_that_fails_can_be_tried_again() {
    let scene = Scene::new();
    let config = scene.config(json!({}));
    scene.run("ADD", &config).succeeded();
    let object = "{ \"cniVersion\": \"1.0.0\", \"code\": 11, \"msg\": \"later\", \"extra\": 1 }\n";
    scene.write("bin/answer.DEL", object);
    scene.write("bin/exit.DEL", "3");
    let answer = scene.run("DEL", &config);
    assert!(!answer.success);
    assert_eq!(
        answer.text(),
        object,
        "the delegate's error object as it is"
    );
    assert!(scene.path("data/c1").exists());

    fs::rename(scene.path("bin/bridge"), scene.path("away")).unwrap();
    let said = scene.run("DEL", &config).failed(5);
    assert!(
        said.contains("no plugin \"bridge\" in CNI_PATH") && said.contains("/bin"),
        "{said}"
    );
    assert!(scene.path("data/c1").exists());

    fs::rename(scene.path("away"), scene.path("bin/bridge")).unwrap();
    fs::remove_file(scene.path("bin/exit.DEL")).unwrap();
    scene.run("DEL", &config).succeeded();
    assert!(!scene.path("data/c1").exists());
}

#[test]
fn a_failed_add_leaves_nothing_behind_and_a_second_add_takes_nothing_away() {
    let scene = Scene::new();
    let config = scene.config(json!({}));
    let object = "{\"code\":999,\"msg\":\"no\"}";
    scene.write("bin/answer.ADD", object);
    scene.write("bin/exit.ADD", "1");
    let answer = scene.run("ADD", &config);
    assert!(!answer.success);
    assert_eq!(answer.text(), object);
    assert_eq!(scene.calls(), "ADD c1\nDEL c1\n");
    assert!(!scene.path("data/c1").exists());

    // The delegate cannot undo it: the runtime's DEL will find the file.
    scene.write("bin/exit.DEL", "1");
    let answer = scene.run("ADD", &config);
    assert_eq!(answer.text(), object);
    assert!(
        answer.stderr.contains("bridge's DEL failed too"),
        "{}",
        answer.stderr
    );
    assert!(scene.path("data/c1").exists());

    // Added a second time while it is attached: refused, but still attached.
    scene.write("bin/calls", "");
    assert!(!scene.run("ADD", &config).success);
    assert_eq!(scene.calls(), "ADD c1\n");
    assert!(scene.path("data/c1").exists());
}

#[test]
fn a_delegate_that_ends_without_a_word_is_named() {
    let scene = Scene::new();
    let config = scene.config(json!({"delegate": {"type": "silent"}}));
    for (script, named) in [
        ("exit 7", "exit status: 7"),
        ("kill -9 $$", "signal: 9"),
        ("echo panic: broken; exit 2", "panic: broken"),
        ("echo '{}'; exit 2", "without an error object"),
        ("echo '[1]'; exit 2", "without an error object"),
    ] {
        scene.plugin("silent", &format!("#!/bin/sh\n{script}\n"));
        let said = scene.run("ADD", &config).failed(100);
        assert!(
            said.contains("silent failed at ADD") && said.contains(named),
            "{said}"
        );
    }
    scene.plugin("silent", "#!/nonexistent/interpreter\n");
    assert!(
        scene
            .run("ADD", &config)
            .failed(5)
            .contains("bin/silent: cannot be run")
    );
    // In CNI_PATH, but not to be run.
    scene.plugin("silent", "");
    fs::set_permissions(scene.path("bin/silent"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(
        scene
            .run("ADD", &config)
            .failed(5)
            .contains("no plugin \"silent\"")
    );
}

#[test]
fn a_delegate_that_reads_nothing_or_writes_much_blocks_nobody() {
    let scene = Scene::new();
    let config = scene.config(json!({"delegate": {"type": "big", "filler": "x".repeat(1 << 20)}}));
    scene.plugin(
        "big",
        "#!/bin/sh\nprintf '{\"x\":\"'; head -c 999992 /dev/zero | tr '\\0' x; printf '\"}'\n",
    );
    assert_eq!(
        scene.run("ADD", &config).succeeded().stdout.len(),
        1_000_000
    );
    scene.plugin("big", "#!/bin/sh\nyes\n");
    assert!(
        scene
            .run("ADD", &config)
            .failed(5)
            .contains("longer than 16 MiB")
    );
}

#[test]
fn check_gives_the_delegate_what_was_saved_and_what_add_returned() {
    let scene = Scene::new();
    let previous = json!({"cniVersion": "1.0.0", "ips": [{"address": "172.30.80.2/24"}]});
    let config = scene.config(json!({"prevResult": previous}));
    assert!(scene.run("CHECK", &config).failed(3).contains("data/c1"));
    scene.run("ADD", &scene.config(json!({}))).succeeded();
    scene.run("CHECK", &config).succeeded();
    let mut expected: Value = serde_json::from_str(&scene.read("bin/stdin.ADD")).unwrap();
    expected["prevResult"] = previous.clone();
    let given: Value = serde_json::from_str(&scene.read("bin/stdin.CHECK")).unwrap();
    assert_eq!(given, expected);

    scene.write("bin/answer.CHECK", "{\"code\":100,\"msg\":\"gone\"}");
    scene.write("bin/exit.CHECK", "1");
    assert_eq!(
        scene.run("CHECK", &config).text(),
        "{\"code\":100,\"msg\":\"gone\"}"
    );

    assert!(
        scene
            .run("CHECK", &scene.config(json!({})))
            .failed(7)
            .contains("prevResult")
    );
    let old = scene.config(json!({"cniVersion": "0.3.1", "prevResult": previous}));
    assert!(scene.run("CHECK", &old).failed(1).contains("0.3.1"));
    scene.write("data/c1", "{");
    assert!(
        scene
            .run("CHECK", &config)
            .failed(6)
            .contains("data/c1 is broken")
    );

    // DEL gets the result too, if it is of the version that the delegate was configured with.
    fs::remove_file(scene.path("data/c1")).unwrap();
    for (version, passed) in [("1.0.0", true), ("0.4.0", false)] {
        scene.run("ADD", &scene.config(json!({}))).succeeded();
        let del = scene.config(json!({"cniVersion": version, "prevResult": previous}));
        scene.run("DEL", &del).succeeded();
        assert_eq!(
            scene.read("bin/stdin.DEL").contains("prevResult"),
            passed,
            "{version}"
        );
    }
}

#[test]
fn a_broken_saved_file_does_not_keep_a_container_from_being_deleted() {
    let scene = Scene::new();
    let config = scene.config(json!({"delegate": {"mark": 1}}));
    scene.run("ADD", &config).succeeded();
    let good = scene.read("data/c1");
    let target = scene.path("target");
    scene.write("target", &good);
    let breaks: [(&str, &dyn Fn()); 9] = [
        ("empty, as after a power cut", &|| {
            scene.write("data/c1", "")
        }),
        ("cut off", &|| scene.write("data/c1", &good[..20])),
        ("no object", &|| scene.write("data/c1", "[]")),
        ("no type", &|| scene.write("data/c1", "{}")),
        ("a type that is a path", &|| {
            scene.write("data/c1", r#"{"type":"../target"}"#)
        }),
        ("a type that would run for ever", &|| {
            scene.write("data/c1", r#"{"type":"flannel"}"#)
        }),
        ("huge", &|| scene.write("data/c1", vec![b' '; 5 << 20])),
        ("one that others may write to", &|| {
            let others = fs::Permissions::from_mode(0o666);
            fs::set_permissions(scene.path("data/c1"), others).unwrap();
        }),
        ("a symbolic link", &|| {
            fs::remove_file(scene.path("data/c1")).unwrap();
            std::os::unix::fs::symlink(&target, scene.path("data/c1")).unwrap();
        }),
    ];
    for (what, break_it) in breaks {
        scene.run("ADD", &config).succeeded();
        break_it();
        let _ = fs::remove_file(scene.path("bin/stdin.DEL"));
        let answer = scene.run("DEL", &config).succeeded();
        assert!(
            answer.stderr.contains("data/c1 is broken"),
            "{what}: {}",
            answer.stderr
        );
        assert_eq!(
            scene.read("bin/stdin.DEL"),
            scene.read("bin/stdin.ADD"),
            "{what}"
        );
        assert!(
            fs::symlink_metadata(scene.path("data/c1")).is_err(),
            "{what}"
        );
    }
    assert_eq!(
        scene.read("target"),
        good,
        "what a link pointed to is left alone"
    );

    // The delegate finds the container whatever the range is, so that flanneld is not needed.
    scene.run("ADD", &config).succeeded();
    scene.write("data/c1", "");
    fs::remove_file(scene.path("subnet.env")).unwrap();
    let answer = scene.run("DEL", &config).succeeded();
    assert!(
        answer.stderr.contains("subnet.env does not exist"),
        "{}",
        answer.stderr
    );
    assert!(scene.read("bin/stdin.DEL").contains("192.0.2.0/24"));
    assert!(!scene.path("data/c1").exists());

    // Where even that fails, a retry would fail as well: as with upstream, the container can go.
    scene.write("data/c1", "");
    scene.write("bin/exit.DEL", "1");
    let answer = scene.run("DEL", &config).succeeded();
    assert!(
        answer.stderr.contains("bridge failed at DEL"),
        "{}",
        answer.stderr
    );
    assert!(scene.path("data/c1").exists(), "left for GC");
}

#[test]
fn what_cannot_be_removed_or_read_does_not_keep_a_container_from_being_deleted() {
    let scene = Scene::new();
    let config = scene.config(json!({}));
    fs::create_dir_all(scene.path("data/c1/x")).unwrap();
    let answer = scene.run("DEL", &config).succeeded();
    assert!(
        answer.stderr.contains("cannot be removed"),
        "{}",
        answer.stderr
    );
    assert_eq!(scene.calls(), "DEL c1\n");

    // The directory is none.
    fs::remove_dir_all(scene.path("data")).unwrap();
    scene.write("data", "");
    scene.run("DEL", &config).succeeded();
    assert_eq!(scene.calls(), "DEL c1\nDEL c1\n");
}

#[test]
fn every_interface_of_a_container_has_its_own_file() {
    let scene = Scene::new();
    let run = |command: &str, ifname: &str, mark: u32| {
        let mut vars = scene.vars(command);
        vars.insert("CNI_IFNAME".into(), ifname.into());
        let config = scene.config(json!({"delegate": {"mark": mark}}));
        scene
            .run_with(&vars, config.to_string().as_bytes())
            .succeeded();
        scene.read(&format!("bin/stdin.{command}"))
    };
    for order in [["eth0", "net1"], ["net1", "eth0"]] {
        let first = run("ADD", "eth0", 1);
        let second = run("ADD", "net1", 2);
        assert!(scene.path("data/c1").exists() && scene.path("data/c1@net1").exists());
        for ifname in order {
            let expected = if ifname == "eth0" { &first } else { &second };
            assert_eq!(&run("DEL", ifname, 3), expected);
        }
        assert_eq!(fs::read_dir(scene.path("data")).unwrap().count(), 0);
    }
    // The second one stays where it is when the first is gone.
    run("ADD", "eth0", 1);
    run("ADD", "net1", 2);
    run("DEL", "eth0", 1);
    run("ADD", "net1", 3);
    assert_eq!(fs::read_dir(scene.path("data")).unwrap().count(), 1);
    run("DEL", "net1", 3);

    // Upstream's file does not say whose it is, and serves either.
    for ifname in ["eth0", "net1"] {
        scene.write("data/c1", r#"{"type":"bridge","name":"net","mark":9}"#);
        assert!(run("DEL", ifname, 3).contains("\"mark\":9"));
        assert!(!scene.path("data/c1").exists());
    }
    // An ADD does not take it away.
    scene.write("data/c1", r#"{"type":"bridge","name":"net","mark":9}"#);
    run("ADD", "net1", 2);
    assert!(scene.read("data/c1").contains("\"mark\":9"));
}

#[test]
fn a_failed_second_add_puts_the_first_ones_file_back() {
    let scene = Scene::new();
    scene
        .run("ADD", &scene.config(json!({"delegate": {"mark": 1}})))
        .succeeded();
    let saved = scene.read("data/c1");
    scene.write("bin/exit.ADD", "1");
    let other = scene.config(json!({"delegate": {"mark": 2}}));
    assert!(!scene.run("ADD", &other).success);
    assert_eq!(scene.read("data/c1"), saved);
    assert_eq!(scene.calls(), "ADD c1\nADD c1\n");
}

#[test]
fn success_without_a_result_is_a_failure() {
    let scene = Scene::new();
    let config = scene.config(json!({}));
    for answer in ["", "hello", "[]", "{", r#"{"code":7,"msg":"no"}"#] {
        scene.write("bin/answer.ADD", answer);
        scene.write("bin/calls", "");
        let said = scene.run("ADD", &config).failed(100);
        assert!(
            said.contains("without a result") && said.contains(answer),
            "{said}"
        );
        assert_eq!(scene.calls(), "ADD c1\nDEL c1\n", "it is undone");
        assert!(!scene.path("data/c1").exists());
    }
}

#[test]
fn a_delegate_of_another_version_leaves_no_file_whose_del_would_fail_for_ever() {
    let scene = Scene::new();
    let config = scene.config(json!({}));
    let object = r#"{"code":1,"msg":"incompatible CNI versions"}"#;
    for command in ["ADD", "DEL"] {
        scene.write(&format!("bin/answer.{command}"), object);
        scene.write(&format!("bin/exit.{command}"), "1");
    }
    assert_eq!(scene.run("ADD", &config).text(), object);
    assert!(!scene.path("data/c1").exists());
    scene.run("DEL", &config).succeeded();
    assert_eq!(scene.calls(), "ADD c1\n");
}

#[test]
fn a_delegate_ends_with_its_plugin() {
    let scene = Scene::new();
    let fifo = scene.path("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let script = format!("#!/bin/sh\nexec 3>{}\nexec sleep 1000\n", fifo.display());
    scene.plugin("bridge", &script);
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_flannel"))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(scene.vars("ADD"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let config = scene.config(json!({})).to_string();
    let mut stdin = plugin.stdin.take().unwrap();
    stdin.write_all(config.as_bytes()).unwrap();
    drop(stdin);
    // It opens once the delegate has it, and ends with the delegate.
    let mut delegate = fs::File::open(&fifo).unwrap();
    plugin.kill().unwrap();
    plugin.wait().unwrap();
    assert_eq!(delegate.read(&mut [0]).unwrap(), 0);
}

#[test]
fn add_replaces_a_link_and_writes_nothing_through_it() {
    let scene = Scene::new();
    fs::create_dir(scene.path("data")).unwrap();
    scene.write("victim", "untouched");
    std::os::unix::fs::symlink(scene.path("victim"), scene.path("data/c1")).unwrap();
    scene.run("ADD", &scene.config(json!({}))).succeeded();
    assert_eq!(scene.read("victim"), "untouched");
    assert!(
        fs::symlink_metadata(scene.path("data/c1"))
            .unwrap()
            .is_file()
    );

    // What cannot be saved is not begun.
    scene.write("bin/calls", "");
    let config = scene.config(json!({"dataDir": scene.path("victim/data")}));
    assert!(
        scene
            .run("ADD", &config)
            .failed(5)
            .contains("victim/data/c1")
    );
    fs::create_dir_all(scene.path("data2/c1/x")).unwrap();
    let config = scene.config(json!({"dataDir": scene.path("data2")}));
    assert!(scene.run("ADD", &config).failed(5).contains("data2/c1"));
    assert_eq!(scene.calls(), "");
}
