//! The image that `make image` wrote: what is in it, who can read it, and that it runs with the rights that
//! a pod has.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod archive;
mod confined;
mod runtimes;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// `make image` wrote it, or `$FLANNEL_IMAGE` names it.
fn image() -> PathBuf {
    lab::flannel_image().unwrap()
}

/// The image's name as the chart has it, with our version.
fn name() -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/image-name");
    let name = must(&mut Command::new(script));
    format!("{}:v{}", name.trim(), env!("CARGO_PKG_VERSION"))
}

/// The files of an archive in memory.
fn read(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = fs::File::open(archive).unwrap();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(file).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        assert!(files.insert(name.clone(), bytes).is_none(), "{name} twice");
    }
    files
}

/// The manifest of an archive, its configuration, and the layers from the lowest upwards.
fn parts(files: &BTreeMap<String, Vec<u8>>) -> (Value, Value, Vec<&[u8]>) {
    let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    let manifest = manifest[0].clone();
    let file = |name: &Value| files[name.as_str().unwrap()].as_slice();
    let config = serde_json::from_slice(file(&manifest["Config"])).unwrap();
    let layers = manifest["Layers"].as_array().unwrap().iter().map(file);
    (manifest.clone(), config, layers.collect())
}

/// The image's files in a directory, as a container sees them.
fn unpack(archive: &Path, root: &Path) {
    for layer in parts(&read(archive)).2 {
        tar::Archive::new(layer).unpack(root).unwrap();
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn output(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// Runs a command that must succeed, and returns what it printed.
fn must(command: &mut Command) -> String {
    let output = output(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
