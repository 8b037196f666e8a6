//! Images for several architectures as one: an archive in OCI's image layout, which `ctr images import`, `skopeo copy`
//! and `podman manifest` take.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tar::{Archive, Builder};

use crate::archive::{Platform, append, sha256};
use crate::tree;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Blobs by digest.
type Blobs = BTreeMap<String, Vec<u8>>;

/// Returns one archive made of the docker archives that `Image::archive` wrote, one for each architecture.
///
/// # Errors
/// One of them is something else, two are for the same architecture, or they have different names.
pub fn index(archives: &[Vec<u8>]) -> Result<Vec<u8>> {
    let mut blobs = Blobs::new();
    let mut manifests = BTreeMap::new();
    let mut name = None;
    for archive in archives {
        let image = read(archive).context("no archive of an image")?;
        if name.get_or_insert_with(|| image.name.clone()) != &image.name {
            bail!(
                "{} and {}: expected images of one name",
                name.unwrap_or_default(),
                image.name
            );
        }
        let mut layers = Vec::new();
        for layer in &image.layers {
            layers.push(put(&mut blobs, LAYER, tree::packed(layer)?));
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": put(&mut blobs, CONFIG, image.config), "layers": layers,
        });
        let mut descriptor = put(&mut blobs, MANIFEST, serde_json::to_vec(&manifest)?);
        let mut platform = json!({});
        image.platform.write(&mut platform);
        descriptor["platform"] = platform;
        if manifests
            .insert(image.platform.clone(), descriptor)
            .is_some()
        {
            bail!("two images for {}", image.platform.architecture);
        }
    }
    let Some(name) = name else {
        bail!("no image is named");
    };
    let manifests: Vec<Value> = manifests.into_values().collect();
    let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut top = put(&mut blobs, INDEX, serde_json::to_vec(&list)?);
    // Container runtimes complete a name without a registry so; a docker archive's they complete themselves.
    top["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/{name}"),
        "org.opencontainers.image.ref.name": name,
    });
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    let start = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]});

    let mut out = Builder::new(Vec::new());
    append(&mut out, "oci-layout", 0o644, &serde_json::to_vec(&layout)?)?;
    append(&mut out, "index.json", 0o644, &serde_json::to_vec(&start)?)?;
    for (digest, blob) in &blobs {
        append(&mut out, &format!("blobs/sha256/{digest}"), 0o644, blob)?;
    }
    Ok(out.into_inner()?)
}

/// Adds a blob and returns its descriptor.
fn put(blobs: &mut Blobs, media_type: &str, blob: Vec<u8>) -> Value {
    let digest = sha256(&blob);
    let descriptor =
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": blob.len()});
    blobs.insert(digest, blob);
    descriptor
}

struct Parts {
    name: String,
    platform: Platform,
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

fn read(archive: &[u8]) -> Result<Parts> {
    let mut files = BTreeMap::new();
    for entry in Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.insert(path, bytes);
    }
    let mut take = |name: &str| {
        files
            .remove(name)
            .with_context(|| format!("no {name} in it"))
    };
    let manifest: Value = serde_json::from_slice(&take("manifest.json")?)?;
    let manifest = &manifest[0];
    let text = |value: &Value| {
        let text = value.as_str().map(str::to_owned);
        text.with_context(|| format!("manifest.json has {value} where a text is expected"))
    };
    let config = take(&text(&manifest["Config"])?)?;
    let mut layers = Vec::new();
    for layer in manifest["Layers"].as_array().into_iter().flatten() {
        layers.push(take(&text(layer)?)?);
    }
    let described: Value = serde_json::from_slice(&config)?;
    Ok(Parts {
        name: text(&manifest["RepoTags"][0])?,
        platform: Platform {
            architecture: text(&described["architecture"])?,
            variant: described["variant"].as_str().map(str::to_owned),
        },
        config,
        layers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Image;
    use crate::tree::Tree;

    fn image(architecture: &str, name: &str) -> Vec<u8> {
        let mut tree = Tree::default();
        tree.file("opt/bin/flanneld", 0o755, architecture.into())
            .unwrap();
        let image = Image {
            name: name.into(),
            version: "1".into(),
            platform: Platform::of_debian(architecture),
            layers: vec![("one", tree)],
        };
        image.archive().unwrap().0
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(path, bytes);
        }
        files
    }

    #[test]
    fn every_descriptor_leads_to_what_it_describes() {
        let images = [image("armhf", "x/y:v1"), image("amd64", "x/y:v1")];
        let archive = index(&images).unwrap();
        let files = files(&archive);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let digest = digest.strip_prefix("sha256:").unwrap();
            let bytes = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(sha256(bytes), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let top = json(&files["index.json"]);
        let list = json(blob(&top["manifests"][0]));
        let platforms: Vec<&Value> = list["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| &m["platform"])
            .collect();
        assert_eq!(
            platforms,
            [
                &json!({"os": "linux", "architecture": "amd64"}),
                &json!({"os": "linux", "architecture": "arm", "variant": "v7"}),
            ]
        );
        for manifest in list["manifests"].as_array().unwrap() {
            let manifest = json(blob(manifest));
            let config = json(blob(&manifest["config"]));
            let mut layer = Vec::new();
            flate2::read::GzDecoder::new(blob(&manifest["layers"][0]).as_slice())
                .read_to_end(&mut layer)
                .unwrap();
            assert_eq!(
                config["rootfs"]["diff_ids"][0],
                format!("sha256:{}", sha256(&layer))
            );
        }
        let backwards = [images[1].clone(), images[0].clone()];
        assert!(
            index(&backwards).unwrap() == archive,
            "the order makes a difference"
        );
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let said = |images: &[Vec<u8>]| format!("{:#}", index(images).unwrap_err());
        let one = image("amd64", "x/y:v1");
        assert_eq!(said(&[one.clone(), one.clone()]), "two images for amd64");
        assert!(said(&[one, image("arm64", "x/y:v2")]).contains("x/y:v1 and x/y:v2"));
        assert!(said(&[b"text".to_vec()]).contains("no archive of an image"));
        assert_eq!(said(&[]), "no image is named");
    }
}
