//! `flannelctl check` on nodes of the lab: on healthy ones, and with each fault made.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod checksums;
mod cni;
mod faults;
mod firewall;
mod healthy;
mod relay;
mod store;

use std::time::Duration;

use lab::{Lab, Node};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

const CTL: &str = env!("CARGO_BIN_EXE_flannelctl");

/// What the command found on a node.
struct Found {
    status: i32,
    json: Value,
}

/// Runs `flannelctl check --json ARGS` on a node.
fn check(node: &Node, args: &[&str]) -> Found {
    let output = node
        .output([&[CTL, "check", "--json"], args].concat())
        .unwrap();
    found(output)
}

fn found(output: std::process::Output) -> Found {
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{error}"));
    Found {
        status: output.status.code().unwrap(),
        json,
    }
}

impl Found {
    fn checks(&self) -> &[Value] {
        self.json["checks"].as_array().unwrap()
    }

    /// The lines of this level, as text.
    fn lines(&self, level: &str) -> Vec<String> {
        let of_level = self.checks().iter().filter(|c| c["level"] == level);
        of_level.map(Value::to_string).collect()
    }

    /// There is a line of this level about that, whose text and cure hold these words.
    #[track_caller]
    fn has(&self, level: &str, about: &str, text: &str, cure: &str) {
        let is = |check: &&Value| {
            let holds = |key: &str, part: &str| match check[key].as_str() {
                Some(whole) => whole.contains(part),
                None => part.is_empty(),
            };
            check["level"] == level
                && check["about"] == about
                && holds("text", text)
                && holds("cure", cure)
        };
        assert!(
            self.checks().iter().any(|check| is(&check)),
            "no {level} {about} with {text:?} and {cure:?} in {:#}",
            self.json
        );
    }

    /// The same, and it is the only fault; the exit status says so.
    #[track_caller]
    fn fails_only(&self, about: &str, text: &str, cure: &str) {
        self.has("fail", about, text, cure);
        let others = self.checks().iter();
        let others: Vec<&Value> = others
            .filter(|c| c["level"] == "fail" && c["about"] != about)
            .collect();
        assert!(others.is_empty(), "{others:#?}");
        assert_eq!(self.status, 1);
    }

    /// Nothing is wrong. (The clock of the machine that runs the tests is its own affair.)
    #[track_caller]
    fn is_good(&self) {
        assert_eq!(self.lines("fail"), [""; 0]);
        let warnings = self.lines("warn");
        let others: Vec<&String> = warnings.iter().filter(|w| !w.contains("clock")).collect();
        assert!(others.is_empty(), "{others:#?}");
        assert_eq!(self.status, 0);
    }
}

/// A shell command on a node.
fn sh(node: &Node, script: &str) -> String {
    node.exec(["sh", "-c", script]).unwrap()
}

fn started(lab: &Lab) {
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
}
