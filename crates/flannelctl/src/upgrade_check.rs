//! `flannelctl upgrade-check`: how upstream's flannel is set up, read from its files, and what will differ.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use flanneld::flags;
use flanneld::options::{Options, ProcessOptions};
use serde_json::Value;

use crate::config::judge::judge;
use crate::{env_file, output, status, yaml};

/// Arguments of `flannelctl upgrade-check`.
#[derive(Args)]
#[command(
    after_help = "For instance:\n  kubectl -n kube-flannel get daemonset,configmap -o yaml | flannelctl upgrade-check -\n  \
    flannelctl upgrade-check values.yaml /etc/systemd/system/flanneld.service"
)]
pub(crate) struct UpgradeCheckArgs {
    /// Kubernetes objects, the chart's values, a unit file, a file of FLANNELD_… variables, or a network configuration;
    /// - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// What was found, in the order of the files.
#[derive(Default)]
struct Findings {
    place: String,
    lines: Vec<String>,
    to_change: usize,
}

impl Findings {
    /// Works as before.
    fn same(&mut self, text: impl AsRef<str>) {
        self.add("same  ", text.as_ref());
    }

    /// Works, but not in every respect as before.
    fn differs(&mut self, text: impl AsRef<str>) {
        self.add("differs", text.as_ref());
    }

    /// Has to be changed.
    fn change(&mut self, text: impl AsRef<str>) {
        self.to_change += 1;
        self.add("CHANGE", text.as_ref());
    }

    fn add(&mut self, level: &str, text: &str) {
        self.lines
            .push(format!("{level:<8} {}: {text}", self.place));
    }
}

/// Reads the files and prints what was found.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn run(args: &UpgradeCheckArgs) -> Result<ExitCode> {
    let mut findings = Findings::default();
    for file in &args.files {
        let text = read(file)?;
        findings.place = file.display().to_string();
        judge_text(&mut findings, &text);
    }
    findings.lines.iter().for_each(|line| output::line(line));
    output::line(match findings.to_change {
        0 => "nothing has to be changed",
        _ => "change what is marked with CHANGE first",
    });
    Ok(if findings.to_change == 0 {
        ExitCode::SUCCESS
    } else {
        status::no()
    })
}

fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("standard input")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| file.display().to_string())
}

fn judge_text(findings: &mut Findings, text: &str) {
    if text.lines().any(|line| line.trim() == "[Service]") {
        return unit(findings, text);
    }
    let is_assignment = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        line.is_empty()
            || line.starts_with('#')
            || line
                .split_once('=')
                .is_some_and(|(name, _)| is_variable(name))
    };
    if !text.trim().is_empty() && text.lines().all(is_assignment) {
        let variables: Vec<(String, String)> = env_file::parse(text).into_iter().collect();
        return judge_flags(findings, Vec::new(), &variables);
    }
    match yaml::documents(text) {
        Ok(documents) => documents
            .iter()
            .for_each(|document| object(findings, document)),
        Err(error) => findings.change(format!("neither YAML nor a unit file: {error}")),
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// One object of Kubernetes, or a file of values or of the network configuration.
fn object(findings: &mut Findings, value: &Value) {
    match value["kind"].as_str() {
        Some("List") => {
            let items = value["items"].as_array();
            items.into_iter().flatten().for_each(|item| object(findings, item));
        }
        Some("DaemonSet") => daemonset(findings, value),
        Some("ConfigMap") => config_map(findings, value),
        Some(kind @ ("Namespace" | "ServiceAccount" | "ClusterRole" | "ClusterRoleBinding" | "Role" | "RoleBinding")) => {
            findings.same(format!("{kind} {}", name(value)));
        }
        Some(kind) => findings.differs(format!("{kind} {}: not one of flannel's objects; left alone", name(value))),
        None if value["flannel"].is_object() || value["podCidr"].is_string() => values(findings, value),
        None if value["Network"].is_string() || value["IPv6Network"].is_string() => {
            network(findings, &value.to_string());
        }
        None if value.is_null() => {}
        None => findings.change(
            "neither an object of Kubernetes, the chart's values nor a network configuration: nothing here is understood",
        ),
    }
}

fn name(value: &Value) -> String {
    let name = value["metadata"]["name"].as_str();
    name.unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

fn daemonset(findings: &mut Findings, value: &Value) {
    let pod = &value["spec"]["template"]["spec"];
    let containers = pod["containers"].as_array();
    let is_flanneld = |container: &&Value| {
        let words = [texts(&container["command"]), texts(&container["args"])].concat();
        let image = container["image"].as_str().unwrap_or_default();
        words.iter().any(|word| word.ends_with("flanneld")) || image.contains("flannel")
    };
    let Some(flanneld) = containers.into_iter().flatten().find(is_flanneld) else {
        return findings.differs(format!("DaemonSet {}: not flannel's", name(value)));
    };
    if pod["hostNetwork"] != Value::Bool(true) {
        findings.change("the pod needs hostNetwork: true");
    }
    let image = flanneld["image"].as_str().unwrap_or_default();
    findings.differs(format!(
        "image {image}: replace it with flannel-rs's, in the init containers too; its programs have the same names"
    ));
    let mut words = [texts(&flanneld["command"]), texts(&flanneld["args"])].concat();
    if words.first().is_some_and(|word| !word.starts_with('-')) {
        let program = words.remove(0);
        if !program.ends_with("flanneld") {
            findings.change(format!(
                "command {program}: the image has no shell: call /opt/bin/flanneld with its flags directly"
            ));
        }
    }
    let env = flanneld["env"].as_array();
    let variables: Vec<(String, String)> = env
        .into_iter()
        .flatten()
        .filter_map(|variable| {
            let name = variable["name"].as_str()?.to_owned();
            let value = variable["value"].as_str().unwrap_or("(set by Kubernetes)");
            Some((name, value.to_owned()))
        })
        .collect();
    for name in ["EVENT_QUEUE_DEPTH", "CONT_WHEN_CACHE_NOT_READY"] {
        if variables.iter().any(|(given, _)| given == name) {
            findings.differs(format!("variable {name} has no effect"));
        }
    }
    let names = ["NODE_NAME", "POD_NAME"];
    if words.iter().any(|word| word.contains("kube-subnet-mgr"))
        && !variables
            .iter()
            .any(|(given, _)| names.contains(&given.as_str()))
    {
        findings.change("neither NODE_NAME nor POD_NAME and POD_NAMESPACE is set: flanneld would not know its Node");
    }
    judge_flags(findings, words, &variables);
}

fn config_map(findings: &mut Findings, value: &Value) {
    let data = &value["data"];
    match data["net-conf.json"].as_str() {
        Some(text) => network(findings, text),
        None => findings.differs(format!("ConfigMap {} has no net-conf.json", name(value))),
    }
    if let Some(text) = data["cni-conf.json"].as_str() {
        match serde_json::from_str::<Value>(text) {
            Ok(conf) if conf["plugins"].is_array() => findings.same("cni-conf.json"),
            Ok(_) => {
                findings.change("cni-conf.json is no configuration list: it has no \"plugins\"")
            }
            Err(error) => findings.change(format!("cni-conf.json: {error}")),
        }
    }
}

fn network(findings: &mut Findings, text: &str) {
    match judge(text) {
        Ok(judged) => {
            let kind = &judged.config.backend.kind;
            findings.same(format!("network configuration, backend {kind}"));
            for warning in judged.warnings {
                findings.differs(format!("network configuration: {warning}"));
            }
        }
        Err(reasons) => {
            for reason in reasons {
                findings.change(format!("network configuration: {reason}"));
            }
        }
    }
}

/// Values of upstream's chart.
fn values(findings: &mut Findings, value: &Value) {
    let flannel = &value["flannel"];
    judge_flags(findings, texts(&flannel["args"]), &[]);
    if let Some(repository) = flannel["image"]["repository"].as_str() {
        if repository.contains("flannel-rs") {
            findings.same(format!("image {repository}"));
        } else {
            findings.differs(format!(
                "flannel.image {repository} is replaced with flannel-rs's by the chart"
            ));
        }
    }
    for key in ["flannel_cni", "image_cni", "macPrefix"] {
        if !flannel[key].is_null() {
            findings.differs(format!(
                "flannel.{key} has no effect: the image holds everything"
            ));
        }
    }
    let known = [
        "vxlan",
        "host-gw",
        "ipip",
        "udp",
        "wireguard",
        "alloc",
        "extension",
    ];
    match flannel["backend"].as_str() {
        Some(backend) if known.contains(&backend) => {
            findings.same(format!("flannel.backend {backend}"))
        }
        Some(backend) => findings.change(format!(
            "flannel.backend {backend}: not a backend of this version (docs/backends.md)"
        )),
        None => {}
    }
    findings.same("other values: `helm template` with this chart checks their names and types");
}

/// A unit of systemd.
fn unit(findings: &mut Findings, text: &str) {
    let text = text.replace("\\\n", " ");
    let mut variables = Vec::new();
    for line in text.lines().map(str::trim) {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        match key.trim() {
            "Environment" => {
                let pair = value.trim().trim_matches('"').split_once('=');
                variables.extend(pair.map(|(name, value)| (name.to_owned(), value.to_owned())));
            }
            "EnvironmentFile" => findings.differs(format!(
                "EnvironmentFile={value}: give that file to this command, too"
            )),
            "Type" if value.trim() != "notify" => findings.differs(
                "Type is not notify: systemd would not know when the network is ready; the package's unit has it",
            ),
            "ExecStartPost" | "ExecStartPre" => findings.same(line),
            _ => {}
        }
    }
    let starts = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ExecStart="));
    for start in starts {
        let words = start
            .split_whitespace()
            .map(|word| word.trim_matches('"').to_owned());
        let mut words: Vec<String> = words.collect();
        if words.is_empty() {
            continue;
        }
        let program = words.remove(0);
        if !program.ends_with("flanneld") {
            findings.change(format!(
                "ExecStart={program} …: not flanneld itself: call it directly"
            ));
            continue;
        }
        // What a variable holds is in another file.
        words.retain(|word| !word.starts_with('$'));
        judge_flags(findings, words, &variables);
    }
}

/// Flags and variables, as flanneld reads them.
fn judge_flags(findings: &mut Findings, words: Vec<String>, variables: &[(String, String)]) {
    let env = |name: &str| {
        let mut all = variables.iter();
        all.find(|(given, _)| given == name)
            .map(|(_, value)| value.clone())
    };
    for (name, _) in variables
        .iter()
        .filter(|(name, _)| name.starts_with("FLANNELD_"))
    {
        let known = flags::FLAGS
            .iter()
            .any(|flag| flags::env_name(flag.name) == *name);
        if !known {
            findings.differs(format!("variable {name}: no such flag; it is ignored"));
        }
    }
    let count = words.len();
    match flags::parse(words, env) {
        Err(error) => {
            let text = error.to_string();
            let first = text
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            findings.change(format!("flags: {first}"));
        }
        Ok(given) => {
            match ProcessOptions::from_flags(&given).and_then(|_| Options::from_flags(&given)) {
                Err(error) => findings.change(format!("flags: {error}")),
                Ok(_) => findings.same(format!("{count} flags are understood")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> (usize, String) {
        let mut findings = Findings {
            place: "x".to_owned(),
            ..Findings::default()
        };
        judge_text(&mut findings, text);
        (findings.to_change, findings.lines.join("\n"))
    }

    #[test]
    fn a_unit_and_a_file_of_variables_are_read() {
        let good = "[Service]\nType=notify\nEnvironment=FLANNELD_ETCD_PREFIX=/a/b\nExecStart=/usr/bin/flanneld -etcd-endpoints=http://a:2379 \\\n -iface=eth0 $OPTIONS\n";
        let (change, text) = found(good);
        assert_eq!(change, 0, "{text}");
        assert!(text.contains("2 flags are understood"), "{text}");
        let (change, text) = found(&good.replace("-iface=eth0", "-nosuch=1"));
        assert!(change == 1 && text.contains("nosuch"), "{text}");
        let (change, text) =
            found("# x\nFLANNELD_ETCD_ENDPOINTS=http://a:2379\nFLANNELD_NOSUCH=1\n");
        assert!(change == 0 && text.contains("FLANNELD_NOSUCH"), "{text}");
    }

    #[test]
    fn what_a_network_configuration_lacks_is_named() {
        let (change, text) = found(r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "pigeon"}}"#);
        assert!(change == 1 && text.contains("pigeon"), "{text}");
        let (change, text) =
            found(r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "Colour": 1}}"#);
        assert!(change == 0 && text.contains("no such option"), "{text}");
        assert_eq!(found("just words").0, 1);
    }

    #[test]
    fn objects_of_kubernetes_are_read() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- kind: DaemonSet\n  metadata: {name: kube-flannel-ds}\n  spec: {template: {spec: {hostNetwork: true, containers: [{image: 'ghcr.io/flannel-io/flannel:v0.28.9', command: [/opt/bin/flanneld], args: [--ip-masq, --kube-subnet-mgr], env: [{name: POD_NAME, valueFrom: {}}, {name: EVENT_QUEUE_DEPTH, value: '5000'}]}]}}}\n- kind: ConfigMap\n  metadata: {name: kube-flannel-cfg}\n  data: {net-conf.json: '{\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}', cni-conf.json: '{}'}\n";
        let (change, lines) = found(text);
        assert_eq!(change, 1, "{lines}");
        for part in [
            "EVENT_QUEUE_DEPTH has no effect",
            "image ghcr.io",
            "2 flags are understood",
            "backend vxlan",
            "no configuration list",
        ] {
            assert!(lines.contains(part), "{part}: {lines}");
        }
        let shell = text.replace("command: [/opt/bin/flanneld]", "command: [/bin/sh, -c]");
        assert!(found(&shell).1.contains("the image has no shell"));
    }
}
