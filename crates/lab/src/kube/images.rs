//! Container images, made here: nothing is fetched.

use std::fs;
use std::path::Path;

use ring::digest::{SHA256, digest};
use serde_json::json;

use crate::Error;
use crate::error::Doing;

/// The image that pods of tests are made of, and that holds every pod's namespaces: busybox, which sleeps unless it
/// is told something else.
pub const BOX_IMAGE: &str = "docker.io/lab/box:1";

/// Where Debian's statically linked busybox is.
pub(super) const BUSYBOX: &str = "/bin/busybox";

/// Writes [`BOX_IMAGE`] as an archive that `ctr images import` takes.
pub(super) fn write_box(file: &Path) -> Result<(), Error> {
    let what = || format!("make the image {BOX_IMAGE}");
    let busybox = fs::read(BUSYBOX).doing(|| BUSYBOX.into())?;
    let applets = std::process::Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .doing(|| format!("{BUSYBOX} --list"))?;
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"] {
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        layer.append_data(&mut header, dir, &[][..]).doing(what)?;
    }
    let mut file_header = header(tar::EntryType::Regular, 0o755, busybox.len());
    layer
        .append_data(&mut file_header, "bin/busybox", &busybox[..])
        .doing(what)?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        let name = format!("bin/{applet}");
        if applet != "busybox" {
            layer
                .append_link(&mut header, name, "busybox")
                .doing(what)?;
        }
    }
    let layer = layer.into_inner().doing(what)?;

    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "infinity"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
        "history": [{"created": "1970-01-01T00:00:00Z"}],
    })
    .to_string();
    let (config_name, layer_name) = (format!("{}.json", hex(config.as_bytes())), "layer.tar");
    let manifest =
        json!([{"Config": config_name, "RepoTags": [BOX_IMAGE], "Layers": [layer_name]}]);
    let mut image = tar::Builder::new(Vec::new());
    for (name, data) in [
        (config_name.as_str(), config.as_bytes()),
        (layer_name, &layer),
        ("manifest.json", manifest.to_string().as_bytes()),
    ] {
        let mut header = header(tar::EntryType::Regular, 0o644, data.len());
        image.append_data(&mut header, name, data).doing(what)?;
    }
    let image = image.into_inner().doing(what)?;
    fs::write(file, image).doing(|| file.display().to_string())
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn hex(data: &[u8]) -> String {
    let sum = digest(&SHA256, data);
    sum.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// As images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
