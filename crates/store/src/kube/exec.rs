//! Programs that print a credential (`exec` in a kubeconfig, client.authentication.k8s.io).
//!
//! The program is run without a shell and without a terminal, and again when what it printed has expired
//! or the server refuses it. What it prints on stderr is shown when it fails, without the values of the
//! variables that the kubeconfig gives it; what it prints on stdout never.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::secret::Secret;
use crate::tls::Pem;

/// How long a program may take: some of them ask a service on the other side of the world.
const PATIENCE: Duration = Duration::from_secs(30);
/// A program that failed is not run again earlier.
const AGAIN: Duration = Duration::from_secs(5);
/// No credential is larger.
const LARGEST: u64 = 1 << 20;
/// How much of stderr is shown.
const SHOWN: usize = 400;

/// A program and how it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exec {
    pub command: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, Secret)>,
    /// `apiVersion` of its input and its output.
    pub version: String,
    /// `provideClusterInfo`.
    pub cluster_info: bool,
    /// `installHint`.
    pub hint: Option<String>,
}

/// The cluster, as a program receives it if `provideClusterInfo` is set.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ClusterInfo {
    pub server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_tls_verify: bool,
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
}

/// What a program printed.
#[derive(Debug, Default)]
pub(super) struct Printed {
    pub token: Option<Secret>,
    /// Certificate and key.
    pub identity: Option<(Pem, Pem)>,
    expires: Option<SystemTime>,
}

impl Printed {
    fn has_expired(&self) -> bool {
        self.expires.is_some_and(|at| at <= SystemTime::now())
    }
}

/// Runs the program of a kubeconfig when that is needed.
#[derive(Debug, Default)]
pub(super) struct Plugin(Mutex<Option<Run>>);

#[derive(Debug)]
struct Run {
    exec: Arc<Exec>,
    at: Instant,
    result: Result<Arc<Printed>, String>,
}

impl Plugin {
    /// Returns what the program printed last, if that is still valid; else runs it again.
    ///
    /// # Errors
    /// It cannot be started, fails, takes too long or prints something else: names the command.
    pub(super) async fn credential(
        &self,
        exec: &Arc<Exec>,
        cluster: ClusterInfo,
    ) -> Result<Arc<Printed>, String> {
        let mut last = self.0.lock().await;
        if let Some(run) = last.as_ref().filter(|run| run.exec == *exec) {
            let fresh = match &run.result {
                Ok(printed) => !printed.has_expired(),
                Err(_) => run.at.elapsed() < AGAIN,
            };
            if fresh {
                return run.result.clone();
            }
        }
        let result = exec.run(cluster).await.map(Arc::new);
        *last = Some(Run {
            exec: exec.clone(),
            at: Instant::now(),
            result: result.clone(),
        });
        result
    }

    /// Returns what the program printed last, without running it.
    pub(super) fn last(&self, exec: &Arc<Exec>) -> Option<Arc<Printed>> {
        let last = self.0.try_lock().ok()?;
        let run = last.as_ref().filter(|run| run.exec == *exec)?;
        run.result.as_ref().ok().cloned()
    }

    /// Has the program run again the next time: the server refused what it printed.
    pub(super) async fn forget(&self) {
        self.0.lock().await.take_if(|run| run.result.is_ok());
    }
}

impl Exec {
    async fn run(&self, cluster: ClusterInfo) -> Result<Printed, String> {
        let info = serde_json::json!({
            "apiVersion": self.version,
            "kind": "ExecCredential",
            "spec": {
                "interactive": false,
                "cluster": self.cluster_info.then_some(cluster),
            },
        });
        let mut command = Command::new(&self.command);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value.reveal())))
            .env("KUBERNETES_EXEC_INFO", info.to_string())
            // These are for the daemon alone.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("FLANNELD_ETCD_PASSWORD")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let named = |problem: String| format!("exec {}: {problem}", self.command.display());
        let mut child = command.spawn().map_err(|error| {
            let hint = self.hint.as_deref().map(one_line).unwrap_or_default();
            let hint = if hint.is_empty() {
                String::new()
            } else {
                format!(": {hint}")
            };
            named(format!("cannot run it: {error}{hint}"))
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (mut printed, mut complaint) = (Vec::new(), Vec::new());
        let ended = timeout(PATIENCE, async {
            let (_, _, ended) = tokio::join!(
                read(stdout, LARGEST, &mut printed),
                read(stderr, LARGEST, &mut complaint),
                child.wait()
            );
            ended
        });
        let ended = ended.await.map_err(|_| {
            named(format!(
                "it did not end within {} s{}",
                PATIENCE.as_secs(),
                self.shown(&[])
            ))
        })?;
        let status = ended.map_err(|error| named(error.to_string()))?;
        if !status.success() {
            return Err(named(format!("{status}{}", self.shown(&complaint))));
        }
        self.read_answer(&printed).map_err(named)
    }

    /// stderr for a message: one line, not long, without the values that the kubeconfig holds.
    fn shown(&self, stderr: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(stderr).into_owned();
        for (_, value) in &self.env {
            // Such as "1" or "true": not a secret, and part of too much else.
            if value.reveal().len() >= 6 {
                text = text.replace(value.reveal(), "***");
            }
        }
        let text = one_line(&text);
        if text.is_empty() {
            String::new()
        } else {
            format!(": {text}")
        }
    }

    fn read_answer(&self, json: &[u8]) -> Result<Printed, String> {
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Answer {
            api_version: String,
            kind: String,
            status: Option<Status>,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Status {
            expiration_timestamp: Option<String>,
            token: Option<String>,
            client_certificate_data: Option<String>,
            client_key_data: Option<String>,
        }
        // The error of the JSON reader may quote what was printed, which may be a secret.
        let answer: Answer =
            serde_json::from_slice(json).map_err(|_| "what it printed is not an ExecCredential")?;
        if answer.kind != "ExecCredential" || answer.api_version != self.version {
            return Err(format!(
                "it printed kind {:?} of apiVersion {:?}: expected ExecCredential of {:?}",
                one_line(&answer.kind),
                one_line(&answer.api_version),
                self.version
            ));
        }
        let status = answer.status.ok_or("it printed no status")?;
        let set = |text: Option<String>| text.filter(|text| !text.is_empty());
        let pem = |text: String| Pem::Inline(Arc::from(text.into_bytes()), self.command.clone());
        let identity = match (
            set(status.client_certificate_data),
            set(status.client_key_data),
        ) {
            (Some(cert), Some(key)) => Some((pem(cert), pem(key))),
            (None, None) => None,
            _ => return Err("it printed a certificate or a key without the other".into()),
        };
        let token = set(status.token);
        if token.is_none() && identity.is_none() {
            return Err("it printed neither a token nor a certificate".into());
        }
        let expires = set(status.expiration_timestamp);
        let expires = expires.map(|time| {
            let time = time.trim();
            humantime::parse_rfc3339_weak(time)
                .map_err(|_| format!("expirationTimestamp is {:?}: not a time", one_line(time)))
        });
        Ok(Printed {
            token: token.map(Secret::new),
            identity,
            expires: expires.transpose()?,
        })
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>, limit: u64, into: &mut Vec<u8>) {
    if let Some(from) = from {
        // What was read before an error counts, too.
        let _ = from.take(limit).read_to_end(into).await;
    }
}

fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let line: String = text.trim().chars().take(SHOWN).map(clean).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    const V1: &str = "client.authentication.k8s.io/v1";

    /// A program of these lines of sh.
    fn program(dir: &Path, lines: &str) -> Exec {
        let path = dir.join("login");
        // Renamed: a file that is open for writing cannot be run.
        let new = dir.join("new");
        std::fs::write(&new, format!("#!/bin/sh\n{lines}\n")).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &path).unwrap();
        Exec {
            command: path,
            args: vec!["get".into(), "$(touch hacked); `id`".into()],
            env: vec![("PASSWORD".into(), Secret::new("hunter2"))],
            version: V1.into(),
            cluster_info: true,
            hint: Some("apt-get install login".into()),
        }
    }

    fn answer(status: &str) -> String {
        format!(
            "echo '{{\"apiVersion\":\"{V1}\",\"kind\":\"ExecCredential\",\"status\":{status}}}'"
        )
    }

    async fn run(exec: &Exec) -> Result<Printed, String> {
        let cluster = ClusterInfo {
            server: "https://a:1".into(),
            ..ClusterInfo::default()
        };
        exec.run(cluster).await
    }

    #[tokio::test]
    async fn a_program_is_run_without_a_shell_and_told_of_the_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let lines = format!(
            "test \"$1\" = get -a \"$2\" = '$(touch hacked); `id`' -a \"$PASSWORD\" = hunter2 || exit 3\n\
             echo \"$KUBERNETES_EXEC_INFO\" >{}\n{}",
            dir.path().join("info").display(),
            answer(r#"{"token":"t"}"#)
        );
        let printed = run(&program(dir.path(), &lines)).await.unwrap();
        assert_eq!(printed.token.unwrap().reveal(), "t");
        let info = std::fs::read_to_string(dir.path().join("info")).unwrap();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["apiVersion"], V1);
        assert_eq!(info["spec"]["interactive"], false);
        assert_eq!(info["spec"]["cluster"]["server"], "https://a:1");
    }

    #[tokio::test]
    async fn a_failure_shows_stderr_and_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "echo \"cannot log in with $PASSWORD\" >&2; echo secret-on-stdout; exit 4";
        let error = run(&program(dir.path(), lines)).await.unwrap_err();
        assert!(
            error.contains("login") && error.contains("cannot log in with ***"),
            "{error}"
        );
        assert!(!error.contains("secret-on-stdout"), "{error}");
        for lines in [
            "echo nonsense-token",
            "echo '{\"kind\":\"Pod\"}'",
            &answer("{}"),
            &answer(r#"{"clientKeyData":"nonsense-token"}"#),
            &answer(r#"{"token":"nonsense-token","expirationTimestamp":"soon"}"#),
            "true",
        ] {
            let error = run(&program(dir.path(), lines)).await.unwrap_err();
            assert!(!error.contains("nonsense-token"), "{error}");
        }
        let mut missing = program(dir.path(), "");
        missing.command = "/nowhere/login".into();
        let error = run(&missing).await.unwrap_err();
        assert!(
            error.contains("/nowhere/login") && error.contains("apt-get"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_credential_is_kept_until_it_expires_or_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let runs = || std::fs::read_to_string(&count).unwrap().lines().count();
        let lines = |expires: &str| {
            let status = format!(r#"{{"token":"t","expirationTimestamp":"{expires}"}}"#);
            format!("echo x >>{}\n{}", count.display(), answer(&status))
        };
        let plugin = Plugin::default();
        let exec = Arc::new(program(dir.path(), &lines("2999-01-01T00:00:00Z")));
        for _ in 0..3 {
            plugin
                .credential(&exec, ClusterInfo::default())
                .await
                .unwrap();
        }
        assert_eq!(runs(), 1);
        assert!(plugin.last(&exec).unwrap().token.is_some());
        plugin.forget().await;
        assert!(plugin.last(&exec).is_none(), "it is not run to know");
        assert_eq!(runs(), 1);
        plugin
            .credential(&exec, ClusterInfo::default())
            .await
            .unwrap();
        assert_eq!(runs(), 2);
        let mut over = program(dir.path(), &lines("2001-01-01T00:00:00Z"));
        over.args.clear();
        let over = Arc::new(over);
        for _ in 0..2 {
            plugin
                .credential(&over, ClusterInfo::default())
                .await
                .unwrap();
        }
        assert_eq!(runs(), 4, "it has expired each time");
        let mut fails = program(dir.path(), &format!("echo x >>{}; exit 1", count.display()));
        fails.args.push("again".into());
        let fails = Arc::new(fails);
        for _ in 0..3 {
            plugin
                .credential(&fails, ClusterInfo::default())
                .await
                .unwrap_err();
        }
        assert_eq!(runs(), 5, "one that fails is not run each time");
    }
}
