//! `deploy/chart` through Helm.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use lab::Who;
use model::NetConfig;
use serde_json::{Value, json};

use crate::{cluster, deploy, helm, must, objects, one, said};

const DAEMONSET: &str = "/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds";

fn template(helm: &Path, values: &[&str]) -> Output {
    let mut command = Command::new(helm);
    command
        .args(["template", "flannel"])
        .arg(deploy("chart"))
        .args(["--namespace", "kube-flannel"]);
    values.iter().for_each(|value| {
        command.args(["--set-json", value]);
    });
    command.output().unwrap()
}

#[test]
fn values_of_upstreams_chart_become_the_network_configuration() {
    let (Some(helm), Some(lab)) = (helm("the chart"), cluster("the chart in an API server")) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rendered.yaml");
    let config = |objects: &[Value]| -> Value {
        let config = one(objects, "ConfigMap", "kube-flannel-cfg");
        let text = config["data"]["net-conf.json"].as_str().unwrap();
        NetConfig::from_json(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        serde_json::from_str(text).unwrap()
    };
    let v4 = "10.244.0.0/16";
    for (values, wanted) in [
        (vec![], json!({"Network": v4, "Backend": {"Type": "vxlan"}})),
        (
            vec![
                r#"flannel.backend="host-gw""#,
                r#"podCidr="10.1.0.0/16""#,
                "flannel.mtu=9000",
            ],
            json!({"Network": "10.1.0.0/16", "Backend": {"Type": "host-gw"}}),
        ),
        (
            vec![
                "flannel.backendPort=4789",
                "flannel.vni=4096",
                "flannel.mtu=1400",
                "flannel.GBP=true",
                "flannel.directRouting=true",
            ],
            json!({"Network": v4, "Backend": {"Type": "vxlan", "Port": 4789, "VNI": 4096, "MTU": 1400, "GBP": true, "DirectRouting": true}}),
        ),
        (
            vec![
                r#"podCidrv6="fd00:10:244::/56""#,
                "flannel.enableNFTables=true",
            ],
            json!({"Network": v4, "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}),
        ),
        (
            vec![r#"podCidr="""#, r#"podCidrv6="fd00:10:244::/56""#],
            json!({"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:244::/56", "Backend": {"Type": "vxlan"}}),
        ),
        (
            vec![
                r#"flannel.netConf={"SubnetLen":26}"#,
                r#"flannel.backendConfig={"Learning":true}"#,
            ],
            json!({"Network": v4, "SubnetLen": 26, "Backend": {"Type": "vxlan", "Learning": true}}),
        ),
    ] {
        let output = template(&helm, &values);
        assert!(output.status.success(), "{values:?}: {}", said(&output));
        fs::write(&file, &output.stdout).unwrap();
        assert_eq!(config(&objects(kube, &file)), wanted, "{values:?}");
    }

    // All else that can be set, in a shape that the API server takes: nothing unknown, nothing of the wrong type.
    let values = [
        r#"global={"imagePullSecrets":[{"name":"key"}],"commonLabels":{"team":"net"}}"#,
        r#"flannel.image={"repository":"registry.example:5000/flannel","tag":"v9"}"#,
        r#"flannel.args=["--ip-masq","--kube-subnet-mgr","--iface-regex=^eth"]"#,
        r#"flannel.extraEnv=[{"name":"KUBERNETES_SERVICE_HOST","value":"10.0.0.1"}]"#,
        r#"flannel.annotationPrefix="example.net""#,
        r#"flannel.healthz.ip="0.0.0.0""#,
        r#"flannel.legacyIptables=false"#,
        r#"flannel.podLabels={"a":"b"}"#,
        r#"flannel.podAnnotations={"c":"d"}"#,
        r#"flannel.installCapabilities=["DAC_OVERRIDE"]"#,
        r#"flannel.image_cni={"repository":"x","tag":"y"}"#,
        r#"admissionPolicy.enabled=true"#,
    ];
    let output = template(&helm, &values);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("NET_ADMIN") && !text.contains("NET_RAW"));
    fs::write(&file, &output.stdout).unwrap();
    kube.kubectl([
        "apply",
        "--server-side",
        "--force-conflicts",
        "--validate=strict",
        "-f",
        file.to_str().unwrap(),
    ])
    .unwrap();
    let daemonset = kube.api().get(DAEMONSET).unwrap();
    let template = &daemonset["spec"]["template"];
    let pod = &template["spec"];
    assert_eq!(
        pod["containers"][0]["image"],
        "registry.example:5000/flannel:v9"
    );
    assert_eq!(
        pod["initContainers"][0]["image"],
        "registry.example:5000/flannel:v9"
    );
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "key"}]));
    assert_eq!(template["metadata"]["labels"]["team"], "net");
    let args = pod["containers"][0]["args"].as_array().unwrap();
    assert_eq!(args.last().unwrap(), "--iface-regex=^eth");
    assert!(args.contains(&json!("--kube-annotation-prefix=example.net")));
    let policy = kube
        .kubectl([
            "get",
            "validatingadmissionpolicy",
            "flannel-own-node",
            "-o",
            "json",
        ])
        .unwrap();
    assert!(
        policy.contains("example.net/") && !policy.contains("flannel.alpha"),
        "{policy}"
    );
}

#[test]
fn values_that_mean_nothing_are_refused_by_name() {
    let Some(helm) = helm("the chart's schema") else {
        return;
    };
    must(
        Command::new(&helm)
            .args(["lint", "--strict"])
            .arg(deploy("chart")),
    );
    for (value, name) in [
        (r#"flannel.backnd="vxlan""#, "backnd"),
        (r#"flannel.backend="vlan""#, "backend"),
        (r#"podCidr="10.244.0.0""#, "podCidr"),
        ("podCidrv6=true", "podCidrv6"),
        ("flannel.backendPort=65536", "backendPort"),
        (r#"flannel.args="--ip-masq""#, "args"),
        ("netpol.enabled=true", "netpol"),
        (r#"podCidr="""#, "podCidrv6 are both empty"),
    ] {
        let output = template(&helm, &[value]);
        assert!(!output.status.success(), "{value} was taken");
        assert!(said(&output).contains(name), "{value}: {}", said(&output));
    }
}

#[test]
fn helm_takes_over_what_kubectl_applied_upgrades_and_uninstalls() {
    let (Some(helm), Some(lab)) = (
        helm("a release of the chart"),
        cluster("a release of the chart"),
    ) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let manifest = deploy("kube-flannel.yml");
    kube.kubectl(["apply", "-f", manifest.to_str().unwrap()])
        .unwrap();
    let daemonset = || kube.api().get(DAEMONSET).unwrap();
    let uid = |object: &Value| object["metadata"]["uid"].clone();
    let applied = uid(&daemonset());

    let kubeconfig = format!("--kubeconfig={}", kube.kubeconfig(&Who::Admin));
    let chart = deploy("chart").display().to_string();
    let run = |args: &[&str]| {
        let home = format!("HOME={}/helm", lab::SHARED_DIR);
        let program = [
            &home,
            helm.to_str().unwrap(),
            &kubeconfig,
            "--namespace=kube-flannel",
        ];
        let command = ["env"]
            .into_iter()
            .chain(program)
            .chain(args.iter().copied());
        kube.place().exec(command).unwrap()
    };
    run(&["install", "flannel", &chart, "--take-ownership"]);
    assert_eq!(uid(&daemonset()), applied, "the DaemonSet was made anew");
    let template = || daemonset()["spec"]["template"].clone();
    let installed = template();
    run(&[
        "upgrade",
        "flannel",
        &chart,
        "--set=flannel.backend=host-gw",
    ]);
    assert_ne!(template(), installed, "no daemon would be restarted");
    assert_eq!(uid(&daemonset()), applied);
    run(&["uninstall", "flannel"]);
    kube.api().get(DAEMONSET).unwrap_err();
}

#[test]
fn a_changed_configuration_restarts_the_daemons() {
    let Some(helm) = helm("restarts by the chart") else {
        return;
    };
    let sum = |values: &[&str]| {
        let text = said(&template(&helm, values));
        let line = text
            .lines()
            .find(|l| l.contains("checksum/config"))
            .map(str::to_owned);
        line.unwrap_or_else(|| panic!("{text}"))
    };
    assert_ne!(sum(&[]), sum(&[r#"flannel.backend="host-gw""#]));
    assert_ne!(sum(&[]), sum(&[r#"flannel.cniConf="{}""#]));
    assert_eq!(sum(&[]), sum(&["flannel.healthz.port=8082"]));
}

/// The versions of the chart, of the image that it names and of the programs are one.
#[test]
fn versions_agree() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = crate::read("chart/Chart.yaml");
    for key in ["version", "appVersion"] {
        assert!(
            chart.lines().any(|l| l == format!("{key}: {version}")),
            "{chart}"
        );
    }
    assert!(crate::read("chart/values.yaml").contains(&format!("tag: v{version}\n")));
}
