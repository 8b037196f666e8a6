//! `flannelctl bundle` on nodes of the lab: what is in it, and that no secret is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use lab::{Lab, Node, StoreKind};

const SOON: Duration = Duration::from_secs(60);
const CTL: &str = env!("CARGO_BIN_EXE_flannelctl");

const PASSWORD: &str = "correct-horse-battery";
const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJmbGFubmVsIn0.c2lnbmF0dXJlLW9mLXRva2Vu";
const PSK: &str = "b3BlbnNlc2FtZW9wZW5zZXNhbWVvcGVuc2VzYW1lISE=";
const KUBECONFIG_TOKEN: &str = "kubeconfig-token-4711";
const WG_KEY: &str = "8GboYh0YF3q6dJvS8dN7q3hE1lXxR9sK2mPzQwVtUnE=";

/// The files of an archive, without the directory that all are in.
fn files(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut tar = tar::Archive::new(GzDecoder::new(bytes));
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (path.split_once('/').unwrap().1.to_owned(), text)
    });
    entries.collect()
}

fn bundle(node: &Node, args: &[&str]) -> BTreeMap<String, String> {
    let output = node
        .output([&[CTL, "bundle", "-o", "-"], args].concat())
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    files(&output.stdout)
}

#[test]
fn it_holds_what_helps_and_no_secret() {
    let lab = Lab::builder()
        .nodes(2)
        .store(StoreKind::Etcd { tls: true })
        .backend(serde_json::json!({"Type": "vxlan", "PSK": PSK}))
        .build()
        .unwrap();
    lab.etcd()
        .unwrap()
        .enable_auth("flannel", PASSWORD)
        .unwrap();
    let node = lab.node(1);
    node.write("/run/wg.key", WG_KEY).unwrap();
    for node in lab.nodes() {
        node.flanneld().set_args([
            "--etcd-username=flannel".to_owned(),
            format!("--etcd-password={PASSWORD}"),
        ]);
    }
    lab.start().unwrap();
    lab.wait_mesh(SOON).unwrap();
    let conf = format!(
        r#"{{"name": "cbr0", "cniVersion": "1.0.0", "token": "{TOKEN}", "plugins": [{{"type": "flannel"}}]}}"#
    );
    node.write("/run/net.d/10-flannel.conflist", &conf).unwrap();
    let kubeconfig = format!("users: [{{name: u, user: {{token: {KUBECONFIG_TOKEN}}}}}]");
    node.write("/run/net.d/calico.kubeconfig", &kubeconfig)
        .unwrap();
    let log = format!(
        "{}\nAuthorization: Bearer {TOKEN}\nuser:\n  token: {KUBECONFIG_TOKEN}\nhttp://flannel:{PASSWORD}@10.0.0.1\nprivate_key={WG_KEY}\n",
        node.flanneld().log()
    );
    node.write("/run/flanneld.log", &log).unwrap();
    let found = bundle(
        node,
        &["--cni-conf-dir=/run/net.d", "--log=/run/flanneld.log"],
    );

    for (name, part) in [
        ("README.txt", "Secrets were removed"),
        ("flanneld/status.json", "\"backend\":\"vxlan\""),
        ("flanneld/peers.json", "\"installed\""),
        ("flanneld/metrics.txt", "flannel_peers 1"),
        ("flanneld/log.txt", "wrote /run/flannel/subnet.env"),
        ("flanneld/subnet.env", "FLANNEL_SUBNET="),
        ("flanneld/settings.txt", "--etcd-username=flannel"),
        ("flanneld/settings.txt", "--etcd-password=(removed)"),
        ("store/config.json", "\"Type\":\"vxlan\""),
        ("store/config.json", "\"PSK\":\"(removed)"),
        ("store/leases.txt", "192.168.78.2"),
        ("cni/10-flannel.conflist", "cbr0"),
        ("check.json", "\"checks\""),
        ("kernel/flannel-objects.txt", "bridge fdb replace"),
        ("kernel/flannel-objects.txt", "dev flannel.1"),
        ("kernel/interfaces.txt", "flannel.1"),
        ("kernel/policy-rules.txt", "32766: from all lookup main"),
        ("kernel/sysctl.txt", "net/ipv4/ip_forward = 1"),
        ("kernel/ip-route.txt", "dev flannel.1"),
        ("kernel/nft.txt", "flannel"),
    ] {
        let text = found.get(name);
        let text = text.unwrap_or_else(|| panic!("no {name} in {:?}", found.keys()));
        let spaceless = text.replace("\": ", "\":");
        assert!(spaceless.contains(part), "{name}: {text}");
    }
    assert!(!found.keys().any(|name| name.contains("kubeconfig")));

    // Every secret of the lab, as it is and in base64.
    let mut secrets: Vec<String> = [PASSWORD, TOKEN, PSK, KUBECONFIG_TOKEN, WG_KEY]
        .map(str::to_owned)
        .into();
    secrets.extend(secrets.clone().iter().map(|secret| STANDARD.encode(secret)));
    let args = lab.etcd().unwrap().flanneld_args();
    let key = args
        .iter()
        .find_map(|arg| arg.strip_prefix("--etcd-keyfile="));
    let key = node
        .read(key.expect("the lab's etcd has client keys"))
        .unwrap();
    secrets.extend(
        key.lines()
            .filter(|line| !line.starts_with('-'))
            .map(str::to_owned),
    );
    for (name, text) in &found {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{name} holds {secret}");
        }
    }
}

#[test]
fn without_a_daemon_it_says_what_is_missing_and_the_file_is_private() {
    let lab = Lab::builder()
        .nodes(1)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    let node = lab.node(1);
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let printed = node
        .exec([CTL, "bundle", "-o", "/run/b.tar.gz", "--", &store])
        .unwrap();
    assert_eq!(printed.trim(), "/run/b.tar.gz");
    let mode = node.exec(["stat", "-c", "%a", "/run/b.tar.gz"]).unwrap();
    assert_eq!(mode.trim(), "600");
    let again = node.output([CTL, "bundle", "-o", "/run/b.tar.gz", "--", &store]);
    assert_eq!(
        again.unwrap().status.code(),
        Some(1),
        "it is not overwritten"
    );
    let found = bundle(node, &["--", &store]);
    let readme = &found["README.txt"];
    assert!(readme.contains("flanneld/status.json: "), "{readme}");
    assert!(
        readme.contains("no flanneld of this version runs here"),
        "{readme}"
    );
}
