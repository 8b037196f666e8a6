//! A store on an API server of these tests, and what it reports.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use model::{LeaseAttrs, NetConfig, SubnetKey};
use serde_json::{Value, json};
use store::{Claim, KubeSettings, KubeStore, NodeName, Store, Timing, Who};
use tempfile::TempDir;
use tokio::time::timeout;

use super::api::Api;

/// Long enough for anything that happens at all, also on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

pub const PREFIX: &str = "flannel.alpha.coreos.com/";

/// A daemon's store, and what it has told so far.
pub struct Daemon {
    pub store: KubeStore,
    pub config: NetConfig,
    pub own: Option<SubnetKey>,
    /// The other nodes' subnets and addresses.
    pub peers: BTreeMap<String, String>,
    pub complete: bool,
    pub revoked: Option<String>,
    _dir: TempDir,
}

/// A Node with these subnets, on which flannel runs at `ip` if there is one.
pub fn node(cidrs: &[&str], ip: Option<&str>) -> Value {
    let annotations = match ip {
        Some(ip) => json!({
            format!("{PREFIX}kube-subnet-manager"): "true",
            format!("{PREFIX}backend-type"): "host-gw",
            format!("{PREFIX}backend-data"): "null",
            format!("{PREFIX}public-ip"): ip,
        }),
        None => json!({}),
    };
    json!({
        "metadata": {"annotations": annotations},
        "spec": {"podCIDR": cidrs.first().unwrap_or(&""), "podCIDRs": cidrs},
    })
}

pub fn attrs(ip: &str) -> LeaseAttrs {
    let json = format!(r#"{{"PublicIP":"{ip}","BackendType":"host-gw"}}"#);
    LeaseAttrs::from_json(json.as_bytes()).unwrap()
}

impl Daemon {
    /// Opens a store for Node `n1`; nothing is sent yet.
    pub fn new(url: &str, kubeconfig: Option<&Path>, net_conf: &str) -> Daemon {
        Daemon::open("n1", url, kubeconfig, net_conf)
    }

    /// Opens a store of an IPv4 network for another Node.
    pub fn of(node: &str, api: &Api) -> Daemon {
        Daemon::open(node, &api.url, None, r#"{"Network":"10.244.0.0/16"}"#)
    }

    fn open(node: &str, url: &str, kubeconfig: Option<&Path>, net_conf: &str) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("net-conf.json");
        std::fs::write(&file, net_conf).unwrap();
        let settings = KubeSettings {
            api_url: url.into(),
            kubeconfig: kubeconfig.map(Path::to_owned),
            annotation_prefix: "flannel.alpha.coreos.com".into(),
            net_config: file,
            set_network_condition: true,
            node: NodeName::Given(node.into()),
            timing: Timing::default(),
        };
        Daemon {
            store: KubeStore::new(settings, |_| None).unwrap(),
            config: NetConfig::from_json(r#"{"Network":"10.244.0.0/16"}"#).unwrap(),
            own: None,
            peers: BTreeMap::new(),
            complete: false,
            revoked: None,
            _dir: dir,
        }
    }

    /// A daemon of an IPv4 network that has its subnet; returns its name.
    pub async fn start(api: &Api) -> Daemon {
        let mut daemon = Daemon::new(&api.url, None, r#"{"Network":"10.244.0.0/16"}"#);
        daemon.acquire().await;
        daemon
    }

    /// Reads the configuration and takes the subnet.
    pub async fn acquire(&mut self) -> String {
        let acquired = async {
            self.config = self.store.config().await;
            self.store.own(&self.config, &Who::default()).await;
            let claim = Claim {
                attrs: attrs("192.0.2.1"),
                previous: None,
            };
            self.store.acquire(&self.config, &claim).await.unwrap()
        };
        let lease = timeout(SOON, acquired).await.expect("no subnet");
        self.own = Some(lease.key);
        lease.key.to_string()
    }

    /// What the store waits for, and what it knows of the subnet.
    pub fn store_waits(&self) -> store::StoreStatus {
        self.store.status()
    }

    /// Follows the store until `done`.
    pub async fn until(&mut self, what: &str, mut done: impl FnMut(&Daemon) -> bool) {
        let followed = timeout(SOON, async {
            while !done(self) {
                let step = timeout(Duration::from_millis(50), self.store.next_event());
                let Ok(event) = step.await else { continue };
                self.complete = event.complete;
                self.revoked = event.revoked.or(self.revoked.take());
                for (key, lease) in event.leases {
                    if Some(key) == self.own {
                        continue;
                    }
                    match lease {
                        Some(lease) => {
                            let ip = lease.attrs.public_ip.v4.map(|ip| ip.to_string());
                            self.peers.insert(key.to_string(), ip.unwrap_or_default());
                        }
                        None => drop(self.peers.remove(&key.to_string())),
                    }
                }
            }
        });
        if followed.await.is_err() {
            panic!("not in time: {what}; {:?} {:?}", self.peers, self.revoked);
        }
    }

    /// Follows until the peers are these.
    pub async fn knows(&mut self, peers: &[(&str, &str)]) {
        let wanted = peers.iter().map(|(key, ip)| ((*key).into(), (*ip).into()));
        let wanted: BTreeMap<String, String> = wanted.collect();
        let what = format!("{wanted:?}");
        self.until(&what, |daemon| daemon.complete && daemon.peers == wanted)
            .await;
    }
}
