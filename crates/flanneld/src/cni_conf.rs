//! The CNI configuration: in its place while the network stands, and not before. A container runtime
//! that finds it calls the node ready for pods.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::options::CniConf;
use crate::status::Status;
use crate::teardown::remove_file;
use crate::whole_file;

/// How often it is looked at: somebody may have deleted it, or its source may have changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Puts the configuration in its place, and keeps it there from a task of its own on the current
/// thread, which what is returned ends. Must be called on a `LocalSet`.
pub(crate) fn start(conf: CniConf, status: Status) -> AbortHandle {
    keep(&conf, &status);
    let task = tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            keep(&conf, &status);
        }
    });
    task.abort_handle()
}

/// Takes the configuration away, when the network is taken down.
pub(crate) fn remove(conf: &CniConf) {
    remove_file("-cni-conf-file", &conf.file);
}

fn keep(conf: &CniConf, status: &Status) {
    let problem = match place(conf) {
        Ok(wrote) => {
            if wrote {
                info!("wrote {}", conf.file.display());
            }
            None
        }
        Err(problem) => Some(problem),
    };
    status.set_cni_installed(problem.is_none());
    if status.set_cni_problem(problem.clone())
        && let Some(problem) = problem
    {
        warn!("{problem}; trying again every {} s", LOOK_EVERY.as_secs());
    }
}

/// Makes the file what its source says. Returns whether it was not so.
fn place(conf: &CniConf) -> Result<bool, String> {
    let source = |problem: &dyn std::fmt::Display| {
        format!("-cni-conf-source {}: {problem}", conf.source.display())
    };
    let content = fs::read(&conf.source).map_err(|error| source(&error))?;
    let json: serde_json::Value = serde_json::from_slice(&content)
        .map_err(|error| source(&format_args!("not JSON: {error}")))?;
    let list = |key: &str| json.get(key).is_some_and(serde_json::Value::is_array);
    if is_list(&conf.file) && !list("plugins") {
        return Err(source(&"no CNI configuration list: it has no \"plugins\""));
    }
    whole_file::write(&conf.file, &content)
        .map_err(|(what, error)| format!("-cni-conf-file {}: {what}: {error}", conf.file.display()))
}

fn is_list(file: &Path) -> bool {
    file.extension()
        .is_some_and(|extension| extension == "conflist")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_repaired_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let conf = CniConf {
            source: dir.path().join("cni-conf.json"),
            file: dir.path().join("net.d/10-flannel.conflist"),
        };
        let error = place(&conf).unwrap_err();
        assert!(
            error.contains("-cni-conf-source") && error.contains("cni-conf.json"),
            "{error}"
        );
        for bad in ["", "{", "{}", r#"{"plugins":{}}"#] {
            fs::write(&conf.source, bad).unwrap();
            assert!(place(&conf).is_err(), "{bad:?} was taken");
            assert!(!conf.file.exists());
        }
        for good in [r#"{"plugins":[]}"#, r#"{"name":"x","plugins":[]}"#] {
            fs::write(&conf.source, good).unwrap();
            assert_eq!(place(&conf), Ok(true));
            assert_eq!(place(&conf), Ok(false));
            assert_eq!(fs::read_to_string(&conf.file).unwrap(), good);
        }
        fs::remove_file(&conf.file).unwrap();
        assert_eq!(place(&conf), Ok(true));
        remove(&conf);
        assert!(!conf.file.exists());
        remove(&conf);
    }
}
