//! The network configuration: the JSON under `<prefix>/config`, or `net-conf.json`.
//!
//! Keys are matched without regard to case, the last one of several counts, and `null` is as good
//! as absent: so does the Go program read it that other nodes of the same network may run.

mod json;
mod options;
mod pool_rules;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::{BackendType, Dual, Family, SubnetKey};
use json::Members;

/// The network's configuration, every default filled in and every value checked.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConfig {
    /// Per enabled family, where the nodes' subnets come from.
    pub pools: Dual<Pool>,
    /// `EnableNFTables`.
    pub nftables: bool,
    /// `Backend`.
    pub backend: BackendConfig,
    /// Keys that mean nothing to us, to be warned of once. Unknown options of `Backend` are the
    /// backend's to report: see [`BackendConfig::unknown`].
    pub unknown: Vec<String>,
    /// Subnets that contain one of these are never given out: see [`NetConfig::avoiding`].
    pub avoid: Vec<IpNet>,
    /// Networks of this host's interfaces, which no new subnet contains: see [`NetConfig::clear_of`].
    pub connected: Vec<IpNet>,
}

/// One family's network and how it is cut into subnets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// `Network` or `IPv6Network`.
    pub network: IpNet,
    /// `SubnetLen` or `IPv6SubnetLen`.
    pub subnet_len: u8,
    /// `SubnetMin` or `IPv6SubnetMin`: the lowest subnet's address.
    pub min: IpAddr,
    /// `SubnetMax` or `IPv6SubnetMax`: the highest subnet's address.
    pub max: IpAddr,
}

/// `Backend`: its type and its options, not yet given a meaning.
#[derive(Clone, PartialEq)]
pub struct BackendConfig {
    /// `Type`.
    pub kind: BackendType,
    /// The other keys, lower case.
    pub options: BTreeMap<String, Value>,
}

/// A network configuration that cannot be used, and what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a JSON object.
    #[error("the network configuration is not a JSON object: {0}")]
    Json(#[from] serde_json::Error),
    /// A key that must be there is not.
    #[error("{key} is missing: expected {expected}")]
    Missing {
        /// The key; `Backend.Port` for an option.
        key: String,
        /// What it should hold.
        expected: String,
    },
    /// A key holds something that it may not.
    #[error("{key} is {value}: expected {expected}")]
    Value {
        /// The key; `Backend.Port` for an option.
        key: String,
        /// What it holds, as JSON text, shortened.
        value: String,
        /// What it should hold.
        expected: String,
    },
    /// There is no address family left.
    #[error("EnableIPv4 is false and EnableIPv6 is not true: expected at least one of them true")]
    NoFamily,
}

/// Everything that is wrong with a configuration, as far as one fault does not hide another.
#[derive(Debug)]
pub struct ConfigFaults {
    /// What is found first.
    pub first: ConfigError,
    /// What else there is, in order.
    pub others: Vec<ConfigError>,
}

impl ConfigFaults {
    /// All of them.
    pub fn into_all(self) -> impl Iterator<Item = ConfigError> {
        std::iter::once(self.first).chain(self.others)
    }
}

/// Puts a fault on the list.
fn note<T>(faults: &mut Vec<ConfigError>, read: Result<T, ConfigError>) -> Option<T> {
    read.map_err(|fault| faults.push(fault)).ok()
}

/// The names that the keys of one family have.
pub(crate) struct Keys {
    pub(crate) enable: &'static str,
    pub(crate) network: &'static str,
    pub(crate) len: &'static str,
    pub(crate) min: &'static str,
    pub(crate) max: &'static str,
}

pub(crate) const fn keys(family: Family) -> &'static Keys {
    match family {
        Family::V4 => &Keys {
            enable: "EnableIPv4",
            network: "Network",
            len: "SubnetLen",
            min: "SubnetMin",
            max: "SubnetMax",
        },
        Family::V6 => &Keys {
            enable: "EnableIPv6",
            network: "IPv6Network",
            len: "IPv6SubnetLen",
            min: "IPv6SubnetMin",
            max: "IPv6SubnetMax",
        },
    }
}

impl NetConfig {
    /// Every key that it may have, as documents write it.
    pub const KEYS: [&'static str; 12] = {
        let (v4, v6) = (keys(Family::V4), keys(Family::V6));
        [
            v4.enable,
            v6.enable,
            v4.network,
            v4.len,
            v4.min,
            v4.max,
            v6.network,
            v6.len,
            v6.min,
            v6.max,
            "EnableNFTables",
            "Backend",
        ]
    };

    /// Reads the configuration, fills in the defaults and checks every value of the families that
    /// are enabled. The keys of a family that is not enabled are not looked at.
    ///
    /// # Errors
    /// [`ConfigError`], which names the key, its value and what is expected. A backend type that
    /// this version does not know is no error here: the backends know which of them exist.
    pub fn from_json(json: &str) -> Result<NetConfig, ConfigError> {
        NetConfig::check(json).map_err(|faults| faults.first)
    }

    /// The same, but returns every fault: for a program that is about to write it.
    ///
    /// # Errors
    /// [`ConfigFaults`], the one that [`NetConfig::from_json`] would name first.
    pub fn check(json: &str) -> Result<NetConfig, ConfigFaults> {
        NetConfig::read(json, pool_rules::pool).map(|(config, _)| config)
    }

    /// Reads the configuration of a network whose subnets are assigned by somebody else
    /// (Kubernetes' controller manager): `SubnetLen`, `SubnetMin` and `SubnetMax` have no effect
    /// and are not checked, and the network may be of any length. Returns the keys that are set
    /// and have no effect, too.
    ///
    /// # Errors
    /// As [`NetConfig::from_json`].
    pub fn with_assigned_subnets(
        json: &str,
    ) -> Result<(NetConfig, Vec<&'static str>), ConfigError> {
        let read = NetConfig::read(json, pool_rules::whole);
        let (config, members) = read.map_err(|faults| faults.first)?;
        let all = config.families().flat_map(|family| {
            let keys = keys(family);
            [keys.len, keys.min, keys.max]
        });
        let without_effect = all.filter(|key| members.raw(key).is_some()).collect();
        Ok((config, without_effect))
    }

    fn read(
        json: &str,
        pool: fn(Family, &Members, &mut Vec<ConfigError>) -> Option<Pool>,
    ) -> Result<(NetConfig, Members), ConfigFaults> {
        // Editors of Windows write a byte order mark.
        let json = json.strip_prefix('\u{feff}').unwrap_or(json);
        let members: Members = serde_json::from_str(json).map_err(|e| ConfigFaults {
            first: e.into(),
            others: Vec::new(),
        })?;
        let mut faults = Vec::new();
        let mut pools = Dual::default();
        for family in Family::ALL {
            let keys = keys(family);
            let enabled = note(&mut faults, members.bool(keys.enable));
            if enabled.is_some_and(|given| given.unwrap_or(family == Family::V4)) {
                pools.set(family, pool(family, &members, &mut faults));
            }
        }
        if pools.is_empty() && faults.is_empty() {
            faults.push(ConfigError::NoFamily);
        }
        let nftables = note(&mut faults, members.bool("EnableNFTables"));
        let backend = note(&mut faults, BackendConfig::read(&members));
        let mut faults = faults.into_iter();
        match (faults.next(), nftables, backend) {
            (None, Some(nftables), Some(backend)) => {
                let config = NetConfig {
                    pools,
                    nftables: nftables.unwrap_or(false),
                    backend,
                    unknown: members.unknown(&NetConfig::KEYS),
                    avoid: Vec::new(),
                    connected: Vec::new(),
                };
                Ok((config, members))
            }
            (first, ..) => Err(ConfigFaults {
                // A value is only missing together with a reason.
                first: first.unwrap_or(ConfigError::NoFamily),
                others: faults.collect(),
            }),
        }
    }

    /// The same configuration for the families of `key` alone.
    pub fn of_families_in(&self, key: &SubnetKey) -> NetConfig {
        let pool = |family| self.pools.get(family).copied();
        NetConfig {
            pools: Dual::from_fn(|family| key.nets().get(family).and_then(|_| pool(family))),
            ..self.clone()
        }
    }

    /// The enabled families, IPv4 first.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        self.pools.iter().map(|(family, _)| family)
    }

    /// The same configuration, of which no subnet is given out that contains one of `nets`: what this
    /// host must reach past the tunnel.
    pub fn avoiding(&self, nets: &[IpNet]) -> NetConfig {
        NetConfig {
            avoid: nets.to_vec(),
            ..self.clone()
        }
    }

    /// Returns the same configuration, of which no new subnet is given out that contains one of
    /// `connected`, the networks of this host's interfaces. The subnet that the host has already stays
    /// its own: the network of its containers' bridge is among these.
    pub fn clear_of(&self, connected: impl IntoIterator<Item = IpNet>) -> NetConfig {
        NetConfig {
            connected: connected.into_iter().collect(),
            ..self.clone()
        }
    }

    /// Whether a lease of these subnets is one that this configuration could have given: it has
    /// exactly the enabled families, each subnet fits its pool, and none is to be avoided.
    pub fn fits(&self, key: &SubnetKey) -> bool {
        Family::ALL.into_iter().all(|family| {
            match (self.pools.get(family), key.nets().get(family)) {
                (Some(pool), Some(net)) => {
                    pool.fits(net) && !self.avoid.iter().any(|avoid| net.contains(avoid))
                }
                (None, None) => true,
                _ => false,
            }
        })
    }
}

impl Pool {
    /// Whether `net` is one of the pool's subnets: of its length, and from `min` to `max`.
    pub fn fits(&self, net: &IpNet) -> bool {
        let ip = net.network();
        Family::of(&ip) == self.family()
            && net.prefix_len() == self.subnet_len
            && (self.min..=self.max).contains(&ip)
    }

    /// The family of its network.
    pub fn family(&self) -> Family {
        Family::of_net(&self.network)
    }
}

/// Shows the options' names only: some values are secret.
impl fmt::Debug for BackendConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.options.keys().collect();
        f.debug_struct("BackendConfig")
            .field("kind", &self.kind)
            .field("options", &names)
            .finish()
    }
}
