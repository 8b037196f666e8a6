//! The page at `/mesh` in a browser: a headless Chromium on the node, with a broken node in the mesh.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use lab::{Node, StoreKind, wait_for};

use crate::probes::thinks;
use crate::scene::{self, SOON};

const PAGE: &str = "http://127.0.0.1:10471/mesh";

/// Runs a browser on the node; returns what it prints.
fn browse(node: &Node, profile: &Path, args: &[&str]) -> String {
    let mut command = Command::new("chromium");
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--virtual-time-budget=4000",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(args)
        .arg(PAGE)
        .env("HOME", profile)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let browser = node.spawn(&mut command);
    let output = browser.unwrap().wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the width and height of a PNG.
fn size(png: &[u8]) -> (u32, u32) {
    assert!(png.starts_with(b"\x89PNG"), "{:?}", png.get(..8));
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn a_browser_shows_the_broken_node() {
    let lab = scene::lab()
        .nodes(3)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let (a, b, c) = (lab.node(1), lab.node(2), lab.node(3));
    a.flanneld().set_args(["-health-page=local"]);
    lab.start().unwrap();
    thinks(a, b, "reachable");
    thinks(a, c, "reachable");
    for rule in [
        "add table ip t",
        "add chain ip t in { type filter hook input priority -300; }",
        "add rule ip t in udp dport 8472 drop",
    ] {
        b.exec(["nft", rule]).unwrap();
    }
    thinks(a, b, "tunnelFiltered");
    let profile = tempfile::tempdir().unwrap();
    let subnet = |node: &Node| {
        let env = node.subnet_env().unwrap();
        env.cidr(model::Family::V4).unwrap().trunc().to_string()
    };
    let shown = wait_for("the page shows the nodes", SOON, || {
        let dom = browse(a, profile.path(), &["--dump-dom"]);
        if dom.contains("cell reachable") && dom.contains("cell failing") {
            Ok(dom)
        } else {
            Err(dom)
        }
    })
    .unwrap();
    // The broken node, with the reason, in the list of what is wrong; the others are not in it.
    let faults = shown.split("id=\"faults\"").nth(1).unwrap();
    let faults = faults.split("</table>").next().unwrap();
    assert!(faults.contains(&subnet(b)), "{faults}");
    assert!(faults.contains("vxlan (UDP 8472)"), "{faults}");
    assert!(!faults.contains(&subnet(c)), "{faults}");
    assert!(shown.contains(&subnet(a)), "{shown}");
    // A phone and a screen, light and dark: pictures, for people who set FLANNEL_SCREENSHOTS.
    let pictures = std::env::var_os("FLANNEL_SCREENSHOTS");
    let pictures = pictures.map_or(profile.path().to_owned(), Into::into);
    for (width, height) in [(390, 844), (1280, 800)] {
        for (name, scheme) in [("dark", 0), ("light", 1)] {
            let file = pictures.join(format!("mesh-{width}-{name}.png"));
            let screenshot = format!("--screenshot={}", file.display());
            let size_arg = format!("--window-size={width},{height}");
            let scheme = format!("--blink-settings=preferredColorScheme={scheme}");
            browse(a, profile.path(), &[&screenshot, &size_arg, &scheme]);
            let png = fs::read(&file).unwrap();
            assert_eq!(size(&png), (width, height));
        }
    }
}
