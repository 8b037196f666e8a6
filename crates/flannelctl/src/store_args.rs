//! Which store a command speaks to: flanneld's flags, flanneld's environment, flanneld's defaults.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use flanneld::flags;
use flanneld::options::store_choice;
use store::{AnyStore, Timing};

/// Where the unit file of the packages has its variables.
const ENV_FILE: &str = "/etc/flannel/flanneld.env";

/// What else the environment may say of the store: with `FLANNELD_KUBE_SUBNET_MGR` it is Kubernetes.
const KUBE: [&str; 5] = [
    "kube-subnet-mgr",
    "kube-api-url",
    "kubeconfig-file",
    "kube-annotation-prefix",
    "net-config-path",
];

/// How to find the store.
#[derive(Args)]
#[command(
    next_help_heading = "Store (as flanneld's flags; also FLANNELD_ETCD_ENDPOINTS and so on)"
)]
pub(crate) struct StoreArgs {
    /// Comma-separated etcd endpoints [default: http://127.0.0.1:4001,http://127.0.0.1:2379]
    #[arg(long, value_name = "URLS")]
    etcd_endpoints: Option<String>,
    /// etcd prefix under which config and subnets live [default: /coreos.com/network]
    #[arg(long, value_name = "PATH")]
    etcd_prefix: Option<String>,
    /// Certificate authority that signs the servers' certificates
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<String>,
    /// Client certificate
    #[arg(long, value_name = "FILE")]
    etcd_certfile: Option<String>,
    /// Key of the client certificate
    #[arg(long, value_name = "FILE")]
    etcd_keyfile: Option<String>,
    /// User name for etcd
    #[arg(long, value_name = "NAME")]
    etcd_username: Option<String>,
    /// Password for etcd (visible to other users of the host: prefer the file)
    #[arg(long, value_name = "TEXT")]
    etcd_password: Option<String>,
    /// File that holds the password for etcd
    #[arg(long, value_name = "FILE")]
    etcd_password_file: Option<String>,
    /// The directory that holds config and subnets, instead of etcd
    #[arg(long, value_name = "DIR")]
    store_dir: Option<String>,
    /// Read FLANNELD_… variables from this file [default: /etc/flannel/flanneld.env, if there is one]
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
}

impl StoreArgs {
    /// The store. Nothing is sent yet.
    ///
    /// # Errors
    /// A flag, variable or file that cannot be used.
    pub(crate) fn open(&self) -> Result<AnyStore> {
        let file = self.variables()?;
        let env = |name: &str| {
            let given = std::env::var(name).ok().filter(|value| !value.is_empty());
            let given = given.or_else(|| file.get(name).cloned());
            given.filter(|_| !self.overrules(name))
        };
        let given = flags::parse(self.words(), env)?;
        store_choice(&given)?.open(Timing::default())
    }

    fn given(&self) -> [(&'static str, &Option<String>); 9] {
        [
            ("etcd-endpoints", &self.etcd_endpoints),
            ("etcd-prefix", &self.etcd_prefix),
            ("etcd-cafile", &self.etcd_cafile),
            ("etcd-certfile", &self.etcd_certfile),
            ("etcd-keyfile", &self.etcd_keyfile),
            ("etcd-username", &self.etcd_username),
            ("etcd-password", &self.etcd_password),
            ("etcd-password-file", &self.etcd_password_file),
            ("store-dir", &self.store_dir),
        ]
    }

    /// As flanneld would be told.
    fn words(&self) -> Vec<String> {
        let given = self.given();
        let given = given.iter().filter_map(|(name, value)| {
            let value = value.as_ref()?;
            Some(format!("-{name}={value}"))
        });
        given.collect()
    }

    /// Whether a variable is not to be looked at: it is none of the store's, or contradicts a flag,
    /// which wins.
    fn overrules(&self, name: &str) -> bool {
        let of = |flag: &str| flags::env_name(flag) == name;
        let endpoints = self.etcd_endpoints.is_some() && self.store_dir.is_none();
        let kube = KUBE.iter().any(|flag| of(flag));
        let known = kube || self.given().iter().any(|(flag, _)| of(flag));
        !known
            || (endpoints && of("store-dir"))
            || (kube && (self.etcd_endpoints.is_some() || self.store_dir.is_some()))
            || (self.etcd_password.is_some() && of("etcd-password-file"))
            || (self.etcd_password_file.is_some() && of("etcd-password"))
    }

    fn variables(&self) -> Result<BTreeMap<String, String>> {
        let path = self.env_file.as_deref().unwrap_or(Path::new(ENV_FILE));
        match fs::read_to_string(path) {
            Err(e) if e.kind() == ErrorKind::NotFound && self.env_file.is_none() => {
                Ok(BTreeMap::new())
            }
            text => {
                let text = text.with_context(|| format!("--env-file {}", path.display()))?;
                Ok(crate::env_file::parse(&text))
            }
        }
    }
}
