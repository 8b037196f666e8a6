//! Kubeconfig files: the current context's server, authority and credentials.
//!
//! Several files are merged as kubectl does: of entries with one name the first file's counts, and
//! relative paths are relative to the file that holds them. An empty text counts as missing, as in Go.

use std::path::PathBuf;
use std::sync::Arc;

use yaml_rust2::{Yaml, YamlLoader};

use super::credential::{Credential, credential, impersonate};
use super::yaml::{At, boolean, named, relative_to, string};
use crate::secret::Secret;
use crate::tls::Pem;

/// What the current context names.
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

/// Keys of a user that are not supported, and what to use in their place.
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

/// Reads the current context out of the `texts` of files with these paths; or the context of this name.
pub(super) fn parse(
    texts: &[(PathBuf, String)],
    wanted: Option<&str>,
) -> Result<Kubeconfig, String> {
    let mut files = Vec::new();
    for (path, text) in texts {
        // Editors of Windows write a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let documents = YamlLoader::load_from_str(text)
            .map_err(|error| format!("{}: not YAML: {error}", path.display()))?;
        if let Some(document) = documents.into_iter().next() {
            files.push((path.as_path(), document));
        }
    }
    let mut context = wanted.map(ToOwned::to_owned);
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

/// Returns PEM from the file that `key` names, or from `key-data`, which wins.
fn pem(at: At<'_>, key: &str) -> Result<Option<Pem>, String> {
    let data = format!("{key}-data");
    if let Some(base64) = string(at.map, &data)? {
        let pem = decode_base64(&base64).ok_or(format!("{data} is not base64"))?;
        return Ok(Some(Pem::Inline(Arc::from(pem), at.path.into())));
    }
    Ok(string(at.map, key)?.map(|file| Pem::File(relative_to(at.path, &file))))
}

/// Decodes standard base64; line ends and blanks in it are ignored.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let text: String = text.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
        parse(&[file("/etc/kubernetes/kubelet.conf", &text)], None)
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
        let Some(Credential::TokenFile(_, Some(token))) = &config.credential else {
            panic!("no token file")
        };
        assert_eq!(token.reveal(), "hunter2");
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
        let config = parse(
            &[
                file("/one/k", one),
                file("/empty/k", ""),
                file("/two/k", two),
                file("/three/k", three),
            ],
            None,
        )
        .unwrap();
        assert_eq!(config.server, "https://one");
        assert_eq!(format!("{:?}", config.ca), "Some(/one/ca)");
        let Some(Credential::TokenFile(path, None)) = config.credential else {
            panic!("no token file")
        };
        assert_eq!(path, Path::new("/two/t"));
    }

    #[test]
    fn a_byte_order_mark_and_line_ends_do_not_count() {
        let text = FLOW
            .replace("CLUSTER", "x: y")
            .replace("USER", r#"token: "hunter2\n""#);
        let text = format!("\u{feff}{}", text.replace(", users", ",\r\n users"));
        let config = parse(&[file("k", &text)], None).unwrap();
        let Some(Credential::Token(token)) = config.credential else {
            panic!("no token")
        };
        assert_eq!(token.reveal(), "hunter2");
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
            assert!(
                parse(&[file("k", text)], None).is_err(),
                "{text:?} was taken"
            );
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
            assert!(parse(&[file("k", text)], None).is_ok());
            for at in 0..text.len() {
                if let Err(error) = parse(&[file("k", &text[..at])], None) {
                    assert!(!error.is_empty() && error.len() < 400, "{error}");
                }
            }
        }
    }

    #[test]
    fn fuzzed_files() {
        let text = FLOW
            .replace(
                "CLUSTER",
                "certificate-authority: pki/ca.crt, proxy-url: 'http://p'",
            )
            .replace(
                "USER",
                "client-key-data: a2V5, tokenFile: t, exec: {command: c, args: [a]}",
            );
        let block = "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts:\n- name: x\n  context:\n    cluster: c\n    user: u\n";
        fuzz::run(
            "kubeconfig",
            &[text.as_bytes(), block.as_bytes()],
            |input| {
                let text = String::from_utf8_lossy(input).into_owned();
                let read = parse(&[("/etc/kubernetes/kubelet.conf".into(), text)], None);
                read.map(|config| config.credential.is_some())
                    .map_err(|error| error.len())
            },
        );
    }
}
