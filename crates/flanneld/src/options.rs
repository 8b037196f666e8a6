//! What the flags mean: checked values, or one message that names the flag, the value and what is
//! expected.

use std::fmt;
use std::fs::Metadata;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use backend::{OFFLOAD_OPTION, TxChecksumOffload};
use model::rules::RuleFlags;
use model::{BackendConfig, Dual, NetConfig};
use regex_lite::Regex;
use tokio::sync::watch;

use crate::flags::Given;
use crate::health::PageFor;
use crate::identity::{Implementation, KeyOptions};
use crate::machine::{Machine, ThisHost};
use crate::traffic::TrafficOptions;
use crate::trial;
use crate::wg_key_file;

/// How long a look at a path may take.
const LOOK: Duration = Duration::from_secs(2);

/// The default of `-probe-port`.
const PROBE_PORT: u16 = 8286;

/// A flag that cannot be used as given. Exit status 2.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct UsageError(String);

/// The settings of a node.
pub struct Options {
    /// Where leases live.
    pub store: StoreChoice,
    /// Which interface to use.
    pub iface: IfaceChoice,
    /// `-public-ip`, `-public-ipv6`.
    pub public_ip: Dual<IpAddr>,
    /// `-subnet-file`.
    pub subnet_file: PathBuf,
    /// `-subnet-lease-renew-margin`.
    pub renew_margin: Duration,
    /// `-ip-masq` and what else concerns packets on their way through this host.
    pub traffic: TrafficOptions,
    /// `-tx-checksum-offload`, which wins over the network configuration.
    pub tx_checksum_offload: Option<String>,
    /// `-wireguard-implementation`, `-wireguard-psk-file` and `-ipsec-psk-file`.
    pub keys: KeyOptions,
    /// `-backend`: a backend that this node tries beside the network's.
    pub trial: Option<BackendConfig>,
    /// `-cni-conf-source` and `-cni-conf-file`, unless off.
    pub cni_conf: Option<CniConf>,
    /// `-charon-vici`, a path.
    pub charon_vici: Option<PathBuf>,
    /// `-probe-port`, unless off.
    pub probe_port: Option<u16>,
    /// Write plain routes even where the kernel has next-hop objects.
    pub plain_routes: bool,
    /// The network configuration, if the store's is not to be used.
    pub network: Option<watch::Receiver<NetConfig>>,
    /// Where the store finds variables.
    pub environment: Environment,
    /// What the node runs on.
    pub machine: Arc<dyn Machine>,
}

/// What the flags say about the process that a node runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessOptions {
    /// `-teardown-on-stop`.
    pub teardown: bool,
    /// `-healthz-ip` and `-healthz-port`, unless off.
    pub healthz: Option<SocketAddr>,
    /// `-health-page`.
    pub health_page: PageFor,
    /// `-v`.
    pub verbosity: u8,
    /// `-log-format json`.
    pub json_logs: bool,
}

/// Where variables are looked up that others use to describe a pod.
#[derive(Clone)]
pub struct Environment(Arc<Lookup>);

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Environment {
    /// Returns an environment that answers as `get` does.
    pub fn new(get: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Environment {
        Environment(Arc::new(get))
    }

    /// Returns an environment without variables.
    pub fn none() -> Environment {
        Environment::new(|_| None)
    }

    /// Returns the environment of this process.
    pub fn process() -> Environment {
        Environment::new(|name| std::env::var(name).ok())
    }

    /// Returns a variable's value.
    pub fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }
}

/// Where leases live.
pub enum StoreChoice {
    /// etcd, as these settings say.
    Etcd(Box<store::EtcdSettings>),
    /// Kubernetes' Nodes, as these settings say; if they do not name this node, the environment does.
    Kube(Box<store::KubeSettings>),
    /// Files below a directory.
    Directory(PathBuf),
}

impl fmt::Display for StoreChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreChoice::Etcd(etcd) => {
                let endpoints = etcd.endpoints.split(',').map(without_user);
                let endpoints: Vec<String> = endpoints.collect();
                write!(f, "etcd {}, prefix {}", endpoints.join(","), etcd.prefix)
            }
            StoreChoice::Kube(_) => f.write_str("Kubernetes"),
            StoreChoice::Directory(dir) => write!(f, "directory {}", dir.display()),
        }
    }
}

/// An address without the user and the password that somebody may have put into it.
fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() {
        host.to_owned()
    } else {
        format!("{scheme}://{host}")
    }
}

/// The CNI configuration that this node's container runtime is to find while the network stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConf {
    /// What it holds.
    pub source: PathBuf,
    /// Where it belongs.
    pub file: PathBuf,
}

/// Which interface carries traffic to the other nodes.
#[derive(Default)]
pub struct IfaceChoice {
    /// `-iface`: names or addresses, in order.
    pub exact: Vec<String>,
    /// `-iface-regex`, in order.
    pub regex: Vec<Regex>,
    /// `-iface-can-reach`.
    pub can_reach: Option<IpAddr>,
}

impl IfaceChoice {
    /// No flag was given: the default route decides.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.regex.is_empty() && self.can_reach.is_none()
    }
}

impl Options {
    /// Gives the flags their meaning.
    ///
    /// # Errors
    /// The first flag that cannot be used as given.
    pub fn from_flags(given: &Given) -> Result<Options, UsageError> {
        let margin = number(
            given,
            "subnet-lease-renew-margin",
            "minutes from 1 to 1439",
            1..=1439,
        )?;
        Ok(Options {
            store: store_choice(given)?,
            iface: iface_choice(given)?,
            public_ip: Dual {
                v4: optional(given, "public-ip", "an IPv4 address")?.map(|ip: Ipv4Addr| ip.into()),
                v6: optional(given, "public-ipv6", "an IPv6 address")?
                    .map(|ip: Ipv6Addr| ip.into()),
            },
            subnet_file: path(given, "subnet-file")?,
            renew_margin: Duration::from_secs(margin * 60),
            traffic: traffic(given)?,
            tx_checksum_offload: tx_checksum_offload(given)?,
            keys: keys(given)?,
            trial: match given.value("backend") {
                "" => None,
                text => match trial::parse(text) {
                    Some(trial) => Some(trial),
                    None => return Err(wrong(given, "backend", trial::EXPECTED)),
                },
            },
            cni_conf: match given.value("cni-conf-source") {
                "" => None,
                source => Some(CniConf {
                    source: source.into(),
                    file: path(given, "cni-conf-file")?,
                }),
            },
            charon_vici: match given.value("charon-vici") {
                "" => None,
                // As strongSwan writes it.
                path => Some(path.strip_prefix("unix://").unwrap_or(path).into()),
            },
            probe_port: match number(given, "probe-port", "a port from 0 to 65535", 0..=65535)? {
                0 => None,
                port => Some(port as u16),
            },
            plain_routes: boolean(given, "plain-routes")?,
            network: None,
            environment: Environment::process(),
            machine: Arc::new(ThisHost),
        })
    }

    /// Returns what `flanneld` does without flags, with the leases in `store` and all files in `directory`.
    pub fn new(store: StoreChoice, directory: &Path) -> Options {
        Options {
            store,
            iface: IfaceChoice::default(),
            public_ip: Dual::default(),
            subnet_file: directory.join("subnet.env"),
            renew_margin: Duration::from_secs(3600),
            traffic: TrafficOptions {
                rules: RuleFlags {
                    masquerade: false,
                    masquerade_ipv6: false,
                    fully_random: true,
                    forward: true,
                },
                resync: Duration::from_secs(5),
                blackhole: false,
                check_sources: false,
            },
            tx_checksum_offload: None,
            keys: KeyOptions {
                key_files: vec![directory.join("wgkey")],
                ..KeyOptions::default()
            },
            trial: None,
            cni_conf: None,
            charon_vici: None,
            probe_port: Some(PROBE_PORT),
            plain_routes: false,
            network: None,
            environment: Environment::none(),
            machine: Arc::new(ThisHost),
        }
    }

    /// Puts into the network configuration what flags of this node say instead.
    pub fn overrule(&self, config: &mut NetConfig) {
        let known = backend::options(&config.backend.kind);
        if let Some(value) = &self.tx_checksum_offload
            && known.contains(&OFFLOAD_OPTION)
        {
            config.backend.set(OFFLOAD_OPTION, value.as_str());
        }
    }
}

impl ProcessOptions {
    /// Gives the flags their meaning.
    ///
    /// # Errors
    /// The first flag that cannot be used as given.
    pub fn from_flags(given: &Given) -> Result<ProcessOptions, UsageError> {
        Ok(ProcessOptions {
            teardown: boolean(given, "teardown-on-stop")?,
            healthz: healthz(given)?,
            health_page: match given.value("health-page") {
                "off" => PageFor::Nobody,
                "local" => PageFor::Local,
                "all" => PageFor::All,
                _ => return Err(wrong(given, "health-page", "off, local or all")),
            },
            verbosity: number(given, "v", "a number from 0 to 255", 0..=255)? as u8,
            json_logs: match given.value("log-format") {
                "text" => false,
                "json" => true,
                _ => return Err(wrong(given, "log-format", "text or json")),
            },
        })
    }
}

fn keys(given: &Given) -> Result<KeyOptions, UsageError> {
    const FLAG: &str = "wireguard-implementation";
    let implementation = Implementation::parse(given.value(FLAG));
    let file = |flag| {
        let path = Some(given.value(flag)).filter(|path| !path.is_empty());
        path.map(PathBuf::from)
    };
    Ok(KeyOptions {
        implementation: implementation
            .ok_or_else(|| wrong(given, FLAG, "auto, kernel or userspace"))?,
        psk_file: file("wireguard-psk-file"),
        ipsec_psk_file: file("ipsec-psk-file"),
        key_files: wg_key_file::own_places(),
    })
}

fn tx_checksum_offload(given: &Given) -> Result<Option<String>, UsageError> {
    const FLAG: &str = "tx-checksum-offload";
    let value = given.value(FLAG);
    match value.is_empty() || TxChecksumOffload::parse(value).is_some() {
        true => Ok(Some(value.to_owned()).filter(|value| !value.is_empty())),
        false => Err(wrong(given, FLAG, TxChecksumOffload::EXPECTED)),
    }
}

fn traffic(given: &Given) -> Result<TrafficOptions, UsageError> {
    // Upstream takes 0 and looks without a pause.
    let resync = number(given, "iptables-resync", "seconds", 0..=u64::from(u32::MAX))?.max(1);
    let masquerade = boolean(given, "ip-masq")?;
    Ok(TrafficOptions {
        rules: RuleFlags {
            masquerade,
            masquerade_ipv6: match given.value("ip-masq-ipv6") {
                "" => masquerade,
                _ => boolean(given, "ip-masq-ipv6")?,
            },
            fully_random: !boolean(given, "ip-masq-fully-random-disable")?,
            forward: boolean(given, "iptables-forward-rules")?,
        },
        resync: Duration::from_secs(resync),
        blackhole: boolean(given, "ip-blackhole-route")?,
        check_sources: boolean(given, "check-tunnel-sources")?,
    })
}

/// Returns what `path` is, unless that cannot be found out within a moment: a file system whose server is gone
/// never answers. The store then reports it.
fn metadata(path: &Path) -> Option<Metadata> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        // Nobody waits any more if this fails.
        drop(sender.send(path.metadata().ok()));
    });
    receiver.recv_timeout(LOOK).ok().flatten()
}

/// Which store the flags name.
///
/// # Errors
/// `-store-dir` names something that is no directory.
pub fn store_choice(given: &Given) -> Result<StoreChoice, UsageError> {
    if boolean(given, "kube-subnet-mgr")? {
        if !given.value("store-dir").is_empty() {
            return Err(UsageError(
                "-kube-subnet-mgr and -store-dir exclude each other: leases are either on Kubernetes' Nodes or in a directory"
                    .into(),
            ));
        }
        return Ok(StoreChoice::Kube(Box::new(store::KubeSettings {
            api_url: given.value("kube-api-url").to_owned(),
            kubeconfig: Some(given.value("kubeconfig-file"))
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            annotation_prefix: given.value("kube-annotation-prefix").to_owned(),
            net_config: path(given, "net-config-path")?,
            set_network_condition: boolean(given, "set-node-network-unavailable")?,
            ..store::KubeSettings::default()
        })));
    }
    boolean(given, "set-node-network-unavailable")?;
    if !given.value("store-dir").is_empty() {
        let path = path(given, "store-dir")?;
        // One that is not there yet is made, or waited for if it is a mount to come.
        return match metadata(&path) {
            Some(found) if !found.is_dir() => Err(wrong(given, "store-dir", "a directory")),
            _ => Ok(StoreChoice::Directory(path)),
        };
    }
    let text = |flag| Some(given.value(flag)).filter(|value| !value.is_empty());
    let settings = store::EtcdSettings {
        endpoints: given.value("etcd-endpoints").to_owned(),
        prefix: given.value("etcd-prefix").to_owned(),
        cafile: text("etcd-cafile").map(PathBuf::from),
        certfile: text("etcd-certfile").map(PathBuf::from),
        keyfile: text("etcd-keyfile").map(PathBuf::from),
        username: text("etcd-username").map(str::to_owned),
        password: text("etcd-password").map(store::Secret::new),
        password_file: text("etcd-password-file").map(PathBuf::from),
        ..store::EtcdSettings::default()
    };
    Ok(StoreChoice::Etcd(Box::new(settings)))
}

fn iface_choice(given: &Given) -> Result<IfaceChoice, UsageError> {
    // As in the environment, an empty value is none: units and charts pass `-iface=` so.
    let values = |flag| {
        given
            .values(flag)
            .into_iter()
            .filter(|value| !value.is_empty())
    };
    let regex = values("iface-regex").map(|pattern| {
        Regex::new(pattern).map_err(|e| {
            UsageError(format!(
                "-iface-regex {pattern}: no regular expression: {e}"
            ))
        })
    });
    Ok(IfaceChoice {
        exact: values("iface").map(str::to_owned).collect(),
        regex: regex.collect::<Result<_, _>>()?,
        can_reach: optional(given, "iface-can-reach", "an IP address")?,
    })
}

fn healthz(given: &Given) -> Result<Option<SocketAddr>, UsageError> {
    let port = number(given, "healthz-port", "a port from 0 to 65535", 0..=65535)? as u16;
    let ip: Option<IpAddr> = optional(given, "healthz-ip", "an IP address")?;
    Ok(ip.filter(|_| port != 0).map(|ip| SocketAddr::new(ip, port)))
}

fn wrong(given: &Given, flag: &'static str, expected: &str) -> UsageError {
    UsageError(format!("{}: expected {expected}", given.spelled(flag)))
}

fn path(given: &Given, flag: &'static str) -> Result<PathBuf, UsageError> {
    match given.value(flag) {
        "" => Err(wrong(given, flag, "a path")),
        path => Ok(path.into()),
    }
}

fn optional<T: std::str::FromStr>(
    given: &Given,
    flag: &'static str,
    expected: &str,
) -> Result<Option<T>, UsageError> {
    match given.value(flag) {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| wrong(given, flag, expected)),
    }
}

fn number(
    given: &Given,
    flag: &'static str,
    expected: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, UsageError> {
    let number = given.value(flag).parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| wrong(given, flag, expected))
}

/// What Go takes for a boolean.
fn boolean(given: &Given, flag: &'static str) -> Result<bool, UsageError> {
    match given.value(flag) {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(wrong(given, flag, "true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<Options, UsageError> {
        let given = crate::flags::parse(args.iter().map(|s| (*s).to_owned()), |_| None).unwrap();
        ProcessOptions::from_flags(&given)?;
        Options::from_flags(&given)
    }

    #[test]
    fn a_program_s_defaults_are_those_of_the_flags() {
        let of_flags = options(&["-store-dir=/a", "-subnet-file=/b/subnet.env"]).unwrap();
        let own = Options::new(StoreChoice::Directory("/a".into()), Path::new("/b"));
        assert_eq!(own.subnet_file, of_flags.subnet_file);
        assert_eq!(own.renew_margin, of_flags.renew_margin);
        assert_eq!(own.traffic, of_flags.traffic);
        assert_eq!(own.tx_checksum_offload, of_flags.tx_checksum_offload);
        assert_eq!(own.keys.implementation, of_flags.keys.implementation);
        assert_eq!(own.keys.key_files, [PathBuf::from("/b/wgkey")]);
        assert_eq!(
            (own.cni_conf, own.plain_routes),
            (of_flags.cni_conf, of_flags.plain_routes)
        );
        assert!(own.iface.is_empty() && own.environment.get("PATH").is_none());
    }

    #[test]
    fn defaults_are_the_contract_s() {
        let o = options(&[]).unwrap();
        let StoreChoice::Etcd(etcd) = &o.store else {
            panic!("no etcd")
        };
        assert_eq!(
            etcd.endpoints,
            "http://127.0.0.1:4001,http://127.0.0.1:2379"
        );
        assert_eq!(etcd.prefix, "/coreos.com/network");
        assert_eq!(o.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!(o.renew_margin, Duration::from_secs(3600));
        let given = crate::flags::parse([], |_| None).unwrap();
        let process = ProcessOptions::from_flags(&given).unwrap();
        assert!(process.healthz.is_none() && !process.teardown);
        let t = o.traffic;
        assert!(!t.rules.masquerade && t.rules.fully_random && t.rules.forward && !t.blackhole);
        assert_eq!(t.resync, Duration::from_secs(5));
    }

    #[test]
    fn masquerading_of_ipv6_follows_ip_masq_unless_it_is_set() {
        for (args, v4, v6) in [
            (&[][..], false, false),
            (&["-ip-masq"], true, true),
            (&["-ip-masq", "-ip-masq-ipv6=false"], true, false),
            (&["-ip-masq-ipv6"], false, true),
        ] {
            let rules = options(args).unwrap().traffic.rules;
            assert_eq!(
                (rules.masquerade, rules.masquerade_ipv6),
                (v4, v6),
                "{args:?}"
            );
        }
        assert!(options(&["-ip-masq-ipv6=maybe"]).is_err());
        let env = |name: &str| (name == "FLANNELD_IP_MASQ_IPV6").then(|| "false".to_owned());
        let given = crate::flags::parse(["-ip-masq".to_owned()], env).unwrap();
        let rules = Options::from_flags(&given).unwrap().traffic.rules;
        assert!(rules.masquerade && !rules.masquerade_ipv6);
    }

    #[test]
    fn kubernetes_takes_its_flags() {
        let o = options(&["-kube-subnet-mgr"]).unwrap();
        let StoreChoice::Kube(kube) = &o.store else {
            panic!("not Kubernetes")
        };
        assert_eq!(kube.annotation_prefix, "flannel.alpha.coreos.com");
        let net_config = PathBuf::from("/etc/kube-flannel/net-conf.json");
        assert_eq!(kube.net_config, net_config);
        assert!(kube.set_network_condition && kube.kubeconfig.is_none());
        assert_eq!(o.cni_conf, None);
        let o = options(&["-cni-conf-source=/a"]).unwrap();
        let file = PathBuf::from("/etc/cni/net.d/10-flannel.conflist");
        assert_eq!(o.cni_conf.map(|conf| conf.file), Some(file));
        assert!(options(&["-kube-subnet-mgr", "-store-dir=/a"]).is_err());
    }

    #[test]
    fn a_refusal_names_flag_value_and_expectation() {
        for (arg, message) in [
            (
                "-subnet-lease-renew-margin=0",
                "-subnet-lease-renew-margin 0: expected minutes from 1 to 1439",
            ),
            (
                "-subnet-lease-renew-margin=1440",
                "-subnet-lease-renew-margin 1440: expected minutes from 1 to 1439",
            ),
            (
                "-public-ip=fd00::1",
                "-public-ip fd00::1: expected an IPv4 address",
            ),
            (
                "-healthz-port=65536",
                "-healthz-port 65536: expected a port from 0 to 65535",
            ),
            (
                "-iface-can-reach=x",
                "-iface-can-reach x: expected an IP address",
            ),
            (
                "-iptables-forward-rules=maybe",
                "-iptables-forward-rules maybe: expected true or false",
            ),
            (
                "-store-dir=/proc/self/status",
                "-store-dir /proc/self/status: expected a directory",
            ),
            (
                "-tx-checksum-offload=of",
                "-tx-checksum-offload of: expected auto, on or off",
            ),
            ("-log-format=xml", "-log-format xml: expected text or json"),
            (
                "-kube-subnet-mgr=perhaps",
                "-kube-subnet-mgr perhaps: expected true or false",
            ),
        ] {
            assert_eq!(options(&[arg]).err().unwrap().to_string(), message);
        }
        assert!(
            options(&["-iface-regex=("])
                .err()
                .unwrap()
                .to_string()
                .starts_with("-iface-regex (: no regular")
        );
    }
}
