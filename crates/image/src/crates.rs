//! The Rust packages that our programs are made of, as cargo resolved them.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The workspace's packages that make programs of the image.
const ROOTS: [&str; 3] = ["flanneld", "cni", "flannelctl"];

/// Packages that only a feature links in, which the image's programs are built without.
const LEFT_OUT: [&str; 3] = ["clap_mangen", "lab", "ratatui"];

/// A Rust package.
#[derive(Debug, PartialEq, Eq)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence as an SPDX expression, where it names one.
    pub licence: Option<String>,
    /// Whether it is of this workspace.
    pub ours: bool,
    /// What it is linked with, as `name@version`.
    pub needs: BTreeSet<String>,
    /// Whom it names as its authors.
    pub authors: Vec<String>,
    /// Where its sources are on this machine.
    pub directory: PathBuf,
}

impl Crate {
    /// `name@version`.
    pub fn id(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

/// Returns what ends up in the programs for a Rust target: dependencies of dependencies too, but nothing that only a
/// build or a test needs. `with_lab`: the commands `lab`, `demo` and `top` too, which the image's `flannelctl` has not.
///
/// # Errors
/// Cargo fails, or says what cannot be understood.
pub fn of_programs(target: &str, with_lab: bool) -> Result<Vec<Crate>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--locked",
            "--format-version=1",
            "--filter-platform",
            target,
        ])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cargo metadata: {}", said.trim());
    }
    let metadata = serde_json::from_slice(&output.stdout)?;
    let left_out = if with_lab { &[][..] } else { &LEFT_OUT[..] };
    closure(&metadata, &ROOTS, left_out).context("cargo metadata says what cannot be understood")
}

/// The version of the Rust compiler.
///
/// # Errors
/// There is none.
pub fn compiler() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let said = output.context("cannot run rustc --version")?.stdout;
    // `rustc 1.95.0 (59807616e 2026-04-14)`
    let said = String::from_utf8_lossy(&said);
    let version = said.split_whitespace().nth(1).map(str::to_owned);
    version.with_context(|| format!("rustc --version says {said:?}"))
}

fn closure(metadata: &Value, roots: &[&str], left_out: &[&str]) -> Option<Vec<Crate>> {
    let by_id = |list: &Value| -> Option<BTreeMap<String, Value>> {
        let entry = |v: &Value| Some((v["id"].as_str()?.to_owned(), v.clone()));
        list.as_array()?.iter().map(entry).collect()
    };
    let packages = by_id(&metadata["packages"])?;
    let nodes = by_id(&metadata["resolve"]["nodes"])?;
    let name = |id: &str| {
        let package = packages.get(id)?;
        Some(format!(
            "{}@{}",
            package["name"].as_str()?,
            package["version"].as_str()?
        ))
    };
    let root = |p: &&Value| p["source"].is_null() && roots.iter().any(|r| p["name"] == **r);
    let mut open: Vec<String> = packages
        .values()
        .filter(root)
        .filter_map(|p| Some(p["id"].as_str()?.to_owned()))
        .collect();
    if open.len() != roots.len() {
        return None;
    }
    let mut found = BTreeMap::new();
    while let Some(id) = open.pop() {
        if found.contains_key(&id) {
            continue;
        }
        let package = packages.get(&id)?;
        let mut needs = BTreeSet::new();
        for dependency in nodes.get(&id)?["deps"].as_array()? {
            let mut kinds = dependency["dep_kinds"].as_array()?.iter();
            let id = dependency["pkg"].as_str()?;
            let package = packages.get(id)?;
            let is_left_out = package["source"].is_null()
                && left_out.iter().any(|name| package["name"] == **name);
            if kinds.any(|kind| kind["kind"].is_null()) && !is_left_out {
                needs.insert(name(id)?);
                open.push(id.to_owned());
            }
        }
        let text = |key: &str| package[key].as_str().map(str::to_owned);
        found.insert(
            id,
            Crate {
                name: text("name")?,
                version: text("version")?,
                licence: text("license"),
                ours: package["source"].is_null(),
                needs,
                authors: package["authors"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|a| a.as_str().map(str::to_owned))
                    .collect(),
                directory: PathBuf::from(text("manifest_path")?).parent()?.into(),
            },
        );
    }
    let mut found: Vec<Crate> = found.into_values().collect();
    found.sort_by_key(Crate::id);
    Some(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_only_builds_and_tests_need_is_left_out() {
        let package = |name: &str, source: Value| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT", "source": source, "manifest_path": "/src/Cargo.toml"});
        let dep = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("flanneld", Value::Null), package("linked", json!("registry")), package("deep", json!("registry")),
                package("cc", json!("registry")), package("proptest", json!("registry")), package("lab", Value::Null),
            ],
            "resolve": {"nodes": [
                {"id": "flanneld", "deps": [dep("linked", Value::Null), dep("cc", json!("build")), dep("proptest", json!("dev")), dep("lab", Value::Null)]},
                {"id": "linked", "deps": [dep("deep", Value::Null)]},
                {"id": "deep", "deps": []}, {"id": "cc", "deps": []}, {"id": "proptest", "deps": []},
                {"id": "lab", "deps": []},
            ]},
        });
        let all = closure(&metadata, &["flanneld"], &[]).unwrap();
        assert_eq!(all.len(), 4);
        let found = closure(&metadata, &["flanneld"], &["lab"]).unwrap();
        let names: Vec<String> = found.iter().map(Crate::id).collect();
        assert_eq!(names, ["deep@1.0.0", "flanneld@1.0.0", "linked@1.0.0"]);
        assert_eq!(found[2].needs, ["deep@1.0.0".to_owned()].into());
        assert!(found[1].ours && !found[2].ours);
        assert_eq!(closure(&metadata, &["flanneld", "cni"], &[]), None);
    }
}
