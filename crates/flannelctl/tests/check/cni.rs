//! CNI configurations and plugins.

use std::os::unix::fs::PermissionsExt;

use lab::{Lab, Node};

use crate::{Found, check};

const GOOD: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","plugins":[
    {"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

fn run(node: &Node, lab: &Lab) -> Found {
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let _ = lab;
    check(
        node,
        &[
            "--cni-conf-dir=/run/net.d",
            "--cni-bin-dir=/run/cni-bin",
            "--",
            &store,
        ],
    )
}

#[test]
fn configurations_and_plugins() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(1);
    run(node, &lab).has("ok", "cni", "CNI is not used here", "");
    let ours = "/run/net.d/10-flannel.conflist";
    node.write(ours, GOOD).unwrap();
    run(node, &lab).fails_only("cni", "there is no /run/cni-bin/bridge", "CNI plugins");

    node.exec(["ln", "-s", "/usr/lib/cni", "/run/plugins"])
        .unwrap();
    for name in ["bridge", "host-local", "portmap", "loopback"] {
        let from = format!("/usr/lib/cni/{name}");
        node.exec(["ln", "-s", &from, &format!("/run/cni-bin/{name}")])
            .unwrap_or_else(|_| {
                node.exec(["mkdir", "/run/cni-bin"]).unwrap();
                node.exec(["ln", "-s", &from, &format!("/run/cni-bin/{name}")])
                    .unwrap()
            });
    }
    let flannel = "/run/cni-bin/flannel";
    run(node, &lab).fails_only(
        "cni",
        "there is no /run/cni-bin/flannel",
        "flannel-rs's plugin",
    );
    let plugin = |versions: &str| {
        let script = format!(
            "#!/bin/sh\ncat >/dev/null\necho '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[{versions}]}}'\n"
        );
        node.write(flannel, &script).unwrap();
        node.run(|| {
            std::fs::set_permissions(flannel, std::fs::Permissions::from_mode(0o755)).unwrap();
        })
        .unwrap();
    };
    plugin(r#""0.3.0","0.3.1","1.1.0""#);
    let found = run(node, &lab);
    assert_eq!(found.status, 0, "{:#}", found.json);
    found.has("ok", "cni", "10-flannel.conflist is in order", "");
    found.has("ok", "cni", "flannel speaks 0.3.1 (up to 1.1.0)", "");
    found.has("ok", "cni", "portmap speaks 0.3.1", "");
    plugin(r#""1.1.0""#);
    run(node, &lab).fails_only("cni", "does not speak \"cniVersion\" 0.3.1, but 1.1.0", "");
    node.write(flannel, "#!/bin/sh\nexit 1\n").unwrap();
    run(node, &lab).fails_only(
        "cni",
        "does not answer CNI_COMMAND=VERSION",
        "install it anew",
    );
    plugin(r#""0.3.1""#);

    for (text, expected) in [
        ("{", "no JSON"),
        ("[]", "a JSON object"),
        (
            r#"{"cniVersion":"0.3.1","plugins":[{"type":"flannel"}]}"#,
            "\"name\" is missing",
        ),
        (
            r#"{"name":"a","cniVersion":"0.3.1","plugins":[{"type":"flannel","subnetFile":"/x"}]}"#,
            "\"subnetFile\" is /x",
        ),
        (
            r#"{"name":"a","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":{"ipam":{}}}]}"#,
            "must not hold \"ipam\"",
        ),
        (
            r#"{"name":"a","cniVersion":"0.3.1","plugins":[{"type":"flannel","delegate":7}]}"#,
            "\"delegate\" is no object",
        ),
    ] {
        node.write(ours, text).unwrap();
        run(node, &lab).fails_only("cni", expected, "");
    }
    node.write(ours, GOOD).unwrap();
    node.write(
        "/run/net.d/05-other.conf",
        r#"{"name":"o","cniVersion":"0.3.1","type":"bridge"}"#,
    )
    .unwrap();
    run(node, &lab).has("warn", "cni", "05-other.conf comes before", "sorts first");
}
