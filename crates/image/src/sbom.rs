//! The bill of materials: CycloneDX 1.5, JSON. No date and no serial number, so that it is the same every time.

use anyhow::Result;
use serde_json::{Value, json};

use crate::archive;
use crate::crates::Crate;
use crate::debian::Package;

/// What a document describes.
pub struct Subject {
    /// Its package URL, which names it in the document.
    pub purl: String,
    /// `container` or `file`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The SHA-256 of the file, where the document is not part of it.
    pub sha256: Option<String>,
}

impl Subject {
    /// Returns the container image of a version.
    pub fn image(version: &str) -> Subject {
        Subject {
            purl: format!("pkg:generic/flannel-rs@{version}"),
            kind: "container",
            name: "flannel-rs".into(),
            sha256: None,
        }
    }

    /// Returns a package or archive that is handed out as a file.
    pub fn file(version: &str, name: &str, bytes: &[u8]) -> Subject {
        let sha256 = archive::sha256(bytes);
        let encoded = name.replace('+', "%2B").replace('~', "%7E");
        Subject {
            purl: format!(
                "pkg:generic/flannel-rs@{version}?checksum=sha256:{sha256}&file_name={encoded}"
            ),
            kind: "file",
            name: name.into(),
            sha256: Some(sha256),
        }
    }
}

/// Returns the document for something with these things in it; `rust` is the version of the compiler, and `musl` says
/// whether the programs contain their C library.
///
/// # Errors
/// None known.
pub fn document(
    subject: &Subject,
    version: &str,
    rust: &str,
    musl: bool,
    crates: &[Crate],
    packages: &[Package],
) -> Result<Vec<u8>> {
    let mut components: Vec<Value> = crates.iter().map(of_crate).collect();
    components.extend(packages.iter().map(of_package));
    components.push(of_rust(rust, musl));
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
    let all: Vec<String> = ours
        .chain(packages.iter().map(purl))
        .chain([rust_purl(rust)])
        .collect();
    dependencies.push(json!({"ref": subject.purl, "dependsOn": all}));
    let mut component = json!({
        "type": subject.kind, "bom-ref": subject.purl, "purl": subject.purl, "name": subject.name, "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    });
    if let Some(sha256) = &subject.sha256 {
        component["hashes"] = json!([{"alg": "SHA-256", "content": sha256}]);
    }
    let mut text = serde_json::to_vec(&json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component},
        "components": components,
        "dependencies": dependencies,
    }))?;
    text.push(b'\n');
    Ok(text)
}

fn rust_purl(version: &str) -> String {
    format!("pkg:generic/rust@{version}")
}

/// What the compiler adds to every program.
fn of_rust(version: &str, musl: bool) -> Value {
    let (what, licence) = if musl {
        (
            "the standard library, and the musl C library that comes with it",
            "(MIT OR Apache-2.0) AND MIT",
        )
    } else {
        ("the standard library", "MIT OR Apache-2.0")
    };
    let purl = rust_purl(version);
    json!({
        "type": "library", "bom-ref": purl, "purl": purl, "name": "rust", "version": version, "description": what,
        "licenses": [{"expression": licence}],
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
