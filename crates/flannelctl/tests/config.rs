//! `flannelctl config` as a person and as Ansible use it, with a real etcd and a directory.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lab::{Lab, Node, StoreKind};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

const CTL: &str = env!("CARGO_BIN_EXE_flannelctl");

/// Runs `flannelctl config …` on a node; checks the status, returns standard output and error.
fn config(node: &Node, status: i32, args: &[&str]) -> (String, String) {
    let output = node.output([&[CTL, "config"], args].concat()).unwrap();
    told(status, args, output)
}

/// The same on this machine, away from any store; `input` is what it reads.
fn offline(status: i32, args: &[&str], input: &str) -> (String, String) {
    let mut child = Command::new(CTL)
        .arg("config")
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may refuse the command line, and never read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    told(status, args, child.wait_with_output().unwrap())
}

fn told(status: i32, args: &[&str], output: Output) -> (String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(status), "{args:?}: {out}\n{err}");
    (out, err)
}

const NET: &str = r#"{"Network": "172.30.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const SAME: &str = r#"{ "Backend":{"Type":"vxlan"},"Network":"172.30.0.0/16" }"#;
const OTHER: &str = r#"{"Network": "10.99.0.0/16"}"#;

/// The whole life of a configuration. `args` say where the store is.
fn life(lab: &Lab, args: &[&str]) {
    let node = lab.node(1);
    let run = |status, words: &[&str]| config(node, status, &[words, args].concat());
    lab.delete_config().unwrap();
    let (out, err) = run(3, &["get"]);
    assert!(out.is_empty() && err.contains("there is no network configuration"));

    // A first time, by several at once.
    let first = || run(0, &["set", "--if-absent", NET]).0;
    let firsts: Vec<String> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(first)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let written = firsts.iter().filter(|out| *out == "written").count();
    let unchanged = firsts.iter().filter(|out| *out == "unchanged").count();
    assert_eq!((written >= 1, written + unchanged), (true, 4), "{firsts:?}");
    assert_eq!(run(0, &["get"]).0, NET);

    // Again, and in other words: nothing is written.
    for again in [
        &["set", NET][..],
        &["set", SAME],
        &["set", "--if-absent", SAME],
    ] {
        assert_eq!(run(0, again), ("unchanged".into(), String::new()));
    }
    let (out, err) = run(0, &["set", "--if-absent", OTHER]);
    assert!(
        out == "unchanged" && err.contains("another configuration"),
        "{err}"
    );
    assert_eq!(run(0, &["get"]).0, NET);

    // What flanneld would refuse is refused, and nothing is written.
    let bad = r#"{"Network":"10.0.0.0/8","SubnetLen":31,"Backend":{"Type":"vxlan","VNI":0}}"#;
    let (out, err) = run(3, &["set", bad]);
    assert!(
        out.is_empty() && err.contains("SubnetLen is 31: expected"),
        "{err}"
    );
    assert!(err.contains("Backend.VNI is 0: expected"), "{err}");
    assert_eq!(run(0, &["get"]).0, NET);

    // A node takes a subnet; then there is one that another network does not fit.
    let env = node.flanneld().start_ready(SOON).unwrap();
    let subnet = env.cidr(model::Family::V4).unwrap().trunc();
    let key = subnet.to_string().replace('/', "-");
    lab.put_lease("172.30.250.0-24", r#"{"PublicIP":"192.168.78.99"}"#)
        .unwrap();
    for dry in [&[][..], &["--dry-run"]] {
        let (out, err) = run(3, &[&["set", OTHER], dry].concat());
        assert!(
            out.is_empty() && err.contains("2 leases do not fit"),
            "{err}"
        );
        assert!(err.contains(&format!("{key} of {}", node.ipv4())), "{err}");
        assert!(
            err.contains("172.30.250.0-24 of 192.168.78.99 (reservation)"),
            "{err}"
        );
    }
    let keys = [
        "changed", "effects", "misfits", "place", "refused", "warnings",
    ];
    let (out, _) = run(3, &["set", "--json", bad]);
    let result: Value = serde_json::from_str(&out).unwrap();
    let names: Vec<&String> = result.as_object().unwrap().keys().collect();
    assert_eq!(names, keys, "refused for what it says: {result}");
    assert!(!result["place"].as_str().unwrap().is_empty(), "{result}");
    assert_eq!(result["refused"].as_array().unwrap().len(), 2, "{result}");
    let (out, _) = run(3, &["set", "--json", OTHER]);
    let result: Value = serde_json::from_str(&out).unwrap();
    let names: Vec<&String> = result.as_object().unwrap().keys().collect();
    assert_eq!(names, keys, "{result}");
    assert_eq!(result["changed"], false);
    assert_eq!(result["misfits"].as_array().unwrap().len(), 2, "{result}");
    assert_eq!(result["refused"].as_array().unwrap().len(), 1, "{result}");
    assert_eq!(run(0, &["get"]).0, NET);

    // One that they fit is no matter; one that they do not is written when told so.
    let wider = r#"{"Network": "172.16.0.0/12"}"#;
    assert_eq!(run(0, &["set", "--dry-run", wider]).0, "would be written");
    assert_eq!(run(0, &["get"]).0, NET);
    let (out, _) = run(0, &["set", "--json", wider]);
    let result: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&result["changed"], &result["misfits"]),
        (&json!(true), &json!([])),
        "{result}"
    );
    let (out, err) = run(0, &["set", "--force", OTHER]);
    assert!(
        out == "written" && err.contains("2 leases do not fit"),
        "{err}"
    );
    let (out, _) = run(0, &["get", "--effective"]);
    let effective: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(effective["SubnetMin"], "10.99.1.0");
}

#[test]
fn a_directory() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let dir = format!("--store-dir={}/store", lab::SHARED_DIR);
    life(&lab, &[&dir]);
}

#[test]
fn etcd_with_certificates_and_a_password() {
    let kind = StoreKind::Etcd { tls: true };
    let builder = Lab::builder()
        .nodes(1)
        .store(kind)
        .etcd_prefix("/kubernetes/network");
    let lab = builder.build().unwrap();
    let (node, etcd) = (lab.node(1), lab.etcd().unwrap());
    etcd.enable_auth("flannel", "correct horse").unwrap();
    let args = etcd.flanneld_args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (_, err) = config(node, 1, &[&["get"][..], &args].concat());
    assert!(err.contains("etcd"), "without a user: {err}");

    // The settings of the node's daemon, from the file that its unit reads.
    let mut env = String::from("# the daemon's\n");
    for arg in &args {
        let (flag, value) = arg.trim_start_matches('-').split_once('=').unwrap();
        let name = flag.to_uppercase().replace('-', "_");
        env += &format!("FLANNELD_{name}=\"{value}\"\n");
    }
    env += "FLANNELD_ETCD_USERNAME=flannel\nFLANNELD_ETCD_PASSWORD_FILE=/run/password\n";
    env += "FLANNELD_IP_MASQ=no-matter\n";
    node.write("/run/flanneld.env", &env).unwrap();
    node.write("/run/password", "correct horse\n").unwrap();
    let daemon = [
        &args[..],
        &[
            "--etcd-username=flannel",
            "--etcd-password-file=/run/password",
        ],
    ];
    node.flanneld().set_args(daemon.concat());
    life(&lab, &["--env-file=/run/flanneld.env"]);

    // A flag wins over the file, be it that they contradict each other.
    let file = "--env-file=/run/flanneld.env";
    config(node, 0, &["get", file, "--etcd-password=correct horse"]);
    let (_, err) = config(node, 1, &["get", file, "--etcd-password=wrong"]);
    assert!(!err.contains("wrong") && err.contains("etcd"), "{err}");
    config(node, 3, &["get", file, "--store-dir=/run/nothing"]);
    let (_, err) = config(node, 1, &["get", file, "--etcd-prefix=/elsewhere"]);
    assert!(err.contains("permission denied"), "{err}");
    let stored = etcd
        .ctl(&["get", "--print-value-only", "/kubernetes/network/config"])
        .unwrap();
    assert_eq!(stored.trim(), OTHER);
}

#[test]
fn a_store_that_is_away_is_told_soon() {
    let (_, err) = offline(1, &["set", NET, "--etcd-endpoints=http://127.0.0.1:1"], "");
    assert!(
        err.contains("etcd does not answer: http://127.0.0.1:1"),
        "{err}"
    );
}

#[test]
fn what_is_written_on_the_command_line_is_checked_by_name() {
    let (_, err) = offline(2, &["get", "--etcd-endpoints=ftp://x"], "");
    assert!(err.contains("etcd-endpoints"), "{err}");
    let (_, err) = offline(2, &["get", "--store-dir=/proc/self/status"], "");
    assert!(err.contains("store-dir"), "{err}");
    let (_, err) = offline(1, &["get", "--env-file=/nowhere/x"], "");
    assert!(err.contains("--env-file /nowhere/x"), "{err}");
    offline(2, &["set"], "");
    let (_, err) = offline(1, &["set", "/nowhere/x", "--store-dir=/tmp"], "");
    assert!(err.contains("/nowhere/x"), "{err}");
    let (_, err) = offline(1, &["validate", "/dev/zero"], "");
    assert!(err.contains("/dev/zero"), "{err}");
}

#[test]
fn validation_needs_no_store_and_tells_everything() {
    assert_eq!(
        offline(0, &["validate", "-"], NET),
        ("valid".into(), String::new())
    );
    let (out, err) = offline(
        0,
        &["validate", "-"],
        r#"{"Network":"10.0.0.0/8","Netwrk":1}"#,
    );
    assert!(out == "valid" && err.contains("Netwrk is unknown"), "{err}");
    let bad = r#"{"Network":"10.0.0.0/8","SubnetMin":"11.0.0.0","SubnetMax":"10.0.0.7",
                 "Backend":{"Type":"vxlan","VNI":-1,"Port":70000}}"#;
    let (out, err) = offline(3, &["validate", "-"], bad);
    assert!(out.is_empty());
    let keys: Vec<&str> = err.lines().filter_map(|l| l.split(' ').nth(2)).collect();
    assert_eq!(
        keys,
        ["SubnetMin", "SubnetMax", "Backend.VNI", "Backend.Port"],
        "{err}"
    );
    let (out, _) = offline(3, &["validate", "--json", bad], "");
    let result: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(result["valid"], false);
    assert_eq!(result["errors"].as_array().unwrap().len(), 4, "{result}");
    for text in [
        "",
        "null",
        "[1]",
        "{",
        "\u{1}",
        r#"{"Network":"10.0.0.0/8","Backend":{"Type":"gre"}}"#,
    ] {
        offline(3, &["validate", "-"], text);
    }
}

/// A full disk, and a reader that has seen enough.
#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let to = |program: &[&str], out: Stdio| {
        let mut command = Command::new(CTL);
        command.args(program).env_clear().stdin(Stdio::null());
        command.stdout(out).stderr(Stdio::piped()).output().unwrap()
    };
    let commands: [&[&str]; 5] = [
        &["--help"],
        &["--version"],
        &["config", "--help"],
        &["config", "validate", "--json", NET],
        &["config", "validate", NET],
    ];
    for command in commands {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = to(command, full.into());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains("standard output: No space left"), "{said}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = to(command, writer.into());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{command:?}");
    }
}

/// As many machines may set it at once as an Ansible run has forks.
#[test]
fn many_writers_all_succeed() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("--store-dir={}", dir.path().display());
    std::thread::scope(|scope| {
        for n in 0..20 {
            let store = &store;
            scope.spawn(move || {
                let network = format!(r#"{{"Network": "10.{n}.0.0/16"}}"#);
                offline(0, &["set", store, &network], "");
            });
        }
    });
    offline(0, &["get", &store], "");
}
