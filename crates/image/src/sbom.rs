//! The bill of materials: CycloneDX 1.5, JSON. No date and no serial number, so that it is the same every time.

use anyhow::Result;
use serde_json::{Value, json};

use crate::crates::Crate;
use crate::debian::Package;

/// The document for an image with these things in it; `rust` is the version of the compiler.
///
/// # Errors
/// None known.
pub fn document(
    version: &str,
    rust: &str,
    crates: &[Crate],
    packages: &[Package],
) -> Result<Vec<u8>> {
    let image = format!("pkg:generic/flannel-rs@{version}");
    let mut components: Vec<Value> = crates.iter().map(of_crate).collect();
    components.extend(packages.iter().map(of_package));
    components.push(of_rust(rust));
    let mut dependencies: Vec<Value> = crates
        .iter()
        .map(|c| {
            let needs: Vec<String> = c.needs.iter().map(|id| format!("pkg:cargo/{id}")).collect();
            json!({"ref": format!("pkg:cargo/{}", c.id()), "dependsOn": needs})
        })
        .collect();
    let ours = crates
        .iter()
        .filter(|c| c.ours)
        .map(|c| format!("pkg:cargo/{}", c.id()));
    let all: Vec<String> = ours.chain(packages.iter().map(purl)).collect();
    dependencies.push(json!({"ref": image, "dependsOn": all}));
    let mut text = serde_json::to_vec(&json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container", "bom-ref": image, "name": "flannel-rs", "version": version,
            },
        },
        "components": components,
        "dependencies": dependencies,
    }))?;
    text.push(b'\n');
    Ok(text)
}

/// What the compiler adds to every program.
fn of_rust(version: &str) -> Value {
    let purl = format!("pkg:generic/rust@{version}");
    json!({
        "type": "library", "bom-ref": purl, "purl": purl, "name": "rust", "version": version,
        "description": "the standard library, and the musl C library that comes with it",
        "licenses": [{"expression": "(MIT OR Apache-2.0) AND MIT"}],
    })
}

fn of_crate(c: &Crate) -> Value {
    let purl = format!("pkg:cargo/{}", c.id());
    let licences = match &c.licence {
        // An older way to write OR.
        Some(licence) => json!([{"expression": licence.replace('/', " OR ")}]),
        None => json!([]),
    };
    let kind = if c.ours { "application" } else { "library" };
    json!({
        "type": kind, "bom-ref": purl, "purl": purl, "name": c.name, "version": c.version, "licenses": licences,
    })
}

fn of_package(p: &Package) -> Value {
    let named = |licence: &String| json!({"license": {"name": licence}});
    let mut licences: Vec<Value> = p.licences.iter().map(named).collect();
    if licences.is_empty() {
        let file = format!("see /usr/share/doc/{}/copyright.gz", p.name);
        licences.push(json!({"license": {"name": file}}));
    }
    json!({
        "type": "library", "bom-ref": purl(p), "purl": purl(p), "name": p.name, "version": p.version,
        "licenses": licences,
        "properties": [
            {"name": "debian:source", "value": p.source.0},
            {"name": "debian:source-version", "value": p.source.1},
        ],
    })
}

fn purl(p: &Package) -> String {
    // What a purl must not hold as it is, of what occurs in Debian versions.
    let version = p.version.replace('+', "%2B").replace(':', "%3A");
    format!(
        "pkg:deb/debian/{}@{version}?arch={}",
        p.name.replace('+', "%2B"),
        p.architecture
    )
}
