//! `deploy/chart` through Helm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lab::{Error, Who};
use model::NetConfig;
use serde_json::{Value, json};

use crate::{cluster, deploy, helm, must, objects, one, said};

const CONFIG: &str = "/api/v1/namespaces/kube-flannel/configmaps/kube-flannel-cfg";
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
        (
            vec![
                r#"flannel.backend="ipsec""#,
                r#"flannel.psk="secret""#,
                r#"flannel.backendConfig={"UDPEncap":true}"#,
            ],
            json!({"Network": v4, "Backend": {"Type": "ipsec", "PSK": "secret", "UDPEncap": true}}),
        ),
        (
            vec![
                r#"flannel.backend="extension""#,
                r#"flannel.backendConfig={"SubnetAddCommand":"/opt/net add"}"#,
            ],
            json!({"Network": v4, "Backend": {"Type": "extension", "SubnetAddCommand": "/opt/net add"}}),
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
        r#"flannel.securityContext={"seLinuxOptions":{"type":"spc_t"}}"#,
        r#"flannel.extraVolumes=[{"name":"extra","emptyDir":{}}]"#,
        r#"flannel.extraVolumeMounts=[{"name":"extra","mountPath":"/extra"}]"#,
        r#"flannel.priorityClassName="system-cluster-critical""#,
        r#"flannel.logFormat="json""#,
        r#"serviceAccount.annotations={"a":"b"}"#,
        r#"metrics.enabled=true"#,
        r#"netpol.enabled="true""#,
        r#"enabled=true"#,
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
    assert_eq!(args[2], "--iface-regex=^eth");
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
        (r#"flannel.mtu="1400 bytes""#, "mtu"),
        (r#"netpol.enabled="perhaps""#, "netpol"),
        (
            r#"flannel.image={"repository":"registry.example/flannel-io/flannel","tag":"v0.28.9"}"#,
            "Write flannel.image.repository and flannel.image.tag",
        ),
        (r#"podCidr="""#, "podCidrv6 are both empty"),
    ] {
        let output = template(&helm, &[value]);
        assert!(!output.status.success(), "{value} was taken");
        assert!(said(&output).contains(name), "{value}: {}", said(&output));
    }
}

/// Upstream's chart, as its module has it; `None` where there is no Go to fetch it.
fn upstreams_chart() -> Option<PathBuf> {
    let output = Command::new(deploy("../scripts/upstream"))
        .arg("source")
        .output()
        .unwrap();
    let dir =
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("chart/kube-flannel");
    if dir.exists() {
        return Some(dir);
    }
    lab::not_run("upstream's own values", &Error::Needs(said(&output)));
    None
}

/// A copy of our chart with other default values, which is what `helm upgrade --reuse-values` renders.
fn with_values(values: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    must(
        Command::new("cp")
            .arg("-r")
            .arg(deploy("chart"))
            .arg(dir.path()),
    );
    fs::write(dir.path().join("chart/values.yaml"), values).unwrap();
    dir
}

fn render(helm: &Path, chart: &Path, args: &[&str]) -> String {
    let mut command = Command::new(helm);
    command.args(["template", "flannel", "--namespace=kube-flannel"]);
    must(command.arg(chart).args(args))
}

#[test]
fn values_may_come_from_elsewhere() {
    let Some(helm) = helm("values of other charts") else {
        return;
    };
    let chart = deploy("chart");
    let none = with_values("{}\n");
    let all = render(&helm, &chart, &[]);
    assert_eq!(
        render(&helm, &none.path().join("chart"), &[]),
        all,
        "_defaults.tpl and values.yaml differ"
    );
    let numbers = render(
        &helm,
        &chart,
        &["--set", "flannel.mtu=1400", "--set", "flannel.GBP=true"],
    );
    let strings = [
        "--set-string",
        "flannel.mtu=1400",
        "--set-string",
        "flannel.GBP=true",
    ];
    assert_eq!(render(&helm, &chart, &strings), numbers);
    let v6_only = [
        "--set",
        "podCidr=null",
        "--set",
        "podCidrv6=fd00:10:244::/56",
    ];
    assert!(render(&helm, &chart, &v6_only).contains("\"EnableIPv4\": false"));

    let Some(upstream) = upstreams_chart() else {
        return;
    };
    let values = upstream.join("values.yaml");
    let as_file = render(&helm, &chart, &["-f", values.to_str().unwrap()]);
    let reused = with_values(&fs::read_to_string(&values).unwrap());
    assert_eq!(render(&helm, &reused.path().join("chart"), &[]), as_file);
    let image = format!("image: {}", crate::image());
    assert_eq!(as_file.matches(&image).count(), 2, "{as_file}");
    assert!(!as_file.contains("image: ghcr.io"));
    assert!(as_file.contains("flannel-rs/ignored-image: \"ghcr.io/flannel-io/flannel:v"));
}

#[test]
fn flags_in_args_do_not_move_the_port_of_the_probes() {
    let Some(helm) = helm("the probes") else {
        return;
    };
    let text = render(
        &helm,
        &deploy("chart"),
        &[
            "--set-json",
            r#"flannel.args=["--healthz-port=8285","--healthz-ip=10.0.0.1"]"#,
        ],
    );
    let last = |flag: &str| {
        text.lines()
            .rfind(|l| l.contains(flag))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(last("--healthz-port"), "- --healthz-port=8081");
    assert_eq!(last("--healthz-ip"), "- --healthz-ip=127.0.0.1");
    assert!(text.contains("containerPort: 8081"));
}

/// Values of which the API server or the image's registry would refuse what they make if they were only copied.
#[test]
fn parts_of_upstreams_image_and_rights_of_ones_own_become_pods_that_start() {
    let what = "rights and images of one's own";
    let (Some(helm), Some(lab)) = (helm(what), cluster(what)) else {
        return;
    };
    let kube = lab.kube().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rendered.yaml");
    let container = |value: &str| {
        let rendered = render(&helm, &deploy("chart"), &["--set-json", value]);
        fs::write(&file, rendered).unwrap();
        kube.kubectl(["apply", "--dry-run=server", "-f", file.to_str().unwrap()])
            .unwrap_or_else(|e| panic!("{value}: {e}"));
        let objects = objects(kube, &file);
        let daemonset = one(&objects, "DaemonSet", "kube-flannel-ds").clone();
        daemonset["spec"]["template"]["spec"]["containers"][0].clone()
    };
    let ours = crate::image();
    let tag_only = container(r#"flannel.image={"tag":"v0.28.9"}"#);
    assert_eq!(tag_only["image"], ours);

    let privileged = container(r#"flannel.securityContext={"privileged":true}"#);
    assert_eq!(privileged["securityContext"]["privileged"], true);

    let added =
        container(r#"flannel.securityContext={"capabilities":{"add":["SYS_ADMIN","NET_ADMIN"]}}"#);
    assert_eq!(
        added["securityContext"]["capabilities"],
        json!({"add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"], "drop": ["ALL"]})
    );

    let without_port = template(
        &helm,
        &["metrics.podMonitor.enabled=true", "flannel.healthz.port=0"],
    );
    assert!(!without_port.status.success());
    assert!(said(&without_port).contains("flannel.healthz.port"));
    let monitored = render(
        &helm,
        &deploy("chart"),
        &["--set", "metrics.podMonitor.enabled=true"],
    );
    assert!(monitored.contains("--healthz-ip=0.0.0.0"));
}

#[test]
fn upgrade_from_upstreams_chart_in_place() {
    let what = "helm upgrade from upstream's chart";
    let (Some(helm), Some(upstream), Some(lab)) = (helm(what), upstreams_chart(), cluster(what))
    else {
        return;
    };
    let kube = lab.kube().unwrap();
    let release = Release::new(&lab, &helm);
    let daemonset = || kube.api().get(DAEMONSET).unwrap();
    let upstream = upstream.display().to_string();
    let ours = deploy("chart").display().to_string();
    let values = format!("--values={upstream}/values.yaml");
    // The lab's own, which nobody who has upstream's chart has.
    kube.kubectl([
        "delete",
        "-n",
        "default",
        "role,rolebinding",
        "flannel-events",
    ])
    .unwrap();
    release.run(&[
        "install",
        "flannel",
        &upstream,
        "--take-ownership",
        "--set=podCidr=10.1.0.0/16",
    ]);
    let uid = daemonset()["metadata"]["uid"].clone();
    for args in [
        vec!["--reuse-values"],
        vec![&values, "--set=podCidr=10.1.0.0/16"],
        vec!["--reset-values"],
    ] {
        release.run(&[&["upgrade", "flannel", &ours][..], &args].concat());
        let now = daemonset();
        assert_eq!(now["metadata"]["uid"], uid, "{args:?}");
        let pod = &now["spec"]["template"]["spec"];
        let names = |list: &str| crate::names(&now, list).join(" ");
        assert_eq!(names("initContainers"), "install-cni-plugin", "{args:?}");
        assert_eq!(names("containers"), "kube-flannel");
        assert_eq!(pod["containers"][0]["ports"].as_array().unwrap().len(), 1);
        assert_eq!(
            pod["containers"][0]["command"],
            json!(["/opt/bin/flanneld"])
        );
        let config = kube.api().get(CONFIG).unwrap();
        let network = if args == ["--reset-values"] {
            "10.244.0.0/16"
        } else {
            "10.1.0.0/16"
        };
        assert!(
            config["data"]["net-conf.json"]
                .as_str()
                .unwrap()
                .contains(network),
            "{args:?}"
        );
    }
    // And back.
    release.run(&["upgrade", "flannel", &upstream, "--reset-values"]);
    assert_eq!(daemonset()["metadata"]["uid"], uid);
    assert_eq!(crate::names(&daemonset(), "initContainers").len(), 2);
}

/// Helm against a lab's API server.
struct Release<'a> {
    lab: &'a lab::Lab,
    command: [String; 5],
}

impl<'a> Release<'a> {
    fn new(lab: &'a lab::Lab, helm: &Path) -> Release<'a> {
        let kube = lab.kube().unwrap();
        let command = [
            "env".to_owned(),
            format!("HOME={}/helm", lab::SHARED_DIR),
            helm.display().to_string(),
            format!("--kubeconfig={}", kube.kubeconfig(&Who::Admin)),
            "--namespace=kube-flannel".to_owned(),
        ];
        Release { lab, command }
    }

    fn run(&self, args: &[&str]) {
        let command = self.command.iter().map(String::as_str);
        let place = self.lab.kube().unwrap().place();
        place.exec(command.chain(args.iter().copied())).unwrap();
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

    let chart = deploy("chart").display().to_string();
    let release = Release::new(&lab, &helm);
    let run = |args: &[&str]| release.run(args);
    run(&["install", "flannel", &chart, "--take-ownership"]);
    assert_eq!(uid(&daemonset()), applied, "the DaemonSet was recreated");
    let template = || daemonset()["spec"]["template"].clone();
    let installed = template();
    run(&[
        "upgrade",
        "flannel",
        &chart,
        "--set=flannel.backend=host-gw",
    ]);
    assert_eq!(template(), installed, "the daemons would be restarted");
    assert_eq!(uid(&daemonset()), applied);
    run(&["uninstall", "flannel"]);
    kube.api().get(DAEMONSET).unwrap_err();
}

#[test]
fn a_changed_configuration_restarts_the_daemons_where_that_is_asked_for() {
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
    const ON: &str = "flannel.restartOnConfigChange=true";
    let before = sum(&[ON]);
    assert_ne!(before, sum(&[ON, r#"flannel.backend="host-gw""#]));
    assert_ne!(before, sum(&[ON, r#"flannel.cniConf="{}""#]));
    assert_eq!(before, sum(&[ON, "flannel.healthz.port=8082"]));
    // Unasked they follow it.
    assert!(!said(&template(&helm, &[])).contains("checksum/config"));
}

/// What the backends need of the host is mounted whatever the backend is: it may change while the pods run.
#[test]
fn pods_have_what_the_backends_need() {
    let Some(helm) = helm("the pods' volumes") else {
        return;
    };
    let rendered = |values: &[&str]| {
        let output = template(&helm, values);
        assert!(output.status.success(), "{values:?}: {}", said(&output));
        said(&output)
    };
    let mounted = |text: &str, dir: &str| {
        let inside = text.contains(&format!("mountPath: {dir}\n"));
        inside && text.contains(&format!("path: {dir}\n            type: DirectoryOrCreate"))
    };
    let vxlan = rendered(&[]);
    for dir in ["/var/lib/flannel", "/dev/net", "/run/flannel"] {
        assert!(mounted(&vxlan, dir), "{dir}: {vxlan}");
    }
    let elsewhere = r#"flannel.charonSocket="/run/charon/vici""#;
    let whole_run = r#"flannel.charonSocket="/var/run/charon.vici""#;
    // With every backend: the ConfigMap may change to ipsec while the pods run.
    for backend in [r#"flannel.backend="vxlan""#, r#"flannel.backend="ipsec""#] {
        let usual = rendered(&[backend]);
        assert!(usual.contains("- --charon-vici=/run/flannel/charon.vici\n"));
        assert!(!usual.contains("name: charon"), "mounted twice: {usual}");
        let moved = rendered(&[backend, elsewhere]);
        assert!(moved.contains("- --charon-vici=/run/charon/vici\n"));
        assert!(mounted(&moved, "/run/charon"), "{moved}");
    }
    let refused = template(&helm, &[r#"flannel.backend="ipsec""#, whole_run]);
    assert!(!refused.status.success());
    assert!(said(&refused).contains("a directory of its own"));
    let own = rendered(&[r#"flannel.args=["--charon-vici=/run/other/vici"]"#]);
    assert_eq!(own.matches("charon").count(), 1, "{own}");
    // Where ipsec is not used, its socket keeps nobody from installing the chart.
    let unused = rendered(&[whole_run]);
    assert!(!unused.contains("charon"), "{unused}");
}

#[test]
fn shared_keys_are_files_of_a_secret() {
    let Some(helm) = helm("the shared keys' files") else {
        return;
    };
    let none = said(&template(&helm, &[]));
    assert!(!none.contains("psk"), "{none}");
    let name = r#"flannel.pskSecret.name="flannel-psk""#;
    let wireguard = r#"flannel.pskSecret.wireguardKey="wireguard""#;
    let ipsec = r#"flannel.pskSecret.ipsecKey="ipsec""#;
    let volume = "- name: psk
          secret:
            secretName: flannel-psk
            defaultMode: 0400
            optional: true
";
    let mount = "- name: psk
              mountPath: /etc/flannel/psk
              readOnly: true
";
    for (keys, flags) in [
        (&[wireguard][..], [true, false]),
        (&[ipsec], [false, true]),
        (&[wireguard, ipsec], [true, true]),
    ] {
        let rendered = said(&template(&helm, &[&[name], keys].concat()));
        for part in [volume, mount] {
            assert!(rendered.contains(part), "{part}: {rendered}");
        }
        let given = [
            "- --wireguard-psk-file=/etc/flannel/psk/wireguard\n",
            "- --ipsec-psk-file=/etc/flannel/psk/ipsec\n",
        ];
        assert_eq!(
            given.map(|flag| rendered.contains(flag)),
            flags,
            "{rendered}"
        );
    }
    for (values, hint) in [
        (&[name][..], "flannel.pskSecret.ipsecKey"),
        (&[ipsec], "flannel.pskSecret.name"),
    ] {
        let refused = template(&helm, values);
        assert!(!refused.status.success(), "{values:?}");
        assert!(said(&refused).contains(hint), "{}", said(&refused));
    }
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

/// `scripts/image-name` finds every place; the manifest and the chart's defaults have tests of their own.
#[test]
fn the_image_has_one_name() {
    let image = crate::image();
    let name = image.split(":v").next().unwrap();
    for file in [
        "kustomization.yaml",
        "../Containerfile",
        "../docs/kubernetes.md",
    ] {
        assert!(crate::read(file).contains(name), "{file} lacks {name}");
    }
    // Not somebody else's at a public registry, which a name without a registry would be.
    let registry = name.split('/').next().unwrap();
    assert!(
        registry == "localhost" || registry.contains(['.', ':']),
        "{name}"
    );
}

/// The lines after `head` that are indented by at least `indent` blanks, without these.
fn block(text: &str, head: &str, indent: usize) -> String {
    let after = text.split_once(head).unwrap().1;
    let blanks = " ".repeat(indent);
    let lines = after.trim_start_matches('\n').lines();
    let within = lines.map_while(|line| line.strip_prefix(&blanks));
    within.collect::<Vec<_>>().join("\n")
}

#[test]
fn alerts_and_dashboard_are_whole() {
    let Some(helm) = helm("alerts and dashboard") else {
        return;
    };
    let values = [
        "metrics.enabled=true",
        "metrics.prometheusRule.enabled=true",
        "metrics.dashboard.enabled=true",
    ];
    let output = template(&helm, &values);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let dashboard: Value = serde_json::from_str(&block(&text, "flannel.json: |", 4)).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 8);
    // Every metric that it shows is documented.
    let docs = crate::read("../docs/metrics.md");
    let exprs = dashboard.to_string();
    let words = exprs.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    for name in words.filter(|word| word.starts_with("flannel_") || word.starts_with("process_")) {
        let name = name.trim_end_matches("_bucket");
        assert!(docs.contains(&format!("| `{name}` |")), "{name}");
    }
    let rule = text.split("kind: PrometheusRule").nth(1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.yaml");
    fs::write(&file, block(rule, "\nspec:", 2)).unwrap();
    must(Command::new("promtool").args(["check", "rules"]).arg(&file));
}
