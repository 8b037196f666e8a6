//! Any object of the API as JSON, for a person's command: no task, no cache, one request at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use super::access::{Access, KubeconfigFiles};
use super::access_error::AccessError;
use super::failure::Failure;
use super::http::{Ask, Client};
use super::pod_exec::{self, PodExec, PodOutput};
use crate::activity::Activity;

const JSON: &str = "application/json";

/// Names and labels alone, of objects that may be large.
const METADATA: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// Bytes of the longest answer that is read: names and labels of 15,000 Nodes.
const LARGEST: usize = 256 << 20;

/// The API server, for a person's command.
#[derive(Clone)]
pub struct KubeApi {
    client: Arc<Client>,
}

/// Why a request came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KubeApiError {
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// The object exists already, or has changed.
    #[error("{0}")]
    Conflict(String),
    /// The server refuses: a missing right, or an object that it does not take.
    #[error("{0}")]
    Refused(String),
    /// The server cannot be reached, or cannot answer now.
    #[error("{0}")]
    Unreachable(String),
}

impl From<Failure> for KubeApiError {
    fn from(failure: Failure) -> KubeApiError {
        let text = failure.to_string();
        match failure {
            Failure::NotFound(_) => KubeApiError::NotFound(text),
            Failure::Conflict(_) => KubeApiError::Conflict(text),
            Failure::Invalid(_) | Failure::Unauthorized(_) | Failure::Refused(_) => {
                KubeApiError::Refused(text)
            }
            Failure::Away(_) | Failure::Busy(..) | Failure::Expired(_) | Failure::Ahead(_) => {
                KubeApiError::Unreachable(text)
            }
        }
    }
}

impl KubeApi {
    /// Finds the server as kubectl does: the file `--kubeconfig`, the files in `KUBECONFIG`, a pod's own credentials,
    /// `~/.kube/config`; of a file the context `--context`, or the current one. Nothing is sent yet.
    ///
    /// # Errors
    /// A file that cannot be used, or none at all.
    pub fn new(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<KubeApi, AccessError> {
        let set = |name| env(name).filter(|value: &String| !value.is_empty());
        let home = || set("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
        let found = match (kubeconfig, set("KUBECONFIG")) {
            (Some(path), _) => Some(("--kubeconfig", vec![path.to_owned()])),
            (None, Some(list)) => Some(("KUBECONFIG", std::env::split_paths(&list).collect())),
            (None, None) if set("KUBERNETES_SERVICE_HOST").is_some() && context.is_none() => None,
            (None, None) => home()
                .filter(|file| file.is_file())
                .map(|file| ("kubeconfig", vec![file])),
        };
        let access = match found {
            Some((origin, paths)) => {
                let context = context.map(ToOwned::to_owned);
                let files = KubeconfigFiles {
                    origin,
                    paths,
                    context,
                };
                Access::of_files(files, env)?
            }
            None if set("KUBERNETES_SERVICE_HOST").is_some() && context.is_none() => {
                Access::new("", None, env)?
            }
            None => return Err(AccessError::NoKubeconfig),
        };
        Ok(KubeApi {
            client: Arc::new(Client::new(access, Activity::default())),
        })
    }

    /// Returns the server's address, for messages.
    pub fn place(&self) -> String {
        self.client.place()
    }

    /// Returns an object or a list.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn get(&self, path: &str) -> Result<Value, KubeApiError> {
        self.json(&Ask::list(path, JSON)).await
    }

    /// Returns a list of which only the metadata is wanted.
    ///
    /// # Errors
    /// As [`KubeApi::get`].
    pub async fn get_metadata(&self, path: &str) -> Result<Value, KubeApiError> {
        self.json(&Ask::list(path, METADATA)).await
    }

    /// Returns a text, such as a pod's log.
    ///
    /// # Errors
    /// As [`KubeApi::get`].
    pub async fn text(&self, path: &str) -> Result<String, KubeApiError> {
        let body = self.client.send(&Ask::get(path, "*/*")).await?;
        let bytes = body.whole(LARGEST).await;
        let bytes = bytes.map_err(KubeApiError::Unreachable)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Creates an object; returns it as the server has it.
    ///
    /// # Errors
    /// No answer, or a refusal; [`KubeApiError::Conflict`] if there is one of this name.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, KubeApiError> {
        let body = (JSON, Bytes::from(object.to_string()));
        self.json(&Ask::with_body(Method::POST, path, JSON, body))
            .await
    }

    /// Deletes an object. One that is gone already is no error.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub async fn delete(&self, path: &str) -> Result<(), KubeApiError> {
        self.delete_with(path, b"{}").await
    }

    /// Deletes a pod, or all pods of a list, without waiting for their kubelets, which may be gone.
    ///
    /// # Errors
    /// As [`KubeApi::delete`].
    pub async fn delete_at_once(&self, path: &str) -> Result<(), KubeApiError> {
        self.delete_with(path, br#"{"gracePeriodSeconds":0}"#).await
    }

    async fn delete_with(&self, path: &str, options: &'static [u8]) -> Result<(), KubeApiError> {
        let body = (JSON, Bytes::from_static(options));
        match self
            .json(&Ask::with_body(Method::DELETE, path, JSON, body))
            .await
        {
            Ok(_) | Err(KubeApiError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Runs a program in a pod and waits for its end. Give it a time limit.
    ///
    /// # Errors
    /// The server or the kubelet refuses, or the connection breaks. A program that fails is no error here.
    pub async fn exec(&self, what: &PodExec<'_>) -> Result<PodOutput, KubeApiError> {
        Ok(pod_exec::run(&self.client, what).await?)
    }

    async fn json(&self, ask: &Ask<'_>) -> Result<Value, KubeApiError> {
        let body = self.client.send(ask).await?;
        let bytes = body.whole(LARGEST).await;
        let bytes = bytes.map_err(KubeApiError::Unreachable)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            KubeApiError::Unreachable(format!("{}: not JSON: {error}", self.place()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_any_kubeconfig_the_ways_to_name_one_are_listed() {
        let error = KubeApi::new(None, None, |_| None).map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("--kubeconfig") && text.contains("KUBECONFIG"),
            "{text}"
        );
    }

    #[test]
    fn a_context_is_chosen_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        let text = "{current-context: x, contexts: [{name: x, context: {cluster: a}}, {name: y, context: {cluster: b}}], \
            clusters: [{name: a, cluster: {server: 'http://10.0.0.1:1'}}, {name: b, cluster: {server: 'http://10.0.0.2:2'}}]}";
        std::fs::write(&file, text).unwrap();
        let place = |context| KubeApi::new(Some(&file), context, |_| None).map(|api| api.place());
        assert_eq!(place(None).unwrap(), "http://10.0.0.1:1");
        assert_eq!(place(Some("y")).unwrap(), "http://10.0.0.2:2");
        let error = place(Some("z")).unwrap_err().to_string();
        assert!(
            error.contains("--kubeconfig") && error.contains('z'),
            "{error}"
        );
    }
}
