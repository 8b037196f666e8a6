//! What is in `deploy/`, by Kubernetes' own programs: kubectl, Helm and a real API server.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod chart;
mod manifest;
mod migration;
mod odd_values;
mod policy;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use lab::{Error, Kube, Lab, StoreKind, kube_bin_dir};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// A file of `deploy/`.
fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(deploy(file)).unwrap()
}

/// The image's name as the chart has it, with our version.
fn image() -> String {
    let script = deploy("../scripts/image-name");
    let name = must(&mut Command::new(script));
    format!("{}:v{}", name.trim(), env!("CARGO_PKG_VERSION"))
}

/// A control plane; `None`, and why for everybody to see, where it cannot be had.
fn cluster(what: &str) -> Option<Lab> {
    let lab = Lab::builder()
        .nodes(2)
        .without_flanneld()
        .store(StoreKind::Kubernetes)
        .build();
    match lab {
        Err(why @ Error::Needs(_)) => {
            lab::not_run(what, &why);
            None
        }
        lab => Some(lab.unwrap()),
    }
}

/// Helm, built where it is not there yet.
fn helm(what: &str) -> Option<PathBuf> {
    let dir = match kube_bin_dir() {
        Err(why @ Error::Needs(_)) => {
            lab::not_run(what, &why);
            return None;
        }
        dir => dir.unwrap(),
    };
    let helm = dir.join("helm");
    if !helm.exists() {
        let script = deploy("../scripts/kubernetes");
        must(Command::new(script).arg("helm"));
    }
    Some(helm)
}

/// Runs a command that must succeed, and returns what it printed.
fn must(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Objects as JSON, without asking a server.
fn objects(kube: &Kube, file: &Path) -> Vec<Value> {
    let file = file.to_str().unwrap();
    let args = [
        "create",
        "--dry-run=client",
        "--validate=false",
        "-o",
        "json",
        "-f",
        file,
    ];
    let text = kube.kubectl(args).unwrap();
    // One after the other, without a list around them.
    let stream = serde_json::Deserializer::from_str(&text).into_iter();
    stream.map(Result::unwrap).collect()
}

fn one<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = |o: &&Value| o["kind"] == kind && o["metadata"]["name"] == name;
    objects
        .iter()
        .find(found)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The names of a pod's containers of one kind.
fn names<'a>(daemonset: &'a Value, containers: &str) -> Vec<&'a str> {
    let list = daemonset["spec"]["template"]["spec"][containers].as_array();
    list.unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect()
}
