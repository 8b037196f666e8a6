//! The bundle of a whole Kubernetes cluster: this program runs in flannel's pod on every node, and what it prints becomes
//! that node's directory. A node that does not answer is named, and holds up nobody.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use flanneld::version;
use flate2::read::GzDecoder;
use store::{KubeApi, PodExec};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use super::archive::Archive;
use crate::kube_args::{FlannelPod, KubeArgs, PROGRAM, escaped};
use crate::output::{self, visible};

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 8;

/// Bytes of a node's archive, and of all files in it: more is not taken from a node.
const MOST_PACKED: usize = 64 << 20;
const MOST_UNPACKED: u64 = 256 << 20;

/// What a node's pod gave.
struct FromNode {
    pod: FlannelPod,
    /// Name and text of each file, or why there is none.
    files: Result<Vec<(String, String)>, String>,
    /// The log of the container, and of the one before it.
    logs: [Result<String, String>; 2],
}

/// Collects from all nodes; `limit` is for each of them. Returns the archive, and whether every node answered.
///
/// # Errors
/// The API server does not answer, or there is no pod of flannel.
pub(super) async fn collect(
    args: &KubeArgs,
    mut archive: Archive,
    lines: usize,
    limit: Duration,
) -> Result<(Archive, bool)> {
    let api = args.open()?;
    let pods = args.pods(&api).await?;
    output::progress(&format!("{} nodes", pods.len()));
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let namespace: Arc<str> = args.namespace.as_str().into();
    let all = pods.len();
    for pod in pods {
        let (api, places, namespace) = (api.clone(), places.clone(), namespace.clone());
        tasks.spawn(async move {
            let _place = places.acquire().await;
            of_node(&api, &namespace, pod, lines, limit).await
        });
    }
    let (mut failed, mut missing) = (Vec::new(), Vec::new());
    let mut done = 0;
    while let Some(from) = tasks.join_next().await {
        let from = from.context("collect from a node")?;
        let node = from.pod.node.clone();
        done += 1;
        let said = match &from.files {
            Ok(files) => format!("{} files", files.len()),
            Err(error) => error.clone(),
        };
        output::progress(&format!("{node}: {said} ({done} of {all})"));
        if from.files.is_err() {
            failed.push(visible(&format!("{node}: {said}")));
        }
        // Looking for secrets takes half a second for each MB: meanwhile the other nodes are read.
        let added = spawn_blocking(move || {
            let lacking = add_node(&mut archive, &from)?;
            anyhow::Ok((archive, lacking))
        });
        let (returned, lacking) = added.await.context("collect from a node")??;
        archive = returned;
        missing.extend(lacking);
    }
    missing.sort();
    missing.extend(of_cluster(&api, args, &mut archive).await?);
    failed.sort();
    let mut text = format!("flannelctl {}\n", version::with_commit());
    text += "Secrets were removed: passwords, tokens, private keys.\n";
    text += &format!(
        "\nOne directory for each node, and cluster/ for what the API server has. {} of {all} nodes answered.\n",
        all - failed.len()
    );
    let good = failed.is_empty();
    missing.splice(0..0, failed);
    text += "\nNot collected (README.txt of a node has what it lacks):\n";
    for line in &missing {
        text += &format!("- {line}\n");
    }
    archive.add("README.txt", &text)?;
    Ok((archive, good))
}

/// Adds what a node's pod gave; returns what it lacks.
fn add_node(archive: &mut Archive, from: &FromNode) -> Result<Vec<String>> {
    let (node, mut missing) = (&from.pod.node, Vec::new());
    match &from.files {
        Ok(files) => {
            for (name, text) in files {
                // A name that no archive can hold costs this file, not the others.
                if let Err(error) = archive.add(&format!("{node}/{name}"), text) {
                    missing.push(visible(&format!("{node}/{name}: {error}")));
                }
            }
        }
        Err(error) => archive.add(&format!("{node}/ERROR.txt"), &format!("{error}\n"))?,
    }
    for (name, log) in ["log", "log-before"].iter().zip(&from.logs) {
        match log {
            Ok(text) => archive.add(&format!("{node}/pod/{name}.txt"), text)?,
            // Most containers had none before them.
            Err(_) if *name == "log-before" => {}
            Err(error) => missing.push(visible(&format!("{node}/pod/{name}.txt: {error}"))),
        }
    }
    Ok(missing)
}

async fn of_node(
    api: &KubeApi,
    namespace: &str,
    pod: FlannelPod,
    lines: usize,
    limit: Duration,
) -> FromNode {
    let seconds = limit.as_secs();
    let late = || format!("no answer within {seconds} s (--limit)");
    let words = lines.to_string();
    let command = [PROGRAM, "bundle", "--output=-", "--lines", &words];
    let exec = PodExec {
        namespace,
        pod: &pod.name,
        container: &pod.container,
        command: &command,
        stdin: None,
        limit: MOST_PACKED,
    };
    let files = async {
        let done = api.exec(&exec).await;
        let done = done.map_err(|error| format!("pod {}: {error}", pod.name))?;
        if done.status == Some(0) {
            let files = spawn_blocking(move || unpack(&done.stdout)).await;
            let files = files.map_err(anyhow::Error::from).and_then(|files| files);
            files.map_err(|error| format!("pod {}: {error:#}", pod.name))
        } else {
            let said = done.stderr.trim();
            Err(format!(
                "pod {}: {PROGRAM} bundle: {}; {said}",
                pod.name, done.message
            ))
        }
    };
    let files = async {
        let files = timeout(limit, files).await;
        files.unwrap_or_else(|_| Err(late()))
    };
    let log = async |more: &str| {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/log?container={}&tailLines={lines}{more}",
            escaped(namespace),
            escaped(&pod.name),
            escaped(&pod.container)
        );
        let text = async { api.text(&path).await.map_err(|error| error.to_string()) };
        let text = timeout(limit, text).await;
        text.unwrap_or_else(|_| Err(late()))
    };
    let (files, last, before) = tokio::join!(files, log(""), log("&previous=true"));
    let logs = [last, before];
    FromNode { pod, files, logs }
}

/// The files of a node's archive, without its directory.
fn unpack(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let unpacked = GzDecoder::new(bytes).take(MOST_UNPACKED);
    for entry in tar::Archive::new(unpacked).entries()? {
        let mut entry = entry.context("the node's archive")?;
        let path = entry.path()?.into_owned();
        // Names from a node: no way out of its directory.
        let parts: Vec<String> = path
            .components()
            .skip(1)
            .filter_map(|part| match part {
                std::path::Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                _ => None,
            })
            .collect();
        let mut text = Vec::new();
        entry
            .read_to_end(&mut text)
            .context("the node's archive is cut off")?;
        if !parts.is_empty() {
            files.push((parts.join("/"), String::from_utf8_lossy(&text).into_owned()));
        }
    }
    Ok(files)
}

/// What the API server has; returns what could not be read.
async fn of_cluster(api: &KubeApi, args: &KubeArgs, archive: &mut Archive) -> Result<Vec<String>> {
    let (namespace, label) = (escaped(&args.namespace), args.label_query());
    let mut missing = Vec::new();
    for (name, path) in [
        ("version", "/version".to_owned()),
        ("nodes", "/api/v1/nodes".to_owned()),
        (
            "pods",
            format!("/api/v1/namespaces/{namespace}/pods?{label}"),
        ),
        (
            "daemonsets",
            format!("/apis/apps/v1/namespaces/{namespace}/daemonsets?{label}"),
        ),
        (
            "configmaps",
            format!("/api/v1/namespaces/{namespace}/configmaps?{label}"),
        ),
        ("events", format!("/api/v1/namespaces/{namespace}/events")),
        (
            "node-events",
            "/api/v1/namespaces/default/events?fieldSelector=involvedObject.kind%3DNode".to_owned(),
        ),
    ] {
        match api.get(&path).await {
            Ok(mut value) => {
                for item in value["items"].as_array_mut().into_iter().flatten() {
                    // Half of an object's bytes, and nobody reads it.
                    if let Some(metadata) = item["metadata"].as_object_mut() {
                        metadata.remove("managedFields");
                    }
                }
                archive.add(&format!("cluster/{name}.json"), &format!("{value:#}\n"))?;
            }
            Err(error) => missing.push(format!("cluster/{name}.json: {error}")),
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::secrets::Secrets;

    #[test]
    fn a_file_that_cannot_be_added_and_a_log_that_is_missing_are_named() {
        let from = FromNode {
            pod: FlannelPod {
                node: "n1".into(),
                name: "p".into(),
                container: "c".into(),
                image: "i".into(),
            },
            files: Ok(vec![
                ("a\0b".into(), "odd".into()),
                ("good.txt".into(), "good".into()),
            ]),
            logs: [Err("no\nlog".into()), Err("there was none".into())],
        };
        let mut archive = Archive::new("bundle".into(), 0, Secrets::find(None));
        let missing = add_node(&mut archive, &from).unwrap();
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(missing[0].starts_with(r"n1/a\u{0}b: "), "{missing:?}");
        assert_eq!(missing[1], r"n1/pod/log.txt: no\u{a}log");
        let files = unpack(&archive.finish().unwrap()).unwrap();
        assert_eq!(files, [("n1/good.txt".to_owned(), "good".to_owned())]);
    }

    #[test]
    fn a_node_s_files_stay_in_its_directory_and_a_broken_archive_is_an_error() {
        let mut archive = Archive::new("flannel-bundle-n1".into(), 0, Secrets::find(None));
        archive.add("kernel/ip.txt", "one").unwrap();
        archive.add("README.txt", "token: hunter2hunter2").unwrap();
        let bytes = archive.finish().unwrap();
        let files = unpack(&bytes).unwrap();
        assert_eq!(files[0], ("kernel/ip.txt".to_owned(), "one".to_owned()));
        assert!(!files[1].1.contains("hunter2"), "{files:?}");
        assert!(unpack(&bytes[..bytes.len() / 2]).is_err());
        assert!(unpack(b"no archive").is_err());
    }
}
