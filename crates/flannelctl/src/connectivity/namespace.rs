//! The namespace of a test: it is made, and it goes, whatever happens in between.

use std::time::{Duration, Instant};

use serde_json::Value;
use store::{KubeApi, KubeApiError};
use tokio::time::{sleep, timeout};

use super::objects::{self, LABEL};
use crate::kube_args::{escaped, items};
use crate::output;

/// Where namespaces are.
pub(super) const NAMESPACES: &str = "/api/v1/namespaces";

/// How long the end of the namespace is waited for.
const END: Duration = Duration::from_secs(90);

/// Refusals that are taken for a missing right: after one, a token that has expired is fetched again.
const REFUSALS: u32 = 2;

/// Pods that are still there after this are removed without their kubelets: on a node that is down they would stay, and
/// the namespace with them.
const PODS_END: Duration = Duration::from_secs(15);

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);

/// Creates the namespace. A request whose answer is lost is sent again: then there is one already, our own.
pub(super) async fn create(api: &KubeApi, name: &str, ours: &Value) -> Result<(), KubeApiError> {
    match api.create(NAMESPACES, ours).await {
        Ok(_) => Ok(()),
        Err(error @ KubeApiError::Conflict(_)) => {
            let theirs = api.get(&format!("{NAMESPACES}/{name}")).await;
            if theirs.is_ok_and(|theirs| objects::is_same(&theirs, ours)) {
                Ok(())
            } else {
                Err(error)
            }
        }
        Err(error) => Err(error),
    }
}

/// Returns what to do about a namespace that is still there.
pub(super) fn left(namespace: &str, why: &str) -> String {
    format!(
        "the namespace {namespace} is still there ({why}): kubectl delete namespace {namespace}"
    )
}

/// Deletes a namespace and waits until it is gone; reports one that stays.
pub(super) async fn remove(api: &KubeApi, namespace: &str) {
    let path = format!("{NAMESPACES}/{namespace}");
    let (began, mut refusals) = (Instant::now(), 0);
    let gone = async {
        loop {
            // Again each time: an answer may have been lost, and the server may be busy.
            match (api.delete(&path).await, api.get(&path).await) {
                (_, Err(KubeApiError::NotFound(_))) => return Ok(()),
                (Err(error @ KubeApiError::Refused(_)), _) if refusals == REFUSALS => {
                    return Err(error.to_string());
                }
                // Whoever may delete it but not look at it cannot wait for it.
                (Ok(()), Err(KubeApiError::Refused(_))) if refusals == REFUSALS => return Ok(()),
                (Err(KubeApiError::Refused(_)), _) | (_, Err(KubeApiError::Refused(_))) => {
                    refusals += 1;
                }
                _ => {}
            }
            if began.elapsed() >= PODS_END {
                // Whoever may not do that waits for the kubelets.
                let _ = api.delete_at_once(&format!("{path}/pods")).await;
            }
            sleep(AGAIN).await;
        }
    };
    let gone = timeout(END, gone).await;
    let late = format!("it does not end within {} s", END.as_secs());
    if let Err(why) = gone.unwrap_or(Err(late)) {
        output::problem(&left(namespace, &why));
    }
}

/// Deletes what tests left that were killed.
pub(super) async fn remove_left_overs(api: &KubeApi, now: u64) {
    let path = format!("{NAMESPACES}?labelSelector={}", escaped(LABEL));
    let Ok(list) = api.get(&path).await else {
        return;
    };
    for old in items(&list).filter(|old| objects::is_left_over(old, now)) {
        if let Some(name) = old["metadata"]["name"].as_str() {
            output::progress(&format!(
                "removing the namespace {name}, which an earlier test left"
            ));
            let path = format!("{NAMESPACES}/{}", escaped(name));
            let _ = api.delete(&path).await;
            let _ = api.delete_at_once(&format!("{path}/pods")).await;
        }
    }
}
