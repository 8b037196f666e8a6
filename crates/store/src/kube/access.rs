//! Where the API server is, and the credentials for it: `-kube-api-url`, `-kubeconfig-file`, what every
//! pod is given, or `KUBECONFIG`.
//!
//! All of it is read again for each request: certificates, tokens and the server itself may change while
//! the daemon runs.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use super::access_error::AccessError;
use super::credential::Credential;
use super::exec::{ClusterInfo, Plugin, Printed};
use super::kubeconfig::{self, Kubeconfig};
use super::server::{Origin, Server};
use crate::connect::{Connector, Proxy, ProxyVariables, Scheme};
use crate::secret::Secret;
use crate::tls::{Names, Pem, TlsFiles};

/// Where a pod finds its credentials.
const POD_CREDENTIALS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const NAMES: Names = Names {
    key: "client-key",
    cert: "client-certificate",
    ca: "certificate-authority",
};
const PROTOCOLS: &[&str] = &["h2", "http/1.1"];

/// Everything that one request needs.
pub(super) struct Target {
    pub origin: Origin,
    pub connector: Connector,
    /// Changes with whatever a connection depends on: server, certificates, proxy.
    pub identity: u64,
    pub token: Option<Secret>,
    /// Headers that ask to be treated as another user.
    pub impersonate: Vec<(String, String)>,
}

/// Everything that reaches the API server.
#[derive(Debug)]
pub(super) struct Access {
    source: Source,
    /// `-kube-api-url`; empty: the address of the source.
    url: String,
    /// They count where the kubeconfig names no proxy.
    proxies: ProxyVariables,
    /// What was read last and could be used: it stays in force while a file is being replaced.
    last: Mutex<Arc<Known>>,
    /// What the log says of a file that can no longer be used.
    logged: Mutex<String>,
    /// [`Target::identity`] whose certificates were checked for blocks that are skipped.
    checked: AtomicU64,
    plugin: Plugin,
    /// The file of a token, and the last one that it held.
    token: Mutex<Option<(PathBuf, Secret)>>,
}

#[derive(Debug)]
enum Source {
    /// Fixed at the start: a pod's, or an address alone.
    Fixed,
    /// Read again, since what they hold may change.
    Files(KubeconfigFiles),
}

/// Which files, named by what, and which context of them.
#[derive(Clone, Debug)]
pub(super) struct KubeconfigFiles {
    pub origin: &'static str,
    pub paths: Vec<PathBuf>,
    /// `None`: the current one.
    pub context: Option<String>,
}

#[derive(Clone, Debug)]
struct Known {
    server: Server,
    files: TlsFiles,
    server_name: Option<String>,
    credential: Option<Credential>,
    proxy: Option<Secret>,
    impersonate: Vec<(String, String)>,
}

impl Access {
    /// Follows the flags; if both are empty the pod's credentials, else `KUBECONFIG`.
    pub(super) fn new(
        url: &str,
        kubeconfig: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Access, AccessError> {
        let set = |name| env(name).filter(|value: &String| !value.is_empty());
        let source = match (url, kubeconfig, set("KUBECONFIG")) {
            (_, Some(path), _) => Source::Files(KubeconfigFiles {
                origin: "-kubeconfig-file",
                paths: vec![path.to_owned()],
                context: None,
            }),
            ("", None, Some(list)) if set("KUBERNETES_SERVICE_HOST").is_none() => {
                Source::Files(KubeconfigFiles {
                    origin: "KUBECONFIG",
                    paths: std::env::split_paths(&list).collect(),
                    context: None,
                })
            }
            _ => Source::Fixed,
        };
        Access::of(source, url, env)
    }

    /// Follows these files, whatever the environment says.
    pub(super) fn of_files(
        files: KubeconfigFiles,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Access, AccessError> {
        Access::of(Source::Files(files), "", env)
    }

    fn of(
        source: Source,
        url: &str,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Access, AccessError> {
        let known = match (&source, url) {
            (Source::Files(files), url) => from_files(url, files)?,
            (Source::Fixed, "") => in_cluster(&env)?,
            (Source::Fixed, url) => Known::at("-kube-api-url", url, no_files())?,
        };
        if known.server.endpoint.tls {
            known.files.load()?;
        }
        let proxies = ProxyVariables::read(&env);
        known.proxy(&proxies)?;
        if known.files.insecure {
            warn!(
                "insecure-skip-tls-verify: the API server {} is not verified: any server that answers there can give this node any routes",
                known.server.origin.address
            );
        }
        Ok(Access {
            source,
            url: url.into(),
            proxies,
            last: Mutex::new(Arc::new(known)),
            logged: Mutex::default(),
            checked: AtomicU64::new(0),
            plugin: Plugin::default(),
            token: Mutex::default(),
        })
    }

    /// Returns the server's address, for messages.
    pub(super) fn place(&self) -> String {
        let known = self.last();
        format!(
            "{}{}",
            known.server.origin.address, known.server.origin.base
        )
    }

    /// Returns the proxy through which the server is reached.
    pub(super) fn proxy(&self) -> Result<Option<Proxy>, AccessError> {
        self.last().proxy(&self.proxies)
    }

    fn last(&self) -> Arc<Known> {
        lock(&self.last).clone()
    }

    /// Returns the content of the files; their former content, if they cannot be used at present.
    fn read(&self) -> Arc<Known> {
        let Source::Files(files) = &self.source else {
            return self.last();
        };
        match from_files(&self.url, files) {
            Ok(known) => {
                let known = Arc::new(known);
                *lock(&self.last) = known.clone();
                lock(&self.logged).clear();
                known
            }
            Err(error) => {
                let text = error.to_string();
                let mut logged = lock(&self.logged);
                if *logged != text {
                    warn!("{text}; continuing with what it said before");
                    *logged = text;
                }
                self.last()
            }
        }
    }

    /// Returns everything that a request needs, from the files as they are now. Runs the kubeconfig's program
    /// if that is due.
    pub(super) async fn target(&self) -> Result<Target, AccessError> {
        let known = self.read();
        let printed = match &known.credential {
            Some(Credential::Exec(exec)) => {
                let printed = self.plugin.credential(exec, known.cluster_info()).await;
                Some(printed.map_err(AccessError::Exec)?)
            }
            _ => None,
        };
        self.target_of(&known, printed)
    }

    /// Returns the same without running a program: what it printed last counts. `None` if it has not yet.
    pub(super) fn target_so_far(&self) -> Option<Target> {
        let known = self.read();
        let printed = match &known.credential {
            Some(Credential::Exec(exec)) => Some(self.plugin.last(exec)?),
            _ => None,
        };
        self.target_of(&known, printed).ok()
    }

    fn target_of(
        &self,
        known: &Known,
        printed: Option<Arc<Printed>>,
    ) -> Result<Target, AccessError> {
        let mut files = known.files.clone();
        let token = match &known.credential {
            None => None,
            Some(Credential::Token(token)) => Some(token.clone()),
            Some(Credential::TokenFile(path, token)) => Some(self.read_token(path, token)?),
            Some(Credential::Exec(_)) => {
                let identity = printed
                    .as_ref()
                    .and_then(|printed| printed.identity.clone());
                if let Some((cert, key)) = identity {
                    (files.cert, files.key) = (Some(cert), Some(key));
                }
                printed.and_then(|printed| printed.token.clone())
            }
        };
        let proxy = known.proxy(&self.proxies)?;
        let mut hasher = DefaultHasher::new();
        (&known.server.origin.address, &known.server.origin.base).hash(&mut hasher);
        (&known.server_name, files.insecure).hash(&mut hasher);
        known
            .proxy
            .as_ref()
            .map(|url| url.reveal())
            .hash(&mut hasher);
        for pem in [&files.ca, &files.cert, &files.key] {
            match pem {
                None => 0_u8.hash(&mut hasher),
                Some(Pem::Inline(pem, _)) => pem.hash(&mut hasher),
                // The connection reports one that cannot be read.
                Some(Pem::File(path)) => std::fs::read(path).ok().hash(&mut hasher),
            }
        }
        let identity = hasher.finish();
        // A file that cannot be used is reported by the connection; here only what is skipped in it.
        if known.server.endpoint.tls && self.checked.swap(identity, Ordering::Relaxed) != identity {
            let _ = files.check();
        }
        Ok(Target {
            origin: known.server.origin.clone(),
            connector: Connector {
                endpoint: known.server.endpoint.clone(),
                files: Arc::new(files),
                server_name: known.server_name.clone(),
                proxy,
                dialer: None,
            },
            identity,
            token,
            impersonate: known.impersonate.clone(),
        })
    }

    /// Returns the token in the file; the last one that it held, or the one given beside it, while it cannot be
    /// read or is empty. The server judges whether that is still good.
    fn read_token(&self, path: &Path, beside: &Option<Secret>) -> Result<Secret, AccessError> {
        let read = std::fs::read_to_string(path).and_then(|text| match text.trim() {
            "" => Err(std::io::Error::other("it is empty")),
            token => Ok(Secret::new(token)),
        });
        let mut last = lock(&self.token);
        if let Ok(token) = &read {
            *last = Some((path.into(), token.clone()));
        }
        let error = match read {
            Ok(token) => return Ok(token),
            Err(error) => error,
        };
        let former = last.as_ref().filter(|(of, _)| of == path);
        let former = former.map(|(_, token)| token).or(beside.as_ref());
        former.cloned().ok_or(AccessError::Token {
            path: path.into(),
            error,
        })
    }

    /// Drops a credential that the server has refused.
    pub(super) async fn refused(&self) {
        self.plugin.forget().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_files() -> TlsFiles {
    TlsFiles {
        key: None,
        cert: None,
        ca: None,
        names: &NAMES,
        protocols: PROTOCOLS,
        insecure: false,
    }
}

fn in_cluster(env: impl Fn(&str) -> Option<String>) -> Result<Known, AccessError> {
    let set = |name| env(name).filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (
        set("KUBERNETES_SERVICE_HOST"),
        set("KUBERNETES_SERVICE_PORT"),
    ) else {
        return Err(AccessError::NoPod);
    };
    let url = if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    };
    let dir = Path::new(POD_CREDENTIALS);
    let files = TlsFiles {
        ca: Some(Pem::File(dir.join("ca.crt"))),
        ..no_files()
    };
    Ok(Known {
        credential: Some(Credential::TokenFile(dir.join("token"), None)),
        ..Known::at("KUBERNETES_SERVICE_HOST", &url, files)?
    })
}

/// Reads kubeconfig files. Of several, missing ones are ignored.
fn from_files(url: &str, files: &KubeconfigFiles) -> Result<Known, AccessError> {
    let (flag, paths) = (files.origin, &files.paths);
    let problem = |path: &Path, problem: String| AccessError::Kubeconfig {
        origin: flag,
        path: path.into(),
        problem,
    };
    let mut texts = Vec::new();
    for path in paths {
        match std::fs::read_to_string(path) {
            Ok(text) => texts.push((path.clone(), text)),
            Err(error) if paths.len() > 1 && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(problem(path, error.to_string())),
        }
    }
    let first = paths.first().cloned().unwrap_or_default();
    let Kubeconfig {
        server,
        ca,
        cert,
        key,
        credential,
        server_name,
        insecure,
        proxy,
        impersonate,
    } = kubeconfig::parse(&texts, files.context.as_deref())
        .map_err(|text| problem(&first, text))?;
    let files = TlsFiles {
        ca,
        cert,
        key,
        insecure,
        ..no_files()
    };
    let (origin, url) = match url {
        "" => (format!("{flag} {}: server", first.display()), server),
        url => ("-kube-api-url".to_owned(), url.to_owned()),
    };
    Ok(Known {
        credential,
        server_name,
        proxy,
        impersonate,
        ..Known::at(&origin, &url, files)?
    })
}

impl Known {
    /// A server, and these files as the only credentials.
    fn at(place: &str, url: &str, files: TlsFiles) -> Result<Known, AccessError> {
        let server = Server::parse(place, url, files.any() || files.insecure)?;
        Ok(Known {
            server,
            files,
            server_name: None,
            credential: None,
            proxy: None,
            impersonate: Vec::new(),
        })
    }

    /// Returns the kubeconfig's proxy, else the one that the variables name for the server.
    fn proxy(&self, variables: &ProxyVariables) -> Result<Option<Proxy>, AccessError> {
        if let Some(url) = &self.proxy {
            return Ok(Some(Proxy::new(url.reveal(), "proxy-url")?));
        }
        let scheme = if self.server.endpoint.tls {
            Scheme::Https
        } else {
            Scheme::Http
        };
        let endpoint = &self.server.endpoint;
        Ok(Proxy::from_environment(endpoint, scheme, variables)?)
    }

    fn cluster_info(&self) -> ClusterInfo {
        use base64::Engine as _;
        let ca = match &self.files.ca {
            Some(Pem::Inline(pem, _)) => Some(pem.to_vec()),
            Some(Pem::File(path)) => std::fs::read(path).ok(),
            None => None,
        };
        ClusterInfo {
            server: format!("{}{}", self.server.origin.address, self.server.origin.base),
            tls_server_name: self.server_name.clone(),
            insecure_skip_tls_verify: self.files.insecure,
            certificate_authority_data: ca
                .map(|pem| base64::engine::general_purpose::STANDARD.encode(pem)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_pod_something_must_be_given() {
        let error = Access::new("", None, |_| None).unwrap_err().to_string();
        assert!(error.contains("-kubeconfig-file"), "{error}");
    }

    fn config(server: &str, user: &str) -> String {
        format!(
            "{{current-context: x, contexts: [{{name: x, context: {{cluster: c, user: u}}}}], \
             clusters: [{{name: c, cluster: {{server: '{server}'}}}}], users: [{{name: u, user: {{{user}}}}}]}}"
        )
    }

    #[tokio::test]
    async fn a_changed_file_counts_at_once_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, config("http://a:1", "token: one")).unwrap();
        let access = Access::new("", Some(&path), |_| None).unwrap();
        let target = async || access.target().await.unwrap();
        let one = target().await;
        std::fs::write(&path, config("http://a:1", "token: two")).unwrap();
        let two = target().await;
        assert_eq!(two.token.unwrap().reveal(), "two");
        assert_eq!(
            one.identity, two.identity,
            "a token needs no new connection"
        );
        let text = config("http://b:1", "token: three");
        for at in [0, 5, text.len() / 2, text.len() - 1] {
            std::fs::write(&path, &text[..at]).unwrap();
            assert_eq!(target().await.origin.address, "http://a:1");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(target().await.origin.address, "http://a:1");
        std::fs::write(&path, text).unwrap();
        let three = target().await;
        assert_eq!(three.origin.address, "http://b:1");
        assert_eq!(access.place(), "http://b:1");
        assert_ne!(one.identity, three.identity);
    }

    #[tokio::test]
    async fn a_token_counts_until_its_file_holds_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("kubeconfig"), dir.path().join("token"));
        std::fs::write(&path, config("http://a:1", "tokenFile: token")).unwrap();
        let access = Access::new("", Some(&path), |_| None).unwrap();
        let token = async || access.target().await.map(|target| target.token.unwrap());
        let said = async || token().await.err().unwrap().to_string();
        assert!(said().await.contains("No such file"));
        std::fs::write(&file, "\n").unwrap();
        assert!(said().await.contains("it is empty"));
        std::fs::write(
            &path,
            config("http://a:1", "tokenFile: token, token: beside"),
        )
        .unwrap();
        assert_eq!(token().await.unwrap().reveal(), "beside");
        for (text, want) in [("one\n", "one"), ("", "one"), ("two", "two")] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(token().await.unwrap().reveal(), want);
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(token().await.unwrap().reveal(), "two");
    }

    #[tokio::test]
    async fn kubeconfig_counts_outside_a_pod_if_no_flag_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, config("http://a:1", "token: one")).unwrap();
        let list = format!("{}/none:{}", dir.path().display(), path.display());
        let env = |name: &str| (name == "KUBECONFIG").then(|| list.clone());
        let access = Access::new("", None, env).unwrap();
        assert_eq!(access.target().await.unwrap().origin.address, "http://a:1");
        let access = Access::new("http://flag:1", None, env).unwrap();
        assert_eq!(access.place(), "http://flag:1");
    }
}
