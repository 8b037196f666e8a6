//! What people give the daemon that it cannot use: one message that names it, and a status.

use std::process::Output;

use lab::{Instance, Lab, Node, StoreKind};
use serde_json::{Value, json};

use crate::scene::{self, SOON};

/// A node on which nothing runs, with files to be named by flags.
fn bench() -> Lab {
    let lab = scene::lab()
        .nodes(1)
        .store(StoreKind::Etcd { tls: true })
        .build()
        .unwrap();
    let node = lab.node(1);
    node.write("/run/file", "no PEM\n").unwrap();
    node.write("/run/empty", "").unwrap();
    lab
}

const ENDPOINT: &str = "-etcd-endpoints=https://192.168.78.254:2379";
const CA: &str = "-etcd-cafile=/run/lab/tls/ca.pem";

/// Runs flanneld to its end; one that goes on is killed, and has status 124.
fn flanneld(node: &Node, env: &[&str], args: &[&str]) -> Output {
    let mut argv = vec!["env"];
    argv.extend(env);
    argv.extend(["timeout", "-s", "KILL", "5", "flanneld"]);
    argv.extend(args);
    node.output(argv).unwrap()
}

/// It ends with `code`, and one message that holds all of `texts`.
fn refuses(
    node: &Node,
    code: i32,
    env: &[&str],
    args: &[&str],
    texts: &[&str],
) -> Result<(), String> {
    let output = flanneld(node, env, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let wrong = |what: &str| {
        Err(format!(
            "{env:?} {args:?}: {what}; status {}: {said}",
            output.status
        ))
    };
    let is_message = |line: &&str| {
        line.starts_with("flanneld: ") || line.starts_with("error: ") || line.contains(" ERROR ")
    };
    let messages: Vec<&str> = said.lines().filter(is_message).collect();
    if output.status.code() != Some(code) {
        return wrong(&format!("status {code} expected"));
    }
    if messages.len() != 1 || said.contains("panicked") || !output.stdout.is_empty() {
        return wrong("one message expected");
    }
    if let Some(text) = texts.iter().find(|text| !messages[0].contains(**text)) {
        return wrong(&format!("no {text:?}"));
    }
    // Ends before it has done anything.
    match node.read("/run/flannel/subnet.env") {
        Ok(_) => wrong("it wrote subnet.env"),
        Err(_) => Ok(()),
    }
}

/// All that went wrong, at once.
fn none(wrong: Vec<String>) {
    assert!(
        wrong.is_empty(),
        "{} refusals are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn flags_that_cannot_be() {
    let mut wrong = Vec::new();
    let lab = bench();
    let node = lab.node(1);
    for (args, texts) in [
        (&["-no-such-flag"][..], &["no-such-flag"][..]),
        (&["--no-such-flag=7"], &["no-such-flag"]),
        (&["stray"], &["stray"]),
        (&["-iface"], &["iface"]),
        (&["-etcd-endpoints"], &["etcd-endpoints"]),
        (
            &["-subnet-lease-renew-margin=0"],
            &["-subnet-lease-renew-margin 0", "1 to 1439"],
        ),
        (
            &["-subnet-lease-renew-margin=1440"],
            &["-subnet-lease-renew-margin 1440", "1 to 1439"],
        ),
        (
            &["-subnet-lease-renew-margin", "1h"],
            &["-subnet-lease-renew-margin 1h", "minutes"],
        ),
        (
            &["-public-ip=fd00::1"],
            &["-public-ip fd00::1", "IPv4 address"],
        ),
        (&["-public-ip=node7"], &["-public-ip node7", "IPv4 address"]),
        (
            &["-public-ipv6=10.0.0.1"],
            &["-public-ipv6 10.0.0.1", "IPv6 address"],
        ),
        (&["-healthz-ip=here"], &["-healthz-ip here", "IP address"]),
        (&["-healthz-port=65536"], &["-healthz-port 65536", "65535"]),
        (&["-healthz-port=-1"], &["-healthz-port -1", "65535"]),
        (
            &["-iface-can-reach=example.org"],
            &["-iface-can-reach example.org", "IP address"],
        ),
        (
            &["-iface-regex=("],
            &["-iface-regex (", "regular expression"],
        ),
        (&["-log-format=xml"], &["-log-format xml", "text or json"]),
        (&["-ip-masq=maybe"], &["-ip-masq maybe", "true or false"]),
        (
            &["-iptables-forward-rules=2"],
            &["-iptables-forward-rules 2", "true or false"],
        ),
        (
            &["-iptables-resync=often"],
            &["-iptables-resync often", "seconds"],
        ),
        (
            &["-iptables-resync=-1"],
            &["-iptables-resync -1", "seconds"],
        ),
        (&["-v=loud"], &["-v loud", "number"]),
        (&["-subnet-file="], &["-subnet-file", "path"]),
        (&["-kube-subnet-mgr"], &["NODE_NAME is not set", "POD_NAME"]),
        (
            &["-etcd-endpoints=ftp://10.0.0.1:2379"],
            &["-etcd-endpoints", "ftp://10.0.0.1:2379"],
        ),
        (
            &["-etcd-endpoints=http://"],
            &["-etcd-endpoints", "http://"],
        ),
        (
            &["-etcd-endpoints=http://10.0.0.1:99999"],
            &["-etcd-endpoints", "99999"],
        ),
        (&["-etcd-endpoints=,"], &["-etcd-endpoints"]),
        (
            &["-etcd-username=flannel"],
            &["-etcd-username", "-etcd-password"],
        ),
        (
            &["-etcd-password=secret"],
            &["-etcd-password", "-etcd-username"],
        ),
        (
            &[
                "-etcd-username=u",
                "-etcd-password=p",
                "-etcd-password-file=/run/file",
            ],
            &["-etcd-password", "-etcd-password-file"],
        ),
    ] {
        wrong.extend(refuses(node, 2, &[], args, texts).err());
    }
    for (variable, texts) in [
        (
            "FLANNELD_PUBLIC_IP=node7",
            &["FLANNELD_PUBLIC_IP=node7", "IPv4 address"][..],
        ),
        (
            "FLANNELD_SUBNET_LEASE_RENEW_MARGIN=0",
            &["FLANNELD_SUBNET_LEASE_RENEW_MARGIN=0"],
        ),
        (
            "FLANNELD_IPTABLES_FORWARD_RULES=x",
            &["FLANNELD_IPTABLES_FORWARD_RULES=x"],
        ),
        (
            "FLANNELD_KUBE_SUBNET_MGR=true",
            &["NODE_NAME is not set", "POD_NAME"],
        ),
    ] {
        wrong.extend(refuses(node, 2, &[variable], &[], texts).err());
    }
    none(wrong);
    // No password in a refusal.
    let output = flanneld(node, &[], &["-etcd-password=geheim"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("geheim"));
}

#[test]
fn files_and_certificates_that_cannot_be() {
    let mut wrong = Vec::new();
    let lab = bench();
    let node = lab.node(1);
    let cert = "-etcd-certfile=/run/lab/tls/flanneld.pem";
    let key = "-etcd-keyfile=/run/lab/tls/flanneld-key.pem";
    let etcd = |args: &[&'static str]| [&[ENDPOINT][..], args].concat();
    for (args, texts) in [
        (
            etcd(&["-etcd-cafile=/run/none"]),
            &["-etcd-cafile /run/none", "No such file"][..],
        ),
        (
            etcd(&["-etcd-cafile=/run/file"]),
            &["-etcd-cafile /run/file", "BEGIN CERTIFICATE"],
        ),
        (
            etcd(&["-etcd-cafile=/run/empty"]),
            &["-etcd-cafile /run/empty", "BEGIN CERTIFICATE"],
        ),
        (etcd(&["-etcd-cafile=/run"]), &["-etcd-cafile /run"]),
        (etcd(&[CA, cert]), &["-etcd-certfile", "-etcd-keyfile"]),
        (etcd(&[CA, key]), &["-etcd-keyfile", "-etcd-certfile"]),
        (
            etcd(&[CA, cert, "-etcd-keyfile=/run/none"]),
            &["-etcd-keyfile /run/none", "No such file"],
        ),
        (
            etcd(&[CA, cert, "-etcd-keyfile=/run/file"]),
            &["-etcd-keyfile /run/file"],
        ),
        (
            etcd(&[CA, "-etcd-certfile=/run/file", key]),
            &["-etcd-certfile /run/file"],
        ),
        (
            etcd(&[CA, cert, "-etcd-keyfile=/run/lab/tls/etcd-key.pem"]),
            &["-etcd-keyfile /run/lab/tls/etcd-key.pem", "flanneld.pem"],
        ),
        (
            etcd(&["-etcd-username=u", "-etcd-password-file=/run/none"]),
            &["-etcd-password-file /run/none", "No such file"],
        ),
        (
            vec!["-healthz-ip=203.0.113.1", "-healthz-port=80"],
            &["-healthz-ip 203.0.113.1", "-healthz-port 80"],
        ),
    ] {
        wrong.extend(refuses(node, 1, &[], &args, texts).err());
    }
    node.write("/run/dir/config", r#"{"Network": "10.1.0.0/16"}"#)
        .unwrap();
    for (args, texts) in [
        (
            &["-subnet-file=/run/file/subnet.env"][..],
            &["-subnet-file /run/file/subnet.env"][..],
        ),
        (&["-subnet-file=/run/dir"], &["-subnet-file /run/dir"]),
    ] {
        let args = [&["-store-dir=/run/dir"][..], args].concat();
        wrong.extend(refuses(node, 1, &[], &args, texts).err());
    }
    none(wrong);
}

#[test]
fn version_and_help() {
    let lab = scene::lab().nodes(1).build().unwrap();
    let node = lab.node(1);
    for flag in ["-version", "--version", "-version=true"] {
        let output = flanneld(node, &[], &[flag]);
        assert_eq!(output.status.code(), Some(0));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            said.contains(env!("CARGO_PKG_VERSION")) && said.lines().count() == 1,
            "{said}"
        );
    }
    for flag in ["-h", "-help", "--help"] {
        let output = flanneld(node, &[], &[flag]);
        assert_eq!(output.status.code(), Some(0));
        let said = String::from_utf8(output.stdout).unwrap();
        for flag in [
            "etcd-endpoints",
            "iface-regex",
            "subnet-lease-renew-margin",
            "store-dir",
            "FLANNELD_",
        ] {
            assert!(said.contains(flag), "{said}");
        }
        assert!(!said.contains("plain-routes"), "hidden: {said}");
    }
}

#[test]
fn the_environment_is_heard_and_the_command_line_wins() {
    let lab = scene::lab().nodes(1).build().unwrap();
    let node = lab.node(1);
    let daemon = node.another(Instance {
        name: "env".into(),
        args: vec!["--v".into(), "1".into(), "-public-ip=192.168.78.90".into()],
        env: [
            ("FLANNELD_PUBLIC_IP", "192.168.78.91"),
            ("FLANNELD_IFACE", "eth0"),
            ("FLANNELD_LOG_FORMAT", "json"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into(),
        ..Instance::default()
    });
    daemon.start_ready(SOON).unwrap();
    let lease: Value =
        serde_json::from_str(lab.leases().unwrap().values().next().unwrap()).unwrap();
    assert_eq!(lease["PublicIP"], json!("192.168.78.90"));
    let log = daemon.log();
    assert!(log.lines().count() > 3);
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for key in ["timestamp", "level", "message"] {
            assert!(line[key].is_string(), "{line}");
        }
    }
}
