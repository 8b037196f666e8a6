//! Values as people write them: each is understood, or refused with the sentence to write instead.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::{cluster, deploy, helm, said};

/// Renders the chart with the values of a file.
fn with_file(helm: &Path, values: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("values.yaml");
    fs::write(&file, values).unwrap();
    Command::new(helm)
        .args(["template", "flannel", "--namespace=kube-flannel"])
        .arg(deploy("chart"))
        .arg("-f")
        .arg(file)
        .output()
        .unwrap()
}

/// A path into the DaemonSet's pod, and what is there.
type Wanted = (&'static str, Value);

const CONTAINER: &str = "/spec/template/spec/containers/0";

/// Values that work, and what the API server gets of them.
fn understood() -> Vec<(&'static str, Wanted)> {
    let spec = "/spec/template/spec";
    let first = |path: &str| -> &'static str { format!("{CONTAINER}{path}").leak() };
    let pod = |path: &str| -> &'static str { format!("{spec}{path}").leak() };
    let port = |number: u16| (first("/ports/0/containerPort"), json!(number));
    let same = port(8081);
    let registry = format!(
        "registry.example/flannel-rs/flannel:v{}",
        env!("CARGO_PKG_VERSION")
    );
    vec![
        (
            "global: {imageRegistry: registry.example}",
            (first("/image"), json!(registry)),
        ),
        ("", same.clone()),
        (
            "global:\nflannel:\npodCidr:\nrbac:\nmetrics:\nnetpol:\nserviceAccount:\n",
            same.clone(),
        ),
        (
            "flannel: {image: , healthz: , resources: , tolerations: , args: , cniConf: , backend: , logFormat: , updateStrategy: }",
            same.clone(),
        ),
        (
            "flannel: {image: {}, healthz: {}, resources: {}, updateStrategy: {}, securityContext: {}}\nglobal: {}\nnetpol: {}",
            same.clone(),
        ),
        (
            "flannel: {backend: '', mtu: '', cniBinDir: '', logFormat: '', annotationPrefix: '', image: {repository: '', tag: '', pullPolicy: ''}, cniConf: ''}",
            same,
        ),
        (
            "flannel: {healthz: {port: '8085'}, mtu: '1400', vni: '5', GBP: 'yes', directRouting: 'False'}",
            port(8085),
        ),
        (
            "global: {imagePullSecrets: key}",
            (pod("/imagePullSecrets"), json!([{"name": "key"}])),
        ),
        (
            "global: {imagePullSecrets: [key]}",
            (pod("/imagePullSecrets"), json!([{"name": "key"}])),
        ),
        (
            "global: {imageRegistry: 'https://registry.example:5000/'}\nflannel: {image: {repository: a/b, tag: v1}}",
            (first("/image"), json!("registry.example:5000/a/b:v1")),
        ),
        (
            "flannel: {nodeSelector: {worker: true, zone: 1}}",
            (pod("/nodeSelector/worker"), json!("true")),
        ),
        (
            "global: {commonLabels: {a: 1}}\nflannel: {podLabels: {c: 2}, podAnnotations: {d: true}}",
            ("/spec/template/metadata/labels/c", json!("2")),
        ),
        (
            "flannel: {extraEnv: {KUBERNETES_SERVICE_HOST: 10.0.0.1}}",
            (
                first("/env/3"),
                json!({"name": "KUBERNETES_SERVICE_HOST", "value": "10.0.0.1"}),
            ),
        ),
        (
            "flannel: {extraEnv: [{name: PORT, value: 6443}]}",
            (first("/env/3/value"), json!("6443")),
        ),
        (
            "flannel: {tolerations: {operator: Exists}}",
            (pod("/tolerations"), json!([{"operator": "Exists"}])),
        ),
        (
            "flannel: {updateStrategy: OnDelete}",
            ("/spec/updateStrategy", json!({"type": "OnDelete"})),
        ),
        (
            "flannel: {updateStrategy: {type: OnDelete}}",
            ("/spec/updateStrategy", json!({"type": "OnDelete"})),
        ),
        (
            "flannel: {healthz: {livenessProbe: {httpGet: {path: /x, port: 1}}}}",
            (first("/livenessProbe/httpGet/path"), json!("/x")),
        ),
        (
            "flannel: {healthz: {readinessProbe: {periodSeconds: 7}}}",
            (first("/readinessProbe/httpGet/path"), json!("/readyz")),
        ),
        (
            "flannel: {securityContext: {capabilities: {drop: [ALL], add: }}}",
            (
                first("/securityContext/capabilities/add"),
                json!(["NET_ADMIN", "NET_RAW"]),
            ),
        ),
        (
            "flannel: {securityContext: {capabilities: {add: SYS_MODULE}}}",
            (
                first("/securityContext/capabilities/add/2"),
                json!("SYS_MODULE"),
            ),
        ),
        (
            "flannel: {architectures: amd64, installCapabilities: DAC_OVERRIDE}",
            (
                pod("/initContainers/0/securityContext/capabilities/add"),
                json!(["DAC_OVERRIDE"]),
            ),
        ),
        (
            "flannel: {image: {pullPolicy: always}, logFormat: JSON, backend: VXLAN}",
            (first("/imagePullPolicy"), json!("Always")),
        ),
        (
            "netpol: true",
            (pod("/containers/1/name"), json!("kube-network-policies")),
        ),
        (
            "netpol: {enabled: 'true', args: , image: {tag: v2}}",
            (
                pod("/containers/1/image"),
                json!("registry.k8s.io/networking/kube-network-policies:v2"),
            ),
        ),
        (
            "global: {systemDefaultRegistry: ''}\nflannel: {image: {repository: rancher/hardened-flannel, tag: v0.26.1-build20241107}, image_cni: {repository: rancher/hardened-cni-plugins, tag: v1.5.1}}",
            (
                "/spec/template/metadata/annotations/flannel-rs~1ignored-image",
                json!("rancher/hardened-flannel:v0.26.1-build20241107"),
            ),
        ),
        (
            "podCidr: 10.244.0.0/16\npodCidrv6: ''\nflannel: {image: {repository: docker.io/flannel/flannel, tag: v0.22.0}, image_cni: {repository: docker.io/flannel/flannel-cni-plugin, tag: v1.1.2}, args: [--ip-masq, --kube-subnet-mgr], backend: vxlan}",
            (first("/args/0"), json!("--ip-masq")),
        ),
    ]
}

#[test]
fn values_that_leave_no_doubt_are_understood() {
    let what = "values in other forms";
    let (Some(helm), Some(lab)) = (helm(what), cluster(what)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rendered.yaml");
    let mut all = String::new();
    for (values, _) in understood() {
        let output = with_file(&helm, values);
        assert!(output.status.success(), "{values}\n{}", said(&output));
        all.push_str(&String::from_utf8(output.stdout).unwrap());
    }
    fs::write(&file, all).unwrap();
    // No field twice, none that is unknown, none of the wrong type. One call, for each takes a second.
    let text = kube
        .kubectl([
            "apply",
            "--dry-run=server",
            "--server-side",
            "--force-conflicts",
            "--validate=strict",
            "--output=json",
            "-f",
            file.to_str().unwrap(),
        ])
        .unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    let items = list["items"].as_array().unwrap().iter();
    let daemonsets: Vec<&Value> = items.filter(|o| o["kind"] == "DaemonSet").collect();
    assert_eq!(daemonsets.len(), understood().len());
    for (daemonset, (values, (path, wanted))) in daemonsets.into_iter().zip(understood()) {
        assert_eq!(daemonset.pointer(path), Some(&wanted), "{values}\n{path}");
    }
}

#[test]
fn values_that_cannot_be_used_are_refused_with_the_sentence_to_write() {
    let Some(helm) = helm("values that cannot be used") else {
        return;
    };
    for (values, sentences) in [
        (
            "flannel: {args: {--ip-masq: true}}",
            &["flannel.args", "such as [--ip-masq, --kube-subnet-mgr]"][..],
        ),
        (
            "flannel: {args: ['--ip-masq --kube-subnet-mgr']}",
            &["one flag each"],
        ),
        ("flannel: {args: [[--ip-masq]]}", &["one flag each"]),
        (
            "flannel: {nodeSelector: [a]}",
            &["flannel.nodeSelector", "{name: value}"],
        ),
        (
            "flannel: {vxlan: {port: 1}}\nfoo: bar",
            &[
                "flannel.vxlan",
                "flannel.backendConfig",
                "foo: this chart has no such value",
            ],
        ),
        (
            "flannel: {image: 'registry.example/f:v1'}",
            &["flannel.image", "repository, tag"],
        ),
        (
            "flannel: {image: {tag: 1.0}}",
            &["flannel.image.tag", "between quotes"],
        ),
        ("flannel: {image: {digest: abc}}", &["sha256:"]),
        (
            "podCidr: '10.244.0.0/16,fd00:10:244::/56'",
            &["write podCidr: 10.244.0.0/16 and podCidrv6"],
        ),
        (
            "podCidr: [10.244.0.0/16]",
            &["write podCidr: 10.244.0.0/16 and podCidrv6"],
        ),
        ("podCidr: 'fd00::/56'", &["the IPv6 network in podCidrv6"]),
        (
            "podCidr: 10.444.0.0/16",
            &["podCidr", "such as 10.244.0.0/16"],
        ),
        (
            "podCidr: 10.244.0.0/99",
            &["podCidr", "such as 10.244.0.0/16"],
        ),
        (
            "flannel: {backend: wireguard-native}",
            &["wireguard, which is what k3s calls wireguard-native"],
        ),
        (
            "flannel: {backend: tencent-vpc}",
            &["one of vxlan", "docs/backends.md"],
        ),
        (
            "flannel: {backend: wireguard, psk: 12345678901234567890}",
            &["flannel.psk: expected a text between quotes"],
        ),
        (
            "flannel: {mtu: -1, vni: '99999999', backendPort: 65536}",
            &["flannel.mtu is -1", "16777215", "from 0 to 65535"],
        ),
        (
            "flannel: {healthz: {ip: localhost}}",
            &["flannel.healthz.ip", "127.0.0.1"],
        ),
        (
            "flannel: {cniConf: '{ no json'}",
            &["flannel.cniConf", "JSON"],
        ),
        ("flannel: {cniBinDir: opt/cni}", &["an absolute path"]),
        (
            "flannel: {securityContext: {capabilities: [NET_ADMIN]}}",
            &["{capabilities: {add: [SYS_ADMIN]}}"],
        ),
        ("flannel: true", &["flannel is true", "backendConfig"]),
        ("metrics: {podMonitor: {interval: often}}", &["such as 30s"]),
        (
            "serviceAccount: {create: true}",
            &["serviceAccount.create", "It has annotations"],
        ),
        ("podCidr: ''", &["podCidrv6 are both empty"]),
    ] {
        let output = with_file(&helm, values);
        let said = said(&output);
        assert!(!output.status.success(), "{values} was taken");
        for sentence in sentences {
            assert!(said.contains(sentence), "{values}\n{sentence}\n{said}");
        }
        for trace in ["error calling", "nil pointer", "goroutine"] {
            assert!(!said.contains(trace), "{values}\n{said}");
        }
        assert!(!said.contains("12345678901234567890"), "a secret is shown");
    }
}
