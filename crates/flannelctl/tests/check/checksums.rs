//! The fault that made people switch checksum offload off by hand: found, named, and cured by the
//! cure that the command names.

use std::process::{Command, Stdio};

use lab::{Lab, Node, wait_for};
use serde_json::{Value, json};

use crate::relay::Relay;
use crate::{CTL, SOON, check, started};

/// Runs `--answer` on `there` while `--probe` runs on `here`; returns what both found.
fn probed(here: &Node, there: &Node) -> (Value, Value) {
    let mut command = Command::new(CTL);
    command
        .args(["check", "--json", "--answer", "--seconds=8"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let answering = there.spawn(&mut command).unwrap();
    wait_for("somebody answers", SOON, || {
        let sockets = there.exec(["ss", "-Hlun", "sport", "=", ":8473"]).unwrap();
        match sockets.is_empty() {
            true => Err("nobody listens"),
            false => Ok(()),
        }
    })
    .unwrap();
    let found = check(here, &["--probe", &there.ipv4().to_string()]);
    let answered = answering.wait_with_output().unwrap();
    let answered = serde_json::from_slice(&answered.stdout).unwrap();
    (found.json, answered)
}

#[test]
fn wrong_checksums_are_found_and_cured_by_the_cure() {
    let lab = Lab::builder().nodes(2).build().unwrap();
    started(&lab);
    let (here, there) = (lab.node(1), lab.node(2));
    let (found, answered) = probed(here, there);
    assert_eq!(
        (&found["fail"], &answered["fail"]),
        (&json!(0), &json!(0)),
        "{found:#} {answered:#}"
    );

    let _relay = Relay::in_the_wire_of_node_1(&lab);
    // Pings pass, TCP does not.
    let found = check(here, &[]);
    found.has(
        "warn",
        "checksums",
        "pings pass through the tunnel, TCP gets no answer",
        "--answer",
    );
    let (found, answered) = probed(here, there);
    let text = found.to_string();
    assert_eq!(found["fail"], 2, "{found:#}");
    assert!(text.contains("what this node sends reaches"), "{found:#}");
    assert!(text.contains("arrives with wrong checksums"), "{found:#}");
    assert!(text.contains("TxChecksumOffload"), "{found:#}");
    // The other side saw it arrive.
    assert_eq!(answered["fail"], 1, "{answered:#}");
    assert!(
        answered
            .to_string()
            .contains("arrived with wrong checksums"),
        "{answered:#}"
    );

    // The cure, on one node only: then its own are right, and the other's are not.
    for (node, fails) in [(here, 1), (there, 0)] {
        node.flanneld().set_args(["-tx-checksum-offload=off"]);
        node.flanneld().restart(SOON).unwrap();
        let (found, _) = probed(here, there);
        assert_eq!(found["fail"], fails, "{found:#}");
    }
    check(here, &[]).is_good();
}

#[test]
fn nobody_who_answers_is_told_apart() {
    let lab = Lab::builder().nodes(2).build().unwrap();
    started(&lab);
    let found = check(lab.node(1), &["--probe", &lab.node(2).ipv4().to_string()]);
    found.fails_only(
        "checksums",
        "nothing answers at",
        "flannelctl check --answer",
    );
}
