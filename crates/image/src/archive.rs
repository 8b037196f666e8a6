//! A docker archive: what `ctr images import`, `docker load` and `podman load` take.

use std::io;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::tree::{Entry, Tree};

/// The same for every build: an image's date says nothing that its version does not.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// A processor architecture, as container images call it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    /// `amd64`, `arm`, …
    pub architecture: String,
    /// `v7` of `arm`.
    pub variant: Option<String>,
}

impl Platform {
    /// Returns the platform of a Debian architecture.
    pub fn of_debian(architecture: &str) -> Platform {
        let (architecture, variant) = match architecture {
            "armhf" => ("arm", Some("v7".to_owned())),
            "ppc64el" => ("ppc64le", None),
            same => (same, None),
        };
        Platform {
            architecture: architecture.into(),
            variant,
        }
    }

    /// Adds it to a JSON object.
    pub fn write(&self, object: &mut Value) {
        object["os"] = "linux".into();
        object["architecture"] = self.architecture.clone().into();
        if let Some(variant) = &self.variant {
            object["variant"] = variant.clone().into();
        }
    }
}

/// An image.
pub struct Image {
    /// Name and tag. Container runtimes complete it the way they complete it in a manifest.
    pub name: String,
    /// Our version.
    pub version: String,
    /// The processor it is for.
    pub platform: Platform,
    /// From the lowest to the topmost, each with a word about what it is.
    pub layers: Vec<(&'static str, Tree)>,
}

impl Image {
    /// The archive, and the image's id: the SHA-256 of its configuration, which names those of the layers.
    ///
    /// # Errors
    /// A path that does not fit into an archive.
    pub fn archive(&self) -> Result<(Vec<u8>, String)> {
        let mut blobs = Vec::new();
        let mut history = Vec::new();
        for (what, tree) in &self.layers {
            blobs.push(layer(tree).with_context(|| format!("layer of {what}"))?);
            history
                .push(json!({"created": CREATED, "created_by": "flannel-image", "comment": what}));
        }
        let digests: Vec<String> = blobs.iter().map(|blob| sha256(blob)).collect();
        let diff_ids: Vec<String> = digests.iter().map(|d| format!("sha256:{d}")).collect();
        let mut config = json!({
            "created": CREATED,
            "config": {
                "Entrypoint": ["/opt/bin/flanneld"],
                "Env": ["PATH=/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": {
                    "org.opencontainers.image.title": "flannel-rs",
                    "org.opencontainers.image.version": self.version,
                },
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        self.platform.write(&mut config);
        let config = serde_json::to_vec(&config)?;
        let id = sha256(&config);
        let paths: Vec<String> = digests.iter().map(|d| format!("{d}/layer.tar")).collect();
        let manifest: Value =
            json!([{"Config": format!("{id}.json"), "RepoTags": [self.name], "Layers": paths}]);

        let mut archive = Builder::new(Vec::new());
        append(
            &mut archive,
            "manifest.json",
            0o644,
            &serde_json::to_vec(&manifest)?,
        )?;
        append(&mut archive, &format!("{id}.json"), 0o644, &config)?;
        for (path, blob) in paths.iter().zip(&blobs) {
            append(&mut archive, path, 0o644, blob)?;
        }
        Ok((archive.into_inner()?, id))
    }
}

fn layer(tree: &Tree) -> io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (path, entry) in tree.entries() {
        match entry {
            Entry::File { mode, bytes } => append(&mut tar, path, *mode, bytes)?,
            Entry::Dir => {
                let mut header = header(EntryType::Directory, 0o755, 0);
                tar.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Entry::Link(to) => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, path, to)?;
            }
        }
    }
    tar.into_inner()
}

/// Adds a file to an archive, of root and without a date.
pub fn append(tar: &mut Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}

/// Of root, without a date.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// Returns the SHA-256 of some bytes, in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}
