//! What the API server was asked: its audit log of flanneld's requests, and its counters.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Value, json};

use super::access::Who;
use crate::Error;
use crate::error::Doing;

/// Files in [`crate::KUBE_DIR`].
pub(super) const POLICY: &str = "audit-policy.json";
pub(super) const LOG: &str = "audit.log";

/// One request of a flanneld.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `get`, `list`, `watch`, `patch`, …
    pub verb: String,
    /// With its query: `/api/v1/nodes?watch=1`.
    pub uri: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// Who asked, as in `User-Agent`.
    pub agent: String,
}

impl Request {
    /// The server refused it for want of rights.
    pub fn forbidden(&self) -> bool {
        self.status == 401 || self.status == 403
    }
}

/// Only flanneld's requests, and of a long one its beginning.
pub(super) fn write_policy(dir: &Path) -> Result<(), Error> {
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": [Who::Flannel.user()]}, {"level": "None"}],
    });
    let path = dir.join(POLICY);
    fs::write(&path, policy.to_string()).doing(|| path.display().to_string())
}

pub(super) fn read(dir: &Path) -> Result<Vec<Request>, Error> {
    let path = dir.join(LOG);
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
        text => text.doing(|| path.display().to_string())?,
    };
    let text_at = |event: &Value, at: &str| {
        let text = event.pointer(at).and_then(Value::as_str);
        text.unwrap_or_default().to_string()
    };
    let request = |line: &str| {
        let event: Value = serde_json::from_str(line).ok()?;
        let (verb, stage) = (text_at(&event, "/verb"), text_at(&event, "/stage"));
        // A watch is told of when it begins and when it ends.
        if verb == "watch" && stage == "ResponseComplete" && event["responseStatus"]["code"] == 200
        {
            return None;
        }
        let status = event
            .pointer("/responseStatus/code")
            .and_then(Value::as_u64);
        Some(Request {
            verb,
            uri: text_at(&event, "/requestURI"),
            status: status.and_then(|s| u16::try_from(s).ok()).unwrap_or(0),
            agent: text_at(&event, "/userAgent"),
        })
    };
    Ok(text.lines().filter_map(request).collect())
}

/// Sums up `apiserver_request_total` by verb and resource.
pub(super) fn counts(metrics: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in metrics.lines() {
        let Some(labels) = line.strip_prefix("apiserver_request_total{") else {
            continue;
        };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split('"').next().filter(|value| !value.is_empty())
        };
        let count = line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
        let (Some(verb), Some(resource), Some(count)) = (label("verb"), label("resource"), count)
        else {
            continue;
        };
        let what = match label("subresource") {
            Some(sub) => format!("{verb} {resource}/{sub}"),
            None => format!("{verb} {resource}"),
        };
        *counts.entry(what).or_default() += count as u64;
    }
    counts
}
