//! A kubeconfig file: the current context's server, authority and credentials.

use std::path::Path;
use std::sync::Arc;

use yaml_rust2::{Yaml, YamlLoader};

use super::access::Token;
use crate::etcd::Secret;
use crate::tls::Pem;

/// What the current context says.
#[derive(Debug, Default)]
pub(super) struct Kubeconfig {
    pub server: String,
    pub ca: Option<Pem>,
    pub cert: Option<Pem>,
    pub key: Option<Pem>,
    pub token: Option<Token>,
    pub server_name: Option<String>,
}

/// Keys that would change who we are or whom we believe, and that we do not follow.
const NOT_FOLLOWED: [(&str, &str); 7] = [
    ("exec", "use a token, a tokenFile or a certificate"),
    ("auth-provider", "use a token, a tokenFile or a certificate"),
    ("username", "use a token, a tokenFile or a certificate"),
    ("password", "use a token, a tokenFile or a certificate"),
    ("as", "impersonation: use that user's own credentials"),
    (
        "insecure-skip-tls-verify",
        "give the certificate-authority that signed the server's certificate",
    ),
    ("proxy-url", "the API server must be reached directly"),
];

/// Reads the file's `text`; `path` is where relative paths begin, and what messages name.
pub(super) fn parse(text: &str, path: &Path) -> Result<Kubeconfig, String> {
    let documents = YamlLoader::load_from_str(text).map_err(|e| format!("not YAML: {e}"))?;
    let config = documents.first().ok_or("is empty")?;
    let context = string(config, "current-context")?.ok_or("current-context is missing")?;
    let context = named(config, "contexts", "context", &context)?;
    let refer = |key: &str| string(context, key)?.ok_or(format!("the context has no {key}"));
    let cluster = named(config, "clusters", "cluster", &refer("cluster")?)?;
    let user = match string(context, "user")? {
        Some(user) => named(config, "users", "user", &user)?,
        None => &Yaml::BadValue,
    };
    for (key, cure) in NOT_FOLLOWED {
        let set =
            |at: &Yaml| !matches!(at[key], Yaml::BadValue | Yaml::Null | Yaml::Boolean(false));
        if set(cluster) || set(user) {
            return Err(format!("{key} is not supported: {cure}"));
        }
    }
    Ok(Kubeconfig {
        server: string(cluster, "server")?.ok_or("the cluster has no server")?,
        ca: pem(cluster, "certificate-authority", path)?,
        cert: pem(user, "client-certificate", path)?,
        key: pem(user, "client-key", path)?,
        token: match (string(user, "tokenFile")?, string(user, "token")?) {
            (Some(file), _) => Some(Token::File(beside(path, &file))),
            (None, Some(token)) => Some(Token::Text(Secret::new(token))),
            (None, None) => None,
        },
        server_name: string(cluster, "tls-server-name")?,
    })
}

/// The value of `key`, if it is there and not empty.
fn string(map: &Yaml, key: &str) -> Result<Option<String>, String> {
    match &map[key] {
        Yaml::BadValue | Yaml::Null => Ok(None),
        Yaml::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        // An unquoted token or name may look like a number.
        Yaml::Integer(number) => Ok(Some(number.to_string())),
        _ => Err(format!("{key} is no text")),
    }
}

/// The entry called `name` of a list like `clusters`.
fn named<'a>(config: &'a Yaml, list: &str, kind: &str, name: &str) -> Result<&'a Yaml, String> {
    let entries = config[list].as_vec().map(Vec::as_slice).unwrap_or_default();
    let found = entries
        .iter()
        .find(|entry| string(entry, "name").is_ok_and(|n| n.as_deref() == Some(name)));
    match found {
        Some(entry) => Ok(&entry[kind]),
        None => Err(format!("{list} has no {name:?}")),
    }
}

/// PEM in the file that `key` names, or written out under `key-data`, which wins.
fn pem(map: &Yaml, key: &str, path: &Path) -> Result<Option<Pem>, String> {
    let data = format!("{key}-data");
    if let Some(base64) = string(map, &data)? {
        let pem = decode_base64(&base64).ok_or(format!("{data} is not base64"))?;
        return Ok(Some(Pem::Inline(Arc::from(pem), path.into())));
    }
    Ok(string(map, key)?.map(|file| Pem::File(beside(path, &file))))
}

fn beside(path: &Path, file: &str) -> std::path::PathBuf {
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

    fn read(cluster: &str, user: &str) -> Result<Kubeconfig, String> {
        let text = FLOW.replace("CLUSTER", cluster).replace("USER", user);
        parse(&text, Path::new("/etc/kubernetes/kubelet.conf"))
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
        assert!(config.token.is_none());
    }

    #[test]
    fn a_token_file_wins_over_a_token_and_no_secret_is_printed() {
        let config = read("x: y", "token: hunter2, tokenFile: token").unwrap();
        assert!(matches!(config.token, Some(Token::File(_))));
        let config = read("x: y", "token: hunter2").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_not_followed_is_named() {
        for (cluster, user, named) in [
            ("x: y", "exec: {command: aws}", "exec"),
            (
                "insecure-skip-tls-verify: true",
                "x: y",
                "insecure-skip-tls-verify",
            ),
            ("proxy-url: http://p", "x: y", "proxy-url"),
            ("x: y", "username: u", "username"),
            (
                "certificate-authority-data: '%%'",
                "x: y",
                "certificate-authority-data",
            ),
        ] {
            let error = read(cluster, user).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
        assert!(read("insecure-skip-tls-verify: false", "x: y").is_ok());
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
            assert!(parse(text, Path::new("k")).is_err(), "{text:?} was taken");
        }
    }
}
