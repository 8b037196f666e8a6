//! CNI: the configuration that the container runtime takes, and the plugins that it names.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::args::CheckArgs;
use super::container;
use super::report::Report;
use super::settings::Settings;

const ABOUT: &str = "cni";
/// How long a plugin may take to tell its versions.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at the configurations of the directory; returns the bridges that flannel's delegate makes.
pub(crate) fn check(report: &mut Report, args: &CheckArgs, settings: &Settings) -> Vec<String> {
    let dir = &args.cni_conf_dir;
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|e| e.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .collect();
    files.sort();
    let read: Vec<(PathBuf, Result<Value, String>)> = files
        .into_iter()
        .map(|path| (path.clone(), parse(&path)))
        .collect();
    for (path, value) in &read {
        if let Err(why) = value {
            report.fail(
                ABOUT,
                format!("{}: {why}", path.display()),
                "mend or remove the file: a container runtime may refuse to start containers",
            );
        }
    }
    let flannels = |value: &Value| plugins(value).iter().any(|p| p["type"] == "flannel");
    let at = read
        .iter()
        .position(|(_, value)| value.as_ref().is_ok_and(flannels));
    let Some(at) = at else {
        if read.is_empty() && container::lacks(dir) {
            container::skip(report, ABOUT, dir);
            return Vec::new();
        }
        report.ok(
            ABOUT,
            format!(
                "no configuration in {} names flannel: CNI is not used here (docker by itself needs none)",
                dir.display()
            ),
        );
        return Vec::new();
    };
    if at > 0 {
        report.warn(
            ABOUT,
            format!(
                "{} comes before {}: container runtimes take the first",
                read[0].0.display(),
                read[at].0.display()
            ),
            "remove the one that is not wanted, or give flannel's a name that sorts first (10-flannel.conflist)",
        );
    }
    let (path, Ok(value)) = &read[at] else {
        return Vec::new();
    };
    let bridges = conflist(report, path, value, settings);
    let mut wanted: BTreeSet<String> = ["loopback".to_owned()].into();
    for plugin in plugins(value) {
        wanted.extend(plugin["type"].as_str().map(str::to_owned));
        if plugin["type"] == "flannel" {
            let delegate = plugin["delegate"]["type"].as_str();
            wanted.insert(delegate.unwrap_or("bridge").to_owned());
            wanted.insert(
                plugin["ipam"]["type"]
                    .as_str()
                    .unwrap_or("host-local")
                    .to_owned(),
            );
        }
    }
    if container::lacks(&args.cni_bin_dir) {
        container::skip(report, ABOUT, &args.cni_bin_dir);
        return bridges;
    }
    let version = value["cniVersion"].as_str().unwrap_or("0.2.0");
    for name in wanted {
        plugin(report, &args.cni_bin_dir, &name, version);
    }
    bridges
}

fn parse(path: &Path) -> Result<Value, String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let value: Value = serde_json::from_str(&text).map_err(|e| format!("no JSON: {e}"))?;
    match value.is_object() {
        true => Ok(value),
        false => Err("expected a JSON object".into()),
    }
}

/// The plugins of a list, or the one of a plain configuration.
fn plugins(value: &Value) -> Vec<Value> {
    match value.get("plugins") {
        Some(Value::Array(all)) => all.clone(),
        Some(_) => Vec::new(),
        None => vec![value.clone()],
    }
}

/// What is wrong with the configuration itself; returns the bridges it makes.
fn conflist(report: &mut Report, path: &Path, value: &Value, settings: &Settings) -> Vec<String> {
    let mut faults: Vec<(String, &str)> = Vec::new();
    if value["name"].as_str().is_none_or(str::is_empty) {
        faults.push(("\"name\" is missing".into(), "add \"name\": \"cbr0\""));
    }
    if value["cniVersion"].as_str().is_none_or(str::is_empty) {
        let cure = "add \"cniVersion\": \"0.3.1\"";
        faults.push(("\"cniVersion\" is missing".into(), cure));
    }
    let mut bridges = Vec::new();
    for plugin in plugins(value) {
        if plugin["type"].as_str().is_none_or(str::is_empty) {
            faults.push(("a plugin has no \"type\"".into(), "name its program"));
        }
        if plugin["type"] != "flannel" {
            continue;
        }
        let file = plugin["subnetFile"]
            .as_str()
            .unwrap_or("/run/flannel/subnet.env");
        if Path::new(file) != settings.options.subnet_file {
            let ours = settings.options.subnet_file.display();
            let text = format!("\"subnetFile\" is {file}, but flanneld writes {ours}");
            faults.push((text, "make \"subnetFile\" and -subnet-file the same"));
        }
        let nothing = Map::new();
        let delegate = match &plugin["delegate"] {
            Value::Null => &nothing,
            Value::Object(delegate) => delegate,
            _ => {
                faults.push(("\"delegate\" is no object".into(), "expected { … }"));
                continue;
            }
        };
        for key in ["name", "ipam"]
            .into_iter()
            .filter(|key| delegate.contains_key(*key))
        {
            let text = format!("\"delegate\" must not hold {key:?}");
            faults.push((text, "put it beside \"delegate\", not in it"));
        }
        let kind = delegate
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("bridge");
        if kind == "bridge" {
            let name = delegate.get("bridge").and_then(Value::as_str);
            bridges.push(name.unwrap_or("cni0").to_owned());
        }
    }
    let shown = path.display();
    if faults.is_empty() {
        report.ok(ABOUT, format!("{shown} is in order"));
    }
    for (text, cure) in faults {
        report.fail(ABOUT, format!("{shown}: {text}"), cure);
    }
    bridges
}

fn plugin(report: &mut Report, dir: &Path, name: &str, version: &str) {
    let path = dir.join(name);
    let shown = path.display();
    // A plugin is a program beside the others, whatever a configuration calls it.
    if name.contains('/') {
        let cure = "a plugin is a program's name";
        return report.fail(ABOUT, format!("plugin type {name:?}"), cure);
    }
    if !path.exists() {
        let cure = match name {
            "flannel" => "install flannel-rs's plugin there (make install, or the package)",
            _ => {
                "install the CNI plugins there (github.com/containernetworking/plugins; Debian: containernetworking-plugins, in /usr/lib/cni)"
            }
        };
        return report.fail(ABOUT, format!("there is no {shown}"), cure);
    }
    match versions(&path) {
        Ok(versions) if versions.iter().any(|v| v == version) => {
            let newest = versions.last().cloned().unwrap_or_default();
            report.ok(ABOUT, format!("{shown} speaks {version} (up to {newest})"));
        }
        Ok(versions) => report.fail(
            ABOUT,
            format!(
                "{shown} does not speak \"cniVersion\" {version}, but {}",
                versions.join(", ")
            ),
            "take one of those in the configuration, or another version of the plugin",
        ),
        Err(why) => report.fail(
            ABOUT,
            format!("{shown}: {why}"),
            "install it anew, for this machine's architecture",
        ),
    }
}

/// The versions that a plugin says it speaks.
fn versions(path: &Path) -> Result<Vec<String>, String> {
    let mut child = Command::new(path)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    if let Some(mut input) = child.stdin.take() {
        // One that reads nothing answers all the same.
        let _ = std::io::Write::write_all(&mut input, b"{\"cniVersion\":\"1.0.0\"}");
    }
    let (send, receive) = mpsc::channel();
    if let Some(mut output) = child.stdout.take() {
        // Ends with the plugin at the latest.
        std::thread::spawn(move || {
            let mut text = String::new();
            let read = output.read_to_string(&mut text);
            // Nobody waits any more for one that is late.
            let _ = send.send(read.map(|_| text));
        });
    }
    let text = receive.recv_timeout(PATIENCE);
    // It is ours, and has said what it has to say.
    let _ = child.kill();
    let _ = child.wait();
    let text = text
        .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?
        .map_err(|e| e.to_string())?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|_| "it does not answer CNI_COMMAND=VERSION".to_owned())?;
    let versions = value["supportedVersions"].as_array().into_iter().flatten();
    Ok(versions
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect())
}
