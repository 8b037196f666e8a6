//! What must not leave the node: values that are known to be secret, and what looks like one.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use flanneld::options::StoreChoice;
use flanneld::wg_key_file;
use regex_lite::Regex;

use crate::check::settings::Settings;

/// What is written in a secret's place.
const REMOVED: &str = "(removed)";

/// Shorter values would be found everywhere; such a password is removed where its name is beside it.
const SHORTEST: usize = 6;

/// Where a pod has its token.
const POD_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Forms of secrets in text that nobody knows beforehand. Group 1 stays.
const PATTERNS: [&str; 7] = [
    // Private keys in PEM; one that was cut off, too.
    r"(?s)()-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)",
    // Tokens of Kubernetes.
    r"()\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*",
    r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}",
    // A user in an address.
    r"(\b[a-z][a-z0-9+.-]*://)[^/\s@\x22']+@",
    // The same of a container: a variable, and a flag whose value is the next word.
    r#"(?i)(\\?"name\\?":\s*\\?"[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|psk|key)\\?",\s*\\?"value\\?":\s*\\?")[^"\\]+"#,
    r#"(?i)(\\?"--?[a-z0-9-]*(?:password|passphrase|psk)\\?",\s*\\?")[^"\\]+"#,
    // A name that says so, and its value: of flags, variables, JSON, YAML.
    r#"(?i)((?:[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|psk|preshared[_-]?key|private[_-]?key|client-key-data|auth[_-]?key|api[_-]?key))\\?["']?\s*[:=]\s*\\?["']?)[^\s"',}\\]+"#,
];

/// Knows what to remove.
pub(super) struct Secrets {
    values: Vec<String>,
    patterns: Vec<Regex>,
}

impl Secrets {
    /// Reads the secrets of this node's flanneld, to find them elsewhere.
    pub(super) fn find(settings: Option<&Settings>) -> Secrets {
        let patterns = PATTERNS.iter().filter_map(|text| Regex::new(text).ok());
        let mut secrets = Secrets {
            values: Vec::new(),
            patterns: patterns.collect(),
        };
        let mut files = wg_key_file::own_places();
        files.push(POD_TOKEN.into());
        if let Some(settings) = settings {
            files.extend(settings.options.keys.psk_file.clone());
            files.extend(settings.options.keys.ipsec_psk_file.clone());
            for word in &settings.given {
                if let Some((name, value)) = word.split_once('=')
                    && name.to_lowercase().ends_with("password")
                {
                    secrets.add(value);
                }
            }
            for pair in settings.given.windows(2) {
                if let [name, value] = pair
                    && name.trim_start_matches('-').ends_with("password")
                {
                    secrets.add(value);
                }
            }
            match &settings.options.store {
                StoreChoice::Etcd(etcd) => {
                    files.extend(etcd.password_file.clone());
                    files.extend(etcd.keyfile.clone());
                }
                StoreChoice::Kube(kube) => secrets.add_kubeconfig(kube.kubeconfig.as_deref()),
                StoreChoice::Directory(_) => {}
            }
        }
        for file in files {
            secrets.add_file(&file);
        }
        // A secret that contains another one goes first.
        secrets
            .values
            .sort_by_key(|value| std::cmp::Reverse(value.len()));
        secrets.values.dedup();
        secrets
    }

    fn add(&mut self, value: &str) {
        let value = value.trim();
        if value.len() >= SHORTEST {
            self.values.push(value.to_owned());
        }
    }

    /// Every line of a file that holds nothing but secrets.
    fn add_file(&mut self, file: &PathBuf) {
        let text = fs::read_to_string(file).unwrap_or_default();
        for line in text.lines().filter(|line| !line.starts_with("-----")) {
            self.add(line);
        }
    }

    /// The secrets of a kubeconfig.
    fn add_kubeconfig(&mut self, file: Option<&Path>) {
        let text = file.and_then(|file| fs::read_to_string(file).ok());
        for line in text.unwrap_or_default().lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let name = name.trim().trim_start_matches("- ");
            if ["token", "password", "client-key-data"].contains(&name) {
                self.add(value.trim().trim_matches(['"', '\'']));
            }
        }
    }

    /// Returns the text without secrets.
    pub(super) fn remove<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for value in &self.values {
            if text.contains(value) {
                text = Cow::Owned(text.replace(value, REMOVED));
            }
        }
        for pattern in &self.patterns {
            let replaced = pattern.replace_all(&text, format!("${{1}}{REMOVED}"));
            if let Cow::Owned(replaced) = replaced {
                text = Cow::Owned(replaced);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(text: &str) -> String {
        let mut secrets = Secrets::find(None);
        secrets.values = vec!["known-value".to_owned()];
        secrets.remove(text).into_owned()
    }

    #[test]
    fn what_looks_like_a_secret_is_removed() {
        let secret = "S3cr3t-v4lue";
        for text in [
            "FLANNELD_ETCD_PASSWORD=S3cr3t-v4lue",
            "--etcd-password=S3cr3t-v4lue --ip-masq",
            "-etcd-password: 'S3cr3t-v4lue'",
            r#"{"PSK": "S3cr3t-v4lue", "Type": "wireguard"}"#,
            r#"{"text":"{\"PSK\":\"S3cr3t-v4lue\"}"}"#,
            "    token: S3cr3t-v4lue",
            "client-key-data: S3cr3t-v4lue",
            "Authorization: Bearer S3cr3t-v4lue",
            "http://root:S3cr3t-v4lue@10.0.0.1:2379",
            "-----BEGIN EC PRIVATE KEY-----\nS3cr3t-v4lue\n-----END EC PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\nS3cr3t-v4lue\n",
            "private_key=S3cr3t-v4lue",
            "{\"name\": \"FLANNELD_ETCD_PASSWORD\",\n  \"value\": \"S3cr3t-v4lue\"}",
            r#"{\"name\":\"FLANNELD_ETCD_PASSWORD\",\"value\":\"S3cr3t-v4lue\"}"#,
            "[\"--etcd-password\",\n \"S3cr3t-v4lue\"]",
        ] {
            let text = removed(text);
            assert!(!text.contains(secret) && text.contains(REMOVED), "{text}");
        }
        let jwt = format!(
            "x {} y",
            "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJl.c2lnbmF0dXJl"
        );
        assert_eq!(removed(&jwt), "x (removed) y");
        assert_eq!(removed("a known-value b"), "a (removed) b");
    }

    #[test]
    fn what_helps_to_find_a_fault_stays() {
        for text in [
            "lease 10.244.3.0-24: no token of it",
            r#"{"PublicIP":"10.0.0.1","BackendData":{"PublicKey":"b64=","VtepMAC":"aa:bb"}}"#,
            "https://10.0.0.1:2379",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        ] {
            assert_eq!(removed(text), text);
        }
    }
}
