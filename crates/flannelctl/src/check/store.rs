//! Where the leases live: each endpoint, the network configuration, the leases.

use std::future::Future;
use std::time::Duration;

use flanneld::options::{Options, StoreChoice};
use model::NetConfig;
use store::{AdminError, Administer, AnyStore, EtcdSettings, ListedLease, Timing};
use tokio::time::timeout;

use super::report::Report;
use crate::config::judge::judge;

const STORE: &str = "store";
const CONFIG: &str = "config";
/// Long enough for a slow etcd, short enough for somebody who waits.
const PATIENCE: Duration = Duration::from_secs(6);

/// What the store holds.
#[derive(Default)]
pub(crate) struct Stored {
    pub(crate) config: Option<NetConfig>,
    pub(crate) leases: Option<Vec<ListedLease>>,
}

/// Asks the store that the options name.
pub(crate) async fn check(report: &mut Report, options: &Options) -> Stored {
    let Some(store) = reach(report, &options.store).await else {
        return Stored::default();
    };
    let config = config(report, options, &store).await;
    let leases = match within(store.leases()).await {
        Ok(leases) => {
            tell_leases(report, &leases, config.as_ref());
            Some(leases)
        }
        Err(why) => {
            let cure = "see docs/operation.md, and the store's own log";
            report.fail(STORE, format!("the leases cannot be read: {why}"), cure);
            None
        }
    };
    Stored { config, leases }
}

async fn within<T>(work: impl Future<Output = Result<T, AdminError>>) -> Result<T, String> {
    match timeout(PATIENCE, work).await {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// The store if it answers.
async fn reach(report: &mut Report, choice: &StoreChoice) -> Option<AnyStore> {
    let store = match choice.open(Timing::default()) {
        Ok(store) => store,
        Err(error) => {
            report.fail(
                STORE,
                error.to_string(),
                "mend the flag or the file that is named",
            );
            return None;
        }
    };
    let endpoints = match choice {
        StoreChoice::Directory(path) => {
            return match path.metadata() {
                Ok(_) => {
                    report.ok(STORE, format!("directory {}", path.display()));
                    Some(store)
                }
                Err(e) => {
                    report.fail(
                        STORE,
                        format!("-store-dir {}: {e}", path.display()),
                        "make or mount the directory",
                    );
                    None
                }
            };
        }
        StoreChoice::Kube(_) => {
            return match within(store.leases()).await {
                Ok(_) => {
                    report.ok(STORE, "the API server shows the Nodes");
                    Some(store)
                }
                Err(why) => {
                    report.fail(STORE, format!("API server: {why}"), cure_of(&why));
                    None
                }
            };
        }
        StoreChoice::Etcd(settings) => each_endpoint(settings),
    };
    let mut silent = Vec::new();
    let mut answers = 0;
    for (endpoint, settings) in endpoints {
        let one = StoreChoice::Etcd(Box::new(settings));
        let asked = match one.open(Timing::default()) {
            Ok(store) => within(store.stored_config()).await.map(drop),
            Err(error) => Err(error.to_string()),
        };
        match asked {
            Ok(()) => {
                answers += 1;
                report.ok(STORE, format!("etcd {endpoint} answers"));
            }
            Err(why) => silent.push((endpoint, why)),
        }
    }
    for (endpoint, why) in silent {
        let text = format!("etcd {endpoint}: {why}");
        if answers > 0 {
            let cure = "the others answer; mend it, or take it out of -etcd-endpoints";
            report.warn(STORE, text, cure);
        } else {
            report.fail(STORE, text, cure_of(&why));
        }
    }
    (answers > 0).then_some(store)
}

fn each_endpoint(settings: &EtcdSettings) -> Vec<(String, EtcdSettings)> {
    let all = settings.endpoints.split(',').map(str::trim);
    let all = all.filter(|endpoint| !endpoint.is_empty());
    let alone = |endpoint: &str| {
        let endpoints = endpoint.to_owned();
        let settings = EtcdSettings {
            endpoints,
            ..settings.clone()
        };
        (endpoint.to_owned(), settings)
    };
    all.map(alone).collect()
}

fn cure_of(why: &str) -> &'static str {
    let lower = why.to_lowercase();
    if lower.contains("tls") || lower.contains("certificate") {
        "certificates: compare authority, names and dates with `openssl x509 -noout -text -in FILE`; \
         a server that speaks no TLS wants http:// in -etcd-endpoints"
    } else if lower.contains("auth") || lower.contains("user") || lower.contains("password") {
        "give -etcd-username and -etcd-password-file of a user who may read and write the prefix"
    } else if lower.contains("refused") {
        "is etcd running there, and listening on that address? (-etcd-endpoints)"
    } else {
        "is the address right (-etcd-endpoints), and its port open in the firewall between?"
    }
}

async fn config(report: &mut Report, options: &Options, store: &AnyStore) -> Option<NetConfig> {
    let place = store.config_place();
    let stored = match within(store.stored_config()).await {
        Ok(Some(stored)) => stored,
        Ok(None) => {
            report.fail(
                CONFIG,
                format!("{place}: there is no network configuration"),
                "flannelctl config set '{\"Network\": \"172.30.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}'",
            );
            return None;
        }
        Err(why) => {
            report.fail(CONFIG, format!("{place}: {why}"), cure_of(&why));
            return None;
        }
    };
    match judge(&String::from_utf8_lossy(&stored.json)) {
        Ok(judged) => {
            for warning in &judged.warnings {
                let cure = "take it out, or mend its spelling (flannelctl config set)";
                report.warn(CONFIG, warning.clone(), cure);
            }
            let networks = judged.config.pools.iter();
            let networks: Vec<String> = networks.map(|(_, p)| p.network.to_string()).collect();
            let kind = &judged.config.backend.kind;
            report.ok(CONFIG, format!("{place}: {}, {kind}", networks.join(", ")));
            let mut config = judged.config;
            options.overrule(&mut config);
            Some(config)
        }
        Err(reasons) => {
            for reason in reasons {
                let cure = "flannelctl config set writes a better one";
                report.fail(CONFIG, format!("{place}: {reason}"), cure);
            }
            None
        }
    }
}

fn tell_leases(report: &mut Report, leases: &[ListedLease], config: Option<&NetConfig>) {
    let mut good = 0;
    for lease in leases {
        match &lease.attrs {
            Err(why) => report.warn(
                STORE,
                format!("lease {}: {why}; the other nodes leave it out", lease.key),
                "delete that key, or restart the flanneld that owns it",
            ),
            Ok(_) if config.is_some_and(|config| !config.fits(&lease.key)) => report.warn(
                STORE,
                format!("lease {} does not fit the network configuration", lease.key),
                "restart its node's flanneld, which then takes another subnet",
            ),
            Ok(_) => good += 1,
        }
    }
    report.ok(STORE, format!("{good} usable leases"));
}
