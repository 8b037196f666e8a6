//! `flannelctl connectivity` and the probes' columns of `flannelctl peers`, on nodes of the lab.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lab::{Lab, Node, StoreKind, wait_for};
use serde_json::Value;

const CTL: &str = env!("CARGO_BIN_EXE_flannelctl");
const SOON: Duration = Duration::from_secs(60);

fn ctl(node: &Node, args: &[&str]) -> Output {
    let mut command = Command::new(CTL);
    command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    node.spawn(&mut command)
        .unwrap()
        .wait_with_output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_matrix_of_all_ways_and_the_one_that_loses_packets() {
    let lab = Lab::builder()
        .nodes(3)
        .dual()
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.node(3).flanneld().set_args(["-probe-port=0"]);
    lab.start().unwrap();
    let (a, b) = (lab.node(1), lab.node(2));
    wait_for("the probes see both nodes", SOON, || {
        let output = ctl(a, &["peers"]);
        let text = text(&output);
        let good = text.contains("reachable") && text.contains(" ms ") && text.contains("silent");
        if good && output.status.success() {
            Ok(())
        } else {
            Err(text)
        }
    })
    .unwrap();
    let b_ip = b.ipv4().to_string();
    wait_for("all of them answer", SOON, || {
        let output = ctl(a, &["connectivity", "-o", "json", &b_ip]);
        let found: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
        let checks = found["nodes"][0]["checks"].as_array().cloned();
        let checks = checks.ok_or("no checks")?;
        let good = checks.iter().all(|check| check["result"] == "good");
        if output.status.success() && checks.len() == 6 && good {
            Ok(())
        } else {
            Err(found.to_string())
        }
    })
    .unwrap();

    // More than a node answers at once: they are sent as slowly as it answers.
    wait_for("80 probes are answered", SOON, || {
        let output = ctl(a, &["connectivity", "--count=20", &b_ip]);
        if output.status.success() {
            Ok(())
        } else {
            Err(text(&output))
        }
    })
    .unwrap();
    let output = ctl(a, &["connectivity", "203.0.113."]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));

    for rule in [
        "add table ip t",
        "add chain ip t in { type filter hook input priority -300; }",
        "add rule ip t in udp dport 8472 drop",
    ] {
        b.exec(["nft", rule]).unwrap();
    }
    let file = "/tmp/flannel-connectivity-test.xml";
    let file = format!("{file}.{}", std::process::id());
    let output = ctl(a, &["connectivity", "--count=2", "--junit", &file]);
    let junit = std::fs::read_to_string(&file);
    let _ = std::fs::remove_file(&file);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("LOST") && text.contains("no answer"),
        "{text}"
    );
    assert!(text.contains(": IPv4 tunnel: "), "{text}");
    // The size is not blamed where small packets are lost, too.
    assert!(!text.contains("MTU"), "{text}");
    assert!(!text.contains(": IPv6 tunnel: "), "{text}");
    let junit = junit.unwrap();
    assert!(junit.contains("failures=\"2\""), "{junit}");

    // With probes turned off here there is nothing to ask.
    let output = ctl(lab.node(3), &["connectivity"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("-probe-port=0"), "{error}");
}

#[test]
fn what_the_probes_of_all_nodes_show() {
    let lab = Lab::builder()
        .nodes(3)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let page = ["-health-page=all", "-healthz-ip=0.0.0.0"];
    for n in [1, 2] {
        lab.node(n).flanneld().set_args(page);
    }
    lab.start().unwrap();
    let a = lab.node(1);
    let (two, three) = (lab.node(2).ipv4(), lab.node(3).ipv4());
    let look = || {
        let output = ctl(a, &["connectivity", "--all", "-o", "json"]);
        let found: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
        let nodes = found["nodes"].as_array().cloned().unwrap_or_default();
        let of = |ip: String| {
            nodes
                .iter()
                .find(|node| node["publicIps"][0] == ip)
                .cloned()
        };
        let second = of(two.to_string()).ok_or("no second node")?;
        let third = of(three.to_string()).ok_or("no third node")?;
        Ok::<_, String>((output.status.code(), second, third))
    };
    wait_for("the second node reaches both", SOON, || {
        let (code, second, third) = look()?;
        let error = third["error"].as_str().unwrap_or_default();
        let good = second["reachable"] == 2 && second["error"].is_null();
        if code == Some(3) && good && error.contains("-health-page=all") {
            Ok(())
        } else {
            Err(format!("{code:?} {second} {third}"))
        }
    })
    .unwrap();
    for rule in [
        "add table ip t",
        "add chain ip t in { type filter hook input priority -300; }",
        "add rule ip t in udp dport 8472 drop",
    ] {
        lab.node(3).exec(["nft", rule]).unwrap();
    }
    wait_for("the second node loses packets to the third", SOON, || {
        let (_, second, _) = look()?;
        let lost = second["failing"].as_array().map(Vec::len);
        if lost == Some(1) {
            Ok(())
        } else {
            Err(second.to_string())
        }
    })
    .unwrap();
}
