//! `flannelctl status`, `peers`, `version` and `completion` against real daemons.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lab::{Lab, Node, StoreKind, wait_for};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const CTL: &str = env!("CARGO_BIN_EXE_flannelctl");
const SOCKET: &str = "/run/flannel/flanneld.sock";

fn ctl(node: &Node, args: &[&str]) -> Output {
    node.output([&[CTL], args].concat()).unwrap()
}

fn text(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn json(node: &Node, args: &[&str]) -> (i32, Value) {
    let output = ctl(node, args);
    let value = serde_json::from_slice(&output.stdout);
    (
        output.status.code().unwrap(),
        value.unwrap_or_else(|e| panic!("{e}: {}", text(&output))),
    )
}

/// Waits until the command's exit status is this one, and returns what it printed.
fn wait(node: &Node, args: &[&str], status: i32) -> String {
    wait_for(&format!("{args:?} ends with {status}"), SOON, || {
        let output = ctl(node, args);
        if output.status.code() == Some(status) {
            Ok(text(&output))
        } else {
            Err(text(&output))
        }
    })
    .unwrap()
}

#[test]
fn a_node_and_its_peers() {
    let lab = Lab::builder()
        .nodes(3)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    let node = lab.node(1);
    for node in lab.nodes() {
        wait(node, &["status"], 0);
    }
    let (_, status) = json(node, &["status", "-o", "json"]);
    let env = node.subnet_env().unwrap();
    assert_eq!(status["ready"], true);
    assert_eq!(status["network"]["mtu"], env.mtu);
    assert_eq!(status["network"]["backend"], "vxlan");
    assert_eq!(status["network"]["interface"], "eth0");
    assert_eq!(status["network"]["publicIps"][0], node.ipv4().to_string());
    assert!(status["store"].as_str().unwrap().starts_with("directory /"));
    let people = text(&ctl(node, &["status"]));
    assert!(people.contains("ready       yes"), "{people}");

    // Two peers, installed; then a lease that claims an address of this node's underlay.
    wait_for("two peers are installed", SOON, || {
        let (_, peers) = json(node, &["peers", "-o", "json"]);
        let peers = peers["peers"].as_array().unwrap().clone();
        let installed = peers.iter().filter(|p| p["state"] == "installed").count();
        if peers.len() == 2 && installed == 2 {
            Ok(())
        } else {
            Err(format!("{peers:?}"))
        }
    })
    .unwrap();
    assert_eq!(ctl(node, &["peers"]).status.code(), Some(0));
    let value = r#"{"PublicIP":"192.168.78.77","BackendType":"host-gw"}"#;
    lab.put_lease("172.30.200.0-24", value).unwrap();
    let listed = wait(node, &["peers", "-o", "wide"], 3);
    assert!(listed.contains("refused"), "{listed}");
    assert!(
        listed.contains("its backend is host-gw, and this node's is vxlan"),
        "{listed}"
    );
    let (code, only) = json(node, &["peers", "-o", "json", "--state", "refused"]);
    assert_eq!((code, only["peers"].as_array().unwrap().len()), (3, 1));
    let (_, only) = json(
        node,
        &["peers", "-o", "json", &lab.node(2).ipv4().to_string()],
    );
    assert_eq!(only["peers"].as_array().unwrap().len(), 1);

    // The same as YAML, and all nodes as the store has them.
    let yaml = text(&ctl(node, &["status", "-o", "yaml"]));
    assert!(
        yaml.contains("\nversion: ") && yaml.contains("\nready: true"),
        "{yaml}"
    );
    let yaml = text(&ctl(node, &["peers", "-o", "yaml"]));
    assert!(yaml.contains("state: refused"), "{yaml}");
    let (code, nodes) = json(node, &["status", "--cluster", "-o", "json"]);
    assert_eq!((code, nodes["nodes"].as_array().unwrap().len()), (0, 4));
    let table = text(&ctl(node, &["status", "--cluster"]));
    for node in lab.nodes() {
        assert!(table.contains(&node.ipv4().to_string()), "{table}");
    }

    let version = text(&ctl(node, &["version"]));
    let ours = env!("CARGO_PKG_VERSION");
    assert!(version.contains(&format!("flanneld   {ours}")), "{version}");
}

#[test]
fn a_daemon_that_hangs_is_named() {
    let lab = Lab::builder()
        .nodes(1)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    let node = lab.node(1);
    wait(node, &["status"], 0);
    node.flanneld().freeze().unwrap();
    let said = text(&ctl(node, &["status"]));
    node.flanneld().thaw().unwrap();
    assert!(said.contains("no answer within 10 s"), "{said}");
    wait(node, &["status"], 0);
}

#[test]
fn a_daemon_that_waits_says_for_what() {
    let lab = Lab::builder()
        .nodes(1)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.delete_config().unwrap();
    let node = lab.node(1);
    let none = ctl(node, &["status"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none).contains("no flanneld of this version runs here"));
    assert!(text(&ctl(node, &["version"])).contains("unknown"));

    node.flanneld().start().unwrap();
    let said = wait(node, &["status"], 3);
    assert!(said.contains("ready       no"), "{said}");
    wait_for("the reason is given", SOON, || {
        let said = text(&ctl(node, &["status"]));
        if said.contains("starting: ") && said.contains("config") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .unwrap();
    let (_, peers) = json(node, &["peers", "-o", "json"]);
    assert_eq!(peers["peers"], Value::Array(Vec::new()));
}

/// Only root connects, clients that say nothing keep nobody out, and a killed daemon's socket is no obstacle.
#[test]
fn the_socket_is_root_s_and_survives_clients_and_kills() {
    let lab = Lab::builder()
        .nodes(1)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    let node = lab.node(1);
    wait(node, &["status"], 0);
    let mode = node.exec(["stat", "-c", "%a", SOCKET]).unwrap();
    assert_eq!(mode.trim(), "600");

    let silent = node
        .run(|| {
            let connect = || UnixStream::connect(SOCKET);
            (0..1000).filter_map(|_| connect().ok()).collect::<Vec<_>>()
        })
        .unwrap();
    assert!(silent.len() > 500, "{}", silent.len());
    wait(node, &["status"], 0);
    drop(silent);

    // The same of those that send half a request, and of those that do not read the answer.
    for half in [
        "GET /v1/peers HTTP/1.1\r\nHost: x",
        "GET /v1/status HTTP/1.0\r\n\r\n",
    ] {
        let open = node
            .run(|| {
                let connect = || {
                    let mut stream = UnixStream::connect(SOCKET).ok()?;
                    stream.write_all(half.as_bytes()).ok()?;
                    Some(stream)
                };
                (0..1000).filter_map(|_| connect()).collect::<Vec<_>>()
            })
            .unwrap();
        assert!(open.len() > 100, "{half}: {}", open.len());
        wait(node, &["status"], 0);
    }

    node.flanneld().kill9().unwrap();
    assert_eq!(ctl(node, &["status"]).status.code(), Some(1));
    node.flanneld().start_ready(SOON).unwrap();
    wait(node, &["status"], 0);
}

#[test]
fn the_level_of_the_log_changes_while_the_daemon_runs() {
    let lab = Lab::builder()
        .nodes(1)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    let node = lab.node(1);
    wait(node, &["status"], 0);
    let level = |args: &[&str]| {
        let output = ctl(node, &[&["log-level"], args].concat());
        (
            output.status.code().unwrap(),
            text(&output).trim().to_owned(),
        )
    };
    assert_eq!(level(&[]), (0, "info".to_owned()));
    assert!(!node.flanneld().log().contains("DEBUG"));
    assert_eq!(level(&["debug"]), (0, "debug".to_owned()));
    assert_eq!(level(&[]), (0, "debug".to_owned()));
    node.exec(["ip", "link", "set", "flannel.1", "down"])
        .unwrap();
    wait_for("operations are logged", SOON, || {
        let log = node.flanneld().log();
        if log.contains("DEBUG") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .unwrap();
    let (code, said) = level(&["loud"]);
    assert!(
        code == 1 && said.contains("expected info, debug or trace"),
        "{said}"
    );
    assert_eq!(level(&["info"]).0, 0);
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(CTL)
            .args(["completion", shell])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("flannelctl") && text.contains("peers"),
            "{shell}: {text}"
        );
    }
    let old = Command::new(CTL)
        .args(["install", "--help"])
        .output()
        .unwrap();
    assert!(old.status.success(), "the old name of install-cni");
}

/// The daemon's memory in kB, without what is only mapped.
fn memory(node: &Node) -> u64 {
    let pid = node.flanneld().pid().unwrap();
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let value = line.unwrap().trim().trim_end_matches(" kB");
    value.parse().unwrap()
}

#[test]
fn fifteen_thousand_peers_are_listed_and_cost_no_memory_afterwards() {
    let lab = Lab::builder()
        .nodes(1)
        .store(StoreKind::Directory)
        .backend(serde_json::json!({"Type": "alloc"}))
        .config("Network", serde_json::json!("10.64.0.0/10"))
        .build()
        .unwrap();
    for n in 0..15_000_u32 {
        let (high, low) = (64 + n / 256, n % 256);
        let value = format!(r#"{{"PublicIP":"172.16.{high}.{low}","BackendType":"alloc"}}"#);
        lab.put_lease(&format!("10.{high}.{low}.0-24"), &value)
            .unwrap();
    }
    lab.start().unwrap();
    let node = lab.node(1);
    let list = || {
        json(node, &["peers", "-o", "json"]).1["peers"]
            .as_array()
            .unwrap()
            .len()
    };
    wait_for("all peers are listed", SOON, || match list() {
        15_000 => Ok(()),
        n => Err(format!("{n}")),
    })
    .unwrap();
    let before = memory(node);
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(list(), 15_000);
    }
    let took = began.elapsed() / 5;
    eprintln!("15,000 peers as JSON, parsed twice: {took:?}; {before} kB before");
    assert!(took < Duration::from_secs(20), "{took:?}");
    wait_for("the memory is given back", SOON, || match memory(node) {
        now if now < before + 4096 => Ok(()),
        now => Err(format!("{now} kB, {before} kB before")),
    })
    .unwrap();
}
