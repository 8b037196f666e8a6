//! Which Kubernetes cluster a command is about, and where its flannel runs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use store::{KubeApi, PodExec};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Where the image has this program.
pub(crate) const PROGRAM: &str = "/opt/bin/flannelctl";

/// Pods that are asked at the same time.
const AT_ONCE: usize = 32;

/// How long one of them may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Bytes of its answer.
const LARGEST: usize = 1 << 20;

/// Whether this program can ask a whole cluster. The image has no room for it, and its pods have no right to.
/// Callers name it beside [`KubeArgs::is_given`], so that the compiler leaves out what would follow.
pub(crate) const WHOLE_CLUSTERS: bool = cfg!(feature = "cluster");

/// How to find the cluster.
#[derive(Args, Clone)]
#[command(next_help_heading = "Kubernetes")]
pub(crate) struct KubeArgs {
    /// The whole Kubernetes cluster, by its API server; needs no flanneld here
    #[arg(long)]
    kubernetes: bool,
    /// The kubeconfig [default: KUBECONFIG, a pod's credentials, ~/.kube/config]; implies --kubernetes
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig that is not the current one; implies --kubernetes
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The namespace that flannel's pods are in
    #[arg(long, short, value_name = "NAME", default_value = "kube-flannel")]
    pub(crate) namespace: String,
    /// The label of flannel's pods
    #[arg(long, value_name = "LABEL", default_value = "app=flannel")]
    selector: String,
}

/// A pod of flannel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlannelPod {
    pub(crate) node: String,
    pub(crate) name: String,
    /// The container that runs flanneld.
    pub(crate) container: String,
    pub(crate) image: String,
}

impl KubeArgs {
    /// Whether the command is about a Kubernetes cluster.
    ///
    /// # Errors
    /// It is, and this is the image's program.
    pub(crate) fn is_given(&self) -> Result<bool> {
        let given = self.kubernetes || self.kubeconfig.is_some() || self.context.is_some();
        if given && !WHOLE_CLUSTERS {
            bail!(
                "--kubernetes: the container image's flannelctl cannot ask a whole cluster, and flannel's pods have no \
                 right to: use the flannelctl of a package or tarball, on a machine with a kubeconfig"
            );
        }
        Ok(given)
    }

    /// Finds the API server.
    ///
    /// # Errors
    /// No kubeconfig, or one that cannot be used.
    pub(crate) fn open(&self) -> Result<KubeApi> {
        let env = |name: &str| std::env::var(name).ok();
        let api = KubeApi::new(self.kubeconfig.as_deref(), self.context.as_deref(), env)?;
        Ok(api)
    }

    /// Returns the part of a query that asks for flannel's objects only.
    pub(crate) fn label_query(&self) -> String {
        format!("labelSelector={}", escaped(&self.selector))
    }

    /// Returns flannel's pods, by node. One that ends is not among them.
    ///
    /// # Errors
    /// No answer, a missing right, or no pod.
    pub(crate) async fn pods(&self, api: &KubeApi) -> Result<Vec<FlannelPod>> {
        let (namespace, label) = (&self.namespace, self.label_query());
        let path = format!("/api/v1/namespaces/{}/pods?{label}", escaped(namespace));
        let list = api.get(&path).await;
        let list = list.with_context(|| format!("list the pods of namespace {namespace}"))?;
        let pods = current(&list);
        if pods.is_empty() {
            bail!(
                "{}: no pod of namespace {namespace} has the label {}: name flannel's namespace with -n, its label with --selector",
                api.place(),
                self.selector
            );
        }
        Ok(pods)
    }
}

/// Runs this program, as it is in flannel's pods, with `words` in each of them; returns what each printed, by node, or why
/// there is nothing. Exit status 3 is an answer, too.
///
/// # Errors
/// The API server does not answer, or there is no pod.
pub(crate) async fn in_every_pod(
    args: &KubeArgs,
    words: &[&str],
) -> Result<Vec<(FlannelPod, Result<String, String>)>> {
    let api = args.open()?;
    let pods = args.pods(&api).await?;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let command: Arc<[String]> = std::iter::once(PROGRAM)
        .chain(words.iter().copied())
        .map(ToOwned::to_owned)
        .collect();
    for pod in pods {
        let (api, places, command) = (api.clone(), places.clone(), command.clone());
        let namespace = args.namespace.clone();
        tasks.spawn(async move {
            let _place = places.acquire().await;
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            let exec = PodExec {
                namespace: &namespace,
                pod: &pod.name,
                container: &pod.container,
                command: &words,
                stdin: None,
                limit: LARGEST,
            };
            let said = match timeout(LIMIT, api.exec(&exec)).await {
                Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
                Ok(Err(error)) => Err(error.to_string()),
                Ok(Ok(done)) if matches!(done.status, Some(0 | 3)) => {
                    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
                }
                Ok(Ok(done)) => Err(format!("{}; {}", done.message, done.stderr.trim())),
            };
            (pod, said)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.push(done.context("ask a pod")?);
    }
    all.sort_by(|(a, _), (b, _)| a.node.cmp(&b.node));
    Ok(all)
}

/// The pods of a list, by node. One that has ended, as a node's shutdown leaves it, counts where there is no other.
fn current(list: &Value) -> Vec<FlannelPod> {
    let has_ended = |pod: &Value| {
        let phase = pod.pointer("/status/phase");
        phase.is_some_and(|phase| phase == "Failed" || phase == "Succeeded")
    };
    let (ended, mut pods): (Vec<_>, Vec<_>) = items(list)
        .filter_map(|pod| Some((has_ended(pod), FlannelPod::of(pod)?)))
        .partition(|(has_ended, _)| *has_ended);
    let nodes: BTreeSet<String> = pods.iter().map(|(_, pod)| pod.node.clone()).collect();
    let alone = ended
        .into_iter()
        .filter(|(_, pod)| !nodes.contains(&pod.node));
    pods.extend(alone);
    let mut pods: Vec<FlannelPod> = pods.into_iter().map(|(_, pod)| pod).collect();
    pods.sort_by(|a, b| a.node.cmp(&b.node));
    pods
}

impl FlannelPod {
    fn of(pod: &Value) -> Option<FlannelPod> {
        if pod.pointer("/metadata/deletionTimestamp").is_some() {
            return None;
        }
        let containers = pod.pointer("/spec/containers")?.as_array()?;
        let is_flanneld = |container: &&Value| container["name"] == "kube-flannel";
        let container = containers.iter().find(is_flanneld);
        let container = container.or(containers.first())?;
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
        Some(FlannelPod {
            node: text(pod.pointer("/spec/nodeName")?)?,
            name: text(pod.pointer("/metadata/name")?)?,
            container: text(&container["name"])?,
            image: text(&container["image"])?,
        })
    }
}

/// The objects of a list.
pub(crate) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// Returns text for a path or query of the API.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_that_has_ended_counts_where_there_is_no_other() {
        let pod = |node: &str, name: &str, phase: &str| {
            json!({
                "metadata": {"name": name}, "status": {"phase": phase},
                "spec": {"nodeName": node, "containers": [{"name": "kube-flannel", "image": "y"}]},
            })
        };
        let list = json!({"items": [
            pod("n2", "ended", "Failed"), pod("n1", "old", "Failed"), pod("n1", "new", "Running"),
        ]});
        let pods = current(&list);
        let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!(names, ["new", "ended"]);
    }

    #[test]
    fn a_pod_is_where_flanneld_runs_and_one_that_ends_is_left_out() {
        let mut pod = json!({
            "metadata": {"name": "p"},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "sidecar", "image": "x"}, {"name": "kube-flannel", "image": "y"},
            ]},
        });
        let found = FlannelPod::of(&pod).unwrap();
        assert_eq!(
            (found.container.as_str(), found.image.as_str()),
            ("kube-flannel", "y")
        );
        pod["metadata"]["deletionTimestamp"] = json!("now");
        assert_eq!(FlannelPod::of(&pod), None);
        assert_eq!(FlannelPod::of(&json!({"spec": {"containers": []}})), None);
        assert_eq!(escaped("app=a/b?"), "app%3Da%2Fb%3F");
    }
}
