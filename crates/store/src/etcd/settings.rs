//! The settings of etcd, as given by the daemon's flags, checked before the first packet is sent.

use std::path::PathBuf;

use tracing::warn;

use crate::Timing;
use crate::connect::{Dialer, ProxyVariables};
use crate::endpoint::Endpoint;
use crate::secret::Secret;
use crate::tls::TlsError;

/// How to reach etcd. Names in errors are those of the daemon's flags.
#[derive(Clone, Debug, Default)]
pub struct EtcdSettings {
    /// `-etcd-endpoints`: `http://` or `https://` addresses or `unix://` sockets, separated by commas;
    /// one without a scheme is `https` if a certificate, key or authority is given, else `http`.
    pub endpoints: String,
    /// `-etcd-prefix`.
    pub prefix: String,
    /// `-etcd-keyfile`.
    pub keyfile: Option<PathBuf>,
    /// `-etcd-certfile`.
    pub certfile: Option<PathBuf>,
    /// `-etcd-cafile`; without it the system's authorities are trusted.
    pub cafile: Option<PathBuf>,
    /// `-etcd-username`.
    pub username: Option<String>,
    /// `-etcd-password`.
    pub password: Option<Secret>,
    /// `-etcd-password-file`: read again at every log-in; a trailing line end does not count.
    pub password_file: Option<PathBuf>,
    /// Names the proxies on the way to etcd.
    pub proxies: ProxyVariables,
    /// Opens the connections instead of the system.
    pub dialer: Option<Dialer>,
    /// How long leases live.
    pub timing: Timing,
}

/// Settings that waiting does not fix.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// An endpoint that cannot be used.
    #[error(
        "-etcd-endpoints: {endpoint:?}: {problem}; expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"
    )]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No endpoint at all.
    #[error(
        "-etcd-endpoints is empty: expected http://HOST:PORT or https://HOST:PORT, several separated by commas"
    )]
    NoEndpoint,
    /// A prefix without a name.
    #[error("-etcd-prefix {0:?}: expected a path such as /coreos.com/network")]
    Prefix(String),
    /// A certificate, key or authority that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The environment names a proxy that cannot be used.
    #[error(transparent)]
    Proxy(#[from] crate::connect::ProxyError),
    /// A user without a password, or a password without a user.
    #[error("{0}")]
    Login(&'static str),
    /// The password file cannot be read.
    #[error("-etcd-password-file {path}: {error}", path = path.display())]
    PasswordFile {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
}

impl EtcdSettings {
    /// Returns the endpoints, in the order given. One that cannot be used is logged and left out, as long as
    /// there is another one.
    ///
    /// # Errors
    /// There is none that can be used.
    pub(super) fn parse_endpoints(&self) -> Result<Vec<Endpoint>, SettingsError> {
        let parts = self
            .endpoints
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let files = [&self.keyfile, &self.certfile, &self.cafile];
        let tls = files.into_iter().any(Option::is_some);
        let (mut endpoints, mut bad) = (Vec::new(), Vec::new());
        for text in parts {
            match parse_endpoint(text, tls) {
                Ok((endpoint, ignored)) => {
                    if let Some(ignored) = ignored {
                        warn!("-etcd-endpoints: {endpoint}: {ignored}");
                    }
                    endpoints.push(endpoint);
                }
                Err(problem) => bad.push(SettingsError::Endpoint {
                    endpoint: without_user(text).into(),
                    problem,
                }),
            }
        }
        if endpoints.is_empty() {
            return Err(bad.into_iter().next().unwrap_or(SettingsError::NoEndpoint));
        }
        for error in bad {
            warn!("{error}; the other endpoints are used");
        }
        Ok(endpoints)
    }

    /// Returns the prefix without trailing slashes.
    pub(super) fn parse_prefix(&self) -> Result<String, SettingsError> {
        let prefix = self.prefix.trim_end_matches('/');
        if prefix.is_empty() || prefix.chars().any(char::is_control) {
            Err(SettingsError::Prefix(self.prefix.clone()))
        } else {
            Ok(prefix.into())
        }
    }

    /// Returns user and password, where etcd asks for them. The file is read each time.
    pub(super) fn login(&self) -> Result<Option<(String, Secret)>, SettingsError> {
        let user = self.username.as_deref().filter(|user| !user.is_empty());
        let password = match (&self.password_file, &self.password) {
            (Some(_), Some(secret)) if !secret.reveal().is_empty() => {
                return Err(SettingsError::Login(
                    "-etcd-password and -etcd-password-file are both given: leave one of them out",
                ));
            }
            (Some(path), _) => {
                let text =
                    std::fs::read_to_string(path).map_err(|error| SettingsError::PasswordFile {
                        path: path.clone(),
                        error,
                    })?;
                Some(Secret::new(text.trim_end_matches(['\r', '\n'])))
            }
            (None, password) => password
                .clone()
                .filter(|secret| !secret.reveal().is_empty()),
        };
        match (user, password) {
            (Some(user), Some(password)) => Ok(Some((user.into(), password))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(SettingsError::Login(
                "-etcd-username is given without a password: add -etcd-password-file or -etcd-password",
            )),
            (None, Some(_)) => Err(SettingsError::Login(
                "-etcd-password or -etcd-password-file is given without -etcd-username",
            )),
        }
    }
}

/// Reads an endpoint as Go's etcd client does: a path and a user are ignored, which the second result
/// says; without a scheme `tls` decides.
fn parse_endpoint(text: &str, tls: bool) -> Result<(Endpoint, Option<&'static str>), &'static str> {
    let (scheme, rest) = match text.split_once(':') {
        Some((scheme @ ("unix" | "unixs"), path)) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => Err("a socket without a path"),
                path => Ok((Endpoint::at_socket(path, scheme == "unixs"), None)),
            };
        }
        _ => text
            .split_once("://")
            .unwrap_or((if tls { "https" } else { "http" }, text)),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    let ignored = if !user.is_empty() {
        Some("the user in it is ignored; give -etcd-username and -etcd-password-file")
    } else if !path.is_empty() && path != "/" {
        Some("the path after the port is ignored; the prefix of the keys is -etcd-prefix")
    } else {
        None
    };
    let endpoint = Endpoint::parse(&format!("{scheme}://{address}"))?;
    Ok((endpoint, ignored))
}

/// Returns an endpoint without its user, who may have a password.
fn without_user(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<String>, String> {
        let settings = EtcdSettings {
            endpoints: text.into(),
            ..EtcdSettings::default()
        };
        let all = settings.parse_endpoints().map_err(|e| e.to_string())?;
        Ok(all.iter().map(Endpoint::to_string).collect())
    }

    #[test]
    fn endpoints_are_read_as_people_write_them() {
        let text = "http://127.0.0.1:4001, https://etcd.example:2379/,[fd00::1]:2379,node:2379,";
        let want = [
            "http://127.0.0.1:4001",
            "https://etcd.example:2379",
            "http://[fd00::1]:2379",
            "http://node:2379",
        ];
        assert_eq!(parse(text).unwrap(), want);
    }

    #[test]
    fn endpoints_are_read_as_go_reads_them() {
        let text = "http://a:1/v2,https://user:secret@b:2/?x=y,HTTP://c:3,unix:///run/etcd.sock,unixs:etcd.sock,\
                    http://bad,d:4";
        let want = [
            "http://a:1",
            "https://b:2",
            "http://c:3",
            "unix:///run/etcd.sock",
            "unixs://etcd.sock",
            "http://d:4",
        ];
        assert_eq!(parse(text).unwrap(), want);
        let error = parse("https://user:secret@b").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
        let settings = EtcdSettings {
            endpoints: "d:4,http://e:5".into(),
            cafile: Some("ca.pem".into()),
            ..EtcdSettings::default()
        };
        let all = settings.parse_endpoints().unwrap();
        let tls: Vec<bool> = all.iter().map(|endpoint| endpoint.tls).collect();
        assert_eq!(
            tls,
            [true, false],
            "authorities mean TLS where nothing is said"
        );
    }

    #[test]
    fn a_bad_endpoint_is_named() {
        for text in [
            "",
            " , ",
            "127.0.0.1",
            "http://",
            "ftp://a:1",
            "http://a:0",
            "http://a:70000",
            "fd00::1:2379",
            "http://[fd00::1:2379",
            "unix://",
            "http://[x]:1",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("-etcd-endpoints"), "{error}");
            assert!(error.contains(text.trim_matches([' ', ','])), "{error}");
        }
    }

    #[test]
    fn the_prefix_loses_its_last_slash_only() {
        let prefix = |text: &str| {
            EtcdSettings {
                prefix: text.into(),
                ..EtcdSettings::default()
            }
            .parse_prefix()
        };
        assert_eq!(
            prefix("/coreos.com/network/").unwrap(),
            "/coreos.com/network"
        );
        assert_eq!(prefix("net").unwrap(), "net");
        assert!(prefix("/").is_err() && prefix("").is_err());
    }

    #[test]
    fn passwords_stay_secret_and_need_a_user() {
        let mut settings = EtcdSettings {
            password: Some(Secret::new("hunter2")),
            ..EtcdSettings::default()
        };
        assert!(
            settings
                .login()
                .unwrap_err()
                .to_string()
                .contains("-etcd-username")
        );
        settings.username = Some("root".into());
        assert_eq!(settings.login().unwrap().unwrap().1.reveal(), "hunter2");
        assert!(!format!("{settings:?}").contains("hunter2"));
        settings.password = None;
        assert!(
            settings
                .login()
                .unwrap_err()
                .to_string()
                .contains("-etcd-password")
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret\n").unwrap();
        settings.password_file = Some(file.path().into());
        assert_eq!(settings.login().unwrap().unwrap().1.reveal(), "s3cret");
    }
}
