//! Kubeconfig files: the current context's server, authority and credentials.
//!
//! Several files are merged as kubectl does: of entries with one name the first file's counts, and
//! relative paths begin at the file that holds them. An empty text is as good as none, as in Go.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use yaml_rust2::{Yaml, YamlLoader};

use super::exec::Exec;
use crate::etcd::Secret;
use crate::tls::Pem;

/// What the current context says.
#[derive(Clone, Debug, Default)]
pub(super) struct Kubeconfig {
    pub server: String,
    pub ca: Option<Pem>,
    pub cert: Option<Pem>,
    pub key: Option<Pem>,
    pub credential: Option<Credential>,
    pub server_name: Option<String>,
    /// `insecure-skip-tls-verify`.
    pub insecure: bool,
    /// `proxy-url`.
    pub proxy: Option<Secret>,
    pub impersonate: Vec<(String, String)>,
}

/// What we say who we are.
#[derive(Clone, Debug)]
pub(super) enum Credential {
    Token(Secret),
    /// Read again for each request: it is renewed every hour or so.
    TokenFile(PathBuf),
    /// A program that prints a token or a certificate.
    Exec(Arc<Exec>),
}

/// Keys that would change who we are, and that are refused with a reason.
const REFUSED: [(&str, &str); 3] = [
    (
        "auth-provider",
        "kubectl dropped it in 1.26: use the exec plugin of your cloud or identity provider, a token or a certificate",
    ),
    (
        "username",
        "Kubernetes dropped passwords in 1.19: use a token, a tokenFile, a certificate or an exec plugin",
    ),
    (
        "password",
        "Kubernetes dropped passwords in 1.19: use a token, a tokenFile, a certificate or an exec plugin",
    ),
];

/// A mapping, and the file that it is in.
#[derive(Clone, Copy)]
struct At<'a> {
    map: &'a Yaml,
    path: &'a Path,
}

/// Reads the current context out of the `texts` of files with these paths.
pub(super) fn parse(texts: &[(PathBuf, String)]) -> Result<Kubeconfig, String> {
    let mut files = Vec::new();
    for (path, text) in texts {
        let documents = YamlLoader::load_from_str(text)
            .map_err(|error| format!("{}: not YAML: {error}", path.display()))?;
        if let Some(document) = documents.into_iter().next() {
            files.push((path.as_path(), document));
        }
    }
    let mut context = None;
    for (_, config) in &files {
        if context.is_none() {
            context = string(config, "current-context")?;
        }
    }
    let context = context
        .ok_or("current-context is missing: set it with `kubectl config use-context NAME`")?;
    let context = named(&files, "contexts", "context", &context)?.map;
    let refer = |key: &str| string(context, key)?.ok_or(format!("the context has no {key}"));
    let cluster = named(&files, "clusters", "cluster", &refer("cluster")?)?;
    let nobody = At {
        map: &Yaml::BadValue,
        path: cluster.path,
    };
    let user = match string(context, "user")? {
        Some(user) => named(&files, "users", "user", &user)?,
        None => nobody,
    };
    for (key, remedy) in REFUSED {
        let set = match &user.map[key] {
            Yaml::BadValue | Yaml::Null => false,
            Yaml::String(text) => !text.is_empty(),
            _ => true,
        };
        if set {
            return Err(format!("{key} is not supported: {remedy}"));
        }
    }
    let ca = pem(cluster, "certificate-authority")?;
    let insecure = boolean(cluster.map, "insecure-skip-tls-verify")?;
    if insecure && ca.is_some() {
        return Err(
            "insecure-skip-tls-verify and certificate-authority exclude each other: remove insecure-skip-tls-verify"
                .into(),
        );
    }
    Ok(Kubeconfig {
        server: string(cluster.map, "server")?.ok_or("the cluster has no server")?,
        ca,
        cert: pem(user, "client-certificate")?,
        key: pem(user, "client-key")?,
        credential: credential(user)?,
        server_name: string(cluster.map, "tls-server-name")?,
        insecure,
        proxy: string(cluster.map, "proxy-url")?.map(Secret::new),
        impersonate: impersonate(user.map)?,
    })
}

fn credential(user: At<'_>) -> Result<Option<Credential>, String> {
    if let Some(file) = string(user.map, "tokenFile")? {
        return Ok(Some(Credential::TokenFile(beside(user.path, &file))));
    }
    if let Some(token) = string(user.map, "token")? {
        return Ok(Some(Credential::Token(Secret::new(token))));
    }
    let exec = &user.map["exec"];
    if matches!(exec, Yaml::BadValue | Yaml::Null) {
        return Ok(None);
    }
    Ok(Some(Credential::Exec(Arc::new(read_exec(
        exec, user.path,
    )?))))
}

fn read_exec(map: &Yaml, path: &Path) -> Result<Exec, String> {
    let in_exec = |problem: String| format!("exec: {problem}");
    let command = string(map, "command").map_err(in_exec)?;
    let command = command.ok_or("exec has no command")?;
    let version = string(map, "apiVersion").map_err(in_exec)?;
    let version = version.unwrap_or_default();
    if !matches!(
        version.as_str(),
        "client.authentication.k8s.io/v1" | "client.authentication.k8s.io/v1beta1"
    ) {
        return Err(format!(
            "exec: apiVersion is {version:?}: expected client.authentication.k8s.io/v1 or client.authentication.k8s.io/v1beta1; renew the kubeconfig with the tool that wrote it"
        ));
    }
    if string(map, "interactiveMode").map_err(in_exec)?.as_deref() == Some("Always") {
        return Err(format!(
            "exec: interactiveMode is Always, and nobody can answer what {command} asks: use a plugin that runs without a terminal"
        ));
    }
    // With a slash it is a path, below the kubeconfig unless it is absolute; else it is looked up in PATH.
    let command = if command.contains('/') {
        beside(path, &command)
    } else {
        command.into()
    };
    let mut args = Vec::new();
    for arg in list(map, "args").map_err(in_exec)? {
        args.push(scalar(arg).ok_or("exec: args holds something that is not text")?);
    }
    let mut env = Vec::new();
    for entry in list(map, "env").map_err(in_exec)? {
        let name = string(entry, "name").map_err(in_exec)?;
        let name = name.ok_or("exec: env has an entry without a name")?;
        if name.contains(['=', '\0']) {
            return Err(format!("exec: env: {name:?} is not a name of a variable"));
        }
        let value = string(entry, "value").map_err(in_exec)?.unwrap_or_default();
        env.push((name, Secret::new(value)));
    }
    Ok(Exec {
        command,
        args,
        env,
        version,
        cluster_info: boolean(map, "provideClusterInfo").map_err(in_exec)?,
        hint: string(map, "installHint").map_err(in_exec)?,
    })
}

/// Headers that ask to be treated as another user.
fn impersonate(user: &Yaml) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    for (key, header) in [("as", "impersonate-user"), ("as-uid", "impersonate-uid")] {
        headers.extend(string(user, key)?.map(|value| (header.to_owned(), value)));
    }
    for group in list(user, "as-groups")? {
        let group = scalar(group).ok_or("as-groups holds something that is not text")?;
        headers.push(("impersonate-group".into(), group));
    }
    if let Some(extra) = user["as-user-extra"].as_hash() {
        for (key, values) in extra {
            let key = scalar(key).ok_or("as-user-extra has a key that is not text")?;
            for value in values.as_vec().map(Vec::as_slice).unwrap_or_default() {
                let value =
                    scalar(value).ok_or("as-user-extra holds something that is not text")?;
                headers.push((format!("impersonate-extra-{key}"), value));
            }
        }
    }
    if !headers.is_empty() && !headers.iter().any(|(name, _)| name == "impersonate-user") {
        return Err("as-uid, as-groups and as-user-extra need as: the user to act as".into());
    }
    Ok(headers)
}

/// The value of `key`, if it is there and not empty.
fn string(map: &Yaml, key: &str) -> Result<Option<String>, String> {
    match &map[key] {
        Yaml::BadValue | Yaml::Null => Ok(None),
        value => match scalar(value) {
            Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
            None => Err(format!("{key} is not text")),
        },
    }
}

/// Text. An unquoted token or name may look like something else.
fn scalar(value: &Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

fn boolean(map: &Yaml, key: &str) -> Result<bool, String> {
    match &map[key] {
        Yaml::BadValue | Yaml::Null => Ok(false),
        Yaml::Boolean(yes) => Ok(*yes),
        _ => Err(format!("{key} is neither true nor false")),
    }
}

fn list<'a>(map: &'a Yaml, key: &str) -> Result<&'a [Yaml], String> {
    match &map[key] {
        Yaml::BadValue | Yaml::Null => Ok(&[]),
        Yaml::Array(entries) => Ok(entries),
        _ => Err(format!("{key} is not a list")),
    }
}

/// The entry called `name` of a list like `clusters`, in the first file that has one.
fn named<'a>(
    files: &'a [(&'a Path, Yaml)],
    list: &str,
    kind: &str,
    name: &str,
) -> Result<At<'a>, String> {
    for (path, config) in files {
        let entries = config[list].as_vec().map(Vec::as_slice).unwrap_or_default();
        let found = entries
            .iter()
            .find(|entry| string(entry, "name").is_ok_and(|n| n.as_deref() == Some(name)));
        if let Some(entry) = found {
            return Ok(At {
                map: &entry[kind],
                path,
            });
        }
    }
    Err(format!("{list} has no {name:?}"))
}

/// PEM in the file that `key` names, or written out under `key-data`, which wins.
fn pem(at: At<'_>, key: &str) -> Result<Option<Pem>, String> {
    let data = format!("{key}-data");
    if let Some(base64) = string(at.map, &data)? {
        let pem = decode_base64(&base64).ok_or(format!("{data} is not base64"))?;
        return Ok(Some(Pem::Inline(Arc::from(pem), at.path.into())));
    }
    Ok(string(at.map, key)?.map(|file| Pem::File(beside(at.path, &file))))
}

fn beside(path: &Path, file: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(file)
}

/// Standard base64; line ends and blanks within do not count.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let text: String = text.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: &str = "{apiVersion: v1, kind: Config, current-context: x, \
        contexts: [{name: x, context: {cluster: c, user: u}}], \
        clusters: [{name: other, cluster: {server: no}}, {name: c, cluster: {server: 'https://10.0.0.1:6443', CLUSTER}}], \
        users: [{name: u, user: {USER}}]}";

    fn file(path: &str, text: &str) -> (PathBuf, String) {
        (path.into(), text.into())
    }

    fn read(cluster: &str, user: &str) -> Result<Kubeconfig, String> {
        let text = FLOW.replace("CLUSTER", cluster).replace("USER", user);
        parse(&[file("/etc/kubernetes/kubelet.conf", &text)])
    }

    #[test]
    fn files_lie_beside_it_and_data_wins() {
        let config = read(
            "certificate-authority: pki/ca.crt, tls-server-name: api",
            "client-certificate: /a/cert, client-key: key, client-key-data: a2V5",
        )
        .unwrap();
        assert_eq!(config.server, "https://10.0.0.1:6443");
        assert_eq!(config.server_name.as_deref(), Some("api"));
        let path = |pem: &Option<Pem>| format!("{pem:?}");
        assert_eq!(path(&config.ca), "Some(/etc/kubernetes/pki/ca.crt)");
        assert_eq!(path(&config.cert), "Some(/a/cert)");
        let Some(Pem::Inline(key, _)) = &config.key else {
            panic!("no inline key")
        };
        assert_eq!(&**key, b"key");
        assert!(config.credential.is_none());
    }

    #[test]
    fn a_token_file_wins_over_a_token_and_no_secret_is_printed() {
        let config = read("x: y", "token: hunter2, tokenFile: token").unwrap();
        assert!(matches!(config.credential, Some(Credential::TokenFile(_))));
        let config = read(
            "proxy-url: 'http://u:hunter2@p'",
            "token: hunter2, exec: {command: a}",
        )
        .unwrap();
        assert!(matches!(config.credential, Some(Credential::Token(_))));
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn an_empty_text_is_none() {
        let config = read(
            "proxy-url: '', insecure-skip-tls-verify: false, tls-server-name: ''",
            "username: '', password: \"\", token: '', tokenFile: '', exec: null, auth-provider: null, as: ''",
        )
        .unwrap();
        assert!(config.proxy.is_none() && config.credential.is_none());
        assert!(config.impersonate.is_empty() && config.server_name.is_none());
    }

    #[test]
    fn what_is_refused_is_named_with_a_remedy() {
        for (cluster, user, named, remedy) in [
            ("x: y", "username: u", "username", "token"),
            ("x: y", "password: p", "password", "token"),
            (
                "x: y",
                "auth-provider: {name: gcp}",
                "auth-provider",
                "exec",
            ),
            (
                "insecure-skip-tls-verify: true, certificate-authority: ca",
                "x: y",
                "insecure-skip-tls-verify",
                "remove",
            ),
            (
                "insecure-skip-tls-verify: maybe",
                "x: y",
                "insecure-skip-tls-verify",
                "true",
            ),
            (
                "certificate-authority-data: '%%'",
                "x: y",
                "certificate-authority-data",
                "base64",
            ),
            ("x: y", "exec: {command: aws}", "apiVersion", "v1beta1"),
            (
                "x: y",
                "exec: {command: aws, apiVersion: client.authentication.k8s.io/v1alpha1}",
                "v1alpha1",
                "v1beta1",
            ),
            (
                "x: y",
                "exec: {command: aws, apiVersion: client.authentication.k8s.io/v1, interactiveMode: Always}",
                "interactiveMode",
                "terminal",
            ),
            ("x: y", "as-groups: [g]", "as-groups", "as"),
        ] {
            let error = read(cluster, user).unwrap_err();
            assert!(error.contains(named) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn a_plugin_and_another_user_are_read() {
        let config = read(
            "insecure-skip-tls-verify: true, proxy-url: socks5://p:1080",
            "exec: {command: bin/login, apiVersion: client.authentication.k8s.io/v1beta1, args: [get, 7, true], \
             env: [{name: A, value: hunter2}], provideClusterInfo: true, installHint: get it}, \
             as: jane, as-groups: [a, b], as-user-extra: {scopes: [view]}",
        )
        .unwrap();
        assert!(config.insecure && config.proxy.is_some());
        let Some(Credential::Exec(exec)) = &config.credential else {
            panic!("no plugin")
        };
        assert_eq!(exec.command, Path::new("/etc/kubernetes/bin/login"));
        assert_eq!(exec.args, ["get", "7", "true"]);
        assert!(exec.cluster_info && !format!("{exec:?}").contains("hunter2"));
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            config.impersonate,
            [
                header("impersonate-user", "jane"),
                header("impersonate-group", "a"),
                header("impersonate-group", "b"),
                header("impersonate-extra-scopes", "view"),
            ]
        );
    }

    #[test]
    fn files_are_merged_and_the_first_wins() {
        let one =
            "{clusters: [{name: c, cluster: {server: 'https://one', certificate-authority: ca}}]}";
        let two = "{current-context: x, contexts: [{name: x, context: {cluster: c, user: u}}], \
            clusters: [{name: c, cluster: {server: 'https://two'}}], users: [{name: u, user: {tokenFile: t}}]}";
        let three = "{current-context: y, users: [{name: u, user: {token: other}}]}";
        let config = parse(&[
            file("/one/k", one),
            file("/empty/k", ""),
            file("/two/k", two),
            file("/three/k", three),
        ])
        .unwrap();
        assert_eq!(config.server, "https://one");
        assert_eq!(format!("{:?}", config.ca), "Some(/one/ca)");
        let Some(Credential::TokenFile(path)) = config.credential else {
            panic!("no token file")
        };
        assert_eq!(path, Path::new("/two/t"));
    }

    #[test]
    fn what_is_no_kubeconfig_is_refused() {
        for text in [
            "",
            "[]",
            "a: b",
            "{",
            "current-context: x",
            "current-context: {}",
            "\u{0}",
        ] {
            assert!(parse(&[file("k", text)]).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_kubeconfig_may_be_cut_anywhere() {
        let user = "exec: {command: a, apiVersion: client.authentication.k8s.io/v1, args: [b], env: [{name: c, value: d}]}, \
                    as: jane, as-groups: [x], client-key-data: a2V5";
        let flow = FLOW
            .replace("CLUSTER", "certificate-authority-data: Y2E=, proxy-url: p")
            .replace("USER", user);
        let block = "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts:\n- name: x\n  context:\n    cluster: c\n    user: u\n\
                     clusters:\n- name: c\n  cluster:\n    server: https://a:1\n    certificate-authority-data: |\n      Y2E=\n\
                     users:\n- name: u\n  user:\n    token: \"a\\tb\"\n    client-certificate-data: Y2E=\n";
        for text in [flow.as_str(), block] {
            assert!(parse(&[file("k", text)]).is_ok());
            for at in 0..text.len() {
                if let Err(error) = parse(&[file("k", &text[..at])]) {
                    assert!(!error.is_empty() && error.len() < 400, "{error}");
                }
            }
        }
    }
}
